"""Documents as passages: cut at the ends of sentences and at headings, ids that name places."""

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from rag_jax.data.formats.document_files import (
    PLACES,
    Document,
    Paragraph,
    is_document,
    read_document,
)
from rag_jax.data.formats.ledger import Ledger
from rag_jax.data.formats.lines import BadLineError, BadLines
from rag_jax.data.passages import Passage
from rag_jax.data.sentences import list_sentences
from rag_jax.data.words import count_words, cut_words
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import check_names
from rag_jax.runtime.progress import show_progress

DOCUMENT = "document"  # the format of such files
# What ends a sentence of Chinese or Japanese, after which no space stands.
_UNSPACED = tuple("\u3002\uff01\uff1f\uff61\u300d\u300f")
# The name of a file about a folder of data, which is no part of the data.
_ABOUT = re.compile(
    r"(readme|licen[cs]e|changelog|contributing)([._-].*)?|requirements([._-].*)?\.txt",
    re.IGNORECASE,
)
_ID = re.compile(r"(.+)#([0-9]+)(?:\.[0-9]+)?", re.DOTALL)


class Place(NamedTuple):
    """Where a passage of a document begins: the document's file, and `page 3` of it."""

    file: str
    place: str


def find_place(id: str) -> Place | None:
    """The place that a passage's id names, as `cut_document` makes it; None for other ids."""
    match = _ID.fullmatch(id)
    unit = PLACES.get(Path(match[1]).suffix.lower()) if match else None
    return Place(match[1], f"{unit} {match[2]}") if unit else None


def list_documents(folder: Path) -> list[Path]:
    """The documents in a folder and in its folders, sorted; hidden ones are left out.

    So are the files that Word keeps beside an open document, `~$...`, and work folders of runs,
    whose reports are pages. Links to folders are not followed.

    Raises:
        RagJaxError: a folder cannot be read, or a document's name is not UTF-8.
    """
    found = []
    for place, folders, names in os.walk(folder, onerror=_refuse_unread):
        folders[:] = [
            name for name in folders if not name.startswith(".") and not _is_run(Path(place, name))
        ]
        paths = [Path(place, name) for name in names if not name.startswith((".", "~$"))]
        found += [path for path in paths if is_document(path)]
    check_names(found)
    return sorted(found)


def _is_run(folder: Path) -> bool:
    """Whether a folder holds the results of a run."""
    return all((folder / name).is_file() for name in ("report.json", "report.html"))


def _refuse_unread(error: OSError) -> None:
    raise RagJaxError(f"{error.filename}: cannot be read ({error.strerror})") from None


def is_about_data(path: Path) -> bool:
    """Whether a file's name is that of one about a folder of data, such as README.md."""
    return _ABOUT.fullmatch(path.name) is not None


def stream_documents(
    folder: Path,
    paths: Sequence[Path],
    *,
    words: int,
    bad: BadLines,
    seen: set[str],
    ledger: Ledger,
) -> Iterator[Passage]:
    """Yields the passages of documents, each of at most `words` words.

    A document that cannot be read counts as a bad line. One with the text of an earlier one is left
    out, and said, and so are the pages of a PDF without text.

    Args:
        folder: to which the ids' paths are relative.
        seen: ids of earlier passages, to which those of these are added.

    Raises:
        RagJaxError: there are too many documents that cannot be read, or a library is missing.
    """
    digests: dict[bytes, Path] = {}
    with show_progress("documents", len(paths), unit="documents") as bar:
        for path in paths:
            account = ledger.open(path, DOCUMENT)
            with ledger.counted(account, bad), bad:
                document = read_document(path)
                text = "\n".join(paragraph.text for paragraph in document.paragraphs)
                digest = hashlib.blake2b(text.encode(errors="replace"), digest_size=16).digest()
                first = digests.setdefault(digest, path)
                if first != path:
                    account.left_out[f"has the text of {first.name}"] = 0
                    bar.update()
                    continue
                if empty := sum(not paragraph.text for paragraph in document.paragraphs):
                    account.left_out["pages without text"] = empty
                name = path.relative_to(folder).as_posix()
                for passage in cut_document(document, name, words):
                    if passage.id in seen:
                        raise BadLineError(f"{path}: another passage has the id {passage.id!r}")
                    seen.add(passage.id)
                    account.read += 1
                    yield passage
            bar.update()


class _Part(NamedTuple):
    """A piece of a section that may be joined with others."""

    place: int
    headings: tuple[str, ...]
    text: str
    words: int


def cut_document(document: Document, name: str, words: int) -> Iterator[Passage]:
    """Cuts a document into passages.

    A passage has whole sentences, as many as fit; a sentence that is longer than a passage is cut
    at words. It ends at a heading once it is half full. Its title is the document's, or the file's
    name, and the headings that all of it stands under; further headings stand before their texts.
    Its id is `NAME#PLACE` of its beginning, with a number for all but the first that begins there:
    `a.pdf#3` and `a.pdf#3.2` on the third page.

    Args:
        words: the most words of a passage; see `count_words`.
    """
    own, taken = document.title or Path(name).stem, Counter[int]()
    for parts in _join(document.paragraphs, words, own):
        place = parts[0].place
        taken[place] += 1
        id = f"{name}#{place}" + (f".{taken[place]}" if taken[place] > 1 else "")
        shared = _find_shared([part.headings for part in parts])
        texts = [": ".join([*part.headings[len(shared) :], part.text]) for part in parts]
        yield Passage(id, ": ".join(dict.fromkeys([own, *shared])), " ".join(texts))


def _find_shared(headings: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The headings that all begin with."""
    same = itertools.takewhile(lambda own: len({*own}) == 1, zip(*headings, strict=False))
    return tuple(own[0] for own in same)


def _join(paragraphs: Iterable[Paragraph], words: int, title: str) -> Iterator[list[_Part]]:
    """The parts of each passage."""
    parts: list[_Part] = []
    size = 0
    for part in _list_parts(paragraphs, words, title):
        begins = not parts or part.headings != parts[-1].headings
        # At most all of the headings stand before the text.
        above = count_words(" ".join(part.headings))
        more = part.words + begins * above
        if parts and (size + more > words or (begins and 2 * size >= words)):
            yield parts
            parts, size, begins = [], 0, True
        if begins:
            parts.append(part)
        else:
            last = parts[-1].text
            space = "" if last.endswith(_UNSPACED) else " "
            parts[-1] = parts[-1]._replace(text=f"{last}{space}{part.text}")
        size += part.words + begins * above
    if parts:
        yield parts


def _list_parts(paragraphs: Iterable[Paragraph], words: int, title: str) -> Iterator[_Part]:
    """Sentences, cut where they are too long, with the headings that fill at most half a passage.

    Further headings are sentences themselves, once, before the first text that stands under them;
    but not the title, which stands above every passage.
    """
    before: tuple[str, ...] = ()
    for paragraph in paragraphs:
        if not paragraph.text.strip():
            continue
        headings = kept = paragraph.headings
        while 2 * count_words(" ".join(kept)) > words:
            kept = kept[:-1]
        room = words - count_words(" ".join(kept))
        known = max(len(kept), len(_find_shared([before, headings])))
        told = [f"{heading}:" for heading in headings[known:] if heading != title]
        before = headings
        for sentence in [*told, *list_sentences(paragraph.text)]:
            for piece in cut_words(sentence, room):
                yield _Part(paragraph.place, kept, piece, count_words(piece))
