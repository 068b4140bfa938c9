"""TriviaQA (Joshi et al. 2017, arXiv 1705.03551): JSON documents, and Hugging Face's rows.

A document has questions under `Data`. A question has `QuestionId`, `Question` and `Answer`, with
`Value` and `Aliases`, and in the verified files `HumanAnswers`; test files have no `Answer`. A row
is one question with the fields `question_id`, `question` and `answer`, with `value` and `aliases`;
in the rows of the test split the value is `<unk>`, which is no answer. The evidence documents are
not read, so the folder must contain a file of passages.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rag_jax.data.formats.fields import Item, get_filled, get_id, get_text, get_texts
from rag_jax.data.formats.json_stream import find_container
from rag_jax.data.formats.lines import BadLineError, BadLines, Place
from rag_jax.data.formats.records import read_items
from rag_jax.data.questions import Question

UNKNOWN = "<unk>"  # the value of an answer that is not published


def holds(path: Path) -> bool:
    """Returns whether a file is a document of TriviaQA."""
    key, begun = find_container(path) or ("", [])
    return key == "Data" and isinstance(begun, list)


def read(path: Path, bad: BadLines) -> Iterator[Item]:
    """Yields the questions of a file.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    for place, record in read_items(path, "Data"):
        with bad:
            answers = _read_answers(record, ("Answer", "Value", "Aliases"), place)
            question = Question(
                get_id(record, ["QuestionId"], place),
                get_filled(record, "Question", place),
                answers,
                {},
            )
            yield Item(place, question)


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a row of TriviaQA."""
    answer = record.get("answer")
    return "question" in record and isinstance(answer, dict) and "value" in answer


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a row.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    answers = _read_answers(record, ("answer", "value", "aliases"), place)
    question = Question(
        get_id(record, ["question_id"], place, default=""),
        get_filled(record, "question", place),
        tuple(answer for answer in answers if answer != UNKNOWN),
        {},
    )
    return Item(place, question)


def _read_answers(
    record: Mapping[str, Any], names: tuple[str, str, str], place: Place
) -> tuple[str, ...]:
    """Returns the value and the aliases of an answer; none if the answer is missing.

    Args:
        names: fields of the answer, of its value and of its aliases.
    """
    name, value, aliases = names
    answer = record.get(name)
    if answer is None:
        return ()
    if not isinstance(answer, dict):
        raise BadLineError(f"{place}: {name} must be an object")
    texts = [get_text(answer, value, place), *get_texts(answer, aliases, place)]
    if answer.get("HumanAnswers") is not None:
        texts += get_texts(answer, "HumanAnswers", place)
    return tuple(dict.fromkeys(texts))
