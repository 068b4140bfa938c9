"""Reranking: what a search found, ordered anew by a model that reads it with the question."""

import functools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.token_rows import TokenRows
from rag_jax.models import Reranker
from rag_jax.models.io.architectures import Encoder
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.score_head import ScoreHead, score_states
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.retrieval.encode import check_sizes, choose_text_widths, pad_texts, run_batches
from rag_jax.retrieval.searcher import Found, Searcher, check_count, check_found
from rag_jax.retrieval.texts import is_pair
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.cuts import report_cut
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import shard_batch
from rag_jax.search_config import YesNo

BATCH_SIZE = 64  # pairs that are scored together
_MAX_LENGTH = 512  # tokens of a pair, as the cross-encoders of sentence-transformers read
_logger = logging.getLogger(__name__)


@checked
def score_pairs(
    reranker: Reranker,
    pairs: Iterable[tuple[str, str]],
    *,
    max_length: int | None = None,
    batch_size: int = BATCH_SIZE,
    widths: Sequence[int] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Float[np.ndarray, "N"]:
    """Scores of (question, passage) pairs: logits, of which the larger is the better.

    Pairs are sorted by length and padded to a few widths, as by `encode_texts`.

    Args:
        max_length: maximum number of tokens of a pair; None for 512, or as many as the model reads
            if that is fewer. Of a longer pair an encoder's longer text is cut at its end. A decoder
            reads the question first: its passage is cut, and its question only where that would
            leave the passage less than half of the room. The number of pairs that were cut is
            logged as a warning.
        batch_size: as for `encode_texts`, as are `widths` and `progress`.

    Raises:
        RagJaxError: a pair is not two strings, a question is blank, `batch_size` or `max_length` is
            out of range, or a score is NaN or infinite.
    """
    base = reranker.base
    max_length = choose_length(base.config.max_length, max_length)
    check_sizes(base, batch_size, max_length)
    rows = TokenRows(tokenize_pairs(reranker, pairs, max_length))
    scores = np.empty(len(rows), np.float32)

    def run(indices: list[int], shape: tuple[int, int]) -> Array:
        arrays = pad_texts([rows[i] for i in indices], *shape)
        model = base.model, reranker.head, base.params
        return score_batch(*model, *shard_batch(arrays), typed=base.tokenizer.has_types)

    widths = widths or choose_text_widths(rows.lengths)
    for indices, values in run_batches(rows.lengths, run, batch_size, widths, progress):
        scores[indices] = values
    is_finite = np.isfinite(scores)
    if not is_finite.all():
        raise RagJaxError(f"pair {int(np.argmin(is_finite))} has a score that is NaN or infinite")
    return scores


def choose_length(reads: int, max_length: int | None) -> int:
    """Number of tokens that a model with this limit reads of a pair; see `score_pairs`."""
    return min(_MAX_LENGTH, reads) if max_length is None else max_length


def count_room(tokenizer: Tokenizer, asked: YesNo, max_length: int) -> int:
    """Number of tokens that a question about a pair leaves for the pair, at least 2.

    Raises:
        RagJaxError: it leaves fewer.
    """
    frame = tokenizer.encode_after(asked.before, asked.between)
    room = max_length - len(frame) - len(tokenizer.encode_after(asked.after, ""))
    if room < 2:
        raise RagJaxError(f"max_length {max_length} has no room for a passage; raise it")
    return room


def tokenize_pairs(
    reranker: Reranker,
    pairs: Iterable[tuple[str, str]],
    max_length: int,
    *,
    count_cut: Callable[[int, int], None] | None = None,
) -> Iterable[list[int]]:
    """Yields the token ids of each pair; see `score_pairs`.

    Args:
        count_cut: called at the end with the number of pairs that were cut, and that of all pairs;
            None to log a warning.
    """
    num_cut, i = 0, -1
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, tuple) and is_pair(pair)):
            raise RagJaxError(f"pair {i} is no (question, passage) pair of strings")
        if not pair[0].strip():
            raise RagJaxError(f"pair {i}: its question is blank")
        row, is_cut = _encode_pair(reranker, *pair, max_length)
        num_cut += is_cut
        yield row
    (count_cut or functools.partial(warn_of_cuts, max_length))(num_cut, i + 1)


