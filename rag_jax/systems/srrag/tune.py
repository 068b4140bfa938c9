"""Both training stages: rows from contexts and labels, microbatches, and what is trained."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rag_jax import lora
from rag_jax.checkpoint import Checkpoints, load_tree, save_tree
from rag_jax.config import StageConfig
from rag_jax.data.batches import round_up
from rag_jax.errors import RagJaxError
from rag_jax.files import read_jsonl, write_json
from rag_jax.pipeline import StageContext
from rag_jax.systems.srrag.data import (
    Row,
    count_targets,
    deal_batches,
    join_passages,
    make_row,
    pack_rows,
)
from rag_jax.systems.srrag.loss import sequence_logprobs, stage1_loss, stage2_loss
from rag_jax.training import init_state, make_optimizer, make_step, train

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session

_WIDTH_STEP = 72


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


def make_examples(session: "Session", context: StageContext) -> list[Example]:
    """Packs every training question with the contexts that its label asks for.

    Searched rows get `max(p - 1, 0)` further passages, `p` Poisson, in random order among each
    other and the best one: the place in the block then says nothing, as at test time.
    """
    c = session.config
    questions = session.read_world(context).questions["train"]
    gathered = read_jsonl(context.path("contexts", "contexts.jsonl"))
    labels = read_jsonl(context.path("labels", "labels.jsonl"))
    rng = np.random.default_rng((c.seed, 1))
    examples = []
    for question, record, label in zip(questions, gathered, labels, strict=True):
        source, scores = label["source"], np.asarray(label["scores"][label["source"]])
        texts = record["contexts"][source]
        best, worst = int(scores.argmax()), int(scores.argmin())
        pack = partial(make_row, session.form, question.id, question.question, source)
        if c.sources[source].kind == "verbalise":
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
                f"over the model's context of {limit}; lower config.verbalise.max_tokens"
            )
    return examples


@dataclass(frozen=True)
class Packer:
    """Groups rows into microbatches of few shapes.

    Attributes:
        rows: every row of the run; they decide how many loss positions a width needs.
        budget: tokens of a microbatch.
        reduction: "mean" or "sum" over a term's tokens.
    """

    rows: Sequence[Row]
    budget: int
    reduction: str

    def width(self, row: Row) -> int:
        """The padded length of a row."""
        return round_up(len(row.tokens), _WIDTH_STEP)
        )

    def targets(self, width: int) -> int:
        """Loss positions of rows of a width, a multiple of 16."""
        most = max(count_targets(row) for row in self.rows if self.width(row) == width)
        return round_up(most, 16)

    def pack(
        self, rows: Sequence[Row], *, scale: float, partners: Sequence[Row] = ()
    ) -> list[tuple[list[int], dict[str, np.ndarray]]]:
        """Microbatches of some rows; `partners` go behind their rows, in the second half.

        Returns:
            For each microbatch the numbers of its rows, and its arrays.
        """
        widths = [self.width(row) for row in rows]
        for i, partner in enumerate(partners):
            widths[i] = max(widths[i], self.width(partner))
        packed = []
        for width in sorted(set(widths)):
            size = max(1, self.budget // (width * (2 if partners else 1)))
            members = [i for i, w in enumerate(widths) if w == width]
            for start in range(0, len(members), size):
                taken = members[start : start + size]
                shape = {"width": width, "targets": self.targets(width), "batch": size}
                halves = [
                    pack_rows(
                        [half[i] for i in taken], **shape, scale=scale, reduction=self.reduction
                    )
                    for half in ([rows, partners] if partners else [rows])
                ]
                arrays = {key: np.concatenate([h[key] for h in halves]) for key in halves[0]}
                packed.append((taken, arrays))
        return packed


def make_packer(session: "Session", examples: Sequence[Example], budget: int) -> Packer:
    """The packer for all of a run's rows."""
    rows = [e.row for e in examples] + [e.rejected for e in examples if e.rejected]
    return Packer(rows, budget, session.config.loss_reduction)


# What is trained: all weights, or an adapter and the rows of the new tokens.


def start_trainable(session: "Session") -> Any:
    """The trained tree before the first step."""
    c, base = session.config, session.base
    if c.tuning.mode == "full":
        return base.params
    try:
        adapter = lora.init(
            jax.random.key(c.seed),
            base.params,
            targets=f".*({c.tuning.targets})/kernel",
            rank=c.tuning.rank,
        )
    except ValueError as error:
        raise RagJaxError(f"config.tuning.targets={c.tuning.targets!r}: {error}") from error
    new = len(c.sources) + 2
    return {"adapter": adapter, "new_tokens": base.params["embed"]["embedding"][-new:]}


def assemble(trainable: Any, frozen: Any, *, scale: float | None) -> Any:
    """The model's parameters from what is trained and what is not; `scale` None for all weights."""
    if scale is None:
        return trainable
    table, new = frozen["embed"]["embedding"], trainable["new_tokens"]
    table = jax.lax.dynamic_update_slice(table, new, (table.shape[0] - new.shape[0], 0))
    return lora.apply({**frozen, "embed": {"embedding": table}}, trainable["adapter"], scale=scale)


def _scale(session: "Session") -> float | None:
    tuning = session.config.tuning
    return None if tuning.mode == "full" else tuning.alpha / tuning.rank


def make_losses(session: "Session") -> dict[str, Callable[..., Any]]:
    """Both stages' losses by the trained tree; "rows" serves both, so it is compiled once."""
    model, scale, beta = session.base.model, _scale(session), session.config.stage2.beta

    def of_rows(trained, frozen, batch):
        return stage1_loss(model, assemble(trained, frozen, scale=scale), batch)

    def of_pairs(trained, frozen, batch):
        return stage2_loss(model, assemble(trained, frozen, scale=scale), batch, beta=beta)

    return {"rows": of_rows, "pairs": of_pairs}


