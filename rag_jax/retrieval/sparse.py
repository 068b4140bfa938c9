"""Weights of words that a learned sparse encoder gives texts."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from scipy.sparse import csr_array

from rag_jax.data.token_rows import TokenRows
from rag_jax.models import SparseEncoder
from rag_jax.models.io.architectures import Encoder
from rag_jax.models.nn.masked_head import MaskedHead, Splade, pool_words
from rag_jax.retrieval.encode import check_sizes, choose_text_widths, pad_texts, run_batches
from rag_jax.retrieval.texts import Role, read_texts, tokenize_with
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.sharding import shard_batch


@checked
def encode_sparse(
    encoder: SparseEncoder,
    texts: Iterable[str | tuple[str, str]],
    *,
    role: Role | None = None,
    max_length: int = 128,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> csr_array:
    """Weights of the vocabulary's words for texts, `[N, V]` in float32, those above 0 alone.

    The logits of a few hundred tokens, and the weights of one batch, are the most that exists with
    a number for every word.

    Args:
        texts: as for `encode_texts`, as are the further arguments.

    Raises:
        RagJaxError: as `encode_texts`.
    """
    base = encoder.base
    check_sizes(base, batch_size, max_length)
    token_rows = TokenRows(tokenize_with(read_texts(base, role), texts, max_length))
    lengths = token_rows.lengths
    found: list[Any] = [None] * len(lengths)

    def run(indices: list[int], shape: tuple[int, int]) -> Array:
        arrays = pad_texts([token_rows[i] for i in indices], *shape)
        static = base.model, encoder.head, encoder.pooling
        return weigh_batch(*static, base.params, *shard_batch(arrays))

    widths = choose_text_widths(lengths)
    for indices, values in run_batches(lengths, run, batch_size, widths, progress):
        for i, row in zip(indices, values, strict=True):
            words = np.flatnonzero(row)
            found[i] = words.astype(np.int32), row[words]
    starts = np.cumsum([0, *(len(words) for words, _ in found)])
    words = np.concatenate([np.zeros(0, np.int32), *(words for words, _ in found)])
    weights = np.concatenate([np.zeros(0, np.float32), *(own for _, own in found)])
    return csr_array((weights, words, starts), shape=(len(found), encoder.width))


@functools.partial(jax.jit, static_argnames=("model", "head", "pooling"))
def weigh_batch(
    model: Encoder,
    head: MaskedHead,
    pooling: Splade,
    params: PyTree,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
) -> Float[Array, "B V"]:
    """Weights of the words for rows of `lengths` tokens, at least 1; compiled once per shape."""
    mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    hidden = model.apply({"params": params}, tokens, mask)
    embed = params["embed"]
    table = embed.get("word", embed)["embedding"]  # BERT has other embeddings beside
    return pool_words(head, params["head"], hidden, mask, table, pooling)
