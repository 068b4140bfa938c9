"""Documents: text, Markdown, web pages, PDF and Word files, read as paragraphs under headings.

Web pages are read by trafilatura, PDF by pypdf, Word by python-docx and Markdown by markdown-it, of
the extra `documents`. Nothing in a file is run or fetched.
"""

import contextlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rag_jax.data.formats.files import open_data
from rag_jax.data.formats.lines import BadLineError
from rag_jax.data.formats.markdown_text import parse_markdown
from rag_jax.data.formats.outline import Document, Entry, Paragraph, build_document, squeeze
from rag_jax.data.formats.page_encoding import decode_page
from rag_jax.data.formats.page_text import prepare_page
from rag_jax.data.formats.pdf_text import list_pages, read_title
from rag_jax.data.formats.word_text import (
    drop_dangling,
    find_level,
    holds_files,
    is_strict,
    list_beside,
    read_cell,
    read_notes,
    take_title,
    unfold,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, require_file

# Maximum size in bytes: of what is in memory whole, once parsed at many times its size, and of a
# PDF, whose pages are read one by one.
LARGEST, LARGEST_PDF = 32 << 20, 512 << 20
_SCANNED = (
    "has no text: if it is scanned, or its fonts do not tell their characters, a program for text "
    "recognition has to read it first"
)
_OLE = bytes.fromhex("d0cf11e0a1b11ae1")  # of what Word wrote before 2007, and of encrypted files
_EXTRA = "pip install 'rag_jax[documents]'"


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
        try:
            return data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadLineError(
                f"{path}: is not UTF-8 (at byte {error.start}): save it as UTF-8"
            ) from None


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
            paragraphs.append(Paragraph(first, (), squeeze(" ".join(lines))))
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


def read_page(path: Path) -> Document:
    """A web page: its main text, without menus. The place of a paragraph is its number."""
    with parsing(path):
        content = path.read_bytes()
    with _within(path):
        import trafilatura
        from trafilatura.utils import handle_compressed_file

        text = decode_page(handle_compressed_file(content), path)
        if (tree := trafilatura.load_html(text)) is not None:
            prepare_page(tree)
        options = {"include_comments": False, "include_tables": True, "favor_recall": True}
        found = trafilatura.extract(tree, output_format="markdown", **options) or ""
        known = trafilatura.extract_metadata(text)
        document = parse_markdown(found, (known.title if known else "") or "")
    numbered = [Paragraph(n, p.headings, p.text) for n, p in enumerate(document.paragraphs, 1)]
    return Document(document.title, tuple(numbered))


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
            title, pages = read_title(reader), list_pages(reader)
    texts = map(squeeze, pages)
    paragraphs = tuple(Paragraph(n, (), text) for n, text in enumerate(texts, 1))
    return Document(squeeze(title), paragraphs)


def read_word(path: Path) -> Document:
    """A Word file: paragraphs under headings, and a paragraph a row of a table.

    Tracked changes are read as if they were accepted, and hidden texts are not. Text boxes and
    notes follow the paragraph or the table that they belong to.
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
        entries: list[Entry] = []
        levels: dict[str, int] = {}  # by style
        for number, block in enumerate(opened.iter_inner_content(), 1):
            level = None
            if isinstance(block, docx.table.Table):
                texts = [" | ".join(map(read_cell, row.cells)) for row in block.rows]
            else:
                texts, level = [block.text], find_level(block, levels)
            entries += [Entry(number, text, level) for text in texts]
            entries += [Entry(number, text) for text in list_beside(block._element, notes)]
        title, rest = take_title(entry for entry in entries if entry.text.strip())
        title = title or opened.core_properties.title or ""
    return build_document(rest, title)


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
