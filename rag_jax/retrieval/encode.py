"""Texts to embeddings: the mean of the token states, of length one, or DPR's [CLS] state."""

import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rag_jax.data.batches import choose_widths, round_up
from rag_jax.data.passages import Passage
from rag_jax.models import Pretrained
from rag_jax.models.nn.bert import Bert
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import count_data_rows, shard_batch

# Passages of a corpus whose texts are in memory together, and that an interrupted run may lose.
PIECE = 1024
# Compiling a program costs as much time as encoding this many tokens: 0.6 s at 8,000 tokens a
# second, measured with all-MiniLM-L6-v2 on two CPU cores.
_PROGRAM_TOKENS = 5_000

_logger = logging.getLogger(__name__)


def list_texts(passages: Iterable[Passage]) -> list[str | tuple[str, str]]:
    """What encoders read of passages, by `make_text`."""
    return list(map(make_text, passages))


def make_text(passage: Passage) -> str | tuple[str, str]:
    """What encoders and BM25 read of a passage: title and text, or the text where it has no title.

    An empty title would put a separator before the text that untitled passages never had.
    """
    return (passage.title, passage.text) if passage.title else passage.text


def encode_texts(
    encoder: Pretrained,
    texts: Sequence[str | tuple[str, str]],
    *,
    max_length: int = 128,
    batch_size: int = 64,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "N E"]:
    """Embeddings of texts, in their order, pooled as `embed` says.

    Texts are sorted by length and padded to a few widths, chosen so that compiling and padding
    together take least time. One program is compiled for each width and kept: a later call with
    the same widths, model and `batch_size` compiles nothing. Which texts come together changes an
    embedding by rounding only.

    Args:
        encoder: a BERT encoder, or one of DPR's two.
        texts: strings, or (title, text) pairs, encoded as `[CLS] title [SEP] text [SEP]` with one
            token type throughout, as MiniLM saw single texts only and DPR saw pairs this way.
        max_length: tokens a text may have, special tokens included; the rest of it is cut off
            and the number of texts cut is logged as a warning.
        batch_size: rows of 16 tokens in a batch. Wider rows come in proportionally smaller
            numbers, so that every batch costs the same; 1,024 tokens is where a CPU is fastest.
            Rows are rounded up to what the mesh in effect divides.
        progress: called after each batch with the number of texts done and their total.

    Returns:
        float32, one row a text; `[0, E]` for no texts.

    Raises:
        RagJaxError: `texts` is one string, a text is neither a string nor a pair of them,
            `batch_size` is less than 1, or `max_length` leaves no room or exceeds the encoder's
            positions.
    """
    if batch_size < 1:
        raise RagJaxError(f"batch_size is {batch_size}: it must be at least 1")
    if max_length > encoder.config.max_length:
        raise RagJaxError(
            f"max_length is {max_length}, but the encoder has positions for only "
            f"{encoder.config.max_length} tokens: lower it"
        )
    rows = tokenize_texts(encoder.tokenizer, texts, max_length)
    embeddings = np.empty((len(rows), encoder.config.embedding_size), np.float32)
    done, pending = 0, None
    for batch in [*_plan_batches(rows, max_length, batch_size), None]:
        # The next batch is handed to the device before the last one is waited for.
        running = None
        if batch is not None:
            picked, shape = batch
            arrays = _pad_rows([rows[i] for i in picked], shape)
            running = picked, embed_batch(encoder.model, encoder.params, *shard_batch(arrays))
        if pending is not None:
            picked, values = pending
            embeddings[picked] = fetch(values)[: len(picked)]
            done += len(picked)
            if progress is not None:
                progress(done, len(rows))
        pending = running
    return embeddings


def embed(
    model: Bert, params, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Float[Array, "B E"]:
    """The embeddings of texts, pooled as their encoder was trained, in float32.

    Of a plain BERT the mean of the last layer's states over a text's tokens, [CLS] and [SEP]
    included, then normalised: the pooling of all-MiniLM-L6-v2 (Reimers and Gurevych 2019, section
    3), whose dot products are cosines. Of one of DPR's encoders the state at the first token,
    which is [CLS], as it is (Karpukhin et al. 2020, section 3.1): their lengths count.

    Args:
        tokens: with their special tokens, padded on the right.
        mask: True on real tokens.
    """
    hidden = model.apply({"params": params}, tokens, mask)
    if model.config.dpr_role is None:
        return pool_mean(hidden, mask)
    states = model.apply({"params": params}, hidden[:, 0], method="project")
    return states.astype(jnp.float32)


def pool_mean(hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """Mean over each row's real tokens, then scaled to length one, in float32.

    A row without any real token gives zeros.
    """
    weights = mask.astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
    # The mean's divisor cancels in the normalisation, but keeps the square within range.
    mean = total / jnp.maximum(jnp.sum(weights, axis=1), 1)
    squared = jnp.sum(mean * mean, axis=-1, keepdims=True)
    return mean * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


@functools.partial(jax.jit, static_argnames="model")
def embed_batch(
    model, params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> Float[Array, "B E"]:
    mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    return embed(model, params, tokens, mask)


def tokenize_texts(
    tokenizer: Tokenizer, texts: Sequence[str | tuple[str, str]], max_length: int
) -> list[list[int]]:
    """Token ids of each text with its special tokens, cut as `encode_texts` says."""
    if isinstance(texts, str):
        raise RagJaxError("texts is one string: pass a list of texts")
    rows, cut = [], 0
    for i, text in enumerate(texts):
        parts = (text,) if isinstance(text, str) else tuple(text) if _is_pair(text) else None
        if parts is None:
            raise RagJaxError(f"text {i} is neither a string nor a (title, text) pair of strings")
        pair = parts[1] if len(parts) == 2 else None
        # One token more than allowed tells a text that was cut from one that just fits.
        row = tokenizer.encode_with_specials(parts[0], max_length=max_length + 1, pair=pair)
        if len(row) > max_length:
            cut += 1
            row = tokenizer.encode_with_specials(parts[0], max_length=max_length, pair=pair)
        rows.append(row)
    if cut:
        _logger.warning("%d of %d texts were cut to %d tokens", cut, len(rows), max_length)
    return rows


def _is_pair(text) -> bool:
    is_sequence = isinstance(text, (tuple, list)) and len(text) == 2
    return is_sequence and all(isinstance(part, str) for part in text)


def _plan_batches(
    rows: list[list[int]], max_length: int, batch_size: int
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Yields which rows go together and the shape `[B, T]` they are padded to, longest first.

    A batch that the rows of its width do not fill takes shorter ones, so only the last batch has
    empty rows.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    widths = choose_widths([len(row) for row in rows], program_tokens=_PROGRAM_TOKENS)
    start = 0
    while start < len(order):
        width = next(w for w in widths if w >= len(rows[order[start]]))
        # A single text is a question asked by someone waiting: no more empty rows than needed.
        count = round_up(1 if len(rows) == 1 else batch_size * 16 // width, count_data_rows())
        yield order[start : start + count], (count, width)
        start += count


def _pad_rows(
    rows: list[list[int]], shape: tuple[int, int]
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]:
    # Empty rows count as one token long: attention over no token at all has no meaning.
    tokens, lengths = np.zeros(shape, np.int32), np.ones(shape[0], np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
        lengths[i] = len(row)
    return tokens, lengths
