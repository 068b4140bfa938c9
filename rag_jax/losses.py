"""Losses and log-probabilities, from arrays to arrays."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def token_logprobs(
    logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]
) -> Float[Array, "*batch"]:
    """Log-probability of each target token in nats, the softmax taken in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, axis=-1)


def span_cross_entropy(
    logprobs: Float[Array, "B P"], weights: Float[Array, "B P"]
) -> Float[Array, "B"]:
    """Negative log-likelihood of one span a row, `-sum_t w_t log p_t`, in nats.

    Args:
        logprobs: of the target tokens, from `token_logprobs`.
        weights: 0 outside the span; 1 inside it for the sum over its tokens, `1 / length` for
            their mean. A row without the span has all zeros and loss 0.
    """
    return -(logprobs * weights).sum(axis=-1)


def dpo_loss(
    policy_chosen: Float[Array, "B"],
    policy_rejected: Float[Array, "B"],
    reference_chosen: Float[Array, "B"],
    reference_rejected: Float[Array, "B"],
    *,
    beta: float,
) -> Float[Array, "B"]:
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7), one value a pair, in nats.

    Args:
        policy_chosen: log-probability of the preferred sequence under the trained model.
        policy_rejected: the same for the other sequence.
        reference_chosen: the preferred sequence under the frozen reference.
        reference_rejected: the other one under the frozen reference.
        beta: how strongly the policy is held to the reference.
    """
    margin = (policy_chosen - reference_chosen) - (policy_rejected - reference_rejected)
    return -jax.nn.log_sigmoid(beta * margin)


def in_batch_contrastive(
    queries: Float[Array, "B E"],
    passages: Float[Array, "P E"],
    positives: Int[Array, "B"],
    *,
    masked: Bool[Array, "B P"] | None = None,
    scale: float = 1.0,
) -> Float[Array, "B"]:
    """DPR's loss (Karpukhin et al. 2020, eq. 2), one value a question, in nats.

    `-log(exp(s_p) / sum_j exp(s_j))`, where `s_j` is the scaled dot product with passage j and p
    the question's positive: all other passages of the batch are negatives, whoever's they are.

    Args:
        queries: embeddings of the questions.
        passages: embeddings of every question's positive and negatives.
        positives: for each question the row of its positive among the passages.
        masked: True where a passage is no negative to a question: another of its positives, a
            duplicate, or padding. Its own positive always counts.
        scale: of the dot products: 1 in DPR; cosines, between -1 and 1, need more.
    """
    # Full precision: TPUs would round both factors to bfloat16.
    scores = scale * jnp.matmul(
        queries.astype(jnp.float32),
        passages.astype(jnp.float32).T,
        precision=jax.lax.Precision.HIGHEST,
    )
    if masked is not None:
        own = jnp.arange(len(passages))[None] == positives[:, None]
        scores = jnp.where(masked & ~own, -jnp.inf, scores)
    return -token_logprobs(scores, positives)
