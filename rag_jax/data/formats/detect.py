"""Detection of what a file holds, and in which format, from its name and its first record."""

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.formats import (
    arc,
    asqa,
    cwq,
    dpr,
    fever,
    flashrag,
    jsonl,
    kilt,
    msmarco,
    multihop,
    popqa,
    pubhealth,
    ragas,
    squad,
    strategyqa,
    triviaqa,
    webquestions,
)
from rag_jax.data.formats.files import find_stem
from rag_jax.data.formats.lines import BadLines
from rag_jax.data.formats.passages import holds_passages
from rag_jax.data.formats.records import read_records
from rag_jax.data.formats.tables import is_table, read_heading
from rag_jax.runtime.errors import RagJaxError

PASSAGES = "passages"  # the format of files without questions
NONE = "holds no questions; launch/write_questions.py has a language model write some"
_EMPTY = "is empty: download the file again, or move it away"

# In the order of detection: formats with distinctive fields first, the most general format last.
# `matches(record)` tells whether a record has the fields of a format. `parse(record, place)` gives
# an `Item`, or None for a record that the format leaves out, for the reason `LEFT_OUT`.
RECORDS = {
    "kilt": kilt,
    "flashrag": flashrag,
    "ragas": ragas,
    "pubhealth": pubhealth,
    "fever": fever,
    "msmarco": msmarco,
    "asqa": asqa,
    "webquestions": webquestions,
    "cwq": cwq,
    "strategyqa": strategyqa,
    "popqa": popqa,
    "arc": arc,
    "multihop": multihop,
    "dpr": dpr,
    "squad": squad,
    "triviaqa": triviaqa,
    "jsonl": jsonl,
}
# A word of the name of a file of queries, whose texts are no passages.
_QUERIES = re.compile(r"(?<![a-z])(quer(y|ies)|questions?)(?![a-z])", re.IGNORECASE)
# Formats of whole documents. `holds(path)` tells whether a file is such a document.
DOCUMENTS = {"squad": squad, "triviaqa": triviaqa, "asqa": asqa, "msmarco": msmarco}


def sort_files(
    folder: Path, files: Sequence[Path], format: str
) -> tuple[list[Path], dict[Path, str], dict[Path, str]]:
    """Sorts files by content.

    Args:
        format: of the questions; "auto" for the format that the files have.

    Returns:
        the files of passages, the files of questions with their formats, and the files that are
        not to be read with the reasons.

    Raises:
        RagJaxError: if there are no questions, or a file's format is unknown or leaves a choice.
    """
    formats = {path: find_named_format(path) for path in files}
    corpus = [path for path, name in formats.items() if name == PASSAGES]
    others = {path: name for path, name in formats.items() if name != PASSAGES}
    named = {path: name for path, name in others.items() if is_named(path, "questions")}
    questions = named or others
    reason = "questions are read from the files named `...questions`"
    left_out = {path: reason for path in others if path not in questions}
    unknown = [path for path, name in others.items() if name is None]
    if format != "auto":
        reason = f"is not in the format {format!r} (config.data.format)"
        left_out |= {path: reason for path, name in questions.items() if name not in (format, None)}
        unknown = [path for path in unknown if path not in questions]
        questions = {path: format for path, name in questions.items() if name in (format, None)}
        if not questions:
            listed = ", ".join(f"{path.name}: {name}" for path, name in others.items())
            raise RagJaxError(
                f"{folder}: holds no questions in the format {format!r} of config.data.format "
                f"({listed})"
            )
    if unknown:
        raise RagJaxError(
            f"{unknown[0]}: has an unknown format: move the file away, or set config.data.format "
            f"to one of {', '.join(dict.fromkeys([*RECORDS, *DOCUMENTS]))}"
        )
    if len({*questions.values()}) > 1:
        listed = ", ".join(f"{path.name}: {name}" for path, name in questions.items())
        raise RagJaxError(
            f"{folder}: holds questions in several formats ({listed}): set config.data.format to "
            "one of them"
        )
    if not questions:
        raise RagJaxError(f"{folder}: {NONE}")
    return corpus, questions, left_out


def is_named(path: Path, *words: str) -> bool:
    """Whether a data file's name ends in one of the words, such as "passages"."""
    return find_stem(path).lower().endswith(words)


def find_named_format(path: Path) -> str | None:
    """Returns the format that a file's name or content tells; None if the format is unknown.

    Raises:
        RagJaxError: if the file cannot be read, or is empty.
    """
    found = _find_format(path)
    if is_named(path, "passages", "corpus"):
        return PASSAGES
    if found == PASSAGES and _QUERIES.search(find_stem(path)):
        found = None  # a question's field may be `text`, too
    return "jsonl" if found is None and is_named(path, "questions") else found


def _find_format(path: Path) -> str | None:
    """Returns the format of a file's first valid record; None if the format is unknown.

    Raises:
        RagJaxError: if the file cannot be read, is empty, or no record of it is valid.
    """
    if is_table(path):
        heading = read_heading(path)
        if not heading:
            raise RagJaxError(f"{path}: {_EMPTY}")
        if dpr.matches_row(heading):
            return "dpr"
        record: Mapping[str, Any] | None = dict.fromkeys(heading, "")
    else:
        for name, module in DOCUMENTS.items():
            if module.holds(path):
                return name
        bad = BadLines(sys.maxsize, quiet=True)
        record = next((record for _, record in read_records(path, bad)), None)
        if record is None:
            raise bad.last or RagJaxError(f"{path}: {_EMPTY}")
    if not record:
        return None
    for name, module in RECORDS.items():
        if module.matches(record):
            return name
    return PASSAGES if holds_passages(record) else None
