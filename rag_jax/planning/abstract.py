"""What the plans of several systems are made of: models without weights, caches, turns of loops."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from rag_jax.decoding.cache import Cache, grow, init_cache, write
from rag_jax.decoding.sample import sample_tokens
from rag_jax.models import Pretrained
from rag_jax.models.io.sizes import describe_params
from rag_jax.models.nn.bart import Bart, BartConfig
from rag_jax.models.nn.bert import Bert, BertConfig
from rag_jax.models.nn.decoder import Decoder, DecoderConfig
from rag_jax.planning.planner import Planner
from rag_jax.runtime.sharding import (
    BART_RULES,
    BERT_RULES,
    DECODER_RULES,
    abstract_params,
    shardings_of,
)
from rag_jax.training.loop import TrainState, add_gradients, apply_gradients

QUESTION = 64  # tokens, rounded up, of the longest question: those of all the papers' datasets


def describe_model(
    config: DecoderConfig | BertConfig | BartConfig, mesh: Mesh, *, dtype: Any = jnp.float32
) -> Pretrained:
    """A model whose parameters are descriptions of arrays; it has no tokenizer."""
    model, rules = {
        DecoderConfig: (Decoder, DECODER_RULES),
        BertConfig: (Bert, BERT_RULES),
        BartConfig: (Bart, BART_RULES),
    }[type(config)]
    params = abstract_params(describe_params(config, jnp.dtype(dtype)), mesh, rules)
    return Pretrained(config, model(config), params, None, "")


def copy(tree: PyTree) -> PyTree:
    """Descriptions of other arrays of the same kind."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def describe_cache(
    planner: Planner, lm: Pretrained, rows: int, slots: int, prefix: Cache | None = None
) -> Cache:
    """A cache as the projections leave it: rows over `data`, key heads over `model`."""

    def build(prefix: Cache | None) -> Cache:
        dtype = lm.params["embed"]["embedding"].dtype
        return grow(init_cache(lm.model, rows, dtype=dtype, prefix=prefix), slots)

    sizes = planner.mesh.shape

    def describe(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        axes = ("data", "model") if leaf.ndim == 4 else ("data",)
        spec = (a if n % sizes[a] == 0 else None for a, n in zip(axes, leaf.shape, strict=False))
        sharding = NamedSharding(planner.mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    cache = jax.tree.map(describe, replace(jax.eval_shape(build, prefix), prefix=None))
    return replace(cache, prefix=prefix)


@partial(jax.jit, static_argnames="model", donate_argnames="cache")
def _decode_token(model: Decoder, params, cache: Cache, token, active):
    """What `decode` does in one turn."""
    slot = cache.real.shape[1] - 1
    output, cache = write(model, params, cache, token, active, slot=slot)
    logits = model.apply({"params": params}, output.hidden[:, 0], method="logits")
    return sample_tokens(logits, None), cache


def compile_token(planner: Planner, name: str, lm: Pretrained, cache: Cache, params: PyTree) -> str:
    """Plans one turn of a decoding loop, at its longest, and gives back the name."""
    rows = cache.real.shape[0]
    token, active = planner.rows((rows, 1), jnp.int32), planner.rows((rows, 1), bool)
    planner.compile(name, _decode_token, lm.model, params, cache, token, active)
    return name


def compile_update(
    planner: Planner, stage: str, optimizer: Any, state: TrainState, total: PyTree
) -> None:
    """Plans what a training step does with its microbatches' gradients, `total` in all."""
    planner.compile(f"{stage}add gradients", add_gradients, total, total)
    places = shardings_of(state)
    planner.compile(
        f"{stage}optimiser step", apply_gradients, optimizer, state, total, places=places
    )


def change(config: Any, path: str, value: Any) -> tuple[str, Any]:
    """A setting's flag, and the config that it makes."""
    group, field = path.split(".")
    changed = replace(getattr(config, group), **{field: value})
    return f"--config.{path}={value}", replace(config, **{group: changed})


def halve(config: Any, path: str) -> tuple[str, Any]:
    """The flag, and the config, with which a setting is half as large."""
    group, field = path.split(".")
    return change(config, path, max(1, getattr(getattr(config, group), field) // 2))