def warn_of_cuts(max_length: int, num_cut: int, count: int, where: str = "") -> None:
    """Logs how many of some pairs were cut, if any; `where` says of which."""
    report_cut(_logger, f"pairs{where}", cut=num_cut, count=count, max_length=max_length)


def join_passage(passage: Passage) -> str:
    """What is read of a passage: its title and its text."""
    return " ".join(filter(None, (passage.title, passage.text)))


def _encode_pair(
    reranker: Reranker, question: str, passage: str, max_length: int
) -> tuple[list[int], bool]:
    """The token ids of a pair, and whether the pair was cut."""
    tokenizer, asked = reranker.base.tokenizer, reranker.question
    if asked is not None:
        return _encode_asked(tokenizer, asked, question, passage, max_length)
    if isinstance(reranker.base.model, Decoder):
        start, between, end = tokenizer.pair_frame
        asked, read = tokenizer.encode(question), tokenizer.encode(passage)
        room = max_length - len(start) - len(between) - len(end)
        if room < 2:
            raise RagJaxError(f"max_length {max_length} has no room for a passage; raise it")
        kept = asked[: _keep_question(len(read), room)]
        row = [*start, *kept, *between, *read[: room - len(kept)], *end]
        return row, len(asked) + len(read) > room
    encode = functools.partial(tokenizer.encode_with_specials, question, pair=passage)
    row = encode(max_length=max_length + 1)
    is_cut = len(row) > max_length
    return encode(max_length=max_length) if is_cut else row, is_cut


def _encode_asked(
    tokenizer: Tokenizer, asked: YesNo, question: str, passage: str, max_length: int
) -> tuple[list[int], bool]:
    """The token ids of a question about a pair, and whether the pair was cut."""
    after = tokenizer.encode_after(asked.after, "")
    room = max_length - len(after)

    def read(question: str, passage: str) -> list[int]:
        return tokenizer.encode_after(asked.before, f"{question}{asked.between}{passage}")

    before = read(question, passage)
    if len(before) <= room:
        return [*before, *after], False
    left = count_room(tokenizer, asked, max_length)
    kept = tokenizer.shorten(question, _keep_question(len(tokenizer.encode(passage)), left))
    return [*read(kept, passage)[:room], *after], True


def _keep_question(passage: int, room: int) -> int:
    """Number of a question's tokens that leave a passage half of the room, or what it needs."""
    return room - min(passage, room // 2)


@functools.partial(jax.jit, static_argnames=("model", "head", "typed"))
def score_batch(
    model: Encoder | Decoder,
    head: ScoreHead,
    params: PyTree,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, "B"],
    *,
    typed: bool = True,
) -> Float[Array, "B"]:
    """Scores of rows of `lengths` tokens, at least 1; compiled once per shape.

    Args:
        typed: whether the tokenizer tells the tokens of two texts apart.
    """
    columns = jnp.arange(tokens.shape[1])[None]
    mask = columns < lengths[:, None]
    if isinstance(model, Decoder):
        hidden = model.apply({"params": params}, tokens, mask=mask, method="hidden").hidden
    elif typed and isinstance(model.config, BertConfig) and model.config.reads_types:
        # A passage begins after the first separator, which is a row's last token too.
        separators = jnp.take_along_axis(tokens, lengths[:, None] - 1, axis=1)
        first = jnp.argmax(tokens == separators, axis=1)
        types = (columns > first[:, None]).astype(jnp.int32)
        hidden = model.apply({"params": params}, tokens, mask, types)
    else:
        hidden = model.apply({"params": params}, tokens, mask)
    return score_states(head, params["head"], hidden, mask)


