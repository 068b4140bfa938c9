"""The key/value cache: what a batch of rows has read so far.

Slots and positions are two things. Every row writes its next chunk at the same slots, so a write is
one slice; a row with a shorter chunk leaves slots that are marked unreal and never looked at, and
positions count real tokens only. Rows of different lengths, and chunks appended in the
middle of a sequence, therefore need no shuffling. A cache holds just the slots written: appending
grows it, so it can't overflow.

Every function takes a decoder or an encoder-decoder. The rows of the latter stand behind no other
rows; what they share and attend to is a source, which takes the prefix's place.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder, LayerCache, Output


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of `S` slots for `B` rows.

    Attributes:
        layers: per layer, keys `[B, K, d, S]` and values `[B, K, S, d]`.
        real: `[B, S]`, True where a slot holds a token.
        position: `[B]`, the position of each row's next token.
        prefix: a cache of `P` rows that stand before these, each under `B / P` consecutive rows;
            None for none. For an encoder-decoder, the `P` sources that `encode_source` read.
    """

    layers: tuple[LayerCache, ...]
    real: Bool[Array, "B S"]
    position: Int[Array, "B"]
    prefix: "Cache | None" = None


def init_cache(
    model: Decoder | Bart, rows: int, *, dtype=jnp.float32, prefix: Cache | None = None
) -> Cache:
    """A cache with no slots yet, after `prefix` if one is given (`rows` a multiple of its rows).

    Raises:
        ValueError: an encoder-decoder is given no source as its prefix.
    """
    c = model.config
    if isinstance(model, Bart) and prefix is None:
        raise ValueError("rows of an encoder-decoder need a source: prefix=encode_source(...)")
    keys = jnp.zeros((rows, c.num_kv_heads, c.head_dim, 0), dtype)
    layers = tuple((keys, keys.swapaxes(2, 3)) for _ in range(c.num_layers))
    position = jnp.zeros(rows, jnp.int32)
    if prefix is not None:
        position = jnp.repeat(prefix.position, rows // prefix.position.shape[0])
    return Cache(layers, jnp.zeros((rows, 0), bool), position, prefix)


def grow(cache: Cache, slots: int) -> Cache:
    """Adds `slots` empty slots at the end."""
    layers = tuple(
        (
            jnp.pad(keys, ((0, 0), (0, 0), (0, 0), (0, slots))),
            jnp.pad(values, ((0, 0), (0, 0), (0, slots), (0, 0))),
        )
        for keys, values in cache.layers
    )
    return Cache(layers, jnp.pad(cache.real, ((0, 0), (0, slots))), cache.position, cache.prefix)


def fork(model: Decoder | Bart, cache: Cache, times: int) -> Cache:
    """A cache in which `times` consecutive rows go on from each row of `cache`.

    A decoder's rows become the prefix of the new ones and are not copied. Where they stand behind a
    prefix themselves, the new rows stand behind it too, each with a copy of what its row has read
    since; so do those of an encoder-decoder behind their source.
    """
    rows = cache.position.shape[0] * times
    if isinstance(model, Decoder) and cache.prefix is None:
        return init_cache(model, rows, dtype=cache.layers[0][0].dtype, prefix=cache)
    layers, real, position = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, times, axis=0), (cache.layers, cache.real, cache.position)
    )
    return Cache(layers, real, position, cache.prefix)


def encode_source(
    model: Bart, params, tokens: Int[Array, "P L"], mask: Bool[Array, "P L"]
) -> Cache:
    """Reads sources once, as the prefix of the caches of all the rows that attend to them.

    The keys and values that each layer's cross-attention needs are computed here: a source costs
    nothing more, however many rows (beams, candidates) read it and however long they get.

    Args:
        mask: False on padding, on the right.
    """
    encoded = model.apply({"params": params}, tokens, mask, method="encode")
    layers = model.apply({"params": params}, encoded, method="read_source")
    return Cache(layers, mask, jnp.zeros(tokens.shape[0], jnp.int32))


def write(
    model: Decoder | Bart,
    params,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    slot: Int[Array, ""] | int,
    return_layer: int | None = None,
) -> tuple[Output, Cache]:
    """Runs a chunk through the model and writes it at `slot`, into slots that exist.

    Returns:
        The model's output for the chunk, and the cache with the chunk in it.
    """
    real = jax.lax.dynamic_update_slice(cache.real, mask, (0, slot))
    own = slot + jnp.arange(tokens.shape[1])
    visible = jnp.arange(real.shape[1])[None, None, :] <= own[None, :, None]
    positions = cache.position[:, None] + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    seen = real[:, None, :] & visible
    output = _run(
        model, params, cache, tokens, seen, positions, slot=slot, return_layer=return_layer
    )
    position = cache.position + mask.sum(axis=1, dtype=jnp.int32)
    return output, Cache(output.cache, real, position, cache.prefix)


def write_branches(
    model: Decoder | Bart,
    params,
    cache: Cache,
    tokens: Int[Array, "B W"],
    seen: Bool[Array, "B W S"],
    *,
    slot: Int[Array, ""] | int,
    depth: Int[Array, "B W"] | Int[Array, ""] | int,
    length: int,
) -> tuple[Output, Cache]:
    """Writes `W` tokens of texts that go on from every row: the next of each, or several of some.

    The texts are a tree in the slots behind the row: one that branches off from another is told to
    look at that one's slots, and nothing is copied.

    Args:
        cache: rows as they were before they branched, with empty slots behind them; its `real` and
            `position` stay as they are.
        seen: where each token looks behind the row: at its text's tokens, itself among them.
        slot: where the tokens are written, next to each other.
        depth: how many tokens of its text stand before each token, one number where all are alike.
        length: slots of the longest text, the row's own included.
    """
    seen = cache.real[:, None] | seen
    positions = jnp.broadcast_to(cache.position[:, None] + depth, tokens.shape)
    output = _run(model, params, cache, tokens, seen, positions, slot=slot, length=length)
    return output, Cache(output.cache, cache.real, cache.position, cache.prefix)


def _run(model, params, cache, tokens, seen, positions, **settings) -> Output:
    return model.apply(
        {"params": params},
        tokens,
        mask=seen,
        positions=positions,
        cache=cache.layers,
        prefix=cache.prefix and cache.prefix.layers,
        prefix_mask=cache.prefix and cache.prefix.real,
        method="hidden",
        **settings,
    )


def append(
    model: Decoder | Bart,
    params,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    return_layer: int | None = None,
) -> tuple[Output, Cache]:
    """Appends one chunk to every row; `mask` is False on padding, which may stand anywhere."""
    slot = cache.real.shape[1]
    return write(
        model,
        params,
        grow(cache, tokens.shape[1]),
        tokens,
        mask,
        slot=slot,
        return_layer=return_layer,
    )
