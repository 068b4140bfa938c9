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


def rag_sequence_nll(
    doc_scores: Float[Array, "B K"],
    token_logprobs: Float[Array, "B K T"],
    mask: Bool[Array, "B T"],
    *,
    smoothing: float = 0.0,
    vocab_sums: Float[Array, "B K T"] | None = None,
    vocab_size: int = 1,
) -> Float[Array, "B"]:
    """RAG-Sequence: `-log sum_z p(z|x) prod_t p(y_t|x,z,y_<t)`, in nats, one value a question.

    Lewis et al. 2020, section 2.1; `p(z|x)` is the softmax of `doc_scores` over the `K` documents.
    Smoothing is transformers': `(1 - e) nll + e / V smooth`, where `smooth` is the same sum over
    documents with the product over all tokens of the vocabulary in place of `y_t`, hence with
    `p(z|x)` to the power `V`.

    Args:
        doc_scores: any logits of `p(z|x)`: inner products, BM25 scores.
        token_logprobs: of the target tokens under each document.
        mask: False on padding, and on a BOS that is not to be scored. transformers adds
            `log p(z|x)` to the second target, as the first may be such a BOS; that is the same
            except where there is no second target, and there it loses `p(z|x)`.
        smoothing: `e`.
        vocab_sums: log-probabilities summed over the vocabulary; needed to smooth.
        vocab_size: `V`; needed to smooth.
    """
    prior = jax.nn.log_softmax(doc_scores, axis=-1)

    def marginalise(logprobs, power):
        joint = power * prior + (logprobs * mask[:, None]).sum(axis=-1)
        return -jax.nn.logsumexp(joint, axis=-1)

    nll = marginalise(token_logprobs, 1)
    if not smoothing:
        return nll
    return (1 - smoothing) * nll + smoothing / vocab_size * marginalise(vocab_sums, vocab_size)


def rag_token_nll(
    doc_scores: Float[Array, "B K"],
    token_logprobs: Float[Array, "B K T"],
    mask: Bool[Array, "B T"],
    *,
    smoothing: float = 0.0,
    vocab_sums: Float[Array, "B T"] | None = None,
    vocab_size: int = 1,
) -> Float[Array, "B"]:
    """RAG-Token: `-sum_t log sum_z p(z|x) p(y_t|x,z,y_<t)`, in nats, one value a question.

    Lewis et al. 2020, section 2.1; with one target it is RAG-Sequence's. Arguments are those of
    `rag_sequence_nll`, but for:

    Args:
        vocab_sums: log-probabilities of the mixture (`mix_documents`) summed over the vocabulary.
    """
    nll = -(mix_documents(doc_scores, token_logprobs) * mask).sum(axis=-1)
    if not smoothing:
        return nll
    smooth = -(vocab_sums * mask).sum(axis=-1)
    return (1 - smoothing) * nll + smoothing / vocab_size * smooth


def mix_documents(
    doc_scores: Float[Array, "B K"], logprobs: Float[Array, "B K *rest"]
) -> Float[Array, "B *rest"]:
    """`log sum_z p(z|x) p(.|z)`, in nats, with `p(z|x)` the softmax of `doc_scores`."""
    prior = jax.nn.log_softmax(doc_scores, axis=-1)
    prior = prior.reshape(*prior.shape, *[1] * (logprobs.ndim - 2))
    return jax.nn.logsumexp(prior + logprobs, axis=1)
