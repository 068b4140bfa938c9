"""Passages from files, one at a time, whichever format each file is in."""

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.formats import flashrag, jsonl, kilt
from rag_jax.data.formats.collection import Passage
from rag_jax.data.formats.lines import BadLineError, BadLines, Place, read_records
from rag_jax.errors import RagJaxError


def stream_passages(files: Sequence[str | Path], bad: BadLines) -> Iterator[Passage]:
    """The passages of files: JSON lines, a JSON array or a table, any of them as gzip or not.

    Each record has `id` (or `_id`), `text` and, where there is one, `title`, as in BEIR's and DPR's
    files; or is as in FlashRAG's or KILT's. An id may be a whole number. The ids are held in
    memory, for no two may be equal, the texts are not.

    Raises:
        RagJaxError: naming the file, and line, of what cannot be read, or of one bad line too many:
            one without an id or text, with a blank text, or with the id of another passage.
    """
    seen: set[str] = set()
    for path in map(Path, files):
        count = len(seen)
        for place, record in read_records(path, bad):
            try:
                passages = parse_passages(record, place)
                _check_ids(passages, seen, place)
            except BadLineError as error:
                bad.skip(error)
                continue
            seen.update(passage.id for passage in passages)
            yield from passages
        if len(seen) == count:
            raise RagJaxError(f"{path}: holds no passages")


def read_passages(files: Sequence[str | Path], *, bad_lines: int = 0) -> list[Passage]:
    """All passages that `stream_passages` gives, of which so many lines may be bad.

    Raises:
        RagJaxError: as it does.
    """
    return list(stream_passages(files, BadLines(bad_lines, "bad_lines")))


def holds_passages(record: Mapping[str, Any]) -> bool:
    """Whether a record is a passage, or a page of them, rather than a question."""
    return "text" in record or flashrag.matches_passage(record)


def parse_passages(record: Mapping[str, Any], place: Place) -> list[Passage]:
    """The passages of a record.

    Raises:
        BadLineError: it is not as its format has it.
    """
    if kilt.matches_page(record):
        return kilt.parse_passage(record, place)
    if flashrag.matches_passage(record):
        return flashrag.parse_passage(record, place)
    return jsonl.parse_passage(record, place)


def _check_ids(passages: Sequence[Passage], seen: Container[str], place: Place) -> None:
    for passage in passages:
        if passage.id in seen:
            raise BadLineError(f"{place}: another passage has the id {passage.id!r}")
