"""What a run answers with: passages that the model writes, ranked, and an answer from the first."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import NamedTuple

from rag_jax.data.batches import double_up
from rag_jax.data.questions import Question
from rag_jax.pipeline.citations import Citation
from rag_jax.pipeline.stage import StageContext
from rag_jax.systems.likelihood import Reader
from rag_jax.systems.reranking import Reranking
from rag_jax.systems.self_retrieval.evaluate import rank
from rag_jax.systems.self_retrieval.infer import Engine, Written
from rag_jax.systems.self_retrieval.scores import Candidate, find_best, score
from rag_jax.systems.self_retrieval.session import Session
from rag_jax.systems.stages import Ranked, order_found


class Found(NamedTuple):
    """What was found for a question: candidates by title, rows of the corpus by score, answer.

    Attributes:
        read: the row that the answer continues from, and its score. Of equal scores it is the first
            that was written, where the ranking has trec_eval's order.
    """

    groups: list[list[Candidate]]
    ranked: Ranked
    answer: Written
    read: tuple[int, float]


def find(engine: Engine, reranking: Reranking | None, questions: Sequence[str]) -> list[Found]:
    """What each question finds; the answer continues from the best passage, reranked or not."""
    asked = [Question("", question, (), {}) for question in questions]
    order = partial(order_found, asked, passages=engine.passages)
    groups, answers = zip(*engine.retrieve(questions), strict=True)
    ranked = order([rank(own, score(own, engine.settings)) for own in groups])
    read = []
    for own in groups:
        number, value = find_best(own, engine.settings)
        read.append((list(chain(*own))[number].rows[0], value))
    if reranking is not None:
        ranked = order(reranking.order(questions, ranked, engine.passages))
        read = [own[0] for own in ranked]
        answers = engine.answer(questions, [row for row, _ in read])
    return [Found(*own) for own in zip(groups, ranked, answers, read, strict=True)]


def cite(engine: Engine, found: Found) -> list[Citation]:
    """The passage that the answer continues from."""
    row, value = found.read
    return [Citation(engine.passages[row], value)]


def widen(engine: Engine, questions: Sequence[str]) -> Engine:
    """An engine of a width for the questions, of few: programs are compiled for each."""
    counts = [len(engine.format.encode_question(question)) for question in questions]
    return replace(engine, width=double_up(max(counts), 32))


def open_reader(context: StageContext, session: Session) -> Reader:
    """The reader that the threshold of likelihood is chosen for.

    Args:
        context: of a stage that needs the stages "trie" and "train".
    """
    engine = session.open_engine(context, "train")

    def read(questions: Sequence[str]) -> list[tuple[str, float | None]]:
        found = find(widen(engine, questions), session.reranking, questions)
        return [(own.answer.text, own.answer.likelihood) for own in found]

    return Reader(read)
