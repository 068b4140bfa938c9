"""The key/value cache: what a batch of rows has read so far.

Slots and positions are separate. Every row writes its next chunk at the same slots, so a write is
one slice. A row whose chunk is shorter leaves padding slots, which `token_mask` hides from
attention; positions count tokens, not slots. Rows of different lengths, and chunks appended in the
middle of a sequence, therefore need no shuffling. A cache holds just the slots written: appending
grows the cache, so it cannot overflow.

Every function takes a decoder or an encoder-decoder. The rows of an encoder-decoder have no prefix
of earlier tokens; the source that they share and attend to takes the prefix's place.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PyTree

from rag_jax.models.nn.attention import mask_slots
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.chunk import LayerCache, Output
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.arguments import checked


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of `S` slots for `B` rows.

    Attributes:
        layers: per layer, keys `[B, K, d, S]` and values `[B, K, S, d]`.
        token_mask: True where a slot holds a token.
        position: the position of each row's next token.
        prefix: a cache of `P` rows that were read before these rows, each shared by `B / P`
            consecutive rows; None without a prefix. For an encoder-decoder, the `P` sources that
            `encode_source` read.
    """

    layers: tuple[LayerCache, ...]
    token_mask: Bool[Array, "B S"]
    position: Int[Array, "B"]
    prefix: "Cache | None" = None

    @property
    def num_slots(self) -> int:
        """Number of slots S, without the prefix's."""
        return self.token_mask.shape[1]


@checked
def init_cache(
    model: Decoder | Bart, rows: int, *, dtype: Any = jnp.float32, prefix: Cache | None = None
) -> Cache:
    """A cache without slots, after `prefix` if one is given (`rows` a multiple of its rows).

    Raises:
        ValueError: an encoder-decoder is given no source as its prefix.
    """
    c = model.config
    if isinstance(model, Bart) and prefix is None:
        raise ValueError("rows of an encoder-decoder need a source: prefix=encode_source(...)")
    if rows < 1 or (prefix is not None and rows % len(prefix.position)):
        multiple = 1 if prefix is None else len(prefix.position)
        raise ValueError(f"rows={rows}: must be a multiple of the prefix's {multiple} rows")
    keys = jnp.zeros((rows, c.num_kv_heads, c.head_dim, 0), dtype)
    layers = tuple((keys, keys.swapaxes(2, 3)) for _ in range(c.num_layers))
    position = jnp.zeros(rows, jnp.int32)
    if prefix is not None:
        position = jnp.repeat(prefix.position, rows // prefix.position.shape[0])
    return Cache(layers, jnp.zeros((rows, 0), bool), position, prefix)


def grow(cache: Cache, slots: int) -> Cache:
    """Adds `slots` empty slots at the end."""

    def pad(x: Array, axis: int) -> Array:
        return jnp.pad(x, [(0, slots if i == axis else 0) for i in range(x.ndim)])

    layers = tuple((pad(keys, 3), pad(values, 2)) for keys, values in cache.layers)
    return Cache(layers, pad(cache.token_mask, 1), cache.position, cache.prefix)


@checked
def fork(model: Decoder | Bart, cache: Cache, times: int) -> Cache:
    """A cache in which `times` consecutive rows continue each row of `cache`.

    A decoder's rows become the prefix of the new rows and are not copied. Rows that have a prefix
    already keep it, and each new row gets a copy of what its row has read since; so do the rows of
    an encoder-decoder, after their source.
    """
    rows = cache.position.shape[0] * times
    if isinstance(model, Decoder) and cache.prefix is None:
        read = cache if cache.num_slots else None  # an empty cache is nobody's prefix
        return init_cache(model, rows, dtype=cache.layers[0][0].dtype, prefix=read)
    layers, token_mask, position = jax.tree.map(
        lambda leaf: jnp.repeat(leaf, times, axis=0),
        (cache.layers, cache.token_mask, cache.position),
    )
    return Cache(layers, token_mask, position, cache.prefix)


@checked
def encode_source(
    model: Bart, params: PyTree, tokens: Int[Array, "P L"], mask: Bool[Array, "P L"]
) -> Cache:
    """Encodes sources, as the prefix of the caches of all rows that attend to them.

    The keys and values of each layer's cross-attention are computed here once, however many rows
    (beams, candidates) attend to a source and however long these rows get.
    """
    encoded = model.apply({"params": params}, tokens, mask, method="encode")
    layers = model.apply({"params": params}, encoded, method="read_source")
    return Cache(layers, mask, jnp.zeros(tokens.shape[0], jnp.int32))


def write(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    slot: Int[Array, ""] | int,
    return_layer: int | None = None,
) -> tuple[Output, Cache]:
    """Runs a chunk through the model and writes the chunk from `slot` on, into existing slots.

    `mask` is False on padding, which may be anywhere in the chunk. `return_layer` is as for
    `Decoder.hidden`.
    """
    token_mask = jax.lax.dynamic_update_slice_in_dim(cache.token_mask, mask, slot, axis=1)
    attention_mask = token_mask
    if isinstance(model, Bart):
        attention_mask = mask_slots(token_mask, slot, tokens.shape[1])
    positions = cache.position[:, None] + jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    settings = {"slot": slot, "return_layer": return_layer}
    output = _run(model, params, cache, tokens, attention_mask, positions, **settings)
    position = cache.position + mask.sum(axis=1, dtype=jnp.int32)
    return output, Cache(output.cache, token_mask, position, cache.prefix)


def write_branches(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "B W"],
    attention_mask: Bool[Array, "B W S"],
    *,
    slot: Int[Array, ""] | int,
    depth: Int[Array, "B W"] | Int[Array, ""] | int,
    length: int,
) -> tuple[Output, Cache]:
    """Writes `W` tokens of texts that branch off from every row, such as one of each beam.

    The texts are a tree in the slots after the row: a text that branches off from another one
    attends to that text's slots, and nothing is copied.

    Args:
        cache: the rows before they branched, with empty slots after them. `token_mask` and
            `position` stay unchanged.
        tokens: the next tokens, of different texts or several of one.
        attention_mask: for each token the slots of its text after the row, its own among them.
        slot: of the first token; the other tokens follow.
        depth: number of tokens of its text before each token; one number where all are equal.
        length: number of slots of the longest text, the row's own slots included.
    """
    attention_mask = cache.token_mask[:, None] | attention_mask
    positions = jnp.broadcast_to(cache.position[:, None] + depth, tokens.shape)
    output = _run(model, params, cache, tokens, attention_mask, positions, slot=slot, length=length)
    return output, Cache(output.cache, cache.token_mask, cache.position, cache.prefix)


def _run(model, params, cache, tokens, attention_mask, positions, **settings) -> Output:
    if len(tokens) != len(cache.position):
        raise ValueError(
            f"tokens of {len(tokens)} rows after a cache of {len(cache.position)} rows"
        )
    return model.apply(
        {"params": params},
        tokens,
        mask=attention_mask,
        positions=positions,
        cache=cache.layers,
        prefix=cache.prefix and cache.prefix.layers,
        prefix_mask=cache.prefix and cache.prefix.token_mask,
        method="hidden",
        **settings,
    )


@checked
def append(
    model: Decoder | Bart,
    params: PyTree,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    return_layer: int | None = None,
) -> tuple[Output, Cache]:
    """Appends one chunk to every row; `mask` is False on padding, which may be anywhere."""
    slot = cache.num_slots
    cache = grow(cache, tokens.shape[1])
    return write(model, params, cache, tokens, mask, slot=slot, return_layer=return_layer)
