"""The losses of both training stages (Wu et al. 2025, section 3.3), over microbatches.

`batch` is what `spans.pack_rows` makes; row weights are in its terms, so the losses of a batch's
microbatches add up to the batch's.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rag_jax.losses import dpo_loss, span_cross_entropy
from rag_jax.models.nn.decoder import Decoder
from rag_jax.systems.srrag.data import TERMS
from rag_jax.training.rows import target_logprobs


def sequence_logprobs(model: Decoder, params, batch) -> Float[Array, "B"]:
    """`log p(verbalisation | question)` of each row, summed over the span's tokens."""
    inside = (batch["verbalisation"] > 0).astype(jnp.float32)
    return (target_logprobs(model, params, batch) * inside).sum(axis=-1)


def stage1_loss(model: Decoder, params, batch) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`L_src + L_verb + L_ans`: behaviour cloning (paper, eq. for stage 1)."""
    logprobs = target_logprobs(model, params, batch)
    terms = {term: span_cross_entropy(logprobs, batch[term]).sum() for term in TERMS}
    return sum(terms.values()), terms


def stage2_loss(
    model: Decoder, params, batch, *, beta: float
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`L_src + L_DPO + L_ans` for rows whose source is the model itself.

    `batch` holds the rows with the better verbalisation in its first half and, in the same order,
    those with the worse one in its second; `reference` `[B]` their log-probabilities under the
    stage-1 model, and `pair` `[B / 2]` the pairs' weights.
    """
    logprobs = target_logprobs(model, params, batch)
    terms = {term: span_cross_entropy(logprobs, batch[term]).sum() for term in ("source", "answer")}
    inside = (batch["verbalisation"] > 0).astype(jnp.float32)
    chosen, rejected = jnp.split((logprobs * inside).sum(axis=-1), 2)
    reference_chosen, reference_rejected = jnp.split(batch["reference"], 2)
    preference = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=beta)
    terms["preference"] = (preference * batch["pair"]).sum()
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    preferred = ((margin > 0) * (batch["pair"] > 0)).sum().astype(jnp.float32)
    loss = terms["source"] + terms["preference"] + terms["answer"]
    return loss, terms | {"preferred": jax.lax.stop_gradient(preferred)}
