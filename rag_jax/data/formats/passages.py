"""Passages from files, one at a time, whichever format each file is in."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.formats import flashrag, jsonl, kilt
from rag_jax.data.formats.lines import BadLineError, BadLines, Place, read_records
from rag_jax.data.passages import Passage
from rag_jax.runtime.errors import RagJaxError


def stream_passages(
    files: Sequence[str | Path], bad: BadLines, seen: set[str] | None = None
) -> Iterator[Passage]:
    """The passages of files: JSON lines, a JSON array or a table, any of them as gzip or not.

    Each record has `id` (or `_id`), `text` and, where there is one, `title`, as in BEIR's and DPR's
    files; or is as in FlashRAG's or KILT's. An id may be a whole number. The ids are held in
    memory, for no two may be equal, the texts are not.

    Args:
        seen: takes the ids.

    Raises:
        RagJaxError: naming the file, and line, of what cannot be read, or of one bad line too many:
            one without an id or text, with a blank text, or with the id of another passage.
    """
    seen = set() if seen is None else seen
    for path in map(Path, files):
        count = len(seen)
        yield from parse_records(read_records(path, bad), seen, bad)
        if len(seen) == count:
            raise RagJaxError(f"{path}: holds no passages")


def parse_records(
    records: Iterable[tuple[Place, Mapping[str, Any]]], seen: set[str], bad: BadLines
) -> Iterator[Passage]:
    """The passages of records, whose ids are added to those seen.

    Raises:
        RagJaxError: `bad` says so.
    """
    for place, record in records:
        try:
            passages = _parse_passages(record, place)
            for passage in passages:
                if passage.id in seen:
                    raise BadLineError(f"{place}: another passage has the id {passage.id!r}")
        except BadLineError as error:
            bad.skip(error)
            continue
        seen.update(passage.id for passage in passages)
        yield from passages


def read_passages(files: Sequence[str | Path], *, bad_lines: int = 0) -> list[Passage]:
    """All passages that `stream_passages` gives, of which so many lines may be bad.

    Raises:
        RagJaxError: as it does.
    """
    return list(stream_passages(files, BadLines(bad_lines, "bad_lines")))


def holds_passages(record: Mapping[str, Any]) -> bool:
    """Whether a record is a passage, or a page of them, rather than a question."""
    return "text" in record or flashrag.matches_passage(record)


def _parse_passages(record: Mapping[str, Any], place: Place) -> list[Passage]:
    if kilt.matches_page(record):
        return kilt.parse_passage(record, place)
    if flashrag.matches_passage(record):
        return flashrag.parse_passage(record, place)
    return jsonl.parse_passage(record, place)
