"""Contrastive training of encoders: each question against all passages of its batch.

The more passages a batch has, the better its negatives, and a loss over the whole batch cannot be
summed over microbatches. So the encoders read the batch in chunks and keep only the embeddings; the
loss's gradient with respect to the embeddings is computed, and each chunk is read again for the
gradient with respect to the weights (GradCache, Gao et al. 2021, arXiv 2101.06983, section 3.2). In
JAX that is rematerialisation of each chunk's embeddings, and gives the same gradient.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.config import ContrastiveConfig
from rag_jax.data.batches import BatchPlan, round_up
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.losses import in_batch_contrastive
from rag_jax.models import Pretrained
from rag_jax.models.io.architectures import Encoder, get_rules
from rag_jax.retrieval.encode import embed, pad_texts
from rag_jax.retrieval.texts import list_texts, tokenize_for_training
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.progress import Progress
from rag_jax.runtime.sharding import constrain_rows, count_data_rows
from rag_jax.training.fit import Batch, Hook, fit
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable

_SIDES = ("question", "passage")


@dataclass(frozen=True)
class Pair:
    """A training example: a question and a passage that answers it.

    Attributes:
        question: number of the question.
        positive: row of the passage in the corpus.
        negatives: rows of hard negatives to choose from.
        relevant: rows of all passages known to answer the question, which are no negatives to it.
    """

    id: str
    question: int
    positive: int
    negatives: tuple[int, ...]
    relevant: frozenset[int]


def list_pairs(
    questions: Sequence[Question],
    negatives: Sequence[Sequence[int]],
    passages: Sequence[Passage],
    *,
    positives: Literal["all", "first"] = "all",
) -> list[Pair]:
    """A training example for each question and each passage relevant to the question.

    Args:
        negatives: for each question, rows of `passages`.
        positives: "first" for one example a question, of the first relevant passage that the data
            names, as DPR's code takes it.

    Raises:
        ValueError: there is not one row of negatives for each question.
    """
    if len(negatives) != len(questions):
        raise ValueError(f"negatives: {len(negatives)} rows for {len(questions)} questions")
    count = 1 if positives == "first" else None
    wanted = {id for question in questions for id in question.relevant}
    rows = {p.id: row for row, p in enumerate(passages) if p.id in wanted}
    return [
        Pair(q.id, number, row, tuple(wrong), frozenset(relevant))
        for number, (q, wrong) in enumerate(zip(questions, negatives, strict=True))
        # The data can name passages that are not in the corpus.
        for relevant in [[rows[id] for id in q.relevant if id in rows]]
        for row in relevant[:count]
    ]


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


@checked
def embed_in_chunks(
    model: Encoder,
    params: PyTree,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    *,
    rows: int,
) -> Float[Array, "B E"]:
    """Embeddings as from `embed`, for `jax.grad`: only one chunk's activations exist at a time.

    The rows of `tokens` are padded on the right after `lengths` tokens, at least 1. A chunk has
    `rows` rows, which must divide B.
    """

    def read(part):
        tokens, lengths = part
        mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        return embed(model, params, tokens, mask)

    if rows == len(tokens):  # a single chunk: reading it twice would save no memory
        return read((tokens, lengths))

    def split(x):
        # [B, ...] -> [B / rows, rows, ...], each chunk with rows from all over the batch: a device
        # of a mesh, which has consecutive rows, then has its share of every chunk.
        return x.reshape(rows, -1, *x.shape[1:]).swapaxes(0, 1)

    # Inside a loop XLA cannot merge the second reading with the first, so no barrier is needed.
    read = jax.checkpoint(read, prevent_cse=False)
    embeddings = jax.lax.map(read, (split(tokens), split(lengths)))
    return constrain_rows(embeddings.swapaxes(0, 1).reshape(len(tokens), -1), len(tokens))


def make_loss(encoders: Encoders, settings: ContrastiveConfig) -> LossFunction:
    """The loss `loss(params, frozen, arrays) -> (mean over the questions, {})`.

    DPR's loss (Karpukhin et al. 2020, eq. 2) over the whole batch, on a mesh too. `params` is a
    tree like `Encoders.params`, nothing is frozen, and `arrays` are from `PairBatches.pack`.
    """
    models = {side: getattr(encoders, side).model for side in _SIDES}

    def loss(params, frozen, arrays):
        del frozen

        def read(side: str) -> Float[Array, "B E"]:
            tokens, lengths = arrays[side], arrays[f"{side}_lengths"]
            rows = choose_chunk(*tokens.shape, budget=settings.microbatch_tokens)
            side_params = _pick_side(params, side)
            return embed_in_chunks(models[side], side_params, tokens, lengths, rows=rows)

        values = in_batch_contrastive(
            *map(read, _SIDES), arrays["positives"], masked=arrays["masked"], scale=settings.scale
        )
        return (values * arrays["weights"]).sum(), {}

    return loss


def choose_chunk(batch: int, width: int, *, budget: int) -> int:
    """Number of rows of a chunk of at most `budget` tokens: a divisor of the batch.

    A chunk exceeds the budget if the mesh's data rows need more.
    """
    parts = count_data_rows()
    divisors = (rows for rows in range(parts, batch + 1, parts) if batch % rows == 0)
    return max((rows for rows in divisors if rows * width <= budget), default=parts)


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
    def _widths(self) -> tuple[int, int]:
        longest = (max(map(len, rows)) for rows in (self.questions, self.passages.values()))
        return tuple(round_up(length, 8) for length in longest)

    def pack(self, step: int, chosen: Sequence[int]) -> dict[str, np.ndarray]:
        """The arrays of a step's batch; the step's epoch decides the hard negatives.

        Returns:
            `question` `[B, T]` and `question_lengths` `[B]`; `passage` `[P, U]` and
            `passage_lengths` `[P]`, each question's positive and then its negatives; `positives`
            `[B]`; `masked` `[B, P]`, as for `in_batch_contrastive`; `weights` `[B]`, which add up
            to 1. A batch is filled up with questions of weight 0 and with passages that are masked
            for all questions.
        """
        batch, each = self.settings.batch_size, 1 + self.settings.negatives
        columns = self._choose_passages(step // self.plan.num_steps_per_epoch, chosen)
        masked = np.tile(columns < 0, (batch, 1))
        for i, number in enumerate(chosen):
            masked[i] |= np.isin(columns, list(self.pairs[number].relevant))
        weights = np.zeros(batch, np.float32)
        weights[: len(chosen)] = 1 / len(chosen)
        positives = np.arange(batch, dtype=np.int32) * each
        arrays = {"positives": positives, "masked": masked, "weights": weights}
        questions = [self.questions[self.pairs[number].question] for number in chosen]
        passages = [self.passages[row] if row >= 0 else () for row in columns.tolist()]
        sides = ("question", questions, batch), ("passage", passages, len(columns))
        for (side, rows, count), width in zip(sides, self._widths, strict=True):
            arrays[side], arrays[f"{side}_lengths"] = pad_texts(rows, count, width)
        return arrays

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

    losses, ids = {"pairs": make_loss(encoders, settings)}, [pair.id for pair in batches.pairs]
    options = {"ids": ids, "hook": hook, "save": save_chosen}
    fit(batches.plan, pack, losses, trainable, settings, folder, progress, **options)
    if hook is not None:
        hook.remove()


def make_trainable(encoders: Encoders, mesh: Mesh) -> Trainable:
    """All weights of the encoders."""
    return Trainable(
        base=encoders.params(),
        frozen=None,
        init=lambda params: params,
        merge=lambda trained, base: trained,
        rules=get_rules(encoders.question.config),
        mesh=mesh,
    )


def _pick_side(params: PyTree, side: str) -> PyTree:
    return params["shared"] if "shared" in params else params[side]