def rerank(
    reranker: Reranker, question: str, passages: Sequence[str], *, max_length: int | None = None
) -> tuple[Float[np.ndarray, "N"], Int[np.ndarray, "N"]]:
    """Scores of a question's passages, largest first, and the passages' positions.

    Equal scores are in the order of the passages.

    Args:
        max_length: as for `score_pairs`.

    Raises:
        RagJaxError: as `score_pairs`.
    """
    return rerank_all(reranker, [question], [passages], max_length=max_length)[0]


def rerank_all(
    reranker: Reranker, questions: Sequence[str], passages: Sequence[Sequence[str]], **options: Any
) -> list[tuple[Float[np.ndarray, "N"], Int[np.ndarray, "N"]]]:
    """As `rerank` for several questions, each with its passages; `options` of `score_pairs`.

    Raises:
        RagJaxError: as `score_pairs`.
    """
    asked = zip(questions, passages, strict=True)
    pairs = [(question, text) for question, own in asked for text in own]
    scores = score_pairs(reranker, pairs, **options) if pairs else np.zeros(0, np.float32)
    parts = np.split(scores, np.cumsum(list(map(len, passages)))[:-1]) if passages else []
    orders = [np.argsort(-own, kind="stable").astype(np.int32) for own in parts]
    return [(own[order], order) for own, order in zip(parts, orders, strict=True)]


def rerank_rows(
    reranker: Reranker,
    questions: Sequence[str],
    rows: Sequence[Sequence[int]],
    passages: Sequence[Passage],
    **options: Any,
) -> list[tuple[Float[np.ndarray, "N"], Int[np.ndarray, "N"]]]:
    """As `rerank_all`, of passages by their rows, each of which is read from its corpus once.

    Raises:
        RagJaxError: as `score_pairs`.
    """
    wanted = sorted({row for own in rows for row in own})
    texts = {row: join_passage(passages[row]) for row in wanted}
    return rerank_all(reranker, questions, [[texts[row] for row in own] for own in rows], **options)


@dataclass(frozen=True, eq=False)
class Reranked:
    """A search whose first passages are those of another searcher, ordered anew.

    Attributes:
        first: the searcher whose best passages are read.
        passages: of its corpus, by their rows.
        depth: number of passages that are read for a question; others are not found.
        max_length: as for `score_pairs`.
    """

    reranker: Reranker
    first: Searcher
    passages: Sequence[Passage]
    depth: int = 100
    max_length: int | None = None

    def __post_init__(self) -> None:
        """Raises a RagJaxError if the two corpora differ in size, or nothing is read."""
        if self.first.size != len(self.passages):
            raise RagJaxError(
                f"first is over {self.first.size} passages, not the {len(self.passages)} given: "
                "take those of one corpus"
            )
        if self.depth < 1:
            raise RagJaxError(f"depth is {self.depth}: it must be at least 1")

    @property
    def size(self) -> int:
        """Number of passages of the corpus."""
        return self.first.size

    def search(self, questions: Sequence[str], k: int) -> Found:
        """The at most `k` best of the `depth` passages that `first` finds, best first.

        Raises:
            RagJaxError: `k` is not from 1 to `size`, the searcher found what is not in the corpus,
                or as `score_pairs` or the searcher's own `search`.
        """
        check_count(k, self.size)
        if not len(questions):
            return [], []
        found = self.first.search(questions, min(self.depth, self.size))
        check_found(found, len(questions), self.size, type(self.first).__name__)
        rows = [np.asarray(own, np.int32) for own in found[1]]
        read = questions, [own.tolist() for own in rows], self.passages
        ranked = rerank_rows(self.reranker, *read, max_length=self.max_length)
        places = [own[order[:k]] for own, (_, order) in zip(rows, ranked, strict=True)]
        return [scores[:k] for scores, _ in ranked], places
