"""Losses and log-probabilities of language models and retrievers, as functions of arrays."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.runtime.arguments import checked
from rag_jax.runtime.platforms import find_platform
from rag_jax.runtime.sharding import count_data_rows

_LOGIT_BYTES = 2**28  # of a device's float32 logits that are there at once


@checked
def token_logprobs(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-probability of each target token, in nats. The softmax is computed in float32.

    A target outside the vocabulary, such as a label of -100, has no meaning here: mask it, and pass
    a token in its place.
    """
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - sum_exponentials(logits)


def sum_exponentials(logits: Float[Array, "*batch V"]) -> Float[Array, "*batch"]:
    """`log sum_v exp(logits_v)` over a vocabulary.

    On CPU in parts of it: XLA gives a few long rows to one core.
    """
    parts = _split_vocabulary(logits, 16)
    largest = jax.lax.stop_gradient(parts.max(axis=-1))
    whole = largest.max(axis=-1)
    whole = jnp.where(jnp.isfinite(whole), whole, 0.0)  # as in `jax.nn.logsumexp`
    shift = jnp.where(jnp.isfinite(largest), largest, whole[..., None])
    sums = jnp.exp(parts - shift[..., None]).sum(axis=-1)  # with `whole` here, on one core again
    return jnp.log((sums * jnp.exp(shift - whole[..., None])).sum(axis=-1)) + whole


def find_likeliest(logits: Float[Array, "*batch V"]) -> Int[Array, "*batch"]:
    """The token with the largest logit, of equal ones the first; NaN counts as the largest.

    On CPU in parts of the vocabulary, of which the one with the largest logit is looked through:
    XLA takes forty times as long for the place of a maximum as for its value.
    """
    parts = _split_vocabulary(logits, 64)
    best = jnp.argmax(parts.max(axis=-1), axis=-1, keepdims=True)
    part = jnp.take_along_axis(parts, best[..., None], axis=-2)[..., 0, :]
    place = best[..., 0] * parts.shape[-1] + jnp.argmax(part, axis=-1)
    return place.astype(jnp.int32)


