"""Documents as passages: cut at the ends of sentences and at headings, ids that name places."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from rag_jax.data.formats.document_files import (
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
from rag_jax.runtime.progress import show_progress

DOCUMENT = "document"  # the format of such files


def list_documents(folder: Path) -> list[Path]:
    """The documents in a folder and in its folders, sorted; hidden ones are left out.

    Links to folders are not followed.
    """
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [Path(place, name) for name in names if not name.startswith(".")]
        found += [path for path in paths if is_document(path)]
    return sorted(found)


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
    out, and said.

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
                name = path.relative_to(folder).as_posix()
                for passage in cut_document(document, name, words):
                    if passage.id in seen:
                        raise BadLineError(f"{path}: another passage has the id {passage.id!r}")
                    seen.add(passage.id)
                    account.read += 1
                    yield passage
            bar.update()


def cut_document(document: Document, name: str, words: int) -> Iterator[Passage]:
    """Cuts a document into passages.

    A passage has whole sentences, as many as fit, all under the same headings; a sentence that is
    longer than a passage is cut at words. Its id is `NAME#PLACE` of its beginning, with a number
    for all but the first that begins there: `a.pdf#3` and `a.pdf#3.2` on the third page. Its title
    is the document's, or the file's name, and the headings that it stands under.

    Args:
        words: the most words of a passage; see `count_words`.
    """
    taken: dict[int, int] = {}
    for place, headings, text in _join(document.paragraphs, words):
        number = taken[place] = taken.get(place, 0) + 1
        id = f"{name}#{place}" + (f".{number}" if number > 1 else "")
        own = document.title or Path(name).stem
        title = ": ".join(dict.fromkeys([own, *headings]))
        yield Passage(id, title, text)


def _join(
    paragraphs: Iterable[Paragraph], words: int
) -> Iterator[tuple[int, tuple[str, ...], str]]:
    """Places, headings and texts of passages."""
    place, headings, parts, size = 0, (), [], 0
    for paragraph in paragraphs:
        for sentence in list_sentences(paragraph.text):
            for piece in cut_words(sentence, words):
                count = count_words(piece)
                if parts and (size + count > words or paragraph.headings != headings):
                    yield place, headings, " ".join(parts)
                    parts, size = [], 0
                if not parts:
                    place, headings = paragraph.place, paragraph.headings
                parts.append(piece)
                size += count
    if parts:
        yield place, headings, " ".join(parts)
