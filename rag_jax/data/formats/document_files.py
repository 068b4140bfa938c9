"""Documents: text, Markdown, web pages, PDF and Word files, read as paragraphs under headings.

Web pages are read by trafilatura, PDF by pypdf, Word by python-docx and Markdown by markdown-it, of
the extra `documents`. Nothing in a file is run or fetched.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rag_jax.data.formats.files import open_data
from rag_jax.data.formats.lines import BadLineError
from rag_jax.data.formats.page_text import enclose_texts, part_blocks
from rag_jax.data.formats.pdf_text import list_pages
from rag_jax.data.formats.word_text import (
    drop_dangling,
    holds_files,
    is_strict,
    list_beside,
    read_cell,
    read_notes,
    unfold,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, require_file

# Maximum size in bytes: of what is in memory whole, once parsed at many times its size, and of a
# PDF, whose pages are read one by one.
LARGEST, LARGEST_PDF = 32 << 20, 512 << 20
# Settings above a Markdown text, in YAML or in TOML.
_SETTINGS = re.compile(
    "|".join(
        rf"{begin}[ \t]*\r?\n(?:(?!{end}[ \t]*(?:\r?\n|\Z)).*\n){{0,200}}?{end}[ \t]*(?:\r?\n|\Z)"
        for begin, end in (("---", r"(?:---|\.\.\.)"), (r"\+\+\+", r"\+\+\+"))
    )
)
_SCANNED = (
    "has no text: if it is scanned, or its fonts do not tell their characters, a program for text "
    "recognition has to read it first"
)
_OLE = bytes.fromhex("d0cf11e0a1b11ae1")  # of what Word wrote before 2007, and of encrypted files
_EXTRA = "pip install 'rag_jax[documents]'"


@dataclass(frozen=True)
class Paragraph:
    """A paragraph of a document.

    Attributes:
        place: where it begins: a line, a page of a PDF, or the number of a paragraph.
        headings: those that it stands under, from the largest to the smallest.
    """

    place: int
    headings: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Document:
    """A document's title, empty if it has none, and its paragraphs."""

    title: str
    paragraphs: tuple[Paragraph, ...]


def is_document(path: Path) -> bool:
    """Whether a file's name is that of a document that can be read."""
    return path.suffix.lower() in READERS


def read_document(path: Path) -> Document:
    """Reads a document.

    Raises:
        BadLineError: the document is damaged, encrypted, too large or without text.
        RagJaxError: it cannot be read, or a library is missing.
    """
    suffix = path.suffix.lower()
    limit = LARGEST_PDF if suffix == ".pdf" else LARGEST
    require_file(path)
    if path.stat().st_size > limit:
        raise BadLineError(f"{path}: has more than {limit >> 20} MiB: divide it")
    document = READERS[suffix](path)
    if not any(paragraph.text for paragraph in document.paragraphs):
        raise BadLineError(f"{path}: {_SCANNED if suffix == '.pdf' else 'has no text'}")
    return document


@contextlib.contextmanager
def _within(path: Path) -> Iterator[None]:
    """Turns what a parser raises into a BadLineError, and a missing library into a RagJaxError."""
    try:
        with parsing(path, "is damaged"):
            yield
    except BadLineError:
        raise
    except RagJaxError as error:
        if isinstance(cause := error.__cause__, ImportError):
            raise RagJaxError(f"{path}: {cause.msg.splitlines()[0]}: {_EXTRA}") from None
        raise BadLineError(str(error)) from None


def _read_text(path: Path) -> str:
    with open_data(path) as file, _within(path):
        data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            raise BadLineError(f"{path}: unpacks to more than {LARGEST >> 20} MiB")
        if b"\0" in data:
            raise BadLineError(f"{path}: holds zero bytes, as UTF-16 does: save it as UTF-8")
        return data.decode("utf-8-sig")


