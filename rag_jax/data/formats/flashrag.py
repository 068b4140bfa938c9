"""FlashRAG's lines (Jin et al. 2024, arXiv 2405.13576).

A passage has `id` and `contents`: the title in quotes on the first line, and the text on the
following lines. A question has `id`, `question`, `golden_answers` and optionally `metadata`. The
metadata fields `type`, `popularity` (or `s_pop`, as in PopQA), `relevant` and `choices` are read.
Where `golden_answers` are texts, numbers counted from 0, or labels, of a list `choices` beside or
within `metadata`, the question is a multiple-choice question with the labels A, B and so on. Where
`choices` are an object of texts by label, an answer is a label or a text.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rag_jax.data.formats.choices import (
    are_labels,
    find_label,
    label_choices,
    list_choices,
    name_answer,
)
from rag_jax.data.formats.fields import (
    Item,
    check_blank,
    get_choices,
    get_count,
    get_filled,
    get_id,
    get_text,
    get_texts,
)
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.files import write_jsonl


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of FlashRAG."""
    return "golden_answers" in record


def matches_passage(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a passage of FlashRAG."""
    return "contents" in record


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    metadata = {} if record.get("metadata") is None else record["metadata"]
    if not isinstance(metadata, dict):
        raise BadLineError(f"{place}: metadata must be an object")
    choices = metadata.get("choices") if record.get("choices") is None else record["choices"]
    text = get_filled(record, "question", place)
    if indices := _list_indices(record.get("golden_answers"), choices):
        choices = label_choices(choices, place)
        answers = tuple(find_label(choices, index, place) for index in indices)
        text = list_choices(text, choices)
    else:
        answers = get_texts(record, "golden_answers", place)
        if isinstance(choices, list) and choices and are_labels(answers, choices):
            choices = label_choices(choices, place)
            text = list_choices(text, choices)
        # Some of FlashRAG's datasets have a list of choices beside answers in free text.
        choices = get_choices(choices, place) if isinstance(choices, dict) else {}
        if choices:
            answers = tuple(name_answer(choices, answer, place) for answer in answers)
    popularity = "popularity" if metadata.get("popularity") is not None else "s_pop"
    question = Question(
        get_id(record, ["id"], place),
        text,
        answers,
        _get_grades(metadata, place),
        get_text(metadata, "type", place, default=""),
        get_count(metadata, popularity, place),
        choices,
    )
    return Item(place, question)


def parse_passage(record: Mapping[str, Any], place: Place) -> list[Passage]:
    """Parses a passage. The fields `title` and `text`, if present, override `contents`.

    Raises:
        BadLineError: if a required field is missing, a field has the wrong type, or text and title
            are blank.
    """
    id, contents = get_id(record, ["id"], place), get_text(record, "contents", place)
    title, newline, text = contents.partition("\n")
    if not newline:
        title, text = "", contents
    title = title.removesuffix("\r")
    is_quoted = len(title) > 1 and title.startswith('"') and title.endswith('"')
    title = title[1:-1] if is_quoted else title
    given = get_text(record, "title", place, default=title)
    if not is_quoted and given != title:  # the first line is none
        text = contents
    title, text = given, get_text(record, "text", place, default="") or text
    if not title.strip():
        check_blank(text, f"the text of passage {id!r}", place)
    return [Passage(id, title, text)]


def _list_indices(answers: Any, choices: Any) -> list[int]:
    """Returns the numbers of the choices that all answers are, by number or text; none else."""
    if not isinstance(answers, list):
        return []
    if isinstance(choices, list) and all(isinstance(x, str) and x in choices for x in answers):
        return [choices.index(text) for text in answers]
    return answers if all(type(index) is int for index in answers) else []


def _get_grades(metadata: Mapping[str, Any], place: Place) -> dict[str, int]:
    grades = {} if metadata.get("relevant") is None else metadata["relevant"]
    if not isinstance(grades, dict) or any(
        type(grade) is not int or grade < 1 for grade in grades.values()
    ):
        raise BadLineError(f"{place}: relevant must be an object of grades above 0")
    return grades


def write_passages(path: Path, passages: Iterable[Passage]) -> None:
    """Writes a corpus.

    The extra fields `title` and `text` preserve titles with line ends, which `contents` cannot
    represent.
    """
    records = (
        {"id": p.id, "contents": f'"{p.title}"\n{p.text}', "title": p.title, "text": p.text}
        for p in passages
    )
    write_jsonl(path, records)


def write_questions(path: Path, questions: Iterable[Question]) -> None:
    """Writes the questions of a split. Fields that FlashRAG does not define go into `metadata`."""
    extra = ("type", "popularity", "relevant", "choices")
    records = (
        {
            "id": question.id,
            "question": question.question,
            "golden_answers": question.answers,
            "metadata": {name: getattr(question, name) for name in extra},
        }
        for question in questions
    )
    write_jsonl(path, records)
