"""The marginal likelihood of answers (Lewis et al. 2020, section 2.1), over microbatches.

A batch is from `data.pack_examples` and `data.pack_queries`, of `B = S * Q` questions in `S`
sequences. It holds the questions' weights, so the losses of a step's microbatches add up to the
step's loss.
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.losses import (
    map_positions,
    mix_documents,
    rag_sequence_nll,
    rag_token_nll,
    token_logprobs,
)
from rag_jax.models.io.architectures import Embedder
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.retrieval.encode import embed

Marginal = Literal["sequence", "token"]


def score_passages(
    encoder: Embedder,
    params: PyTree,
    batch: Mapping[str, Array],
    *,
    scale: float | Float[Array, ""] = 1.0,
) -> Float[Array, "B K"]:
    """Logits of `p(z|x)`: dot products of the questions' and their passages' embeddings.

    Passages are constants: the gradient reaches only the query encoder.

    Args:
        scale: factor on the dot products. 1 for DPR, whose embeddings are not normalised; about 20
            for cosines, as MiniLM's, because a softmax of numbers within [-1, 1] is flat.
    """
    queries = embed(encoder, params, batch["query"], batch["query_mask"])
    return scale * jnp.einsum("be,bke->bk", queries, batch["passages"])


def target_hidden(
    model: Decoder | Bart, params: PyTree, batch: Mapping[str, Array]
) -> Float[Array, "B K T D"]:
    """The states that predict each target token under each document, of a `pack_examples` batch."""
    questions, width = batch["targets"].shape
    apply = partial(model.apply, {"params": params})
    read = {name: batch[name] for name in ("segments", "positions")}
    if isinstance(model, Bart):
        encoded = apply(batch["tokens"], **read, method="encode")
        segments, positions = batch["written_segments"], batch["written_positions"]
        texts = {"segments": segments, "positions": positions}
        # Each answer reads its own row of the sources: [S, P, 1] == [S, 1, W].
        texts["prefix_mask"] = segments[:, :, None] == batch["segments"][:, None]
        texts["prefix"] = apply(encoded, method="read_source")
        hidden = apply(batch["written"], **texts, method="hidden").hidden
    else:
        hidden = apply(batch["tokens"], **read, method="hidden").hidden
    picked = jnp.take_along_axis(hidden, batch["at"][:, :, None], axis=1)  # [S, Q * K * T, D]
    return picked.reshape(questions, -1, width, picked.shape[-1])  # [S * Q, K, T, D]


def marginal_nll(
    model: Decoder | Bart,
    params: PyTree,
    doc_scores: Float[Array, "B K"],
    batch: Mapping[str, Array],
    *,
    marginal: Marginal,
    smoothing: float = 0.0,
) -> tuple[Float[Array, "B"], Float[Array, "B"]]:
    """`-log p(y|x)` of each question's answer, in nats: with smoothed labels, and as it is.

    Args:
        doc_scores: logits of `p(z|x)`: from `score_passages`, or BM25's scores.
        smoothing: transformers' label smoothing, as `rag_sequence_nll` has it.
    """
    hidden = target_hidden(model, params, batch)
    targets = jnp.broadcast_to(batch["targets"][:, None], hidden.shape[:-1])

    def score(hidden: Float[Array, "B K C D"], targets: Int[Array, "B K C"]) -> dict[str, Array]:
        logits = model.apply({"params": params}, hidden, method="logits")
        scored = {"token_logprobs": token_logprobs(logits, targets)}
        if not smoothing:
            return scored
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        if marginal == "token":
            logprobs = mix_documents(doc_scores, logprobs)
        return scored | {"vocab_sums": logprobs.sum(axis=-1)}

    vocab_size = model.config.vocab_size
    scored = map_positions(score, hidden, targets, vocab_size=vocab_size)
    nll = {"sequence": rag_sequence_nll, "token": rag_token_nll}[marginal]
    nll = partial(nll, doc_scores, mask=batch["target_mask"])
    smoothed = nll(**scored, smoothing=smoothing, vocab_size=vocab_size)
    return smoothed, nll(scored["token_logprobs"])


def rag_loss(
    model: Decoder | Bart,
    params: PyTree,
    doc_scores: Float[Array, "B K"],
    batch: Mapping[str, Array],
    *,
    marginal: Marginal,
    smoothing: float = 0.0,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """The loss of a microbatch.

    Returns:
        The weighted sum over questions, and as metrics the weighted sums `nll`, without smoothing,
        and `doc_entropy`: the entropy of `p(z|x)` in nats, which is 0 if one passage has all
        probability.
    """
    both = marginal_nll(model, params, doc_scores, batch, marginal=marginal, smoothing=smoothing)
    loss, nll = ((values * batch["weight"]).sum() for values in both)
    prior = jax.nn.log_softmax(jax.lax.stop_gradient(doc_scores), axis=-1)
    entropy = -(jnp.exp(prior) * prior).sum(axis=-1)
    return loss, {"nll": nll, "doc_entropy": (entropy * batch["weight"]).sum()}
