"""The losses by an adapter's tree: a document's (Su et al. 2025, eq. 5) and the warm-up's."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, PyTree

from rag_jax.losses import span_cross_entropy, token_logprobs
from rag_jax.models.nn.decoder import Decoder
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import target_logprobs
from rag_jax.training.trainable import Trainable

TERMS = ("text",)  # of a warm-up row


def make_document_loss(model: Decoder, trainable: Trainable) -> LossFunction:
    """The loss of one adapter on one example, `-mean_t log p(x_t | x_<t)` (paper, eq. 5).

    The mean is over every token but the first: those of the passage and of the question too. The
    arrays are `tokens` `[T]` and `mask` `[T]`.
    """

    def loss(adapter: PyTree, frozen: PyTree, arrays: Mapping[str, Array]) -> tuple[Any, dict]:
        params = trainable.merge(adapter, frozen)
        tokens, mask = arrays["tokens"][None], arrays["mask"][None]  # [T] -> [1, T]
        logits = model.apply({"params": params}, tokens, mask=mask)
        logprobs = token_logprobs(logits[:, :-1], tokens[:, 1:])
        count = jnp.maximum(mask[:, 1:].sum(), 1)  # an example that fills up a group has none
        return span_cross_entropy(logprobs, mask[:, 1:] / count).sum(), {}

    return loss


def make_warm_up_loss(model: Decoder, trainable: Trainable) -> LossFunction:
    """The warm-up's loss on rows of a question and its answer: `-log p` of the row's tokens."""

    def loss(adapter: PyTree, frozen: PyTree, batch: Mapping[str, Array]) -> tuple[Any, dict]:
        params = trainable.merge(adapter, frozen)
        logprobs = target_logprobs(model, params, batch)
        return span_cross_entropy(logprobs, batch["text"]).sum(), {}

    return loss
