"""ASQA (Stelmakh et al. 2022, arXiv 2204.06092): ambiguous questions with several readings each.

The published file is one object with the splits `train` and `dev`, objects of questions by id. A
question has `ambiguous_question` and `qa_pairs`, each with `short_answers`: the answers to all
readings are acceptable answers. In lines of JSON, and in the lists of ALCE (Gao et al. 2023, arXiv
2305.14627), which call it `question`, a question has its id as `sample_id`. The long answers and
the pages are not read, so the folder must contain a file of passages.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rag_jax.data.formats.fields import Item, get_filled, get_id, get_objects, get_texts
from rag_jax.data.formats.json_stream import find_container, open_json
from rag_jax.data.formats.lines import BadLines, Place
from rag_jax.data.formats.splits import name_split
from rag_jax.data.questions import Question


def matches(record: Mapping[str, Any]) -> bool:
    """Returns whether a record is a question of ASQA."""
    return "qa_pairs" in record and not {"ambiguous_question", "question"}.isdisjoint(record)


def holds(path: Path) -> bool:
    """Returns whether a file is ASQA's document."""
    _, begun = find_container(path) or ("", [])
    questions = begun.values() if isinstance(begun, dict) else []
    return any(isinstance(question, dict) and matches(question) for question in questions)


def read(path: Path, bad: BadLines) -> Iterator[Item]:
    """Yields the questions of a document, each with its split.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    with open_json(path) as stream:
        item = 0
        while stream.peek():
            for split in stream.members():
                for id in stream.members():
                    item += 1
                    place = Place(path, stream.line, item)
                    record = {**stream.read_object(place), "sample_id": id}
                    with bad:
                        yield replace(parse(record, place), split=name_split(split))


def parse(record: Mapping[str, Any], place: Place) -> Item:
    """Parses a question.

    Raises:
        BadLineError: if a required field is missing or blank, or a field has the wrong type.
    """
    pairs = get_objects(record, "qa_pairs", place)
    name = "ambiguous_question" if "ambiguous_question" in record else "question"
    answers = [answer for pair in pairs for answer in get_texts(pair, "short_answers", place)]
    question = Question(
        get_id(record, ["sample_id"], place),
        get_filled(record, name, place),
        tuple(dict.fromkeys(answer for answer in answers if answer.strip())),
        {},
    )
    return Item(place, question)
