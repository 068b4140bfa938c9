"""Text encoding: embeddings by the normalised mean of the token states, or by DPR's [CLS] state."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.data.batches import choose_widths, limit_padding, pad_rows, round_up
from rag_jax.data.passages import Passage
from rag_jax.data.token_rows import TokenRows
from rag_jax.models import Pretrained
from rag_jax.models.nn.bert import Bert
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.sharding import count_data_rows, shard_batch

# Number of passages whose texts are in memory together, and which an interrupted run may lose.
PIECE = 1024
# Number of tokens that could be encoded while one program compiles, on CPU: 0.6 s at 8,000 tokens
# per second, measured with all-MiniLM-L6-v2 on two cores.
_PROGRAM_TOKENS = 5_000
SAMPLED = 4096  # texts of a corpus by which its widths are chosen

_logger = logging.getLogger(__name__)


def list_texts(passages: Iterable[Passage]) -> list[str | tuple[str, str]]:
    """Texts of passages as encoders read them, by `make_text`."""
    return list(map(make_text, passages))


def make_text(passage: Passage) -> str | tuple[str, str]:
    """Text of a passage as encoders and BM25 read it: (title, text), or the text if untitled.

    An empty title would add a separator, which encoders did not see before untitled passages in
    training.

    Raises:
        TypeError: it is no `Passage`.
    """
    if not isinstance(passage, Passage):
        raise TypeError(
            f"{passage!r} is no Passage: read a corpus, or use Passage(id, title, text)"
        )
    return (passage.title, passage.text) if passage.title else passage.text


@checked
def encode_texts(
    encoder: Pretrained,
    texts: Iterable[str | tuple[str, str]],
    *,
    max_length: int = 128,
    batch_size: int = 64,
    widths: Sequence[int] = (),
    program_tokens: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "N E"]:
    """Embeddings of texts, in the order of the texts, pooled by `embed`.

    Texts are sorted by length and padded to a few widths, chosen to minimise the total time of
    compilation and padding. One program is compiled per width and kept: a later call with the same
    widths, model and `batch_size` compiles nothing. The composition of the batches changes
    embeddings by rounding only.

    Args:
        texts: strings, or (title, text) pairs; only their tokens are kept in memory. A pair is
            encoded as `[CLS] title [SEP] text [SEP]` with a single token type, as in the training
            of DPR; MiniLM saw single texts only.
        max_length: as for `tokenize_texts`.
        batch_size: number of rows of 16 tokens in a batch. Batches of wider rows have fewer rows,
            so that all batches cost the same; 1,024 tokens is where a CPU is fastest. The number of
            rows is rounded up to a multiple of `count_data_rows`.
        widths: numbers of tokens that texts may be padded to, from `plan_widths`; without them they
            are chosen for these texts.
        program_tokens: number of tokens that could be encoded while one program compiles; None for
            that of the platform, see `EncoderConfig`.
        progress: called after each batch with the number of encoded texts and the total number.

    Raises:
        RagJaxError: as `tokenize_texts`, or the model is no encoder, or `batch_size` or
            `max_length` is out of range, or the encoder's own files ask for other embeddings.
    """
    if not hasattr(encoder.config, "dpr_role"):
        kind = type(encoder.model).__name__
        raise RagJaxError(f"encoder: a {kind} embeds no texts; load a BERT or DPR encoder")
    _check_settings(encoder)
    if batch_size < 1:
        raise RagJaxError(f"batch_size is {batch_size}: it must be at least 1")
    if max_length > encoder.config.max_length:
        raise RagJaxError(
            f"max_length is {max_length}, but the encoder has positions for only "
            f"{encoder.config.max_length} tokens: lower it"
        )
    token_rows = TokenRows(_tokenize(encoder.tokenizer, texts, max_length))
    embeddings = np.empty((len(token_rows), encoder.config.embedding_size), np.float32)
    num_encoded = 0
    if not widths:
        worth = count_program_tokens(program_tokens, on_cpu=_PROGRAM_TOKENS)
        widths = choose_widths(token_rows.lengths, program_tokens=worth)
    for indices, values in _embed_batches(encoder, token_rows, batch_size, widths):
        embeddings[indices] = values
        num_encoded += len(indices)
        if progress is not None:
            progress(num_encoded, len(token_rows))
    return embeddings


def _check_settings(encoder: Pretrained) -> None:
    """Raises a RagJaxError if the encoder's files ask for other embeddings than `embed` makes."""
    settings, by_role = encoder.sentence, encoder.config.dpr_role is not None
    if settings is None:
        return
    pooling, made = ("cls", "the [CLS] state") if by_role else ("mean", "the normalised mean")
    asked = [] if settings.pooling == pooling else [f"the pooling {settings.pooling!r}"]
    if settings.normalized is by_role:
        asked.append("embeddings scaled to length 1" if by_role else "embeddings of any length")
    if settings.prompts:
        asked.append(f"the prompts {', '.join(map(repr, settings.prompts))}")
    if settings.lower_case and encoder.tokenizer.encode("A") != encoder.tokenizer.encode("a"):
        asked.append("texts in lower case")
    if asked:
        plain_cls = settings.pooling == "cls" and not settings.normalized and not by_role
        hint = "set config.encoder.pooling='cls' (dpr), " if plain_cls else ""
        raise RagJaxError(
            f"{settings.source} asks for {' and '.join(asked)}, but embeddings here are {made} of "
            f"the text alone: {hint}choose another encoder, or remove the encoder's files "
            "modules.json, 1_Pooling and config_sentence_transformers.json to have these all the "
            "same"
        )


