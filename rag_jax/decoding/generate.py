"""Prompts continued batch by batch: the list-in, list-out way to use the decoding loops."""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from rag_jax import lora
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.lookup import decode_by_lookup
from rag_jax.decoding.prompts import batch_prompts, check_prompts, prefill, read_prompts
from rag_jax.decoding.sample import Sampling, count_compacted, decode
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.arguments import check_token_row, checked
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch


@checked
def generate(
    model: Decoder | Bart,
    params: PyTree,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stop_ids: Sequence[int],
    prefix: Sequence[int] = (),
    adapters: PyTree | None = None,
    batch_size: int = 64,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    drafted: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> list[list[int]]:
    """The new tokens after each prompt, without stop token; the list-in, list-out `decode`.

    Prompts are batched by length and padded to a multiple of 32 tokens, so few programs are
    compiled, and a second call of the same sizes compiles none.

    An encoder-decoder encodes each prompt, special tokens included, and writes after
    `config.start_ids`. A forced BOS is therefore part of where a row starts and never of the
    result. A forced EOS, which in transformers takes the last place before the limit, is the limit
    itself. `generate(num_beams=1, max_new_tokens=n)` in transformers writes, apart from these two
    tokens, what `max_tokens = n - 2` writes here (`n - 1` if only one of the two is forced).

    Args:
        prompts: token ids, at least one each.
        prefix: tokens before every prompt, which are read once, not once a prompt. Not for an
            encoder-decoder, which reads its first tokens in the light of all others.
        adapters: an adapter for each prompt, arrays `[len(prompts), ...]` as from `lora.merge`,
            used with scale 1. Not with a `prefix`, which each adapter would read in its own way.
        batch_size: number of rows of a batch; a multiple of the mesh's data rows.
        seed: prompt `i` is sampled with a key of `seed` and `i`, whatever its batch.
        drafted: number of tokens that are looked up in a prompt and what follows it, and checked
            together (`lookup.decode_by_lookup`); 0 for none. Worth it where texts repeat their
            prompts. Only for a decoder's likeliest tokens.
        progress: called with the number of prompts of each finished batch.

    Raises:
        RagJaxError: as `check_prompts`; a `prefix` with an encoder-decoder or with `adapters`; the
            number of adapters is not that of the prompts; or `drafted` is negative, or above 0 with
            an encoder-decoder or a temperature.
    """
    sizes = {"max_tokens": max_tokens, "batch_size": batch_size}
    check_token_row("prefix", prefix, model.config.vocab_size)
    check_prompts(model, prompts, prefix=len(prefix), stop_ids=stop_ids, **sizes)
    if len(prefix) and isinstance(model, Bart):
        raise RagJaxError("prefix: an encoder-decoder has none; put its tokens into the prompts")
    if len(prefix) and adapters is not None:
        raise RagJaxError("prefix: every adapter reads it anew; put its tokens into the prompts")
    if drafted < 0:
        raise RagJaxError(f"drafted={drafted}: must be at least 0")
    if drafted and (isinstance(model, Bart) or sampling.temperature != 0):
        raise RagJaxError(f"drafted={drafted}: only a decoder drafts likeliest tokens; set 0")
    for count in map(len, jax.tree.leaves(adapters)):
        if count != len(prompts):
            raise RagJaxError(f"adapters: {count} for {len(prompts)} prompts; give one for each")
    shared = prefill(model, params, prefix) if len(prefix) else None
    stops = tuple(map(int, stop_ids))  # also of an array, which no program can be kept under
    settings = {"max_tokens": max_tokens, "stop_ids": stops, "sampling": sampling}
    settings["drafted"] = drafted
    written: list[list[int]] = [[] for _ in prompts]
    for rows, arrays in batch_prompts(model, prompts, batch_size=batch_size):
        numbers = np.resize(np.asarray(rows, np.int32), len(arrays[0]))
        sharded = shard_batch((*arrays, numbers))
        chosen = adapters and _select(adapters, numbers)
        settings["compact_to"] = count_compacted(len(numbers)) if adapters is None else 0
        tokens, lengths = fetch(
            generate_batch(model, params, shared, *sharded, seed, adapters=chosen, **settings)
        )
        for row, i in enumerate(rows):
            written[i] = tokens[row, : lengths[row]].tolist()
        progress(len(rows))
    return written


# A program of its own: within the loop's it would be compiled for every number of prompts.
_select = jax.jit(lora.select)


_STATIC = "model", "max_tokens", "stop_ids", "sampling", "drafted", "compact_to"


@partial(jax.jit, static_argnames=_STATIC)
def generate_batch(
    model: Decoder | Bart,
    params: PyTree,
    prefix: Cache | None,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    numbers: Int[Array, "B"],
    seed: Int[Array, ""] | int,
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    sampling: Sampling,
    drafted: int = 0,
    compact_to: int = 0,
    adapters: PyTree | None = None,
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """Reads one batch of prompts after a prefix and continues them: the new tokens, their lengths.

    `numbers` are those of the prompts, for their random keys; `compact_to` is as for `decode`.
    """
    if adapters is not None:
        params = lora.apply(params, adapters, scale=1.0)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), numbers)
    cache, hidden = read_prompts(model, params, tokens, mask, prefix=prefix)
    read, active = (model, params, cache, hidden), mask.any(axis=1)
    settings = {"max_tokens": max_tokens, "stop_ids": stop_ids, "active": active}
    if drafted:
        ends = mask.sum(axis=1)
        decoded = decode_by_lookup(*read, tokens, ends, drafted=drafted, **settings)
    else:
        settings["compact_to"] = compact_to
        decoded = decode(*read, keys=keys, sampling=sampling, **settings)
    return decoded.tokens, decoded.lengths
