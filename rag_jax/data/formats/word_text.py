"""What python-docx does not read of a Word file: changes, controls, formulas, boxes, titles."""

import io
import itertools
import posixpath
import re
import zipfile
from collections.abc import Iterable, Mapping
from typing import IO, Any

from rag_jax.data.formats.outline import Entry

_NOTES = ("footnote", "endnote")
_STRICT = b"http://purl.oclc.org/ooxml"
_OFFICE = "http://schemas.openxmlformats.org"
_NAMESPACES = {
    "m": f"{_OFFICE}/officeDocument/2006/math",
    "mc": f"{_OFFICE}/markup-compatibility/2006",
    "w": f"{_OFFICE}/wordprocessingml/2006/main",
}
# Characters of the font Symbol from 0x22 and from 0xA2 on, as Adobe's encoding has them. Word's
# codes are 0xF000 higher. A blank stands for what is no character, such as a part of a bracket.
_SYMBOLS = {
    0xF022: "∀#∃%&∋()∗+,−./0123456789:;<=>?",  # noqa: RUF001
    0xF040: "≅ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖ[∴]⊥_",
    0xF061: "αβχδεφγηιϕκλμνοπθρστυϖωξψζ{|}∼",  # noqa: RUF001
    0xF0A2: "′≤⁄∞ƒ♣♦♥♠↔←↑→↓",  # noqa: RUF001
    0xF0B0: "°±″≥×∝∂•÷≠≡≈…  ↵",  # noqa: RUF001
    0xF0C0: "ℵℑℜ℘⊗⊕∅∩∪⊃⊇⊄⊂⊆∈∉∠∇®©™∏√⋅¬∧∨⇔⇐⇑⇒⇓",  # noqa: RUF001
    0xF0E5: "∑",
    0xF0F2: "∫",
}
_SYMBOL = {first + i: char for first, chars in _SYMBOLS.items() for i, char in enumerate(chars)}
_MOST_STYLES = 11  # each based on the next one, as in Word
_TEXT = 10  # in the outline: no heading
_OFF = "(@w:val = '0' or @w:val = 'false' or @w:val = 'off')"  # of a property of a run
_STRUCK_OUT = f"w:r[w:rPr/w:strike[not{_OFF}] or w:rPr/w:dstrike[not{_OFF}]]"
# Word's elements that only enclose others, and those that are not read: what is deleted, moved away
# or hidden, is never filled in, or lists the contents. A merged cell is read at its first place
# alone.
_ENCLOSING = (
    *("w:ins", "w:moveTo", "w:sdt", "w:sdtContent", "w:smartTag", "w:customXml"),
    *("w:fldSimple", "w:dir", "w:bdo", "m:oMathPara"),
)
_UNREAD = (
    *("w:del", "w:moveFrom", "w:tr[w:trPr/w:del]", "w:tc[w:tcPr/w:cellDel]"),
    f"w:r[w:rPr/w:vanish[not{_OFF}]]",
    *("w:sdtPr", "w:sdtEndPr", "w:smartTagPr", "w:customXmlPr", "m:oMathParaPr"),
    "mc:AlternateContent[mc:Choice]/mc:Fallback",  # the same once more, for old programs
    "w:sdt[w:sdtPr/w:showingPlcHdr[not(@w:val) or @w:val = '1' or @w:val = 'true']]",
    "w:sdt[w:sdtPr/w:docPartObj/w:docPartGallery/@w:val = 'Table of Contents']",
    *("w:tc[w:tcPr/w:vMerge[not(@w:val = 'restart')]]", "w:gridSpan"),
)


def read_cell(cell: Any) -> str:
    """The text of a table's cell, with that of the tables in it."""
    import docx

    texts = []
    for block in cell.iter_inner_content():
        if isinstance(block, docx.table.Table):
            texts += [read_cell(one) for row in block.rows for one in row.cells]
        else:
            texts.append(block.text)
    return "\n".join(texts)


def list_beside(element: Any, notes: Mapping[tuple[str, str], str]) -> list[str]:
    """The texts of the text boxes in a paragraph or a table, and of the notes it refers to.

    Args:
        notes: as `read_notes` returns them.
    """
    texts = [paragraph.text for paragraph in _find(element, "w:txbxContent//w:p")]
    for kind in _NOTES:
        texts += [notes.get((kind, id), "") for id in _find(element, f"w:{kind}Reference/@w:id")]
    return texts


def read_notes(part: Any) -> dict[tuple[str, str], str]:
    """The texts of a document's footnotes and endnotes, by kind and id."""
    import docx

    notes = {}
    for relation in part.rels.values():
        for kind in _NOTES:
            if relation.reltype.endswith(f"/{kind}s") and not relation.is_external:
                root = docx.oxml.parse_xml(relation.target_part.blob)
                unfold(root)
                for note in _find(root, f"w:{kind}"):
                    id = note.get(docx.oxml.ns.qn("w:id"))
                    notes[kind, id] = "\n".join(p.text for p in _find(note, "w:p"))
    return notes