def _embed_batches(
    encoder: Pretrained, token_rows: TokenRows, batch_size: int, widths: Sequence[int]
) -> Iterator[tuple[list[int], Float[np.ndarray, "B E"]]]:
    """Yields batches as indices of texts and their embeddings, longest texts first."""

    def dispatch(batch: tuple[list[int], tuple[int, int]]) -> tuple[list[int], Array]:
        indices, shape = batch
        arrays = pad_texts([token_rows[i] for i in indices], *shape)
        return indices, embed_batch(encoder.model, encoder.params, *shard_batch(arrays))

    running = map(dispatch, plan_batches(token_rows.lengths, batch_size, widths))
    # Each batch is dispatched to the device before the previous one is waited for.
    for (indices, values), _ in itertools.pairwise(itertools.chain(running, [None])):
        yield indices, fetch(values)[: len(indices)]


@checked
def embed(
    model: Bert,
    params: PyTree,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | Int[Array, "B T"],
) -> Float[Array, "B E"]:
    """Embeddings of tokenised texts in float32, pooled as in the training of the encoder.

    Rows of `tokens` have special tokens and padding on the right, where `mask` is False or 0.

    For a plain BERT, the embedding is the mean of the last layer's states over all tokens of the
    text, [CLS] and [SEP] included, scaled to length 1. This is the pooling of all-MiniLM-L6-v2
    (Reimers and Gurevych 2019, section 3); dot products are cosines. For one of DPR's encoders, the
    embedding is the state at the first token, [CLS], without a scaling (Karpukhin et al. 2020,
    section 3.1).
    """
    hidden = model.apply({"params": params}, tokens, mask)
    if model.config.dpr_role is None:
        return pool_mean(hidden, mask)
    states = model.apply({"params": params}, hidden[:, 0], method="project")
    return states.astype(jnp.float32)


@checked
def pool_mean(
    hidden: Float[Array, "B T D"], mask: Bool[Array, "B T"] | Int[Array, "B T"]
) -> Float[Array, "B D"]:
    """Mean of the states of each row's tokens, scaled to length 1; zeros for a row of padding."""
    weights = mask.astype(jnp.float32)[..., None]
    total = jnp.sum(hidden.astype(jnp.float32) * weights, axis=1)
    # The divisor cancels in the normalisation, but keeps the squares within the range of float32.
    mean = total / jnp.maximum(jnp.sum(weights, axis=1), 1)
    squared = jnp.sum(mean * mean, axis=-1, keepdims=True)
    return mean * jax.lax.rsqrt(jnp.maximum(squared, 1e-24))


