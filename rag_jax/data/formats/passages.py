"""Streams of passages from files in any of the formats for passages."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.config import DataConfig
from rag_jax.data.formats import fever, flashrag, hugging_face, jsonl, kilt
from rag_jax.data.formats.document_files import is_document
from rag_jax.data.formats.documents import is_about_data, list_documents, stream_documents
from rag_jax.data.formats.files import SUFFIXES, find_suffix, list_others
from rag_jax.data.formats.ledger import Ledger
from rag_jax.data.formats.lines import BadLineError, BadLines, Place
from rag_jax.data.formats.records import read_records
from rag_jax.data.passages import Passage
from rag_jax.runtime.errors import RagJaxError


def stream_passages(
    files: Sequence[str | Path],
    bad: BadLines,
    seen: set[str] | None = None,
    *,
    words: int = DataConfig.passage_words,
) -> Iterator[Passage]:
    """Yields the passages of files, of saved datasets, and of folders of documents.

    A file contains records as in `read_records`, plain or compressed, and so does a folder that
    `save_to_disk` of Hugging Face's `datasets` wrote. A record has `id` (or
    `_id`), `text` and optionally `title`, as in the files of BEIR and DPR, or the fields of
    FEVER, FlashRAG or KILT; see `jsonl` for passages without a text. An id may be an integer. Only
    the ids are kept in memory, to find duplicates.

    Args:
        bad: counter of bad lines. A line is bad without an id, without text and title, or with the
            id of an earlier passage.
        seen: set that collects the ids; None creates a new set.
        words: the most words of a passage of a document; see `stream_documents`.

    Raises:
        RagJaxError: if a file cannot be read or has no passages, or there are too many bad lines.
    """
    seen = set() if seen is None else seen
    for path in map(Path, files):
        count = len(seen)
        if splits := hugging_face.list_splits(path):
            for split in splits:
                yield from parse_records(read_records(split, bad), seen, bad)
        elif path.is_dir() or is_document(path):
            yield from _stream_documents(path, bad, seen, words)
        else:
            yield from parse_records(read_records(path, bad), seen, bad)
        if len(seen) == count:
            raise RagJaxError(f"{path}: holds no passages")


def _stream_documents(path: Path, bad: BadLines, seen: set[str], words: int) -> Iterator[Passage]:
    """Yields the passages of a document, or of the documents in a folder, and logs each file."""
    folder, paths, ledger = path.parent, [path], Ledger()
    if path.is_dir():
        folder, paths = path, list_documents(path)
        others = list(list_others(path, paths))
        has_data = any(find_suffix(other) in SUFFIXES for other in others)
        if has_data and all(one.parent == path and is_about_data(one) for one in paths):
            raise RagJaxError(f"{path}: is a folder of data: give the file of its passages")
        for other in others:
            reason = "is a folder without documents" if other.is_dir() else "is no document"
            ledger.leave_out(other, reason)
    yield from stream_documents(folder, paths, words=words, bad=bad, seen=seen, ledger=ledger)
    ledger.close()


def parse_records(
    records: Iterable[tuple[Place, Mapping[str, Any]]], seen: set[str], bad: BadLines
) -> Iterator[Passage]:
    """Yields the passages of records; their ids are added to those of earlier passages (`seen`).

    Raises:
        RagJaxError: if there are too many bad lines.
    """
    for place, record in records:
        with bad:
            passages = _parse_passages(record, place)
            for passage in passages:
                if passage.id in seen:
                    raise BadLineError(f"{place}: another passage has the id {passage.id!r}")
            seen.update(passage.id for passage in passages)
            yield from passages


def read_passages(
    files: Sequence[str | Path],
    *,
    bad_lines: int = 0,
    words: int = DataConfig.passage_words,
) -> list[Passage]:
    """Reads the passages of files into memory, and skips at most `bad_lines` bad lines.

    Raises:
        RagJaxError: if a file cannot be read or has no passages, or there are too many bad lines.
    """
    return list(stream_passages(files, BadLines(bad_lines, "bad_lines"), words=words))


def holds_passages(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a passage or a page of passages, not a question."""
    is_text = "text" in record and not jsonl.names_answer(record)
    return is_text or flashrag.matches_passage(record)


def _parse_passages(record: Mapping[str, Any], place: Place) -> list[Passage]:
    if kilt.matches_page(record):
        return kilt.parse_passage(record, place)
    if fever.matches_page(record):
        return fever.parse_page(record, place)
    if flashrag.matches_passage(record):
        return flashrag.parse_passage(record, place)
    return jsonl.parse_passage(record, place)