def read_plain(path: Path) -> Document:
    """A text file, whose paragraphs are divided by blank lines."""
    split = re.split(r"\r\n|\r|\n", _read_text(path))
    if _is_json(next(filter(str.strip, split), "")):
        raise BadLineError(f"{path}: holds JSON: let its name end in .jsonl, or move it away")
    paragraphs, lines, first = [], [], 1
    for number, line in enumerate([*split, ""], 1):
        if line.strip():
            first = first if lines else number
            lines.append(line)
        elif lines:
            paragraphs.append(Paragraph(first, (), _squeeze(" ".join(lines))))
            lines = []
    return Document("", tuple(paragraphs))


def _is_json(line: str) -> bool:
    """Whether a line is a JSON object, as in DrQA's files, or an array that begins with one."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value[0] if isinstance(value, list) and value else value, dict)


def read_markdown(path: Path) -> Document:
    """A Markdown file: CommonMark with tables."""
    text = _read_text(path)
    with _within(path):
        return parse_markdown(text)


def parse_markdown(text: str) -> Document:
    """The paragraphs of a Markdown text without its marks; a table has one a row.

    A first heading that stands alone on its level above all others is the title.
    """
    from markdown_it import MarkdownIt

    paragraphs: list[Paragraph] = []
    headings: dict[int, str] = {}
    levels: list[tuple[int, str]] = []
    cells: list[str] = []
    tokens = MarkdownIt("commonmark").enable("table").parse(_cut_front_matter(text))
    for token, before in zip(tokens, [None, *tokens], strict=False):
        place = token.map[0] + 1 if token.map else 0
        under = tuple(headings.values())
        if token.type == "inline" and before.type == "heading_open":
            levels.append((int(before.tag[1:]), _flatten(token)))
            headings = _put_under(headings, *levels[-1])
        elif token.type == "inline" and before.type in ("th_open", "td_open"):
            cells.append(_flatten(token))
        elif token.type == "tr_open":
            cells, row = [], place
        elif token.type == "tr_close":
            paragraphs.append(Paragraph(row, under, " | ".join(cells)))
        elif token.type == "inline":
            paragraphs.append(Paragraph(place, under, _flatten(token)))
        elif token.type in ("fence", "code_block"):
            paragraphs.append(Paragraph(place, under, _squeeze(token.content)))
        elif token.type == "html_block":
            paragraphs.append(Paragraph(place, under, _strip_tags(token.content)))
    return Document(_find_title(levels), tuple(p for p in paragraphs if p.text))


def _put_under(headings: Mapping[int, str], level: int, text: str) -> dict[int, str]:
    """The headings by their levels, rising, that stand above what follows a further one."""
    return {n: own for n, own in headings.items() if n < level} | {level: text}


def _squeeze(text: str) -> str:
    """A text with single spaces, and without marks of where a word may be divided."""
    return " ".join(re.sub(r"\u00ad\s*", "", text).split())


def _cut_front_matter(text: str) -> str:
    """A text with the lines of settings that stand above it left blank.

    They are between `---` and `---` or `...`, or between two `+++`.
    """
    match = _SETTINGS.match(text)
    return "\n" * match[0].count("\n") + text[match.end() :] if match else text


def _flatten(token: Any) -> str:
    """The words of a token's content, without scripts and styles."""
    parts, start = [], None
    for child in token.children:
        tag = child.type == "html_inline" and re.match(r"</?\w+", child.content.lower())
        if child.type in ("softbreak", "hardbreak") or (tag and tag[0] == "<br"):
            parts.append(" ")
        elif child.type in ("text", "code_inline", "image"):
            parts.append(child.content)
        elif tag and tag[0] in ("<script", "<style"):
            start = len(parts)
        elif tag and tag[0] in ("</script", "</style") and start is not None:
            del parts[start:]
            start = None
    return _squeeze("".join(parts))


def _strip_tags(text: str) -> str:
    """The words of a piece of HTML, without scripts and styles."""
    import lxml.etree
    import lxml.html

    parser = lxml.html.HTMLParser(remove_comments=True, remove_pis=True)
    try:
        tree = lxml.html.fragment_fromstring(text, create_parent="div", parser=parser)
    except lxml.etree.ParserError:  # nothing but a comment
        return ""
    for element in tree.iter("script", "style"):
        element.text = None
    part_blocks(tree)
    return _squeeze(tree.text_content())