@functools.partial(jax.jit, static_argnames="model")
def embed_batch(
    model: Bert, params: PyTree, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> Float[Array, "B E"]:
    """Embeddings by `embed` of rows of `lengths` tokens, at least 1; compiled once per shape."""
    mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    return embed(model, params, tokens, mask)


def tokenize_texts(
    tokenizer: Tokenizer, texts: Sequence[str | tuple[str, str]], max_length: int
) -> list[list[int]]:
    """Token ids of each text, or (title, text) pair, with special tokens.

    Args:
        max_length: maximum number of tokens of a text, special tokens included. Longer texts are
            cut, and their number is logged as a warning.

    Raises:
        RagJaxError: a text is neither a string nor a pair of strings, or `max_length` is too small
            for the special tokens.
    """
    return list(_tokenize(tokenizer, texts, max_length))


def _tokenize(
    tokenizer: Tokenizer, texts: Iterable[str | tuple[str, str]], max_length: int
) -> Iterator[list[int]]:
    """Yields what `tokenize_texts` returns."""
    if isinstance(texts, str):
        raise RagJaxError("texts is one string: pass a list of texts")
    num_cut, i = 0, -1
    for i, text in enumerate(texts):
        parts = (text,) if isinstance(text, str) else tuple(text) if _is_pair(text) else None
        if parts is None:
            raise RagJaxError(f"text {i} is neither a string nor a (title, text) pair of strings")
        pair = parts[1] if len(parts) == 2 else None
        # A limit of one more token distinguishes a text that is too long from one that just fits.
        row = tokenizer.encode_with_specials(parts[0], max_length=max_length + 1, pair=pair)
        if len(row) > max_length:
            num_cut += 1
            row = tokenizer.encode_with_specials(parts[0], max_length=max_length, pair=pair)
        yield row
    if num_cut:
        _logger.warning("%d of %d texts were cut to %d tokens", num_cut, i + 1, max_length)


def _is_pair(text: Any) -> bool:
    is_sequence = isinstance(text, (tuple, list)) and len(text) == 2
    return is_sequence and all(isinstance(part, str) for part in text)


def plan_widths(
    tokenizer: Tokenizer,
    passages: Sequence[Passage],
    max_length: int,
    *,
    program_tokens: int | None = None,
) -> list[int]:
    """Widths for the texts of a corpus, ascending, chosen by some thousand of them.

    The last one holds any text. Further arguments are those of `encode_texts`.
    """
    rows = range(0, len(passages), max(1, -(-len(passages) // SAMPLED)))
    texts = list_texts(passages[i] for i in rows)
    lengths = [len(row) for row in tokenize_texts(tokenizer, texts, max_length)]
    return choose_corpus_widths(lengths, len(passages), max_length, program_tokens=program_tokens)


def choose_corpus_widths(
    lengths: Sequence[int], count: int, max_length: int, *, program_tokens: int | None = None
) -> list[int]:
    """Widths for the texts of a corpus of `count`, by the lengths of some; see `plan_widths`."""

    def choose(program_tokens: int) -> tuple[list[int], int, float]:
        worth = program_tokens * len(lengths) // max(1, count)
        chosen = choose_widths(lengths, program_tokens=worth)
        widths = sorted({*(width for width in chosen if width < max_length), max_length})
        computed = np.asarray(widths)[np.searchsorted(widths, lengths)].sum()
        return widths, len(widths), 1 - sum(lengths) / max(1, computed)

    worth = count_program_tokens(program_tokens, on_cpu=_PROGRAM_TOKENS)
    if count < SAMPLED:  # a few seconds' work, whatever the padding
        return choose(worth)[0]
    return limit_padding(choose, worth)


def plan_batches(
    lengths: Sequence[int], batch_size: int, widths: Sequence[int]
) -> Iterator[tuple[list[int], tuple[int, int]]]:
    """Yields the indices of the rows of each batch and its padded shape `[B, T]`, longest first.

    If too few rows have the width of a batch, shorter rows fill it up, so only the last batch has
    empty rows.

    Args:
        lengths: number of tokens of each text; the largest width holds the longest.
    """
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        width = min(w for w in widths if w >= lengths[order[start]])
        # A single text is usually the question of a waiting user, so it is not padded to a batch.
        count = 1 if len(lengths) == 1 else batch_size * 16 // width
        count = round_up(count, count_data_rows())
        yield order[start : start + count], (count, width)
        start += count


def pad_texts(
    rows: Sequence[Sequence[int]], batch: int, width: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B"]]:
    """Rows of token ids padded on the right and with empty rows, and the rows' lengths."""
    tokens, mask = pad_rows(rows, width, pad_id=0, batch=batch)
    # Empty rows have length 1, because attention over no tokens is undefined.
    return tokens, np.maximum(mask.sum(axis=1, dtype=np.int32), 1)
