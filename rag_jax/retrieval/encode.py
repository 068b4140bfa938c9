"""Text encoding: embeddings as the encoder's own files have them, or by DPR's [CLS] state."""

import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from rag_jax.data.batches import choose_widths, limit_padding, pad_rows, round_up
from rag_jax.data.passages import Passage
from rag_jax.data.token_rows import TokenRows
from rag_jax.models import Pretrained
from rag_jax.models.io.architectures import Embedder, embeds_texts
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.pooling import MEAN, pool_states
from rag_jax.retrieval.texts import Role, list_texts, read_texts, tokenize_texts, tokenize_with
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
_warned: set[tuple[int, int]] = set()  # an encoder's own length, and the one that a warning was of


@checked
def encode_texts(
    encoder: Pretrained,
    texts: Iterable[str | tuple[str, str]],
    *,
    role: Role | None = None,
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
        texts: strings, or (title, text) pairs; only their tokens are kept in memory; see
            `tokenize_texts`.
        role: which of the encoder's prompts stands before the texts; see `Sentence.find_prompt`.
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
            `max_length` is out of range.
    """
    _check_encoder(encoder)
    check_sizes(encoder, batch_size, max_length)
    reading = read_texts(encoder, role)
    token_rows = TokenRows(tokenize_with(reading, texts, max_length))
    embeddings = np.empty((len(token_rows), encoder.model.embedding_size), np.float32)
    if not widths:
        widths = choose_text_widths(token_rows.lengths, program_tokens=program_tokens)

    def run(indices: list[int], shape: tuple[int, int]) -> Array:
        arrays = pad_texts([token_rows[i] for i in indices], *shape)
        inputs = encoder.model, encoder.params, *shard_batch(arrays)
        return embed_batch(*inputs, skipped=reading.skipped)

    for indices, values in run_batches(token_rows.lengths, run, batch_size, widths, progress):
        embeddings[indices] = values
    return embeddings


def check_sizes(encoder: Pretrained, batch_size: int, max_length: int) -> None:
    """Raises a RagJaxError if a batch has no row, or texts may be longer than the positions.

    Texts that may be longer than the encoder's authors say are logged as a warning, once a length.
    """
    if batch_size < 1:
        raise RagJaxError(f"batch_size is {batch_size}: it must be at least 1")
    if max_length > encoder.config.max_length:
        raise RagJaxError(
            f"max_length is {max_length}, but the encoder has positions for only "
            f"{encoder.config.max_length} tokens: lower it"
        )
    own = encoder.sentence.max_length if encoder.sentence else None
    if own is not None and max_length > own and (own, max_length) not in _warned:
        _warned.add((own, max_length))
        _logger.warning(
            "max_length is %d, but the encoder's own settings cut a text at %d tokens, as "
            "sentence-transformers does: lower it to embed as they say",
            *(max_length, own),
        )


def choose_text_widths(lengths: Sequence[int], *, program_tokens: int | None = None) -> list[int]:
    """Widths for texts of these lengths; see `encode_texts`."""
    worth = count_program_tokens(program_tokens, on_cpu=_PROGRAM_TOKENS)
    return choose_widths(lengths, program_tokens=worth)


def _check_encoder(encoder: Pretrained) -> None:
    """Raises a RagJaxError if the model is no encoder."""
    if not embeds_texts(encoder.model):
        kind = type(encoder.model).__name__
        raise RagJaxError(
            f"encoder: a {kind} embeds no texts; load a BERT or DPR encoder, or a decoder whose "
            "folder has a modules.json"
        )


def run_batches(
    lengths: Sequence[int],
    run: Callable[[list[int], tuple[int, int]], Array],
    batch_size: int,
    widths: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[tuple[list[int], Float[np.ndarray, "B ..."]]]:
    """Yields batches as indices of texts and what `run` gives for them, longest texts first.

    Args:
        lengths: number of tokens of each text.
        run: from the indices of a batch's texts and its padded shape `[B, T]` to an array on the
            devices, with a row for each text and rows of padding.
        progress: as for `encode_texts`.
    """

    def dispatch(batch: tuple[list[int], tuple[int, int]]) -> tuple[list[int], Array]:
        return batch[0], run(*batch)

    running, num_encoded = map(dispatch, plan_batches(lengths, batch_size, widths)), 0
    # Each batch is dispatched to the device before the previous one is waited for.
    for (indices, values), _ in itertools.pairwise(itertools.chain(running, [None])):
        yield indices, fetch(values)[: len(indices)]
        num_encoded += len(indices)
        if progress is not None:
            progress(num_encoded, len(lengths))


@checked
def embed(
    model: Embedder,
    params: PyTree,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"] | Int[Array, "B T"],
    *,
    skipped: int = 0,
) -> Float[Array, "B E"]:
    """Embeddings of tokenised texts in float32, pooled as in the training of the encoder.

    Rows of `tokens` have special tokens and padding on the right, where `mask` is False or 0.

    For a decoder or a plain BERT, the states of the last layer are pooled by the model's `pooling`;
    without one the embedding is their mean over all tokens of the text, [CLS] and [SEP] included,
    scaled to length 1, the pooling of all-MiniLM-L6-v2 (Reimers and Gurevych 2019, section 3); dot
    products are then cosines. For one of DPR's encoders, the embedding is the state at the first
    token, [CLS], without a scaling (Karpukhin et al. 2020, section 3.1).

    Args:
        skipped: as for `pool_states`.
    """
    if isinstance(model, Decoder):
        if model.pooling is None:
            raise TypeError("embed: model is a Decoder without a pooling: it embeds no texts")
        read = {"mask": mask.astype(bool), "method": "hidden"}
        hidden = model.apply({"params": params}, tokens, **read).hidden
    else:
        hidden = model.apply({"params": params}, tokens, mask)
    if isinstance(model, Decoder) or model.config.dpr_role is None:
        return pool_states(hidden, mask, model.pooling or MEAN, params, skipped=skipped)
    states = model.apply({"params": params}, hidden[:, 0], method="project")
    return states.astype(jnp.float32)


@functools.partial(jax.jit, static_argnames=("model", "skipped"))
def embed_batch(
    model: Embedder,
    params: PyTree,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    *,
    skipped: int = 0,
) -> Float[Array, "B E"]:
    """Embeddings by `embed` of rows of `lengths` tokens, at least 1; compiled once per shape."""
    mask = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    return embed(model, params, tokens, mask, skipped=skipped)


def plan_widths(
    encoder: Pretrained,
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
    lengths = [len(row) for row in tokenize_texts(encoder, texts, max_length, role="document")]
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
