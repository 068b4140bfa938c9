"""One turn of a decoding loop or a beam search, as a program of its own.

The compiler counts the body of a loop once, so a plan compiles a turn and adds the others.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.decoding.beams import BeamConfig, Expansion, LoopState, beam_step, init_beams
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.sample import DecodeState, decode_step, init_decode, make_next_token
from rag_jax.decoding.trie import TrieArrays
from rag_jax.decoding.trie_beams import TriePaths
from rag_jax.decoding.vocabulary_beams import make_expansion
from rag_jax.models import Pretrained
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


@partial(jax.jit, static_argnames=("make", "config"), donate_argnames="state")
def _beam_turn(
    make: Callable[[PyTree, Any], Expansion],
    params: PyTree,
    state: LoopState,
    inputs: Any,
    *,
    config: BeamConfig,
) -> LoopState:
    return beam_step(state, make(params, inputs), config)


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

    def make(params: PyTree, doc_scores: Any) -> Expansion:
        return make_expansion(lm.model, params, stop_ids, max_tokens, doc_scores)

    rows = len(hidden) if doc_scores is None else len(doc_scores)
    inputs = lm, params, cache, hidden, rows, doc_scores
    return _compile_turn(planner, name, make, *inputs, config=config)


def compile_paths(
    planner: Planner,
    name: str,
    lm: Pretrained,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "B D"],
    trie: TrieArrays,
    starts: Int[Array, "B"],
    *,
    config: BeamConfig,
    max_tokens: int,
    greedy: bool,
) -> str:
    """Plans one turn of `search_trie` with these arguments; gives back the program's name."""

    def make(params: PyTree, inputs: tuple[TrieArrays, Array]) -> Expansion:
        trie, starts = inputs
        is_leaf = trie.first_child[1:] == trie.first_child[:-1]
        return TriePaths(lm.model, params, trie, starts, is_leaf, is_leaf, max_tokens, greedy)

    inputs = lm, params, cache, hidden, len(starts), (trie, starts)
    return _compile_turn(planner, name, make, *inputs, config=config)


def _compile_turn(
    planner: Planner,
    name: str,
    make: Callable[[PyTree, Any], Expansion],
    lm: Pretrained,
    params: PyTree,
    cache: Cache,
    hidden: Float[Array, "R D"],
    rows: int,
    inputs: Any,
    *,
    config: BeamConfig,
) -> str:
    """Plans one turn of a search of `rows` questions' beams, which `make` makes of `inputs`."""

    def start(params, cache, hidden, inputs, active) -> LoopState:
        return init_beams(cache, hidden, make(params, inputs), config, active)

    active = split_rows(jax.ShapeDtypeStruct((rows,), bool), planner.mesh)
    # The cache of a decoder becomes the prefix of the beams.
    prefix = cache if isinstance(lm.model, Decoder) else cache.prefix
    given = params, cache, hidden, inputs, active
    state = describe_state(start, planner.mesh, *given, prefix=prefix)
    planner.compile(name, _beam_turn, make, params, state, inputs, config=config)
    return name
