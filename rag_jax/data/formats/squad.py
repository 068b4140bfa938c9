"""SQuAD's own files (Rajpurkar et al. 2016, arXiv 1606.05250): articles under `data`.

Each paragraph is a passage with its article's title, in which underscores stand for spaces, and the
gold passage of its questions. A question that is impossible to answer (SQuAD 2) has no answers.
"""

from collections.abc import Iterator
from pathlib import Path

from rag_jax.data.formats.fields import (
    Context,
    Item,
    get_filled,
    get_id,
    get_objects,
    get_text,
)
from rag_jax.data.formats.lines import BadLineError, BadLines, read_items
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question


def read(path: Path, bad: BadLines) -> Iterator[Item]:
    """The questions, each with its paragraph; the place of all of an article is where it begins."""
    for place, article in read_items(path, "data"):
        try:
            title = get_text(article, "title", place, default="").replace("_", " ")
            paragraphs = get_objects(article, "paragraphs", place)
        except BadLineError as error:
            bad.skip(error)
            continue
        for paragraph in paragraphs:
            try:
                text = get_filled(paragraph, "context", place)
                questions = get_objects(paragraph, "qas", place)
            except BadLineError as error:
                bad.skip(error)
                continue
            context = Context(Passage("", title, text), 1)
            for record in questions:
                try:
                    given = get_objects(record, "answers", place)
                    answers = dict.fromkeys(get_text(answer, "text", place) for answer in given)
                    question = get_filled(record, "question", place)
                    id = get_id(record, ["id"], place)
                except BadLineError as error:
                    bad.skip(error)
                    continue
                yield Item(place, Question(id, question, tuple(answers), {}), (context,))
