"""TriviaQA's JSON documents (Joshi et al. 2017, arXiv 1705.03551): questions under `Data`.

A question has `QuestionId`, `Question` and `Answer`, with `Value` and `Aliases`; test files have no
`Answer`. The evidence documents are not read, so the folder must contain a file of passages.
"""

from collections.abc import Iterator
from pathlib import Path

from rag_jax.data.formats.fields import Item, get_filled, get_id, get_text, get_texts
from rag_jax.data.formats.json_stream import find_container
from rag_jax.data.formats.lines import BadLineError, BadLines
from rag_jax.data.formats.records import read_items
from rag_jax.data.questions import Question


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
            answer = record.get("Answer")
            answers: tuple[str, ...] = ()
            if isinstance(answer, dict):
                answers = (get_text(answer, "Value", place), *get_texts(answer, "Aliases", place))
            elif answer is not None:
                raise BadLineError(f"{place}: Answer must be an object")
            question = Question(
                get_id(record, ["QuestionId"], place),
                get_filled(record, "Question", place),
                tuple(dict.fromkeys(answers)),
                {},
            )
            yield Item(place, question)