def _split_vocabulary(logits: Float[Array, "*batch V"], most: int) -> Float[Array, "*batch P C"]:
    """Logits in equal parts of the vocabulary, at most `most`; in one elsewhere than on CPU."""
    size, count = logits.shape[-1], 1
    if find_platform() == "cpu":
        count = next(n for n in range(most, 0, -1) if size % n == 0)
    return logits.reshape(*logits.shape[:-1], count, size // count)


def hidden_logprobs(
    to_logits: Callable[[Float[Array, "B C D"]], Float[Array, "B C V"]],
    hidden: Float[Array, "B P D"],
    targets: Int[Array, "B P"],
    *,
    vocab_size: int,
) -> Float[Array, "B P"]:
    """Log-probability of each target token by its hidden state, in nats, by `map_positions`."""

    def score(hidden: Float[Array, "B C D"], targets: Int[Array, "B C"]) -> Float[Array, "B C"]:
        return token_logprobs(to_logits(hidden), targets)

    return map_positions(score, hidden, targets, vocab_size=vocab_size)


def map_positions(
    function: Callable[..., PyTree],
    hidden: Float[Array, "*rows P D"],
    targets: Int[Array, "*rows P"],
    *,
    vocab_size: int,
) -> PyTree[Float[Array, "..."]]:
    """`function(hidden, targets)`, which takes logits, over chunks of positions.

    The logits of one chunk are there at once, at most 256 MiB in float32 on a device: the backward
    pass computes them again. If those of all positions are no more, there is one chunk, and
    nothing is computed again.

    Args:
        function: of hidden states `[*rows, C, D]` and targets `[*rows, C]`; gives arrays whose
            last axis are the positions, each the result of its own position.
        vocab_size: number of logits V of a position.
    """
    *rows, count, size = hidden.shape
    chunk = _choose_chunk(math.prod(rows), count, vocab_size)
    if chunk >= count:
        return function(hidden, targets)
    parts = -(-count // chunk)
    padding = [(0, 0)] * len(rows) + [(0, parts * chunk - count)]
    # [*rows, P, D] -> [parts, *rows, C, D]
    hidden = jnp.pad(hidden, [*padding, (0, 0)]).reshape(*rows, parts, chunk, size)
    targets = jnp.pad(targets, padding).reshape(*rows, parts, chunk)
    chunks = jnp.moveaxis(hidden, -3, 0), jnp.moveaxis(targets, -2, 0)
    again = jax.checkpoint(function, prevent_cse=False)  # the loop keeps the passes apart
    values = jax.lax.map(lambda part: again(*part), chunks)

    def join(value):
        # [parts, ..., C] -> [..., P]
        return jnp.moveaxis(value, 0, -2).reshape(*value.shape[1:-1], -1)[..., :count]

    return jax.tree.map(join, values)


def _choose_chunk(rows: int, count: int, vocab_size: int) -> int:
    """Number of positions of a chunk: equal chunks, as few as the bound allows."""
    position = -(-rows // count_data_rows()) * vocab_size * 4  # bytes on a device
    most = max(1, _LOGIT_BYTES // max(1, position))
    return -(-count // max(1, -(-count // most)))


@checked
def span_cross_entropy(
    logprobs: Float[Array, "B P"], weights: Float[Array, "B P"]
) -> Float[Array, "B"]:
    """Negative log-likelihood of one span per row, `-sum_t w_t log p_t`, in nats.

    Args:
        weights: 0 outside the span. Inside the span, 1 gives the sum over the tokens and
            `1 / length` their mean. A row without a span has only zeros, and its loss is 0.
    """
    return -(jnp.where(weights == 0, 0.0, logprobs) * weights).sum(axis=-1)


@checked
def dpo_loss(
    policy_chosen: Float[Array, "B"],
    policy_rejected: Float[Array, "B"],
    reference_chosen: Float[Array, "B"],
    reference_rejected: Float[Array, "B"],
    *,
    beta: float,
) -> Float[Array, "B"]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), one value per pair, in nats.

    The inputs are log-probabilities, in nats, of the preferred and the rejected sequence under the
    trained policy and under the frozen reference. `beta` keeps the policy close to the reference.
    """
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -jax.nn.log_sigmoid(beta * margin)


@checked
def in_batch_contrastive(
    queries: Float[Array, "B E"],
    passages: Float[Array, "P E"],
    positives: Int[Array, "B"],
    *,
    masked: Bool[Array, "B P"] | None = None,
    scale: float = 1.0,
) -> Float[Array, "B"]:
    """DPR's loss (Karpukhin et al. 2020, eq. 2), one value per question, in nats.

    `-log(exp(s_p) / sum_j exp(s_j))`, where `s_j` is the scaled dot product with passage j and p
    the question's positive. All other passages of the batch are negatives, including the positives
    and negatives of the other questions.

    Args:
        passages: embeddings of the positives and negatives of all questions.
        positives: row of each question's positive in `passages`.
        masked: True if a passage is not a negative of a question, because the passage is another
            positive of the question, a duplicate or padding. The entry of the question's positive
            itself is ignored.
        scale: factor on the dot products. 1 in DPR; cosines, between -1 and 1, need a larger one.
    """
    # Highest precision, because TPUs would round both factors to bfloat16.
    queries, passages = queries.astype(jnp.float32), passages.astype(jnp.float32)
    scores = scale * jnp.matmul(queries, passages.T, precision=jax.lax.Precision.HIGHEST)
    if masked is not None:
        is_positive = jnp.arange(len(passages))[None] == positives[:, None]
        scores = jnp.where(masked & ~is_positive, -jnp.inf, scores)
    return -token_logprobs(scores, positives)


@checked
def rag_sequence_nll(
    doc_scores: Float[Array, "B K"],
    token_logprobs: Float[Array, "B K T"],
    mask: Bool[Array, "B T"],
    *,
    smoothing: float = 0.0,
    vocab_sums: Float[Array, "B K T"] | None = None,
    vocab_size: int | None = None,
) -> Float[Array, "B"]:
    """RAG-Sequence: `-log sum_z p(z|x) prod_t p(y_t|x,z,y_<t)`, in nats, one value per question.

    See Lewis et al. 2020, section 2.1. `p(z|x)` is the softmax of `doc_scores` over the `K`
    documents. Label smoothing follows transformers: `(1 - e) nll + e / V smooth`, where `smooth` is
    the same sum over documents with the product over all tokens of the vocabulary in place of
    `y_t`, hence with `p(z|x)` to the power `V`.

    Args:
        doc_scores: logits of `p(z|x)`, such as inner products or BM25 scores.
        token_logprobs: log-probabilities of the target tokens given each document, in nats.
        mask: False on padding and on a BOS token that is not scored. transformers adds
            `log p(z|x)` to the second target, because the first may be such a BOS. The result is
            the same, except that transformers loses `p(z|x)` if there is no second target.
        smoothing: `e`. 0 disables smoothing.
        vocab_sums: log-probabilities summed over the vocabulary; required for smoothing.
        vocab_size: `V`; required for smoothing.

    Raises:
        ValueError: one of the two is missing with smoothing.
    """
    _check_smoothing(smoothing, vocab_sums, vocab_size)
    prior = jax.nn.log_softmax(doc_scores, axis=-1)

    def marginalise(logprobs, power):
        # [B, K, T] summed over T -> [B, K]
        joint = power * prior + jnp.where(mask[:, None], logprobs, 0.0).sum(axis=-1)
        return -jax.nn.logsumexp(joint, axis=-1)

    nll = marginalise(token_logprobs, 1)
    if not smoothing:
        return nll
    return (1 - smoothing) * nll + smoothing / vocab_size * marginalise(vocab_sums, vocab_size)


@checked
def rag_token_nll(
    doc_scores: Float[Array, "B K"],
    token_logprobs: Float[Array, "B K T"],
    mask: Bool[Array, "B T"],
    *,
    smoothing: float = 0.0,
    vocab_sums: Float[Array, "B T"] | None = None,
    vocab_size: int | None = None,
) -> Float[Array, "B"]:
    """RAG-Token: `-sum_t log sum_z p(z|x) p(y_t|x,z,y_<t)`, in nats, one value per question.

    See Lewis et al. 2020, section 2.1. For a single target token, RAG-Token equals RAG-Sequence.
    All arguments but `vocab_sums` are those of `rag_sequence_nll`.

    Args:
        vocab_sums: log-probabilities of the mixture (`mix_documents`), summed over the vocabulary;
            required for smoothing.

    Raises:
        ValueError: as `rag_sequence_nll`.
    """
    _check_smoothing(smoothing, vocab_sums, vocab_size)
    # Masked before they are mixed: of what is not a number there the gradient would be none.
    scored = jnp.where(mask[:, None], token_logprobs, 0.0)
    nll = -(mix_documents(doc_scores, scored) * mask).sum(axis=-1)
    if not smoothing:
        return nll
    smooth = -jnp.where(mask, vocab_sums, 0.0).sum(axis=-1)
    return (1 - smoothing) * nll + smoothing / vocab_size * smooth


def _check_smoothing(smoothing: float, vocab_sums: Array | None, vocab_size: int | None) -> None:
    if smoothing and (vocab_sums is None or vocab_size is None):
        raise ValueError("smoothing needs vocab_sums and vocab_size: give both")


@checked
def mix_documents(
    doc_scores: Float[Array, "B K"], logprobs: Float[Array, "B K *rest"]
) -> Float[Array, "B *rest"]:
    """Log-probabilities of the mixture of documents, `log sum_z p(z|x) p(.|z)`, in nats.

    `doc_scores` are logits of `p(z|x)`.
    """
    prior = jax.nn.log_softmax(doc_scores, axis=-1)
    # [B, K] -> [B, K, 1, ...]
    prior = prior.reshape(*prior.shape, *[1] * (logprobs.ndim - 2))
    return jax.nn.logsumexp(prior + logprobs, axis=1)