def unfold(body: Any) -> None:
    """Puts what is enclosed in the place of what encloses it, where python-docx finds it.

    Of a formula, the symbols are left; of a character with its reading, the character; of a
    character of the font Symbol, the same in Unicode, and of another such font U+FFFD. Blanks stand
    around what is struck out, which joins no word beside it.
    """
    import docx

    for element in _find(body, *_UNREAD):
        element.getparent().remove(element)
    for formula in _find(body, "m:oMath"):
        run = docx.oxml.OxmlElement("w:r")
        run.text = " ".join(_find(formula, "m:t/text()"))
        formula.getparent().replace(formula, run)
    for symbol in _find(body, "w:sym"):
        code = int(symbol.get(docx.oxml.ns.qn("w:char"), "0"), 16)
        is_known = symbol.get(docx.oxml.ns.qn("w:font")) == "Symbol"
        _put_text(symbol, _SYMBOL.get(code | 0xF000, "\ufffd") if is_known else "\ufffd")
    for ruby in _find(body, "w:ruby"):
        _put_text(ruby, "".join(_find(ruby, "w:rubyBase//w:t/text()")))
    for element in _find(body, *_ENCLOSING):
        for child in reversed(element):
            element.addnext(child)
        element.getparent().remove(element)
    _part_struck(body)


def _part_struck(body: Any) -> None:
    """Puts blanks where what is struck out begins and ends, which may be within several runs."""
    import docx

    runs = _find(body, _STRUCK_OUT)
    struck = {*runs}
    for run in runs:
        for is_preceding in (True, False):
            beside = next(run.itersiblings(run.tag, preceding=is_preceding), None)
            if beside not in struck:
                blank = docx.oxml.OxmlElement("w:t")
                blank.text = " "
                run.insert(1 if is_preceding else len(run), blank)  # after the properties


def _put_text(element: Any, text: str) -> None:
    """Puts a text in the place of an element of a run."""
    import docx

    put = docx.oxml.OxmlElement("w:t")
    put.text = text
    element.getparent().replace(element, put)


def find_level(paragraph: Any, known: dict[str, int]) -> int | None:
    """The level of a heading: 0 for a title, 1 to 9 in the outline; None for no heading.

    A paragraph has the level of its style, or one of its own.

    Args:
        known: by the id of a style its level, or `_TEXT`; the paragraph's is added.
    """
    style = paragraph.style  # once: python-docx searches all styles
    id = style.style_id if style else ""
    if id not in known:
        known[id] = _find_style_level(style)
    own = _find_outline(paragraph._element)
    level = known[id] if own is None else own
    return level if level < _TEXT else None


def _find_style_level(style: Any) -> int:
    """The level of Word's own styles of headings, of those based on one, or of the outline's."""
    for _ in range(_MOST_STYLES):
        if style is None:
            break
        if style.name == "Title":
            return 0
        if match := re.fullmatch(r"Heading (\d)", style.name or ""):
            return int(match[1])
        if (level := _find_outline(style.element)) is not None:
            return level
        style = style.base_style
    return _TEXT


def _find_outline(element: Any) -> int | None:
    """The level that a paragraph or style has in the outline by itself; None if it says nothing."""
    found = element.find("w:pPr/w:outlineLvl", _NAMESPACES)
    level = "" if found is None else found.get(f"{{{_NAMESPACES['w']}}}val", "")
    return int(level) + 1 if level.isdecimal() else None


def take_title(entries: Iterable[Entry]) -> tuple[str, list[Entry]]:
    """A document's title, which may have several lines, and the entries without it.

    Later titles, as of chapters, remain among the entries. The title is empty without any.
    """
    own = [*entries]
    before = [*itertools.takewhile(lambda entry: entry.level != 0, own)]
    lines = [*itertools.takewhile(lambda entry: entry.level == 0, own[len(before) :])]
    return " ".join(line.text for line in lines), before + own[len(before) + len(lines) :]


def is_strict(archive: zipfile.ZipFile) -> bool:
    """Whether a Word file is in the strict form of the format, which python-docx does not read."""
    return "_rels/.rels" in archive.namelist() and _STRICT in archive.read("_rels/.rels")


def holds_files(body: Any) -> bool:
    """Whether other files are enclosed, whose texts Word puts in when it saves."""
    return bool(_find(body, "w:altChunk"))


def drop_dangling(archive: zipfile.ZipFile) -> str | IO[bytes]:
    """A Word file without relationships to parts that it does not have, which Word ignores.

    Returns:
        The file's path if it has none, else a copy in memory.
    """
    import docx

    names, changed, copy = {*archive.namelist()}, {}, io.BytesIO()
    for name in (name for name in names if name.endswith(".rels")):
        root = docx.oxml.parse_xml(archive.read(name))
        folder = posixpath.dirname(posixpath.dirname(name))
        inner = [one for one in root if one.get("TargetMode") != "External"]
        for one in inner:
            target = posixpath.normpath(posixpath.join("/", folder, one.get("Target", "")))
            if target.lstrip("/") not in names:
                root.remove(one)
                changed[name] = docx.oxml.xmlchemy.serialize_for_reading(root).encode()
    if not changed:
        return str(archive.filename)
    with zipfile.ZipFile(copy, "w") as out:
        for name in names:
            out.writestr(name, changed.get(name) or archive.read(name))
    copy.seek(0)
    return copy


def _find(element: Any, *paths: str) -> list[Any]:
    """What lies below an element at any of some paths."""
    import lxml.etree

    path = " | ".join(f".//{path}" for path in paths)
    return lxml.etree.XPath(path, namespaces=_NAMESPACES)(element)