def _find_title(levels: list[tuple[int, str]]) -> str:
    """The first heading, if no other is as large."""
    if levels and all(level > levels[0][0] for level, _ in levels[1:]):
        return levels[0][1]
    return ""


def read_page(path: Path) -> Document:
    """A web page: its main text, without menus. The place of a paragraph is its number."""
    with parsing(path):
        content = path.read_bytes()  # the encoding is the page's own matter
    with _within(path):
        import trafilatura

        if (tree := trafilatura.load_html(content)) is not None:
            enclose_texts(tree)
        options = {"include_comments": False, "include_tables": True, "favor_recall": True}
        found = trafilatura.extract(tree, output_format="markdown", **options) or ""
        document = parse_markdown(found)
        known = trafilatura.extract_metadata(content)
    title = (known.title if known else "") or document.title
    numbered = [Paragraph(n, p.headings, p.text) for n, p in enumerate(document.paragraphs, 1)]
    return Document(title or "", tuple(numbered))


def read_pdf(path: Path) -> Document:
    """A PDF file, of which each page is a paragraph."""
    with _within(path):
        import pypdf

        with open(path, "rb") as file:
            try:
                reader = pypdf.PdfReader(file)
                # A file may be encrypted for the sake of its permissions, with an empty password.
                if reader.is_encrypted and not reader.decrypt(""):
                    raise BadLineError(f"{path}: is encrypted: save it without a password")
            except pypdf.errors.DependencyError as error:
                raise ImportError(str(error)) from None
            title = (reader.metadata.title if reader.metadata else None) or ""
            pages = list_pages(reader)
    texts = map(_squeeze, pages)
    paragraphs = tuple(Paragraph(n, (), text) for n, text in enumerate(texts, 1))
    return Document(_squeeze(title), paragraphs)


def read_word(path: Path) -> Document:
    """A Word file: paragraphs under headings, and a paragraph a row of a table.

    Tracked changes are read as if they were accepted. Text boxes and notes follow the paragraph or
    the table that they belong to.
    """
    with _within(path):
        import docx

        with open(path, "rb") as file:
            if file.read(8) == _OLE:
                raise BadLineError(f"{path}: is encrypted, or an old .doc: save it as .docx")
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > 8 * LARGEST:
                raise BadLineError(f"{path}: unpacks to more than {8 * LARGEST >> 20} MiB")
            if is_strict(archive):
                raise BadLineError(f"{path}: is Strict Open XML: save it as Word Document (.docx)")
            opened = docx.Document(drop_dangling(archive))
        if holds_files(opened.element.body):
            raise BadLineError(f"{path}: holds another file: open it with Word, and save it")
        unfold(opened.element.body)
        notes = read_notes(opened.part)
        title, headings, paragraphs = opened.core_properties.title or "", {}, []
        for number, block in enumerate(opened.iter_inner_content(), 1):
            if isinstance(block, docx.table.Table):
                texts = [" | ".join(map(read_cell, row.cells)) for row in block.rows]
                style = ""
            else:
                found = block.style  # once: python-docx searches all styles
                texts, style = [block.text], found.name if found else ""
            if style == "Title":
                title, texts = block.text, []
            elif level := re.fullmatch(r"Heading (\d)", style):
                headings = _put_under(headings, int(level[1]), _squeeze(block.text))
                texts = []
            texts += list_beside(block._element, notes)
            under = tuple(headings.values())
            paragraphs += [Paragraph(number, under, _squeeze(text)) for text in texts]
    return Document(_squeeze(title), tuple(p for p in paragraphs if p.text))


# By the suffix of a file's name.
READERS: dict[str, Callable[[Path], Document]] = {
    ".txt": read_plain,
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".html": read_page,
    ".htm": read_page,
    ".pdf": read_pdf,
    ".docx": read_word,
}
# What the places of each count.
PLACES = {
    ".txt": "line",
    ".md": "line",
    ".markdown": "line",
    ".html": "paragraph",
    ".htm": "paragraph",
    ".pdf": "page",
    ".docx": "paragraph",
}
