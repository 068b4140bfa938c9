"""Training questions as rows of tokens, and which of them make a microbatch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from rag_jax.config import TrainConfig
from rag_jax.data.batches import BatchPlan, Microbatch, round_up
from rag_jax.pipeline.runner import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.sharding import count_data_rows
from rag_jax.systems.srrag.data import TERMS, join_passages, make_row
from rag_jax.systems.srrag.labels import read_labels
from rag_jax.training.fit import PROGRAM_TOKENS
from rag_jax.training.rows import Row, count_targets, pack_rows

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session


@dataclass(frozen=True)
class Example:
    """A training question's sequences.

    Attributes:
        row: the question with its source's best context.
        rejected: with the worst verbalisation, where the source is the model itself and its
            verbalisations differ; else None.
    """

    source: int
    row: Row
    rejected: Row | None

    @property
    def length(self) -> int:
        """Tokens that the example is computed with."""
        if not self.rejected:
            return len(self.row.tokens)
        return 2 * max(len(self.row.tokens), len(self.rejected.tokens))


def make_examples(
    session: "Session", context: StageContext, *, closed_book: bool = False, writes: bool = True
) -> list[Example]:
    """Packs every training question with the contexts that its label asks for.

    Searched rows get `max(p - 1, 0)` further passages, `p` Poisson, in random order among each
    other and the best one: the place in the block then says nothing, as at test time.

    Args:
        closed_book: labels are those without verbalising.
        writes: where the source is the model itself it writes knowledge before the answer.
    """
    c = session.config
    questions = session.list_training(session.read_corpus(context))
    gathered = read_jsonl(context.path("contexts", "contexts.jsonl"))
    labels = read_labels(session, context)
    rng = np.random.default_rng((c.seed, 1))
    examples = []
    for question, record, label in zip(questions, gathered, labels, strict=True):
        source = label["closed_book_source" if closed_book else "source"]
        scores = np.asarray(label["scores"][source])
        texts = record["contexts"][source]
        best, worst = int(scores.argmax()), int(scores.argmin())
        pack = partial(make_row, session.form, question.id, question.question, source)
        if source == session.form.internal and not writes:
            examples.append(Example(source, pack(None, question.answers[0]), None))
            continue
        if source == session.form.internal:
            row = pack(texts[best], question.answers[0])
            differ = texts[best] != texts[worst]
            examples.append(Example(source, row, pack(texts[worst], None) if differ else None))
            continue
        others = [i for i in rng.permutation(len(texts)) if i != best]
        extra = max(int(rng.poisson(c.extra_mean)) - 1, 0)
        chosen = rng.permutation([best, *others[:extra]])
        row = pack(join_passages([texts[i] for i in chosen]), question.answers[0])
        examples.append(Example(source, row, None))
    limit = session.base.config.max_length
    for example in examples:
        if len(example.row.tokens) > limit:
            raise RagJaxError(
                f"question {example.row.id}: {len(example.row.tokens)} tokens with its contexts, "
                f"over the model's context of {limit}; lower config.model.max_text"
            )
    return examples


def make_plan(session: "Session", examples: Sequence[Example], settings: TrainConfig) -> BatchPlan:
    """Which examples make a step and which of those a microbatch, the same in both stages.

    An example with a rejected side is computed as a pair of rows, so it counts double.
    """
    return BatchPlan(
        [example.length for example in examples],
        kinds=["pairs" if example.rejected else "rows" for example in examples],
        strata=[example.source for example in examples],
        batch_size=settings.batch_size,
        budget=settings.microbatch_tokens,
        program_tokens=PROGRAM_TOKENS,
        seed=session.config.seed,
        row_multiple=count_data_rows(),
    )


def pack(
    session: "Session",
    examples: Sequence[Example],
    plan: BatchPlan,
    micro: Microbatch,
    *,
    scale: float,
) -> dict[str, np.ndarray]:
    """The arrays of a microbatch; of pairs, the rejected sides are the second half."""
    chosen = [examples[i] for i in micro.indices]
    sides = [[e.row for e in chosen]]
    if micro.kind == "pairs":
        sides.append([e.rejected for e in chosen])
    alike = (e for i, e in enumerate(examples) if plan.place(i) == (micro.kind, micro.width))
    most = max(count_targets(row) for e in alike for row in (e.row, e.rejected) if row)
    halves = [
        pack_rows(
            rows,
            terms=TERMS,
            width=micro.width // len(sides),
            targets=round_up(most, 16),
            batch=micro.rows,
            scale=scale,
            reduction=session.config.loss_reduction,
        )
        for rows in sides
    ]
    return {key: np.concatenate([half[key] for half in halves]) for key in halves[0]}
