"""A batch of texts, embedded in chunks of texts of similar length: little of a chunk is padding.

All chunks have the same number of rows, and each is cut to one of few widths. Which one is decided
while the program runs, so there is one program, whatever the lengths of a batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.data.batches import choose_widths, limit_padding
from rag_jax.models.io.architectures import Embedder
from rag_jax.retrieval.encode import embed
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.sharding import constrain_rows, count_data_rows

# Of a batch, where the mesh's data rows allow as many: one chunk would be as wide as the longest.
_LEAST_CHUNKS = 4


@checked
def embed_in_chunks(
    model: Embedder,
    params: PyTree,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    *,
    rows: int,
    widths: Sequence[int],
) -> Float[Array, "B E"]:
    """Embeddings as from `embed`, for `jax.grad`: only one chunk's activations exist at a time.

    The rows of `tokens` are padded on the right after `lengths` tokens, at least 1. A chunk has
    `rows` rows, which must divide B, and the narrowest of the `widths` that holds them.

    Args:
        widths: ascending, from `choose_chunk_widths`; the last one is T.
    """

    def split(x):
        # [B, ...] -> [B / rows, rows, ...], each chunk with rows from all over the batch: a device
        # of a mesh, which has consecutive rows, then has its share of every chunk.
        return x.reshape(rows, -1, *x.shape[1:]).swapaxes(0, 1)

    embeddings = _embed_chunks(model, tuple(widths), params, split(tokens), split(lengths))
    return constrain_rows(embeddings.swapaxes(0, 1).reshape(len(tokens), -1), len(tokens))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _embed_chunks(
    model: Embedder,
    widths: tuple[int, ...],
    params: PyTree,
    tokens: Int[Array, "C R T"],
    lengths: Int[Array, "C R"],
) -> Float[Array, "C R E"]:
    read = functools.partial(_embed, model, params)
    chunks = lengths.max(axis=1), tokens, lengths
    return jax.lax.map(lambda chunk: _cut(widths, read, *chunk), chunks)


def _start_gradient(model, widths, *inputs):
    return _embed_chunks(model, widths, *inputs), inputs


def _end_gradient(model, widths, inputs, cotangents):
    """The gradient with respect to the weights, from a second reading of each chunk."""
    params, tokens, lengths = inputs
    add_up = functools.partial(_add_gradients, model, widths)
    if count_data_rows() > 1:
        # Every device adds up its own rows' gradients, and devices meet once, not once a chunk.
        split, whole, own = PartitionSpec(None, "data"), PartitionSpec(), add_up
        add_up = jax.shard_map(
            lambda *inputs: jax.lax.psum(own(*inputs), "data"),
            in_specs=(whole, whole, split, split, split),
            out_specs=whole,
            axis_names={"data"},
            check_vma=False,
        )
    return add_up(params, lengths.max(axis=1), tokens, lengths, cotangents), None, None


def _add_gradients(
    model: Embedder,
    widths: tuple[int, ...],
    params: PyTree,
    longest: Int[Array, "C"],
    tokens: Int[Array, "C R T"],
    lengths: Int[Array, "C R"],
    cotangents: Float[Array, "C R E"],
) -> PyTree:
    """The sum of the chunks' gradients, of a device's own rows or of all."""

    def add(total, part):
        longest, tokens, lengths, cotangent = part

        # Within the branch of a width: what a branch keeps for later exists for all branches.
        def differentiate(tokens, lengths):
            read = functools.partial(_embed, model, tokens=tokens, lengths=lengths)
            (gradient,) = jax.vjp(read, params)[1](cotangent)
            return gradient

        gradient = _cut(widths, differentiate, longest, tokens, lengths)
        return jax.tree.map(jnp.add, total, gradient), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    return jax.lax.scan(add, zeros, (longest, tokens, lengths, cotangents))[0]


_embed_chunks.defvjp(_start_gradient, _end_gradient)


def _embed(
    model: Embedder, params: PyTree, tokens: Int[Array, "R T"], lengths: Int[Array, "R"]
) -> Float[Array, "R E"]:
    mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    return embed(model, params, tokens, mask)


def _cut(
    widths: Sequence[int],
    function: Callable[..., PyTree],
    longest: Int[Array, ""],
    tokens: Int[Array, "R T"],
    lengths: Int[Array, "R"],
) -> PyTree:
    """A function of a chunk that is cut to the narrowest width that holds its longest row."""
    branches = [lambda t, n, width=width: function(t[:, :width], n) for width in widths]
    number = jnp.searchsorted(jnp.asarray(widths), longest)
    return jax.lax.switch(number, branches, tokens, lengths)


def choose_chunk(batch: int, width: int, *, budget: int) -> int:
    """Number of rows of a chunk: a divisor of the batch, and not more than a quarter of it.

    A chunk has at most `budget` tokens, and may exceed both if the mesh's data rows need more.
    """
    parts = count_data_rows()
    most = min(budget // width, batch // _LEAST_CHUNKS)
    divisors = (rows for rows in range(parts, batch + 1, parts) if batch % rows == 0)
    return max((rows for rows in divisors if rows <= most), default=parts)


class Sample(NamedTuple):
    """Batches of one side, questions or passages, by which widths are chosen.

    Attributes:
        batches: number of tokens of every row of some batches.
        longest: number of tokens that no row of any batch exceeds, a multiple of 8.
        rows: number of rows of a chunk.
    """

    batches: Sequence[Sequence[int]]
    longest: int
    rows: int


def choose_chunk_widths(
    samples: Mapping[str, Sample], *, share: float, program_tokens: int
) -> dict[str, tuple[int, ...]]:
    """The widths of each side's chunks, ascending: those with the least cost, see `limit_padding`.

    Args:
        share: of the sampled batches in all batches.
        program_tokens: number of tokens that could be computed while one width compiles.
    """

    def choose(program_tokens: int) -> tuple[dict[str, tuple[int, ...]], int, float]:
        widths, useful, computed = {}, 0, 0
        for side, (batches, longest, rows) in samples.items():
            maxima = [length for batch in batches for length in sorted(batch)[::-1][::rows]]
            worth = int(program_tokens * share / rows)
            widths[side] = tuple(choose_widths([*maxima, longest], program_tokens=worth))
            useful += sum(map(sum, batches))
            computed += sum(count_chunk_tokens(batch, rows, widths[side]) for batch in batches)
        return widths, max(map(len, widths.values())), 1 - useful / computed

    return limit_padding(choose, program_tokens)


def order_rows(lengths: Sequence[int], rows: int) -> Int[np.ndarray, "B"]:
    """The order of a batch's rows in which `embed_in_chunks` has similar lengths in a chunk."""
    by_length = np.argsort(-np.asarray(lengths), kind="stable")
    return by_length.reshape(-1, rows).T.ravel()  # [C, R] -> [R * C]


def count_chunk_tokens(lengths: Sequence[int], rows: int, widths: Sequence[int]) -> int:
    """Number of tokens that `embed_in_chunks` computes for a batch in the order of `order_rows`."""
    longest = np.sort(lengths)[::-1][::rows]
    return rows * int(np.asarray(widths)[np.searchsorted(widths, longest)].sum())
