"""Training of a reranker: each question's right passage against passages that do not answer it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, PyTree

from rag_jax.config import TrainConfig
from rag_jax.data.batches import BatchPlan, choose_widths, round_up
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained, Reranker
from rag_jax.models.io.architectures import get_rules
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.decoder_config import DecoderConfig
from rag_jax.models.nn.modern_bert import ModernBert
from rag_jax.models.nn.score_head import ScoreHead
from rag_jax.retrieval.encode import check_sizes, pad_texts
from rag_jax.retrieval.pairs import Pair
from rag_jax.retrieval.rerank import (
    choose_length,
    join_passage,
    score_batch,
    tokenize_pairs,
    warn_of_cuts,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.progress import Progress
from rag_jax.runtime.settings import Count, Positive
from rag_jax.runtime.sharding import HEAD_RULES, count_data_rows
from rag_jax.training.fit import Batch, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import PROGRAM_TOKENS, list_sampled
from rag_jax.training.trainable import train_all

Group = list[list[int]]  # the token ids of a question with each of its passages

_DEVIATION = 0.02  # of BERT's own new weights (Devlin et al. 2019)


@dataclass(frozen=True)
class RerankTrainConfig(TrainConfig):
    """Training of a reranker, which reads each question with its gold passage and some negatives.

    Attributes:
        negatives: number of mined negatives per question, drawn anew for each step.
        by: "list" for the softmax over all of a question's passages, "pairs" for the logistic loss
            of the gold one against each other.
    """

    batch_size: Count = 16
    learning_rate: Positive = 2e-5
    microbatch_tokens: Count = 4096
    negatives: Count = 7
    by: Literal["list", "pairs"] = "list"


def start_reranker(encoder: Pretrained, *, seed: int = 0) -> Reranker:
    """An encoder with a new head for scores, whose numbers are drawn, to be trained.

    The head is that of the encoder's kind in transformers, over the state of the first token.

    Raises:
        RagJaxError: it is no BERT or of its kin, and no ModernBERT.
    """
    config = encoder.config
    is_bert = isinstance(encoder.model, Bert) and config.dpr_role is None
    if not is_bert and not isinstance(encoder.model, ModernBert):
        kind = type(encoder.model).__name__
        raise RagJaxError(f"a {kind} starts no reranker: take a BERT, or load a reranker")
    width = config.hidden_size
    dense, out = (
        _DEVIATION * jax.random.normal(key, shape)
        for key, shape in zip(
            jax.random.split(jax.random.key(seed)), [(width, width), (width, 1)], strict=True
        )
    )
    params: dict[str, Any] = {"dense": {"kernel": dense}}
    params["out"] = {"kernel": out, "bias": jnp.zeros(1)}
    if is_bert:
        params["dense"]["bias"] = jnp.zeros(width)
        head = ScoreHead("first", "relu" if config.family == "distilbert" else "tanh")
    else:
        params["norm"] = {"scale": jnp.ones(width)}
        head = ScoreHead("first", "gelu", config.norm_eps)
    model = encoder.model.clone(pooling=None)
    base = replace(encoder, model=model, params={**encoder.params, "head": params}, sentence=None)
    return Reranker(base, head)


def rank_loss(
    scores: Float[Array, "B N"],
    masked: Bool[Array, "B N"],
    *,
    pairwise: bool,
) -> Float[Array, "B"]:
    """The loss of each question, of which the first passage is the right one.

    Listwise it is `-log softmax(scores)[0]` (ListNet, Cao et al. 2007, with one right passage), and
    pairwise the mean of `log(1 + exp(s_i - s_0))` over the others (RankNet, Burges et al. 2005).

    Args:
        masked: passages that do not count.
    """
    if not pairwise:
        return -jax.nn.log_softmax(jnp.where(masked, -jnp.inf, scores), axis=1)[:, 0]
    losses = jnp.where(masked, 0.0, jax.nn.softplus(scores - scores[:, :1]))[:, 1:]
    return losses.sum(axis=1) / jnp.maximum(1, (~masked[:, 1:]).sum(axis=1))


def make_loss(reranker: Reranker, settings: RerankTrainConfig) -> LossFunction:
    """The loss `loss(params, frozen, arrays) -> (sum of weighted losses, {})`.

    `params` is a tree like the reranker's, nothing is frozen, and `arrays` are from `pack_groups`.
    """
    model, head, each = reranker.base.model, reranker.head, 1 + settings.negatives
    typed = reranker.base.tokenizer.has_types

    def loss(params: PyTree, frozen: PyTree, arrays: Mapping[str, Array]) -> tuple[Array, dict]:
        del frozen
        rows = arrays["tokens"], arrays["lengths"]
        scores = score_batch(model, head, params, *rows, typed=typed)
        scores = scores.reshape(-1, each)
        losses = rank_loss(scores, arrays["masked"], pairwise=settings.by == "pairs")
        return (losses * arrays["weights"]).sum(), {}

    return loss


def pack_groups(
    groups: Sequence[Group],
    settings: RerankTrainConfig,
    widths: Sequence[int],
) -> list[dict[str, np.ndarray]]:
    """The microbatches of a step, each of questions whose longest rows are of similar length.

    Returns:
        `tokens` `[G * N, T]` and `lengths` `[G * N]`, as `score_batch` takes them, with the right
        passage first of each question's `N`; `masked` `[G, N]`; `weights` `[G]`, which add up to 1
        over the step.
    """
    each, arrays, rest = 1 + settings.negatives, [], sorted(groups, key=_measure)
    while rest:
        width = min(w for w in widths if w >= _measure(rest[-1]))
        count = max(1, settings.microbatch_tokens // (each * width))
        count = round_up(min(count, settings.batch_size), count_data_rows())
        taken, rest = rest[-count:], rest[:-count]
        masked, weights = np.ones((count, each), bool), np.zeros(count, np.float32)
        masked[:, 0] = False  # where all are masked, a loss of weight 0 would be NaN
        rows: list[Sequence[int]] = []
        for i, group in enumerate(taken):
            masked[i, : len(group)], weights[i] = False, 1 / len(groups)
            rows += [*group, *[()] * (each - len(group))]
        tokens, lengths = pad_texts(rows, count * each, width)
        packed = {"tokens": tokens, "lengths": lengths}
        arrays.append({**packed, "masked": masked, "weights": weights})
    return arrays


def _measure(group: Group) -> int:
    return max(map(len, group))


def _choose(
    pair: Pair,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    count: int,
    rng: np.random.Generator,
) -> list[tuple[str, str]]:
    """A question with its right passage and some of its negatives."""
    drawn = rng.permutation(len(pair.negatives))[:count]
    rows = [pair.positive, *(pair.negatives[i] for i in drawn)]
    question = questions[pair.question].question
    return [(question, join_passage(passages[row])) for row in rows]


def fit_reranker(
    reranker: Reranker,
    pairs: Sequence[Pair],
    questions: Sequence[Question],
    passages: Sequence[Passage],
    settings: RerankTrainConfig,
    mesh: Mesh,
    folder: Path,
    progress: Progress,
    *,
    max_length: int | None = None,
    seed: int,
    save: Callable[[Reranker], None],
) -> None:
    """Trains all weights of a reranker; see `fit`.

    How many of the pairs read are cut is logged, first of those of some steps, in the end of all.

    Args:
        pairs: by `list_pairs`; each step's negatives are drawn from a pair's.
        max_length: as for `score_pairs`.
        seed: of the order, and of the choice among negatives.
        save: keeps the trained reranker.

    Raises:
        RagJaxError: a pair has no negatives, a language model is asked, `max_length` is out of
            range, or as `fit`.
    """
    base = reranker.base
    max_length = choose_length(base.config.max_length, max_length)
    check_sizes(base, settings.batch_size, max_length)
    _check_trained(reranker, pairs)
    plan = BatchPlan([0] * len(pairs), batch_size=settings.batch_size, seed=seed)
    counts = np.zeros(2, int)  # of pairs that were cut, and of all

    def count_cut(*found: int) -> None:
        counts[:] += found

    def list_groups(step: int) -> list[Group]:
        rng = np.random.default_rng((seed, step))
        chosen = [pairs[i] for i in plan.examples_at(step)]
        read = [_choose(pair, questions, passages, settings.negatives, rng) for pair in chosen]
        options = {"count_cut": count_cut}
        return [list(tokenize_pairs(reranker, own, max_length, **options)) for own in read]

    def finish(params: PyTree[Array]) -> None:
        warn_of_cuts(max_length, *counts, " read")
        save(replace(reranker, base=replace(base, params=params)))

    steps = list_sampled(plan)
    sampled = [group for step in steps for group in list_groups(step)]
    warn_of_cuts(max_length, *counts, f" of the first {len(steps)} steps")
    counts[:] = 0  # these steps are still to be trained
    worth = count_program_tokens(settings.program_tokens, on_cpu=PROGRAM_TOKENS)
    widths = choose_widths(
        [round_up(max_length, 8), *(len(row) for group in sampled for row in group)],
        program_tokens=worth,
    )

    def pack(step: int, chosen: list[int]) -> Batch:
        del chosen
        groups = list_groups(step)
        read = sum(len(row) for group in groups for row in group)
        arrays = pack_groups(groups, settings, widths)
        count = base.config.count_flops
        flops = count(read, 0) if isinstance(base.config, DecoderConfig) else count(read)
        return Batch([("groups", a) for a in arrays], 3 * flops)

    rules = (*HEAD_RULES, *get_rules(base.config))
    trainable = train_all(base.params, rules=rules, mesh=mesh)
    losses = {"groups": make_loss(reranker, settings)}
    fit(
        plan,
        pack,
        losses,
        trainable,
        settings,
        folder,
        progress,
        ids=[pair.id for pair in pairs],
        save=finish,
    )


def _check_trained(reranker: Reranker, pairs: Sequence[Pair]) -> None:
    """Raises a RagJaxError if the reranker or a pair cannot be trained on."""
    if reranker.question is not None:
        raise RagJaxError("a language model that is asked has no head to train")
    if bare := [pair.id for pair in pairs if not pair.negatives]:
        raise RagJaxError(
            f"{len(bare)} pairs have no negatives, such as {bare[0]!r}: leave them out"
        )
