"""Decoding: prompts in, texts out, as one compiled program a batch."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax import lora
from rag_jax.data.batches import pad_rows, round_up
from rag_jax.decoding.cache import Cache, append, encode_source, init_cache
from rag_jax.decoding.sample import Sampling, decode
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import count_data_rows, shard_batch


def last_hidden(hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """The hidden state at each row's last real token."""
    last = mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
    return jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]


def generate(
    model: Decoder | Bart,
    params,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    prefix: Sequence[int] = (),
    adapters: PyTree | None = None,
    batch_size: int = 64,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """Continues each prompt; the list-in, list-out way to use `decode`.

    Prompts are batched by length and padded to a multiple of 32 tokens, so few programs are
    compiled and a second call of the same sizes compiles none.

    An encoder-decoder encodes each prompt, special tokens included, and writes from
    `config.start_ids` on. So a forced BOS is part of where a row starts and never of the result;
    and a forced EOS, which in transformers takes the last place before the limit, is the limit.
    `generate(num_beams=1, max_new_tokens=n)` there therefore writes, apart from these two tokens,
    what `max_tokens = n - 2` writes here (`n - 1` where only one of them is forced).

    Args:
        prompts: token ids, at least one each.
        prefix: tokens that stand before every prompt; they are read once, not once a prompt. Not
            for an encoder-decoder, in which what comes first is read in the light of the rest.
        adapters: an adapter for each prompt, arrays `[len(prompts), ...]` as from `lora.merge`,
            used with scale 1. Not with a `prefix`, which each of them would read in its own way.
        batch_size: rows of a batch; a multiple of what the mesh in effect splits rows into.
        seed: prompt `i` draws with a key of `seed` and `i`, whatever batch it falls into.
        progress: told the number of prompts that each finished batch held.

    Returns:
        For each prompt the new tokens, without the stop token.

    Raises:
        RagJaxError: a prompt is empty or longer than an encoder-decoder takes, `max_tokens` is less
            than 1 or more than it has positions for, it or a model with `adapters` is given a
            `prefix`, there is not one adapter a prompt, or the mesh doesn't divide `batch_size`.
    """
    check_prompts(model, prompts, max_tokens=max_tokens, batch_size=batch_size)
    if prefix and isinstance(model, Bart):
        raise RagJaxError("prefix: an encoder-decoder has none; put its tokens into the prompts")
    if prefix and adapters is not None:
        raise RagJaxError("prefix: every adapter reads it anew; put its tokens into the prompts")
    for leaf in jax.tree.leaves(adapters):
        if len(leaf) != len(prompts):
            raise RagJaxError(
                f"adapters: {len(leaf)} for {len(prompts)} prompts; give one for each"
            )
    shared = prefill(model, params, prefix) if prefix else None
    written: list[list[int]] = [[] for _ in prompts]
    for rows, arrays in batch_prompts(model, prompts, batch_size=batch_size):
        numbers = np.resize(np.asarray(rows, np.int32), len(arrays[0]))
        result = generate_batch(
            model,
            params,
            shared,
            *shard_batch((*arrays, numbers)),
            seed,
            adapters=adapters and _select(adapters, numbers),
            max_tokens=max_tokens,
            stop_ids=tuple(stop_ids),
            sampling=sampling,
        )
        new, lengths = fetch(result)
        for row, i in enumerate(rows):
            written[i] = new[row, : lengths[row]].tolist()
        progress(len(rows))
    return written


def check_prompts(
    model: Decoder | Bart, prompts: Sequence[Sequence[int]], *, max_tokens: int, batch_size: int
) -> None:
    """Raises the errors that `generate` describes."""
    if max_tokens < 1:
        raise RagJaxError(f"max_tokens={max_tokens}: must be at least 1")
    empty = [i for i, prompt in enumerate(prompts) if not len(prompt)]
    if empty:
        raise RagJaxError(f"prompts: prompt {empty[0]} is empty; give at least one token")
    parts = count_data_rows()
    if batch_size < 1 or batch_size % parts:
        raise RagJaxError(f"batch_size={batch_size}: must be a multiple of the mesh's {parts} rows")
    if not isinstance(model, Bart):
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


def batch_prompts(
    model: Decoder | Bart, prompts: Sequence[Sequence[int]], *, batch_size: int
) -> Iterator[tuple[list[int], tuple[Int[np.ndarray, "B T"], Bool[np.ndarray, "B T"]]]]:
    """Yields, shortest first, which prompts come together and their padded tokens and mask."""
    if not len(prompts):
        return
    batch_size = min(batch_size, round_up(1 << (len(prompts) - 1).bit_length(), count_data_rows()))
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        width = round_up(len(prompts[rows[-1]]), 32)
        if isinstance(model, Bart):
            width = min(width, model.config.max_length)
        yield rows, pad_rows([prompts[i] for i in rows], width, pad_id=0, batch=batch_size)


def read_prompts(
    model: Decoder | Bart,
    params,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    prefix: Cache | None = None,
) -> tuple[Cache, Float[Array, "B D"]]:
    """Reads prompts, which an encoder-decoder encodes, up to where the text to be written starts.

    Args:
        mask: False on padding, on the right; a row may be padding altogether.
        prefix: what stands before every prompt of a decoder.

    Returns:
        The cache, and the hidden state that the first token is drawn from.
    """
    dtype = params["embed"]["embedding"].dtype
    if isinstance(model, Bart):
        prefix, taking_part = encode_source(model, params, tokens, mask), mask.any(axis=1)
        start = jnp.asarray(model.config.start_ids, jnp.int32)
        tokens = jnp.tile(start, (tokens.shape[0], 1))
        mask = jnp.tile(taking_part[:, None], len(start))
    cache = init_cache(model, tokens.shape[0], dtype=dtype, prefix=prefix)
    output, cache = append(model, params, cache, tokens, mask)
    return cache, last_hidden(output.hidden, mask)


def prefill(model: Decoder, params, tokens: Sequence[int]) -> Cache:
    """The cache of one row, for use as a prefix; padded so that few programs are compiled."""
    return prefill_batch(model, params, *pad_rows([tokens], round_up(len(tokens), 64), pad_id=0))


@partial(jax.jit, static_argnames="model")
def prefill_batch(model, params, tokens, mask):
    cache = init_cache(model, tokens.shape[0], dtype=params["embed"]["embedding"].dtype)
    return append(model, params, cache, tokens, mask)[1]


# Apart from the loop, which would otherwise be compiled for every number of prompts.
_select = jax.jit(lora.select)


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids", "sampling"))
def generate_batch(
    model,
    params,
    prefix,
    tokens,
    mask,
    numbers,
    seed,
    *,
    max_tokens,
    stop_ids,
    sampling,
    adapters=None,
):
    if adapters is not None:
        params = lora.apply(params, adapters, scale=1.0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
    cache, hidden = read_prompts(model, params, tokens, mask, prefix=prefix)
    decoded = decode(
        model,
        params,
        cache,
        hidden,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        keys=keys,
        sampling=sampling,
        active=mask.any(axis=1),
    )
    return decoded.tokens, decoded.lengths
