"""The loss of all three tasks: cross-entropy on the tokens that are to be generated."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array, PyTree

from rag_jax.losses import span_cross_entropy
from rag_jax.models.nn.decoder import Decoder
from rag_jax.systems.self_retrieval.data import TERMS
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import target_logprobs
from rag_jax.training.trainable import Trainable


def make_loss(model: Decoder, trainable: Trainable) -> LossFunction:
    """`-log p` of each term's tokens, the mean over a row's (paper, section 3).

    The terms are "retrieval", the title and the passage, and "assessment", the judgement and the
    answer. The batch is from `rows.pack_rows`.
    """

    def loss(trained: PyTree, frozen: PyTree, batch: Mapping[str, Array]) -> tuple[Any, dict]:
        params = trainable.merge(trained, frozen)
        logprobs = target_logprobs(model, params, batch)
        terms = {term: span_cross_entropy(logprobs, batch[term]).sum() for term in TERMS}
        return sum(terms.values()), terms

    return loss
