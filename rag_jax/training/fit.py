"""The training driver: plans batches, packs microbatches, resumes, trains to the end, saves."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Array, PyTree

from rag_jax.config import ConstantTrainConfig
from rag_jax.data.batches import BatchPlan
from rag_jax.runtime.checkpoint import Checkpoints, save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, to_json, write_json
from rag_jax.runtime.hosts import is_first, wait_for_all
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.progress import Progress
from rag_jax.runtime.sharding import shard_batch
from rag_jax.training.loop import LossFunction, init_state, make_optimizer, make_step, train
from rag_jax.training.trainable import Trainable

PARAMS = "params"  # the folder of the trained tree that `fit` saves
_ENDED = "trained.json"  # says that the training has ended, where the tree is saved elsewhere
_TRAINING = "training.json"  # beside checkpoints: of which training they are
_LATER = ("clip_norm", "warmup_fraction", "strata")  # what older checkpoints do not say
_MOST_STEPS: ContextVar[int | None] = ContextVar("most_steps", default=None)


@contextlib.contextmanager
def limit_steps(count: int | None) -> Iterator[None]:
    """Within the block, `fit` takes at most `count` steps, for a rehearsal; all of them if None."""
    token = _MOST_STEPS.set(count)
    try:
        yield
    finally:
        _MOST_STEPS.reset(token)


class Batch(NamedTuple):
    """One step's batch.

    Attributes:
        microbatches: pairs of a loss's name and the arrays that the loss takes.
        flops: number of operations of the step's matrix products.
    """

    microbatches: list[tuple[str, dict[str, np.ndarray]]]
    flops: float


class Hook(Protocol):
    """Calls around each step, such as retrieval for the next step."""

    def before(self, step: int, params: PyTree[Array]) -> None:
        """Called with the trained tree just before a step is dispatched."""

    def after(self, step: int, params: PyTree[Array]) -> Mapping[str, Any]:
        """Called with the new trained tree once the step is dispatched; gives further metrics."""


def fit(
    plan: BatchPlan,
    pack: Callable[[int, list[int]], Batch],
    losses: Mapping[str, LossFunction],
    trainable: Trainable,
    settings: ConstantTrainConfig,
    folder: Path,
    progress: Progress,
    *,
    ids: Sequence[str],
    start: PyTree[Array] | None = None,
    steps: int | None = None,
    hook: Hook | None = None,
    save: Callable[[PyTree[Array]], None] | None = None,
    profile_steps: int = 0,
) -> None:
    """Trains to the end, from where an interrupted call stopped.

    The trained tree is then `folder/params` and checkpoints are removed. Where `fit` has ended in
    this folder, nothing is done. Logs are as `rag_jax.training.loop.train` writes them.

    Args:
        plan: which examples make each step's batch.
        pack: `(step, examples) -> Batch`; a pure function of its arguments.
        losses: by the names that `pack` gives; see `make_step`.
        ids: for each example its name in messages.
        start: the trained tree to start from; `trainable.start()` if None.
        steps: number of steps, which may end within an epoch; those of `settings.epochs` if None.
        save: keeps the trained tree in another way than as `folder/params`.

    Raises:
        RagJaxError: the folder has checkpoints of another training; or as `train`.
    """
    place = folder / "checkpoints"
    if (folder / PARAMS).exists() or (folder / _ENDED).exists():
        Checkpoints(place).remove()  # which an end between saving and this leaves
        return
    total = settings.epochs * plan.num_steps_per_epoch if steps is None else steps
    _check_continued(place, plan, settings, ids, total)
    checkpoints = Checkpoints(place)
    if (most := _MOST_STEPS.get()) is not None:
        total = min(total, most)
    optimizer = make_optimizer(settings, max(total, 1), rates=trainable.rates)
    take_step = make_step(losses, optimizer)
    flops: dict[int, float] = {}  # of the steps that are dispatched

    def batch_at(step: int) -> tuple[tuple[int, Any], list[str]]:
        chosen = plan.examples_at(step)
        batch = pack(step, chosen)
        flops[step] = batch.flops
        parts = [(name, shard_batch(arrays)) for name, arrays in batch.microbatches]
        return (step, parts), [ids[i] for i in chosen]

    def step_with_hook(state, batch):
        step, parts = batch
        if hook is None:
            return take_step(state, trainable.frozen, parts)
        hook.before(step, state.params)
        state, metrics = take_step(state, trainable.frozen, parts)
        return state, {**metrics, **hook.after(step, state.params)}

    state = train(
        init_state(trainable.start() if start is None else start, optimizer),
        step_with_hook,
        batch_at,
        total_steps=total,
        checkpoints=checkpoints,
        checkpoint_every=settings.checkpoint_every,
        progress=progress,
        log_path=folder / "log.jsonl",
        flops_at=flops.pop,
        profile_steps=profile_steps,
    )
    if save is None:
        save_tree(folder / PARAMS, state.params)
    else:
        save(state.params)
        if is_first():
            write_json(folder / _ENDED, {"steps": total})
    checkpoints.remove()


def _check_continued(
    folder: Path,
    plan: BatchPlan,
    settings: ConstantTrainConfig,
    ids: Sequence[str],
    steps: int,
) -> None:
    """Writes down which training the checkpoints are of.

    Raises:
        RagJaxError: they are of another one.
    """
    path = folder / _TRAINING
    own = {
        "steps": steps,
        "batches": [plan.num_steps_per_epoch, plan.seed],
        "examples": hashlib.sha256(to_json(list(ids)).encode()).hexdigest(),
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "clip_norm": getattr(settings, "clip_norm", None),
        "warmup_fraction": getattr(settings, "warmup_fraction", None),
        "strata": hashlib.sha256(to_json([*map(int, plan.strata)]).encode()).hexdigest(),
    }
    if path.exists():
        with parsing(path):
            before = dict(read_json(path))
        before = {name: own[name] for name in _LATER} | before
        if others := [name for name in own if before.get(name) != own[name]]:
            raise RagJaxError(
                f"{folder}: has checkpoints of a training with other {' and '.join(others)}: give "
                "this one a folder of its own, or remove them"
            )
    wait_for_all(f"{path} was read")
    if is_first():
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, own)
