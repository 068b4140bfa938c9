"""Stages that several systems have: the corpus, embeddings and their index, hard negatives."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import copy_collection
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import Index
from rag_jax.retrieval.encode import PIECE
from rag_jax.retrieval.negatives import make_miner
from rag_jax.runtime.hosts import is_first
from rag_jax.systems.session import Session, bind


def corpus_stage(session: Session) -> Stage:
    """The stage that copies passages and questions, whatever their format, into one."""
    return Stage("corpus", bind(session, run_corpus), settings=session.source, version=2)


def run_corpus(
    context: StageContext,
    *,
    data: DataConfig,
    world: WorldConfig,
    seed: int,
    check_corpus: Callable[[Collection], Any],
) -> None:
    """Copies passages and questions; leaves nothing if the system cannot work with them."""
    copy_collection(context.folder, data, world, seed=seed, check=check_corpus)


def embed_corpus(
    context: StageContext,
    passages: Sequence[Passage],
    encode: Callable[[Sequence[Passage]], Float[np.ndarray, "N E"]],
) -> Float[np.ndarray, "N E"]:
    """Embeddings of all passages, as a memory map of the stage's `embeddings.npy`."""
    return context.map("embeddings.npy", passages, encode, batch_size=PIECE, unit="passages")


def run_negatives(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    train_questions: Sequence[Question],
    depth: int,
    count: int,
) -> None:
    """Mines hard negatives for the training questions by BM25.

    Writes `negatives.jsonl`, lines `{"id", "rows"}` with at most `count` rows of `passages` among
    the first `depth`.
    """
    mine = make_miner(passages, depth=depth, count=count)
    context.map("negatives.jsonl", train_questions, mine, batch_size=1024, unit="questions")


def run_index(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    load: Callable[[StageContext], Pretrained],
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    build_index: Callable[..., Index],
    ids: bool = False,
) -> None:
    """Embeds the passages and indexes them, as `index` in the stage's folder.

    Args:
        load: opens the passages' encoder.
        ids: whether the index keeps the passages' ids.
    """
    encoder = load(context)
    embeddings = embed_corpus(context, passages, lambda part: encode_passages(encoder, part))
    if is_first():
        build_index(encoder, embeddings, passages, ids=ids).save(context.folder / "index")
