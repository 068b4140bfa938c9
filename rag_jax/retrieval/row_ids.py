"""Ids of the rows of an index: distinct strings, kept as JSON."""

import json
from collections.abc import Sequence
from pathlib import Path

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.outside import parsing, show

_LARGEST = 4 << 30  # bytes


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """Writes ids as ASCII, because they may hold half a surrogate pair, which UTF-8 cannot have."""
    path.write_text(json.dumps(ids), "ascii")


def read_ids(path: Path, size: int) -> tuple[str, ...]:
    """Reads ids that `write_ids` wrote.

    Raises:
        RagJaxError: the file is missing or damaged, or the ids are not `size` distinct strings.
    """
    with parsing(path):
        ids = read_json(path, largest=_LARGEST)
        if not isinstance(ids, list):
            raise TypeError("it must hold a list")
        return check_ids(ids, size)


def check_ids(ids: Sequence[str], size: int) -> tuple[str, ...]:
    """The ids as a tuple.

    Raises:
        RagJaxError: they are not `size` distinct strings.
    """
    if isinstance(ids, str):
        raise RagJaxError("ids are one string: pass a list of them")
    if len(ids) != size:
        raise RagJaxError(f"ids are {len(ids)} for {size} embeddings: pass one id per embedding")
    known: set[str] = set()
    for i, id in enumerate(ids):
        if not isinstance(id, str):
            raise RagJaxError(f"ids: entry {i} is {show(id)}, not a string")
        if id in known:
            raise RagJaxError(f"ids: {id!r} is not unique")
        known.add(id)
    return tuple(ids)
