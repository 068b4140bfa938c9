"""Streaming: the decoding loop a few tokens at a time, and the text that these tokens add."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import jax
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.decoding.cache import Cache, append
from rag_jax.decoding.prompts import last_hidden
from rag_jax.decoding.sample import Decoded, DecodeState, decode_until, init_decode, make_next_token
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.hosts import fetch


@checked
def stream(
    model: Decoder,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    every: int = 4,
) -> Iterator[Decoded]:
    """Reads `tokens` after a cache and continues greedily; writes the same tokens as `decode`.

    Two programs are compiled, whatever `every` is: one that reads, and one that writes up to a
    limit, which is an argument.

    Args:
        mask: of the tokens; padding may be anywhere in a row, and a row without tokens writes none.

    Yields:
        The tokens written so far, after every `every` tokens and at the end.
    """
    stop_ids = tuple(map(int, stop_ids))  # also of an array, which no program can be kept under
    state = _start(model, params, cache, tokens, mask, max_tokens=max_tokens, stop_ids=stop_ids)
    for limit in range(every, max_tokens + every, every):
        limit = min(limit, max_tokens)
        state, *written = _continue(model, params, state, limit, stop_ids=stop_ids)
        lengths, ended, logprobs = written
        yield Decoded(state.tokens, lengths, ended, state.cache, logprobs)
        if not fetch(state.active).any():
            return


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids"))
def _start(model, params, cache, tokens, mask, *, max_tokens, stop_ids) -> DecodeState:
    output, cache = append(model, params, cache, tokens, mask)
    next_token = make_next_token(model, params, stop_ids=stop_ids)
    hidden, active = last_hidden(output.hidden, mask), mask.any(axis=1)
    return init_decode(cache, hidden, next_token, max_tokens=max_tokens, active=active)


@partial(jax.jit, static_argnames=("model", "stop_ids"))
def _continue(
    model, params, state, limit, *, stop_ids
) -> tuple[DecodeState, Int[Array, "B"], Bool[Array, "B"], Float[Array, "B"]]:
    """The state, and what `DecodeState.decoded` computes of it, in one program."""
    next_token = make_next_token(model, params, stop_ids=stop_ids)
    state = decode_until(model, params, state, next_token, limit=limit)
    decoded = state.decoded
    return state, decoded.lengths, decoded.finished, decoded.logprobs


def spell(tokenizer: Tokenizer, written: Iterable[Sequence[int]]) -> Iterator[str]:
    """The text that is added as more and more of a text's tokens become known.

    The pieces joined are `tokenizer.decode` of all tokens, stripped. White space is held back until
    the next word, and the bytes of a character until the last of them. Each item of `written` is
    all tokens so far.
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
