"""The pages of a PDF file as texts: divided words, filled forms, unreadable fonts; its title."""

import re
import unicodedata
from typing import Any

# Words at the end of a line that go on in the next, and what follows a hyphen that stays.
_DIVIDED = re.compile(r"(?<!\w)(\w*[^\W\d_])[-\u2010][ \t]*\r?\n[ \t]*([^\W\d_]\w*)")
_AFTER_HYPHEN = {"and", "or", "to", "und", "oder", "bis"}  # short- and long-term
_LIGATURES = {code: unicodedata.normalize("NFKC", chr(code)) for code in range(0xFB00, 0xFB07)}
# The names of glyphs, in place of characters, and the categories that no text has many of: control
# characters, private ones and unassigned ones.
_GLYPH = re.compile(r"/[A-Za-z]{0,5}\d{1,5}(?!\w)")
_UNREAD = {"Cc", "Co", "Cn"}
_REPLACEMENT = "\ufffd"
# How the names of files begin and end that programs put in the place of a title.
_PRINTED = ("microsoft word - ", "microsoft powerpoint - ", "microsoft excel - ", "file:/")
_SUFFIXES = (
    *(".doc", ".docx", ".dvi", ".fm", ".indd", ".odt", ".p65", ".pdf", ".pmd", ".ppt", ".pptx"),
    *(".ps", ".qxd", ".rtf", ".tex", ".xls", ".xlsx"),
)
_MOST_UNREAD = 0.1  # largest share of them in a text


def list_pages(reader: Any) -> list[str]:
    """The texts of the pages, with what is filled into their forms.

    A page is empty if its fonts do not tell which characters they show.

    Args:
        reader: of pypdf.
    """
    texts = (page.extract_text() or "" for page in reader.pages)
    readable = ["" if _is_garbled(text) else text for text in texts]
    filled = map(_list_filled, reader.pages)
    return join_words(["\n".join([text, *own]) for text, own in zip(readable, filled, strict=True)])


def read_title(reader: Any) -> str:
    """The title that a PDF file names; empty if that is none, but the name of another file.

    Args:
        reader: of pypdf.
    """
    title = ((reader.metadata.title if reader.metadata else None) or "").strip()
    name = title.lower()
    is_untitled = name.rstrip("0123456789-_ ") in ("untitled", "untitled document")
    is_file = name.startswith(_PRINTED) or name.endswith(_SUFFIXES)
    return "" if is_untitled or is_file else title


def join_words(pages: list[str]) -> list[str]:
    """Pages without the hyphens that divide words at the ends of lines, nor ligatures.

    A hyphen stays before a capital, and in a word that the document has with the hyphen alone.
    """
    pages = [page.translate(_LIGATURES) for page in pages]
    known = {word.lower() for page in pages for word in re.findall(r"\w+(?:-\w+)*", page)}

    def join(match: re.Match[str]) -> str:
        first, second = match.groups()
        if second in _AFTER_HYPHEN:
            return f"{first}- {second}"
        whole, hyphened = first + second, f"{first}-{second}"
        is_hyphened = hyphened.lower() in known and whole.lower() not in known
        return hyphened if is_hyphened or not second[0].islower() else whole

    def join_all(page: str) -> str:
        while (joined := _DIVIDED.sub(join, page)) != page:  # again for words of three lines
            page = joined
        return page

    return [*map(join_all, pages)]


def _is_garbled(text: str) -> bool:
    """Whether a text has codes of a font in place of characters."""
    shown = "".join(text.split())
    unread = sum(unicodedata.category(c) in _UNREAD or c == _REPLACEMENT for c in shown)
    glyphs = sum(map(len, _GLYPH.findall(shown)))
    return unread > _MOST_UNREAD * len(shown) or 2 * glyphs > len(shown)


def _list_filled(page: Any) -> list[str]:
    """The values of the text fields and lists of a page's form."""
    from pypdf.generic import ArrayObject, TextStringObject

    values = []
    for field in _follow(page, "/Annots") or ():
        field = field.get_object()
        if field.get("/Subtype") != "/Widget":
            continue
        for _ in range(8):  # a widget may be one of several of a field, which has the value
            if "/V" in field or "/Parent" not in field:
                break
            field = _follow(field, "/Parent")
        value = _follow(field, "/V")
        chosen = value if isinstance(value, ArrayObject) else [value]
        values += [str(one) for one in chosen if isinstance(one, TextStringObject)]
    return values


def _follow(holder: Any, key: str) -> Any:
    """An entry of a dictionary, or what it refers to; None without one."""
    return holder[key].get_object() if key in holder else None
