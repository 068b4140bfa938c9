"""SQuAD's JSON documents (Rajpurkar et al. 2016, arXiv 1606.05250): articles under `data`.

Each paragraph is a passage and the gold passage of the questions about the paragraph. The title is
the title of the article, with spaces for underscores. A question that cannot be answered (SQuAD 2)
has no answers.
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
    """Yields the questions of a file, each with the paragraph as the gold passage.

    The place of a question is the place of the article.

    Args:
        path: JSON document, plain or gzip.
        bad: counter of bad lines.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
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
                    listed = get_objects(record, "answers", place)
                    answers = dict.fromkeys(get_text(answer, "text", place) for answer in listed)
                    question = get_filled(record, "question", place)
                    id = get_id(record, ["id"], place)
                except BadLineError as error:
                    bad.skip(error)
                    continue
                yield Item(place, Question(id, question, tuple(answers), {}), (context,))
