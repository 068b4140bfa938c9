"""Training two encoders, or one for both sides, with the batch's other passages as negatives.

The more passages a batch has, the better its negatives, and a loss over the whole batch can't be
summed over microbatches. So the encoders read the batch in chunks, of which nothing but the
embeddings is kept; the loss's gradient by those is computed, and each chunk is then read again for
the gradient by the weights (GradCache, Gao et al. 2021, arXiv 2101.06983, section 3.2). In JAX that
is what rematerialising each chunk's embeddings means, and gives the same gradient.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.config import ContrastiveConfig
from rag_jax.data.batches import BatchPlan, pad_rows, round_up
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.losses import in_batch_contrastive
from rag_jax.models import Pretrained
from rag_jax.models.nn.bert import Bert
from rag_jax.retrieval.encode import embed, list_texts, tokenize_texts
from rag_jax.runtime.checkpoint import Checkpoints
from rag_jax.runtime.sharding import constrain_rows, count_data_rows, shard_batch
from rag_jax.training.loop import LossFunction, init_state, make_optimizer, make_step, train


@dataclass(frozen=True)
class Pair:
    """A training example: a question and a passage that answers it; passages are rows of a corpus.

    Attributes:
        id: for messages.
        question: a row among the questions' tokens.
        positive: the passage.
        negatives: hard negatives to choose from.
        relevant: every passage known to answer the question; none of them is a negative to it.
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
) -> list[Pair]:
    """A training example for each question and each passage relevant to it.

    Args:
        questions: of the training split.
        negatives: of each question, as rows of `passages`.
        passages: the corpus.
    """
    rows = {passage.id: row for row, passage in enumerate(passages)}
    return [
        Pair(
            question.id, number, rows[id], tuple(wrong), frozenset(map(rows.get, question.relevant))
        )
        for number, (question, wrong) in enumerate(zip(questions, negatives, strict=True))
        for id in question.relevant
    ]


@dataclass(frozen=True)
class Encoders:
    """A question encoder and a passage encoder; one and the same where `shared`."""

    question: Pretrained
    passage: Pretrained
    shared: bool

    def params(self) -> PyTree:
        """The tree to train: `{"shared": ...}`, or `{"question": ..., "passage": ...}`."""
        if self.shared:
            return {"shared": self.question.params}
        return {"question": self.question.params, "passage": self.passage.params}

    def with_params(self, params: PyTree) -> "Encoders":
        """The encoders with a tree like that of `params`."""
        return replace(
            self,
            question=replace(self.question, params=_pick_side(params, "question")),
            passage=replace(self.passage, params=_pick_side(params, "passage")),
        )


def embed_in_chunks(
    model: Bert,
    params: PyTree,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    *,
    rows: int,
) -> Float[Array, "B E"]:
    """Embeddings as by `embed`, for `jax.grad`: only one chunk's activations exist at a time.

    Args:
        tokens: padded on the right.
        lengths: real tokens of each row, at least 1.
        rows: of a chunk; must divide B.
    """

    def read(part):
        tokens, lengths = part
        mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
        return embed(model, params, tokens, mask)

    if rows == len(tokens):  # nothing to save by reading it twice
        return read((tokens, lengths))

    def split(x):
        # Every chunk takes rows from all over the batch: each device of a mesh, which has
        # consecutive rows, then has its share of every chunk.
        return x.reshape(rows, -1, *x.shape[1:]).swapaxes(0, 1)

    # Within a loop nothing can be merged with the first reading, so nothing need prevent it.
    read = jax.checkpoint(read, prevent_cse=False)
    embeddings = jax.lax.map(read, (split(tokens), split(lengths)))
    return constrain_rows(embeddings.swapaxes(0, 1).reshape(len(tokens), -1), len(tokens))


def make_loss(encoders: Encoders, settings: ContrastiveConfig) -> LossFunction:
    """The loss `loss(params, frozen, arrays) -> (mean over the questions, {})`.

    `params` is a tree like `Encoders.params`, nothing is frozen, and `arrays` are by `PairBatches`.
    Where a mesh splits those by rows, negatives are the whole batch's all the same.
    """
    models = {"question": encoders.question.model, "passage": encoders.passage.model}

    def loss(params, frozen, arrays):
        del frozen
        found = {}
        for side, model in models.items():
            tokens, lengths = arrays[side], arrays[f"{side}_lengths"]
            rows = choose_chunk(*tokens.shape, budget=settings.microbatch_tokens)
            found[side] = embed_in_chunks(
                model, _pick_side(params, side), tokens, lengths, rows=rows
            )
        values = in_batch_contrastive(
            found["question"],
            found["passage"],
            arrays["positives"],
            masked=arrays["masked"],
            scale=settings.scale,
        )
        return (values * arrays["weights"]).sum(), {}

    return loss


def choose_chunk(batch: int, width: int, *, budget: int) -> int:
    """Rows of a chunk: at most `budget` tokens, a divisor of the batch that the mesh divides."""
    parts = count_data_rows()
    fitting = [
        rows
        for rows in range(parts, batch + 1, parts)
        if batch % rows == 0 and rows * width <= budget
    ]
    return max(fitting, default=parts)