def load_trainable(session: "Session", folder: Path) -> Any:
    """The trained tree that a stage saved."""
    return load_tree(folder, jax.eval_shape(lambda: start_trainable(session)))


def load_tuned(session: "Session", folder: Path) -> Any:
    """The model's parameters after a stage."""
    trained = load_trainable(session, folder)
    return jax.jit(partial(assemble, scale=_scale(session)))(trained, session.base.params)


def run_stage1(session: "Session", context: StageContext) -> None:
    """Behaviour cloning of the source, the best verbalisation and the answer."""
    examples = make_examples(session, context)
    settings = session.config.stage1
    packer = make_packer(session, examples, settings.microbatch_tokens)
    sources = [session.config.sources[e.source].name for e in examples]
    write_json(
        context.folder / "rows.json",
        {
            "questions": len(examples),
            "by_source": {s: sources.count(s) for s in sorted(set(sources))},
            "preference_pairs": sum(e.rejected is not None for e in examples),
            "longest": max(len(row.tokens) for row in packer.rows),
        },
    )

    def make_parts(numbers: Sequence[int]) -> list[tuple[str, Any]]:
        rows = [examples[i].row for i in numbers]
        return [("rows", arrays) for _, arrays in packer.pack(rows, scale=1 / len(rows))]

    _train(session, context, settings, examples, start_trainable(session), make_parts)


def run_reference(session: "Session", context: StageContext) -> None:
    """Log-probabilities of both verbalisations under the stage-1 model, computed once."""
    examples = make_examples(session, context)
    packer = make_packer(session, examples, session.config.stage2.microbatch_tokens)
    params = load_tuned(session, context.path("stage1", "params"))
    score = jax.jit(partial(sequence_logprobs, session.base.model))
    pairs = [e for e in examples if e.rejected]

    def run(batch: Sequence[Example]) -> list[dict[str, Any]]:
        records: list[dict[str, Any]] = [{} for _ in batch]
        for numbers, arrays in packer.pack(
            [e.row for e in batch], scale=1.0, partners=[e.rejected for e in batch]
        ):
            chosen, rejected = np.split(np.asarray(score(params, arrays)), 2)
            for place, number in enumerate(numbers):
                values = {"chosen": float(chosen[place]), "rejected": float(rejected[place])}
                records[number] = {"id": batch[number].row.id, **values}
        return records

    context.map_batches("reference.jsonl", pairs, run, batch_size=16, unit="pairs")


def run_stage2(session: "Session", context: StageContext) -> None:
    """Preference optimisation of the verbalisation, cloning of source and answer as before."""
    examples = make_examples(session, context)
    settings = session.config.stage2
    packer = make_packer(session, examples, settings.microbatch_tokens)
    records = read_jsonl(context.path("reference", "reference.jsonl"))
    reference = {r["id"]: (r["chosen"], r["rejected"]) for r in records}

    def make_parts(numbers: Sequence[int]) -> list[tuple[str, Any]]:
        scale = 1 / len(numbers)
        single = [examples[i].row for i in numbers if not examples[i].rejected]
        pairs = [examples[i] for i in numbers if examples[i].rejected]
        parts = [
            ("rows", {**arrays, "verbalisation": np.zeros_like(arrays["verbalisation"])})
            for _, arrays in packer.pack(single, scale=scale)
        ]
        for taken, arrays in packer.pack(
            [e.row for e in pairs], scale=scale, partners=[e.rejected for e in pairs]
        ):
            half = arrays["tokens"].shape[0] // 2
            values, weights = np.zeros(2 * half, np.float32), np.zeros(half, np.float32)
            for place, number in enumerate(taken):
                values[[place, half + place]] = reference[pairs[number].row.id]
                weights[place] = scale
            # The rejected side takes part in the preference alone: its source token would count
            # the question twice.
            arrays["source"][half:] = 0
            parts.append(("pairs", {**arrays, "reference": values, "pair": weights}))
        return parts

    start = load_trainable(session, context.path("stage1", "params"))
    _train(session, context, settings, examples, start, make_parts)


def _train(
    session: "Session",
    context: StageContext,
    settings: StageConfig,
    examples: Sequence[Example],
    start: Any,
    make_parts: Callable[[Sequence[int]], list[tuple[str, Any]]],
) -> None:
    """Trains to the end, saves the trained tree as `params` and drops the checkpoints."""
    if (context.folder / "params").exists():
        return
    sources = [e.source for e in examples]
    deal = partial(deal_batches, sources, batch_size=settings.batch_size, seed=session.config.seed)
    per_epoch = len(deal(epoch=0))
    total = settings.epochs * per_epoch
    optimizer = make_optimizer(settings, max(total, 1))
    step = make_step(session.losses, optimizer)
    frozen = None if session.config.tuning.mode == "full" else session.base.params

    def batch_at(number: int) -> tuple[list[tuple[str, Any]], list[str]]:
        numbers = deal(epoch=number // per_epoch)[number % per_epoch]
        return make_parts(numbers), [examples[i].row.id for i in numbers]

    checkpoints = Checkpoints(context.folder / "checkpoints")
    state = train(
        init_state(start, optimizer),
        lambda state, parts: step(state, frozen, parts),
        batch_at,
        total_steps=total,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        progress=context.progress,
        log_path=context.folder / "log.jsonl",
    )
    save_tree(context.folder / "params", state.params)
    checkpoints.remove()
