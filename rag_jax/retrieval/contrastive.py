"""Contrastive training of encoders: each question against all passages of its batch.

The more passages a batch has, the better its negatives, and a loss over the whole batch cannot be
summed over microbatches. So the encoders read the batch in chunks and keep only the embeddings; the
loss's gradient with respect to the embeddings is computed, and each chunk is read again for the
gradient with respect to the weights (GradCache, Gao et al. 2021, arXiv 2101.06983, section 3.2).
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.config import ContrastiveConfig
from rag_jax.data.batches import BatchPlan, round_up
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.losses import in_batch_contrastive
from rag_jax.models import Pretrained
from rag_jax.models.io.architectures import get_rules
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.stack import stack_layers
from rag_jax.retrieval.chunks import (
    Sample,
    choose_chunk,
    choose_chunk_widths,
    count_chunk_tokens,
    embed_in_chunks,
    order_rows,
)
from rag_jax.retrieval.encode import pad_texts
from rag_jax.retrieval.pairs import Pair
from rag_jax.retrieval.texts import list_texts, tokenize_for_training
from rag_jax.runtime.collect import collect_over_data
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.progress import Progress
from rag_jax.training.fit import Batch, Hook, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.rows import PROGRAM_TOKENS, list_sampled
from rag_jax.training.trainable import Trainable, train_all

_SIDES = ("question", "passage")


@dataclass(frozen=True)
class Encoders:
    """A question encoder and a passage encoder, which are one model if `shared`."""

    question: Pretrained
    passage: Pretrained
    shared: bool

    def params(self) -> PyTree:
        """The trained tree: `{"shared": ...}`, or `{"question": ..., "passage": ...}`."""
        if self.shared:
            return {"shared": self.question.params}
        return {"question": self.question.params, "passage": self.passage.params}

    def with_params(self, params: PyTree) -> "Encoders":
        """The encoders with other parameters, in a tree like that of `params`."""
        sides = {s: replace(getattr(self, s), params=_pick_side(params, s)) for s in _SIDES}
        return replace(self, **sides)


def make_loss(
    encoders: Encoders, settings: ContrastiveConfig, widths: Mapping[str, Sequence[int]]
) -> LossFunction:
    """The loss `loss(params, frozen, arrays) -> (mean over the questions, {})`.

    DPR's loss (Karpukhin et al. 2020, eq. 2) over the whole batch, on a mesh too. `params` is a
    tree like `Encoders.params`, nothing is frozen, and `arrays` are from `PairBatches.pack`, as
    `widths` are from `PairBatches.widths`.

    Raises:
        RagJaxError: the encoders cannot loop over their layers, as the settings want.
    """
    models = {side: getattr(encoders, side).model for side in _SIDES}
    if settings.scan_layers and not all(isinstance(model, Bert) for model in models.values()):
        kind = type(models["passage"]).__name__
        raise RagJaxError(f"config.train.scan_layers=True: not for a {kind}: set it to False")

    def loss(params, frozen, arrays):
        del frozen

        def read(side: str) -> Float[Array, "B E"]:
            tokens, lengths = arrays[side], arrays[f"{side}_lengths"]
            rows = choose_chunk(*tokens.shape, budget=settings.microbatch_tokens)
            own = collect_over_data(_pick_side(params, side), get_rules(models[side].config))
            if settings.scan_layers:
                own = stack_layers(own)  # once a step: a chunk would stack them again
            inputs = models[side], own, tokens, lengths
            return embed_in_chunks(*inputs, rows=rows, widths=widths[side])

        values = in_batch_contrastive(
            *map(read, _SIDES), arrays["positives"], masked=arrays["masked"], scale=settings.scale
        )
        return (values * arrays["weights"]).sum(), {}

    return loss


@dataclass(frozen=True, eq=False)
class PairBatches:
    """Batches of pairs as arrays of one shape, which depend on the seed and the step alone.

    Attributes:
        pairs: at least one.
        passages: token ids by row, of every passage that a pair names.
        seed: of the order, and of every epoch's choice among the mined hard negatives.
    """

    pairs: Sequence[Pair]
    questions: Sequence[Sequence[int]]
    passages: Mapping[int, Sequence[int]]
    settings: ContrastiveConfig
    seed: int

    @functools.cached_property
    def plan(self) -> BatchPlan:
        """Which pairs make each step's batch."""
        size, seed = self.settings.batch_size, self.seed
        return BatchPlan([0] * len(self.pairs), batch_size=size, seed=seed)

    @functools.cached_property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """The widths of each side's chunks, ascending, chosen on the first steps."""
        steps = list_sampled(self.plan)
        listed = [self._list_rows(step, self.plan.examples_at(step))[0] for step in steps]
        samples = {
            side: Sample([list(map(len, rows[side])) for rows in listed], longest, rows)
            for side, (longest, rows) in self._shapes.items()
        }
        total = max(1, self.settings.epochs) * self.plan.num_steps_per_epoch
        worth = count_program_tokens(self.settings.program_tokens, on_cpu=PROGRAM_TOKENS)
        return choose_chunk_widths(samples, share=len(steps) / total, program_tokens=worth)

    @functools.cached_property
    def _shapes(self) -> dict[str, tuple[int, int]]:
        """Number of tokens of each side's rows, and number of rows of its chunks."""
        s, shapes = self.settings, {}
        numbers = s.batch_size, (1 + s.negatives) * s.batch_size
        texts = self.questions, self.passages.values()
        for side, count, rows in zip(_SIDES, numbers, texts, strict=True):
            longest = round_up(max(map(len, rows)), 8)
            shapes[side] = longest, choose_chunk(count, longest, budget=s.microbatch_tokens)
        return shapes

    def pack(self, step: int, chosen: Sequence[int]) -> dict[str, np.ndarray]:
        """The arrays of a step's batch; the step's epoch decides the hard negatives.

        Questions and passages are in the order in which `embed_in_chunks` computes the least
        padding.

        Returns:
            `question` `[B, T]` and `question_lengths` `[B]`; `passage` `[P, U]` and
            `passage_lengths` `[P]`, all questions' positives and negatives; `positives` `[B]`;
            `masked` `[B, P]`, as for `in_batch_contrastive`; `weights` `[B]`, which add up to 1. A
            batch is filled up with questions of weight 0 and with passages that are masked for all
            questions.
        """
        listed, columns = self._list_rows(step, chosen)
        places, arrays = {}, {}  # where each row is put
        for side, (longest, rows) in self._shapes.items():
            order = order_rows(list(map(len, listed[side])), rows)
            places[side] = np.argsort(order)
            ordered = [listed[side][i] for i in order]
            packed = pad_texts(ordered, len(ordered), longest)
            arrays[side], arrays[f"{side}_lengths"] = packed
        batch, count = self.settings.batch_size, len(chosen)
        positives, weights = np.zeros(batch, np.int32), np.zeros(batch, np.float32)
        masked = np.empty((batch, len(columns)), bool)
        positives[places["question"]] = places["passage"][:: len(columns) // batch]
        weights[places["question"][:count]] = 1 / count
        masked[np.ix_(places["question"], places["passage"])] = self._mask(columns, chosen)
        return arrays | {"positives": positives, "masked": masked, "weights": weights}

    def count_tokens(self, arrays: Mapping[str, np.ndarray]) -> int:
        """Number of tokens that are computed for a batch of `pack`, padding included."""
        return sum(
            count_chunk_tokens(arrays[f"{side}_lengths"], rows, self.widths[side])
            for side, (_, rows) in self._shapes.items()
        )

    def _list_rows(
        self, step: int, chosen: Sequence[int]
    ) -> tuple[dict[str, list[Sequence[int]]], Int[np.ndarray, "P"]]:
        """Each side's rows of tokens, empty ones included, and the passages' rows in the corpus."""
        columns = self._choose_passages(step // self.plan.num_steps_per_epoch, chosen)
        questions = [self.questions[self.pairs[number].question] for number in chosen]
        questions += [()] * (self.settings.batch_size - len(chosen))
        passages = [self.passages[row] if row >= 0 else () for row in columns.tolist()]
        return {"question": questions, "passage": passages}, columns

    def _mask(
        self, columns: Int[np.ndarray, "P"], chosen: Sequence[int]
    ) -> Bool[np.ndarray, "B P"]:
        """Which passages are no negatives of each question."""
        masked = np.tile(columns < 0, (self.settings.batch_size, 1))
        for i, number in enumerate(chosen):
            masked[i] |= np.isin(columns, list(self.pairs[number].relevant))
        return masked

    def _choose_passages(self, epoch: int, chosen: Sequence[int]) -> Int[np.ndarray, "P"]:
        """Rows of each pair's positive and its hard negatives of an epoch; -1 fills up."""
        columns = np.full((self.settings.batch_size, 1 + self.settings.negatives), -1)
        for i, number in enumerate(chosen):
            pair = self.pairs[number]
            rng = np.random.default_rng((self.seed, epoch, number))
            count = min(self.settings.negatives, len(pair.negatives))
            negatives = rng.choice(pair.negatives, count, replace=False) if count else ()
            columns[i, : 1 + count] = [pair.positive, *negatives]
        return columns.reshape(-1)


def make_batches(
    encoders: Encoders,
    pairs: Sequence[Pair],
    questions: Sequence[Question],
    passages: Sequence[Passage],
    settings: ContrastiveConfig,
    *,
    max_length: int,
    seed: int,
) -> PairBatches:
    """Batches of pairs, with their texts tokenized and cut to `max_length` tokens."""
    rows = sorted({row for pair in pairs for row in (pair.positive, *pair.negatives)})
    texts = list_texts([passages[row] for row in rows])
    cut = functools.partial(tokenize_for_training, max_length=max_length)
    return PairBatches(
        pairs,
        cut(encoders.question, [question.question for question in questions], role="query"),
        dict(zip(rows, cut(encoders.passage, texts, role="document"), strict=True)),
        settings,
        seed,
    )


class KeepingHook(Hook, Protocol):
    """A hook that keeps a trained tree other than the last one."""

    def load(self, abstract: PyTree) -> PyTree[Array]:
        """The tree that it keeps."""

    def remove(self) -> None:
        """Removes what it keeps, once that is saved elsewhere."""


def fit_encoders(
    encoders: Encoders,
    batches: PairBatches,
    mesh: Mesh,
    folder: Path,
    progress: Progress,
    *,
    save: Callable[[Encoders], None],
    make_hook: Callable[..., KeepingHook] | None = None,
) -> None:
    """Trains all weights of the encoders with the settings of the batches; see `fit`.

    Args:
        make_hook: makes a hook from the number of steps of an epoch and a function from the trained
            tree to the encoders. The hook chooses the tree that is saved; without a hook it is the
            last one.
    """
    settings = batches.settings

    def pack(step: int, chosen: list[int]) -> Batch:
        arrays = batches.pack(step, chosen)
        # A pass forward, one for the gradients of activations, one for those of weights.
        flops = 3 * sum(
            getattr(encoders, side).config.count_flops(int(arrays[f"{side}_lengths"].sum()))
            for side in _SIDES
        )
        return Batch([("pairs", arrays)], flops)

    trainable = make_trainable(encoders, mesh)
    hook = None
    if make_hook is not None:
        hook = make_hook(steps=batches.plan.num_steps_per_epoch, restore=encoders.with_params)

    def save_chosen(params: PyTree[Array]) -> None:
        chosen = params if hook is None else hook.load(trainable.abstract())
        save(encoders.with_params(chosen))

    losses, ids = (
        {"pairs": make_loss(encoders, settings, batches.widths)},
        [pair.id for pair in batches.pairs],
    )
    options = {"ids": ids, "hook": hook, "save": save_chosen}
    fit(batches.plan, pack, losses, trainable, settings, folder, progress, **options)
    if hook is not None:
        hook.remove()


def make_trainable(encoders: Encoders, mesh: Mesh) -> Trainable:
    """All weights of the encoders."""
    return train_all(encoders.params(), rules=get_rules(encoders.question.config), mesh=mesh)


def _pick_side(params: PyTree, side: str) -> PyTree:
    return params["shared"] if "shared" in params else params[side]