@dataclass(frozen=True, eq=False)
class PairBatches:
    """Batches of pairs as arrays, all of one shape; which they are depends on seed and step alone.

    Args:
        pairs: at least one.
        questions: token ids of each question.
        passages: token ids by row, of every passage that a pair names.
        settings: of the training.
        seed: decides the order, and every epoch's hard negatives among those mined.
    """

    pairs: Sequence[Pair]
    questions: Sequence[Sequence[int]]
    passages: Mapping[int, Sequence[int]]
    settings: ContrastiveConfig
    seed: int

    @functools.cached_property
    def _plan(self) -> BatchPlan:
        # Lengths don't matter: all batches are padded to one width.
        alike = [0] * len(self.pairs)
        return BatchPlan(
            alike,
            kinds=["pair"] * len(self.pairs),
            strata=alike,
            batch_size=self.settings.batch_size,
            budget=1,
            program_tokens=0,
            seed=self.seed,
        )

    @functools.cached_property
    def _widths(self) -> tuple[int, int]:
        longest = (max(map(len, rows)) for rows in (self.questions, self.passages.values()))
        return tuple(round_up(length, 8) for length in longest)

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole training."""
        return self.settings.epochs * self._plan.num_steps_per_epoch

    def batch_at(self, step: int) -> tuple[dict[str, np.ndarray], list[str]]:
        """The arrays of a step, counted from 0, and its pairs' ids.

        Returns:
            `question` `[B, T]` and `question_lengths` `[B]`; `passage` `[P, U]` and
            `passage_lengths` `[P]`, each question's positive and then its negatives; `positives`
            `[B]`; `masked` `[B, P]`, as `in_batch_contrastive` takes it; `weights` `[B]`, which
            add up to 1. What a batch lacks is padding: questions without weight, and passages
            masked for all.
        """
        chosen, batch = self._plan.examples_at(step), self.settings.batch_size
        epoch, each = step // self._plan.num_steps_per_epoch, 1 + self.settings.negatives
        columns = np.full((batch, each), -1)
        for i, number in enumerate(chosen):
            pair = self.pairs[number]
            rng = np.random.default_rng((self.seed, epoch, number))
            count = min(self.settings.negatives, len(pair.negatives))
            negatives = rng.choice(pair.negatives, count, replace=False) if count else ()
            columns[i, : 1 + count] = [pair.positive, *negatives]
        columns = columns.reshape(-1)
        masked = np.tile(columns < 0, (batch, 1))
        for i, number in enumerate(chosen):
            masked[i] |= np.isin(columns, list(self.pairs[number].relevant))
        weights = np.zeros(batch, np.float32)
        weights[: len(chosen)] = 1 / len(chosen)
        questions = [self.questions[self.pairs[number].question] for number in chosen]
        arrays = {
            "positives": np.arange(batch, dtype=np.int32) * each,
            "masked": masked,
            "weights": weights,
        }
        found = [self.passages[row] if row >= 0 else () for row in columns.tolist()]
        sides = {"question": (questions, batch), "passage": (found, len(columns))}
        for (side, (rows, count)), width in zip(sides.items(), self._widths, strict=True):
            tokens, mask = pad_rows(rows, width, pad_id=0, batch=count)
            # Attention over no token at all has no meaning.
            lengths = np.maximum(mask.sum(axis=1, dtype=np.int32), 1)
            arrays |= {side: tokens, f"{side}_lengths": lengths}
        return arrays, [self.pairs[number].id for number in chosen]


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
    """Batches of pairs, their texts tokenized and cut to `max_length` tokens."""
    rows = sorted({row for pair in pairs for row in (pair.positive, *pair.negatives)})
    texts = list_texts([passages[row] for row in rows])
    cut = functools.partial(tokenize_texts, max_length=max_length)
    return PairBatches(
        pairs,
        cut(encoders.question.tokenizer, [question.question for question in questions]),
        dict(zip(rows, cut(encoders.passage.tokenizer, texts), strict=True)),
        settings,
        seed,
    )


def train_encoders(
    encoders: Encoders,
    batches: PairBatches,
    *,
    folder: Path,
    progress: Callable[..., AbstractContextManager],
) -> Encoders:
    """Trains all weights of the encoders, from where an interrupted training in `folder` stopped.

    Args:
        encoders: what it starts from.
        batches: whose settings are those of the training.
        folder: for checkpoints, which the caller removes once the result is saved, and `log.jsonl`.
        progress: such as `StageContext.progress`.
    """
    settings, total = batches.settings, batches.total_steps
    optimizer = make_optimizer(settings, max(total, 1))
    step = make_step({"pairs": make_loss(encoders, settings)}, optimizer)

    flops: dict[int, float] = {}  # of the steps under way

    def batch_at(number: int) -> tuple[list[tuple[str, Any]], list[str]]:
        arrays, ids = batches.batch_at(number)
        # A pass forward, one for the activations' gradients, one for the weights'.
        flops[number] = 3 * sum(
            getattr(encoders, side).config.count_flops(int(arrays[f"{side}_lengths"].sum()))
            for side in ("question", "passage")
        )
        return [("pairs", shard_batch(arrays))], ids

    state = train(
        init_state(encoders.params(), optimizer),
        lambda state, parts: step(state, None, parts),
        batch_at,
        total_steps=total,
        checkpoints=Checkpoints(folder / "checkpoints"),
        checkpoint_every=settings.checkpoint_every,
        progress=progress,
        log_path=folder / "log.jsonl",
        flops_at=flops.pop,
    )
    return encoders.with_params(state.params)


def _pick_side(params: PyTree, side: str) -> PyTree:
    return params["shared"] if "shared" in params else params[side]
