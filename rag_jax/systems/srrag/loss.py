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
from rag_jax.training.rows import sum_rows, target_logprobs
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


def sequence_logprobs(
    model: Decoder, params: PyTree, batch: Batch, *, rows: int
) -> Float[Array, "B R"]:
    """`log p(verbalisation | question)` of each of a sequence's first `rows` rows, in nats."""
    inside = (batch["verbalisation"] > 0).astype(jnp.float32)
    return sum_rows(target_logprobs(model, params, batch) * inside, batch["row"], rows)


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
        batch: every second row of a sequence, from the first on, has the better verbalisation of a
            pair, and the row after it the worse one. `reference` `[B, R]` holds the
            log-probabilities of the rows' verbalisations under the stage-1 model, and `pair`
            `[B, R / 2]` the weights of the pairs.
    """
    logprobs, rows = target_logprobs(model, params, batch), batch["reference"].shape[1]
    terms = {term: span_cross_entropy(logprobs, batch[term]).sum() for term in ("source", "answer")}
    inside = (batch["verbalisation"] > 0).astype(jnp.float32)
    sums = sum_rows(logprobs * inside, batch["row"], rows).reshape(-1)
    reference, weights = batch["reference"].reshape(-1), batch["pair"].reshape(-1)
    chosen, rejected = sums[0::2], sums[1::2]
    reference_chosen, reference_rejected = reference[0::2], reference[1::2]
    preference = dpo_loss(chosen, rejected, reference_chosen, reference_rejected, beta=beta)
    terms["preference"] = (preference * weights).sum()
    margin = (chosen - reference_chosen) - (rejected - reference_rejected)
    preferred = ((margin > 0) * (weights > 0)).sum().astype(jnp.float32)
    loss = terms["source"] + terms["preference"] + terms["answer"]
    return loss, terms | {"preferred": jax.lax.stop_gradient(preferred)}
