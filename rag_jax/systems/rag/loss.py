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
from jaxtyping import Array, Float, PyTree

from rag_jax.losses import mix_documents, rag_sequence_nll, rag_token_nll, token_logprobs
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.decoder import Decoder
from rag_jax.retrieval.encode import embed

Marginal = Literal["sequence", "token"]


def score_passages(
    encoder: Bert,
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


def target_logits(
    model: Decoder | Bart, params: PyTree, batch: Mapping[str, Array]
) -> Float[Array, "B K T V"]:
    """The logits of each target token under each document, of a `data.pack_examples` batch."""
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
    logits = apply(picked, method="logits")
    return logits.reshape(questions, -1, width, logits.shape[-1])  # [S * Q, K, T, V]


def marginal_nll(
    model: Decoder | Bart,
    params: PyTree,
    doc_scores: Float[Array, "B K"],
    batch: Mapping[str, Array],
    *,
    marginal: Marginal,
    smoothing: float = 0.0,
) -> Float[Array, "B"]:
    """`-log p(y|x)` of each question's answer, in nats.

    Args:
        doc_scores: logits of `p(z|x)`: from `score_passages`, or BM25's scores.
        smoothing: transformers' label smoothing, as `rag_sequence_nll` has it.
    """
    logits = target_logits(model, params, batch)
    targets = jnp.broadcast_to(batch["targets"][:, None], logits.shape[:-1])
    nll = {"sequence": rag_sequence_nll, "token": rag_token_nll}[marginal]
    settings = {}
    if smoothing:
        logprobs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
        if marginal == "token":
            logprobs = mix_documents(doc_scores, logprobs)
        settings = {"vocab_sums": logprobs.sum(axis=-1), "vocab_size": logits.shape[-1]}
    logprobs = token_logprobs(logits, targets)
    return nll(doc_scores, logprobs, batch["target_mask"], smoothing=smoothing, **settings)


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
        The weighted sum over questions, and as metrics the weighted sums `nll` and `doc_entropy`:
        the entropy of `p(z|x)` in nats, which is 0 if one passage has all probability.
    """
    nll = marginal_nll(model, params, doc_scores, batch, marginal=marginal, smoothing=smoothing)
    loss = (nll * batch["weight"]).sum()
    prior = jax.nn.log_softmax(jax.lax.stop_gradient(doc_scores), axis=-1)
    entropy = -(jnp.exp(prior) * prior).sum(axis=-1)
    return loss, {"nll": loss, "doc_entropy": (entropy * batch["weight"]).sum()}
