"""Prompts: checked, batched by length, padded, and read into a cache."""

import itertools
import logging
from collections.abc import Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.data.batches import double_up, pad_rows, round_up
from rag_jax.decoding.cache import Cache, append, encode_source, init_cache
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.arguments import check_token_row, check_token_rows, checked
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import count_data_rows

_logger = logging.getLogger(__name__)
_warned: set[int] = set()  # context lengths that a warning was given for


def last_hidden(hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The hidden state at each row's last token that is not padding."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def check_prompts(
    model: Decoder | Bart,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    batch_size: int,
    prefix: int = 0,
    stop_ids: Sequence[int] = (),
) -> None:
    """Checks prompts before anything is compiled.

    Prompts that may lead beyond a decoder's context are logged as a warning, once per context
    length: positions go on there, but no text so long was in the model's training.

    Args:
        prefix: number of tokens before every prompt.

    Raises:
        RagJaxError: `max_tokens` or `batch_size` is out of range, a prompt is empty or not a list
            of the model's token ids, or an encoder-decoder has too few positions.
    """
    if max_tokens < 1:
        raise RagJaxError(f"max_tokens={max_tokens}: must be at least 1")
    check_token_rows("prompts", prompts, model.config.vocab_size)
    check_token_row("stop_ids", stop_ids)
    empty = [i for i, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise RagJaxError(f"prompts: prompt {empty[0]} is empty; give at least one token")
    parts = count_data_rows()
    if batch_size < 1 or batch_size % parts:
        raise RagJaxError(f"batch_size={batch_size}: must be a multiple of the mesh's {parts} rows")
    if not isinstance(model, Bart):
        longest = prefix + max(map(len, prompts), default=0)
        _warn_beyond_context(longest, max_tokens, model.config.max_length)
        return
    # An encoder-decoder's positions are learned: there are none beyond its `max_length`.
    limit, start = model.config.max_length, len(model.config.start_ids)
    if max_tokens > limit - start:
        raise RagJaxError(
            f"max_tokens={max_tokens}: the decoder has positions for only {limit - start}; lower it"
        )
    long = [i for i, prompt in enumerate(prompts) if len(prompt) > limit]
    if long:
        raise RagJaxError(
            f"prompts: prompt {long[0]} has {len(prompts[long[0]])} tokens, but the encoder has "
            f"positions for only {limit}; shorten it"
        )


def _warn_beyond_context(longest: int, max_tokens: int, limit: int) -> None:
    if longest + max_tokens > limit and limit not in _warned:
        _warned.add(limit)
        _logger.warning(
            "the longest prompt has %d tokens and up to %d follow, but the model's context is %d "
            "tokens (max_position_embeddings): beyond it the text is unreliable; shorten the "
            "prompts or lower max_tokens",
            longest,
            max_tokens,
            limit,
        )


def batch_prompts(
    model: Decoder | Bart, prompts: Sequence[Sequence[int]], *, batch_size: int
) -> Iterator[tuple[list[int], tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]]]:
    """Batches prompts by length, shortest first.

    Yields:
        The prompts' numbers, and their padded tokens and token mask, `[B, T]` each. T is a multiple
        of 32, and B the same for all batches.
    """
    if not len(prompts):
        return
    batch_size = min(batch_size, double_up(len(prompts), count_data_rows()))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = round_up(len(prompts[rows[-1]]), 32)
        if isinstance(model, Bart):
            width = min(width, model.config.max_length)
        yield rows, pad_rows([prompts[i] for i in rows], width, pad_id=0, batch=batch_size)


@checked
def read_prompts(
    model: Decoder | Bart,
    params: PyTree,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    prefix: Cache | None = None,
) -> tuple[Cache, Float[Array, "B D"]]:
    """Reads prompts, which an encoder-decoder encodes, up to where the new text starts.

    Args:
        mask: False on padding, on the right; a row may be padding from its first token.
        prefix: the cache that comes before every prompt of a decoder.

    Returns:
        The cache, and the hidden state that the first token is sampled from.
    """
    dtype = params["embed"]["embedding"].dtype
    if isinstance(model, Bart):
        prefix, active = encode_source(model, params, tokens, mask), mask.any(axis=1)
        start = jnp.asarray(model.config.start_ids, jnp.int32)
        tokens = jnp.tile(start, (tokens.shape[0], 1))
        mask = jnp.tile(active[:, None], len(start))
    cache = init_cache(model, tokens.shape[0], dtype=dtype, prefix=prefix)
    output, cache = append(model, params, cache, tokens, mask)
    return cache, last_hidden(output.hidden, mask)


def split_prefix(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The tokens that all prompts begin with, and the rest of each prompt (at least one token)."""
    # All prompts begin with what the first and the last in sort order begin with.
    matches = (a == b for a, b in zip(min(prompts), max(prompts), strict=False))
    shared = min(sum(itertools.takewhile(bool, matches)), min(map(len, prompts)) - 1)
    return list(prompts[0][:shared]), [list(prompt[shared:]) for prompt in prompts]


@checked
def prefill(model: Decoder, params: PyTree, tokens: Sequence[int]) -> Cache:
    """The cache of one row, for use as a prefix; padded so that few programs are compiled.

    Raises:
        RagJaxError: `tokens` is not a list of the model's token ids.
    """
    check_token_row("tokens", tokens, model.config.vocab_size)
    return prefill_batch(model, params, *pad_rows([tokens], round_up(len(tokens), 64), pad_id=0))


@partial(jax.jit, static_argnames="model")
def prefill_batch(
    model: Decoder, params: PyTree, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Cache:
    """Reads rows into a new cache."""
    cache = init_cache(model, tokens.shape[0], dtype=params["embed"]["embedding"].dtype)
    return append(model, params, cache, tokens, mask)[1]
