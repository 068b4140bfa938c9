"""What a run answers with: the documents that are found, and prompts that read them or not."""

from collections.abc import Sequence

from rag_jax.data.batches import double_up
from rag_jax.data.passages import Passage
from rag_jax.evaluation.compare import judge
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.ask import check_length
from rag_jax.pipeline.citations import Citation
from rag_jax.pipeline.stage import StageContext
from rag_jax.systems.embeddings import embedding
from rag_jax.systems.likelihood import Reader
from rag_jax.systems.prag.infer import Answers, Search
from rag_jax.systems.prag.session import Session


def find_documents(
    session: Session, search: Search, passages: Sequence[Passage], questions: Sequence[str]
) -> list[list[Citation]]:
    """The documents of each question, best first: as found or, with a reranker, as it has them."""
    found = search(questions)
    if session.reranking is not None:
        found = session.reranking.order(questions, found, passages)
    count = session.config.retrieve.passages
    return [[Citation(passages[row], score) for row, score in own[:count]] for own in found]


def answer_prompts(
    session: Session,
    store: AdapterStore | None,
    prompts: Sequence[Sequence[int]],
    merged: Sequence[Sequence[str]],
    *,
    batch_size: int,
) -> Answers:
    """Answers prompts of unknown lengths; see `Engine.answer`.

    Raises:
        RagJaxError: a prompt has no room.
    """
    longest = max(map(len, prompts))
    check_length(longest, session.room)
    # Few widths: a program is compiled for each.
    width = min(double_up(longest, 32), session.room)
    return session.make_engine([width], batch_size=batch_size).answer(prompts, store, merged)


def open_reader(context: StageContext, session: Session) -> Reader:
    """Reads the documents of every question in its prompt, without adapters.

    Questions that are not evaluated have documents without adapters, and so have passages in place
    of the run's.
    """
    passages, size = session.passages, session.config.answer.batch_size
    with embedding(context, session.encode_passages, session.encoding) as embed:
        search = session.make_search(passages, embed)

    def read(questions: Sequence[str]) -> list[tuple[str, float | None]]:
        found, answered = find_documents(session, search, passages, questions), []
        for start in range(0, len(questions), size):
            batch = found[start : start + size]
            documents = [[passage for passage, _ in own] for own in batch]
            asked = questions[start : start + size]
            prompts = list(map(session.format.encode_prompt, asked, documents))
            answers = answer_prompts(session, None, prompts, (), batch_size=size)
            pairs = zip(answers.texts, answers.likelihoods, batch, strict=True)
            answered += [(text, value if own else None) for text, value, own in pairs]
        return answered

    return Reader(read, judge)
