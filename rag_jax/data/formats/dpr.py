"""DPR's files (Karpukhin et al. 2020, `github.com/facebookresearch/DPR`).

Passages are a table with the heading `id`, `text`, `title` (`psgs_w100.tsv`). Questions are either
a JSON array or a table. A record of the array has `question`, `answers` and passages: positive and
negative ones for training, or the results of a search (`ctxs`). The table has no heading; a row
consists of a question and a list of answers (`nq-test.qa.csv`). `write_results` writes the results
of a search.
"""

import ast
import contextlib
import io
import json
import re
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.formats.contexts import read_contexts
from rag_jax.data.formats.fields import Item, get_filled, get_id, get_texts
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.formats.tables import is_table
from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.files import open_atomic, to_json

_IDS = ("id", "q_id", "question_id")


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question with passages, as in DPR's JSON arrays."""
    lists = {"ctxs", "positive_ctxs", "positive_passages"}
    return "question" in record and bool(lists & record.keys())


# Characters of a list of answers in Python's notation: reading takes some 200 bytes for each.
_LONGEST = 1 << 20
# Python joins two strings without a comma between them, as NumPy prints an array.
_RUN_TOGETHER = re.compile(r"""['"]\s*['"]""")


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question with its passages. A missing id becomes `<file name>:<record number>`.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    question = Question(
        get_id(record, _IDS, place, default=f"{place.path.name}:{place.item}"),
        get_filled(record, "question", place),
        get_texts(record, "answers", place),
        {},
    )
    return Item(place, question, read_contexts(record, place))


def matches_row(row: Sequence[str]) -> bool:
    """Returns whether a row of a table consists of a question and a list of answers."""
    return len(row) == 2 and row[1].lstrip().startswith("[")


def is_list(cell: str | None) -> bool:
    """Returns whether a field of a table begins as a list of strings, and not as [Ne] does."""
    return re.match(r"\s*\[\s*['\"\]]", cell or "") is not None


def parse_list(cell: str, place: Place) -> list[str]:
    """Parses a field of a table that is a list of answers, in JSON or in Python's notation.

    Raises:
        BadLineError: if the field is too long or no list.
    """
    if len(cell) > _LONGEST:
        raise BadLineError(
            f"{place}: the answers have {len(cell):,} characters, more than the limit of "
            f"{_LONGEST:,}: shorten the list"
        )
    with contextlib.suppress(ValueError, RecursionError):  # whose escapes Python would misread
        return list(get_texts({"answers": json.loads(cell)}, "answers", place))
    try:
        answers = ast.literal_eval(cell.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise BadLineError(f"{place}: the answers must be a list of strings") from None
    if _RUN_TOGETHER.search(cell) and isinstance(answers, list):
        strings = tokenize.generate_tokens(io.StringIO(cell.strip()).readline)
        if sum(token.type == tokenize.STRING for token in strings) != len(answers):
            raise BadLineError(f"{place}: a comma is missing between two answers")
    return list(get_texts({"answers": answers}, "answers", place))


def parse_cells(record: Mapping[str, Any], names: Sequence[str], place: Place) -> Mapping[str, Any]:
    """Returns a record, of a table with the lists that are printed in some of its fields parsed.

    Raises:
        BadLineError: as `parse_list`.
    """
    if not is_table(place.path):
        return record
    printed = {name: record[name] for name in names if is_list(record.get(name))}
    return {**record, **{name: parse_list(cell, place) for name, cell in printed.items()}}


def parse_row(row: Sequence[str], place: Place) -> Item:
    """Parses a row of a question and a Python list of answers. The id is `<file name>:<line>`.

    Raises:
        BadLineError: if the row is not a question and a list of answers.
    """
    if len(row) != 2:
        raise BadLineError(f"{place}: must be a question and its answers, separated by a tab")
    return parse({"question": row[0], "answers": parse_list(row[1], place)}, place)


def write_results(
    path: Path, questions: Sequence[Question], ranked: Sequence[Sequence[tuple[Passage, float]]]
) -> None:
    """Writes the results of a search as DPR does, for readers such as FiD.

    Every question has passages with their scores, best first.
    """
    with open_atomic(path) as file:
        separator = "["
        for question, passages in zip(questions, ranked, strict=True):
            record = {
                "id": question.id,
                "question": question.question,
                "answers": question.answers,
                "ctxs": [
                    {
                        "id": passage.id,
                        "title": passage.title,
                        "text": passage.text,
                        "score": repr(float(score)),  # a string, as in DPR
                        "has_answer": has_answer(passage.text, question.spoken_answers),
                    }
                    for passage, score in passages
                ],
            }
            file.write(separator + to_json(record))
            separator = ",\n"
        file.write("]\n" if separator != "[" else "[]\n")
