"""Asks a finished run of dense passage retrieval: the passages that the trained encoders find."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained
from rag_jax.pipeline.ask import Ask, Facts, Item, Outcome, name_passage
from rag_jax.pipeline.citations import Citation
from rag_jax.pipeline.runner import open_stages
from rag_jax.retrieval import Index
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.systems.dpr.pipeline import list_stages
from rag_jax.systems.dpr.session import Session
from rag_jax.systems.stages import list_ranked, order_found

_SHOWN = 5  # passages


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run for questions one by one; see `open_parts`."""
    encoders, index, passages = open_parts(session, workdir, corpus)
    return partial(_answer, session, encoders.question, index, passages)


def open_parts(
    session: Session, workdir: Path, corpus: Path | None
) -> tuple[Encoders, Index, Sequence[Passage]]:
    """Opens a run's trained encoders, index and passages.

    Args:
        corpus: passages to search in place of the run's.

    Raises:
        RagJaxError: as `open_stages`, or the corpus cannot be read.
    """
    context = open_stages(list_stages(session), workdir, ("corpus", "train", "trained"))
    encoders = session.load_trained(context.path("train", ""))
    if corpus is None:
        session.open_corpus(context.path("corpus", ""))
        passages = session.passages
        index = Index.load(context.path("trained", "index"), encoder=encoders.passage.fingerprint)
    else:
        passages, embeddings = session.read_corpus(corpus, encoders.passage)
        index = session.build_index(encoders.passage, embeddings, passages, ids=True)
    return encoders, index, passages


def _answer(
    session: Session, encoder: Pretrained, index: Index, passages: Sequence[Passage], question: str
) -> Iterator[Item]:
    k = min(session.config.depth, index.size)
    order = partial(order_found, [Question("", question, (), {})], passages=passages)
    found = index.search(session.encode_queries(encoder, [question]), k)
    (ranked,) = order(list_ranked(*found))
    if session.reranking is not None:
        (ranked,) = order(session.reranking.order([question], [ranked], passages))
    citations = [Citation(passages[row], score) for row, score in ranked[:_SHOWN]]
    shown = [(f"{score:.3f}", name_passage(passage)) for passage, score in citations]
    yield Facts("passages found", shown)
    yield Outcome(None, citations)
