"""The losses of both training stages (Wu et al. 2025, section 3.3), over microbatches.

A batch is from `rows.pack_rows`. Its terms hold the rows' weights, so the losses of a step's
microbatches add up to the step's loss.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rag_jax.losses import dpo_loss, span_cross_entropy
from rag_jax.models.nn.decoder import Decoder
from rag_jax.systems.srrag.data import TERMS
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import target_logprobs
from rag_jax.training.trainable import Trainable

Batch = Mapping[str, Array]


def make_losses(model: Decoder, trainable: Trainable, *, beta: float) -> dict[str, LossFunction]:
    """The losses of both kinds of microbatches by the trained tree.

    "rows" serves both stages, so it is compiled once.
    """

    def of_rows(trained, frozen, batch):
        return stage1_loss(model, trainable.merge(trained, frozen), batch)

    def of_pairs(trained, frozen, batch):
        return stage2_loss(model, trainable.merge(trained, frozen), batch, beta=beta)

    return {"rows": of_rows, "pairs": of_pairs}


def sequence_logprobs(model: Decoder, params: PyTree, batch: Batch) -> Float[Array, "B"]:
    """`log p(verbalisation | question)` of each row, summed over the span's tokens, in nats."""
    inside = (batch["verbalisation"] > 0).astype(jnp.float32)
    return (target_logprobs(model, params, batch) * inside).sum(axis=-1)


def stage1_loss(
    model: Decoder, params: PyTree, batch: Batch
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`L_src + L_verb + L_ans`: behaviour cloning (paper, eq. for stage 1)."""
    logprobs = target_logprobs(model, params, batch)
    terms = {term: span_cross_entropy(logprobs, batch[term]).sum() for term in TERMS}
    return sum(terms.values()), terms


def stage2_loss(
    model: Decoder, params: PyTree, batch: Batch, *, beta: float
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """`L_src + L_DPO + L_ans` for rows whose source is the model itself.

    Args:
        batch: the first half of its rows has the better verbalisations; the second half, in the
            same order, the worse ones. `reference` `[B]` holds the log-probabilities of the
            verbalisations under the stage-1 model, and `pair` `[B / 2]` the weights of the pairs.
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
