"""What is trained of a model, the parameters that it makes with what is not, and its stage."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from rag_jax import lora
from rag_jax.config import TuningConfig
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.checkpoint import Checkpoints, save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.training.loop import TrainState, train


def init_tuned(tuning: TuningConfig, params: PyTree, *, seed: int) -> PyTree:
    """What is trained before the first step: the weights, or an adapter that changes nothing yet.

    In float32 whatever the model's type: small updates vanish in bfloat16.

    Raises:
        RagJaxError: no kernel's path matches `tuning.targets`.
    """
    if tuning.mode == "full":
        return cast(params, jnp.float32)
    try:
        adapter = lora.init(
            jax.random.key(seed), params, targets=f".*({tuning.targets})/kernel", rank=tuning.rank
        )
    except ValueError as error:
        raise RagJaxError(f"config.tuning.targets={tuning.targets!r}: {error}") from error
    return cast(adapter, jnp.float32)


def apply_tuned(tuning: TuningConfig, trained: PyTree, frozen: PyTree, *, dtype: Any) -> PyTree:
    """The model's parameters, in `dtype`, from what `init_tuned` gave or what became of it.

    Args:
        frozen: the parameters under an adapter; not looked at where all weights are trained.
    """
    trained = cast(trained, dtype)
    return trained if tuning.scale is None else lora.apply(frozen, trained, scale=tuning.scale)


def tune(
    context: StageContext,
    state: TrainState,
    step: Callable[..., Any],
    batch_at: Callable[[int], tuple[Any, list[str]]],
    *,
    total_steps: int,
    checkpoint_every: int,
    flops_at: Callable[[int], float],
    profile_steps: int = 0,
) -> None:
    """Trains to the end within a stage, from where an interrupted call stopped.

    The trained tree is then `params` in the stage's folder, the log `log.jsonl`, and checkpoints
    are dropped. Arguments are those of `rag_jax.training.loop.train`.
    """
    checkpoints = Checkpoints(context.folder / "checkpoints")
    state = train(
        state,
        step,
        batch_at,
        total_steps=total_steps,
        checkpoints=checkpoints,
        checkpoint_every=checkpoint_every,
        progress=context.progress,
        log_path=context.folder / "log.jsonl",
        flops_at=flops_at,
        profile_steps=profile_steps,
    )
    save_tree(context.folder / "params", state.params)
    checkpoints.remove()


def cast(tree: PyTree, dtype: Any) -> PyTree:
    """A tree's arrays in another type; those that have it already are not copied."""
    return jax.tree.map(lambda x: x if x.dtype == dtype else x.astype(dtype), tree)
