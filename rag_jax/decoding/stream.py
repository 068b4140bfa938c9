"""Texts while they are written: a few tokens at a time, and what they spell so far."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rag_jax.decoding.cache import Cache, append
from rag_jax.decoding.sample import (
    Decoded,
    DecodeState,
    decode_until,
    init_decode,
    make_draw,
)
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.hosts import fetch


def stream(
    model: Decoder,
    params,
    cache: Cache,
    tokens: Int[Array, "B T"],
    active: Bool[Array, "B"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    every: int = 4,
) -> Iterator[Decoded]:
    """Reads `tokens` behind a cache and goes on greedily, as `decode` does, to the token.

    Two programs are compiled, whatever `every` is: one reads, the other goes on to a limit that it
    is given.

    Args:
        active: rows that read and write.
        max_tokens: as `decode`'s, as is `stop_ids`.
        every: how many tokens are written between two results.

    Yields:
        What is written so far; the last one has all of it.
    """
    writing = _start(model, params, cache, tokens, active, max_tokens=max_tokens, stop_ids=stop_ids)
    for limit in range(every, max_tokens + every, every):
        limit = min(limit, max_tokens)
        writing = _go_on(model, params, writing, limit, stop_ids=stop_ids)
        yield writing.decoded
        if not fetch(writing.active).any():
            return


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids"))
def _start(model, params, cache, tokens, active, *, max_tokens, stop_ids) -> DecodeState:
    mask = jnp.tile(active[:, None], tokens.shape[1])
    output, cache = append(model, params, cache, tokens, mask)
    draw = make_draw(model, params, stop_ids=stop_ids)
    return init_decode(cache, output.hidden[:, -1], draw, max_tokens=max_tokens, active=active)


@partial(jax.jit, static_argnames=("model", "stop_ids"))
def _go_on(model, params, writing, limit, *, stop_ids) -> DecodeState:
    draw = make_draw(model, params, stop_ids=stop_ids)
    return decode_until(model, params, writing, draw, limit=limit)


def spell(tokenizer: Tokenizer, written: Iterable[Sequence[int]]) -> Iterator[str]:
    """What a text grows by, as more and more of its tokens come in.

    Together the pieces are `tokenizer.decode` of the last tokens, stripped. White space waits for
    what follows it, and the bytes of a character for the last of them.

    Args:
        written: all tokens so far, each time more than before.
    """
    said, whole = "", ""
    for tokens in written:
        whole = tokenizer.decode(tokens).strip()
        known = whole.rstrip("\ufffd").rstrip()
        if len(known) > len(said) and known.startswith(said):
            yield known[len(said) :]
            said = known
    if len(whole) > len(said):
        yield whole[len(said) :]
