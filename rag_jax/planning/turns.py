"""One turn of a decoding loop or a beam search, as a program of its own.

The compiler counts the body of a loop once, so a plan compiles a turn and adds the others.
"""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from rag_jax.decoding.beams import BeamConfig, LoopState, beam_step, init_beams
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.sample import DecodeState, decode_step, init_decode, make_next_token
from rag_jax.decoding.vocabulary_beams import make_expansion
from rag_jax.models import Pretrained
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.planning.abstract import describe_state, split_rows
from rag_jax.planning.planner import Planner

_STOP = (0,)  # which token stops a row costs nothing


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def _decode_turn(model: Decoder, params: PyTree, state: DecodeState) -> DecodeState:
    next_token = make_next_token(model, params, stop_ids=_STOP)
    return decode_step(model, params, state, next_token)


def compile_token(
    planner: Planner, name: str, lm: Pretrained, params: PyTree, cache: Cache, *, max_tokens: int
) -> str:
    """Plans one turn of `decode` after a cache, and gives back the program's name."""

    def start(params: PyTree, cache: Cache, hidden: Array, active: Array) -> DecodeState:
        next_token = make_next_token(lm.model, params, stop_ids=_STOP)
        return init_decode(cache, hidden, next_token, max_tokens=max_tokens, active=active)

    rows = len(cache.position)
    hidden = jax.ShapeDtypeStruct((rows, lm.config.hidden_size), jnp.float32)
    active = jax.ShapeDtypeStruct((rows,), bool)
    inputs = params, cache, hidden, active
    state = describe_state(start, planner.mesh, *inputs, prefix=cache.prefix)
    planner.compile(name, _decode_turn, lm.model, params, state)
    return name


@partial(
    jax.jit, static_argnames=("model", "stop_ids", "config", "max_tokens"), donate_argnames="state"
)
def _beam_turn(
    model: Decoder | Bart,
    params: PyTree,
    state: LoopState,
    doc_scores: Array | None,
    *,
    stop_ids: tuple[int, ...],
    config: BeamConfig,
    max_tokens: int,
) -> LoopState:
    expansion = make_expansion(model, params, stop_ids, max_tokens, doc_scores)
    return beam_step(state, expansion, config)


def compile_beams(
    planner: Planner,
    name: str,
    lm: Pretrained,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "R D"],
    doc_scores: Float[Array, "B K"] | None,
    *,
    stop_ids: Sequence[int],
    config: BeamConfig,
    max_tokens: int,
) -> str:
    """Plans one turn of `search_beams` with these arguments; gives back the program's name."""

    def start(params, cache, hidden, doc_scores, active) -> LoopState:
        expansion = make_expansion(lm.model, params, stop_ids, max_tokens, doc_scores)
        return init_beams(cache, hidden, expansion, config, active)

    rows = len(hidden) if doc_scores is None else len(doc_scores)
    active = split_rows(jax.ShapeDtypeStruct((rows,), bool), planner.mesh)
    inputs = params, cache, hidden, doc_scores, active
    # The cache of a decoder becomes the prefix of the beams.
    prefix = cache if isinstance(lm.model, Decoder) else cache.prefix
    state = describe_state(start, planner.mesh, *inputs, prefix=prefix)
    settings = {"stop_ids": stop_ids, "config": config, "max_tokens": max_tokens}
    planner.compile(name, _beam_turn, lm.model, params, state, doc_scores, **settings)
    return name
