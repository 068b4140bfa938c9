"""Training data: the packed sequence, which source helps a question, rows and their arrays.

The sequence (Wu et al. 2025, section 3), every piece encoded on its own so that training and
inference see the same tokens:

    Question: {question} Background knowledge:<EOQ><source> {knowledge}<EOK> Answer: {answer}

with one source token a source, `<Self>` and `<Wiki>` by default, and the tokenizer's end-of-text
behind the answer. The paper prints no exact spacing; this one keeps every special token between
words that carry their own leading space.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from rag_jax.data.batches import pad_rows
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.systems.srrag.config import SourceConfig

TERMS = ("source", "verbalisation", "answer")


@dataclass(frozen=True)
class Format:
    """The pieces of the packed sequence as tokens; `tokenizer` already has the special tokens."""

    tokenizer: Tokenizer
    sources: tuple[SourceConfig, ...]

    @property
    def source_ids(self) -> tuple[int, ...]:
        return tuple(self.tokenizer.token_id(source.token) for source in self.sources)

    @property
    def end_of_knowledge(self) -> int:
        return self.tokenizer.token_id("<EOK>")

    @property
    def stop_ids(self) -> tuple[int, int]:
        return (self.end_of_knowledge, self.tokenizer.eos_id)

    def encode_question(self, question: str) -> list[int]:
        text = f"Question: {question} Background knowledge:"
        return [*self.tokenizer.encode(text), self.tokenizer.token_id("<EOQ>")]

    def encode_knowledge(self, text: str) -> list[int]:
        return self.tokenizer.encode(f" {text}")

    def encode_answer_cue(self) -> list[int]:
        return [self.end_of_knowledge, *self.tokenizer.encode(" Answer:")]

    def encode_answer(self, answer: str) -> list[int]:
        return [*self.tokenizer.encode(f" {answer}"), self.tokenizer.eos_id]


def special_tokens(sources: Sequence[SourceConfig]) -> list[str]:
    """The names of the tokens that the vocabulary needs."""
    return ["<EOQ>", "<EOK>", *(source.token for source in sources)]


def join_passages(passages: Sequence[tuple[str, str]]) -> str:
    """A knowledge block of (title, text) passages: `[1] title text [2] title text`."""
    return " ".join(f"[{i}] {title}: {text}" for i, (title, text) in enumerate(passages, 1))


def choose_source(scores: Float[np.ndarray, "S n"]) -> int:
    """The source that owns most of the better half of all contexts (paper, section 3.2).

    Args:
        scores: log-likelihood of the gold answer under each source's `n` contexts.

    Returns:
        The source's number. A tie, possible with more than two sources, goes to the source with
        the best single context.
    """
    sources, n = scores.shape
    order = np.argsort(-scores, axis=None, kind="stable")
    owners = np.bincount(order[: sources * n // 2] // n, minlength=sources)
    tied = np.flatnonzero(owners == owners.max())
    return int(tied[np.argmax(scores[tied].max(axis=1))])


@dataclass(frozen=True)
class Row:
    """One training sequence.

    Attributes:
        tokens: the whole sequence.
        spans: for each loss term the half-open range of tokens that it is taken over.
    """

    id: str
    tokens: list[int]
    spans: dict[str, tuple[int, int]]


def make_row(
    form: Format, id: str, question: str, source: int, knowledge: str, answer: str | None
) -> Row:
    """Packs one question.

    The verbalisation term covers `<EOK>` too, or the model would never learn to stop writing. It
    is there only where the source is the model itself.

    Args:
        answer: None packs the sequence up to `<EOK>`, for the rejected side of a preference pair.
    """
    tokens = form.encode_question(question)
    spans = {"source": (len(tokens), len(tokens) + 1)}
    tokens.append(form.source_ids[source])
    start = len(tokens)
    tokens += form.encode_knowledge(knowledge)
    if form.sources[source].kind == "verbalise":
        spans["verbalisation"] = (start, len(tokens) + 1)
    if answer is None:
        return Row(id, [*tokens, form.end_of_knowledge], spans)
    tokens += form.encode_answer_cue()
    start = len(tokens)
    tokens += form.encode_answer(answer)
    spans["answer"] = (start, len(tokens))
    return Row(id, tokens, spans)


def pack_rows(
    rows: Sequence[Row], *, width: int, targets: int, batch: int, scale: float, reduction: str
) -> dict[str, np.ndarray]:
    """Arrays of one microbatch; logits are needed at `targets` places a row, not at all of them.

    Args:
        rows: at most `batch`; the rest is padding without weight.
        width: tokens a row is padded to.
        targets: loss positions a row is padded to.
        scale: weight of a row in the batch's loss.
        reduction: "mean" over a term's tokens, or "sum".

    Returns:
        `tokens` `[B, T]`, `mask` `[B, T]`; `at` `[B, P]`, the positions whose next token is
        predicted; `next` `[B, P]`, those tokens; and for each term its weights `[B, P]`.
    """
    tokens, mask = pad_rows([row.tokens for row in rows], width, pad_id=0, batch=batch)
    at = np.zeros((batch, targets), np.int32)
    weights = {term: np.zeros((batch, targets), np.float32) for term in TERMS}
    for r, row in enumerate(rows):
        place = 0
        for term, (start, stop) in row.spans.items():
            size = stop - start
            at[r, place : place + size] = np.arange(start - 1, stop - 1)
            per_token = scale / size if reduction == "mean" else scale
            weights[term][r, place : place + size] = per_token
            place += size
    next_tokens = np.take_along_axis(tokens, at + 1, axis=1)
    return {"tokens": tokens, "mask": mask, "at": at, "next": next_tokens, **weights}


def count_targets(row: Row) -> int:
    """How many tokens of the row are predicted in the loss."""
    return sum(stop - start for start, stop in row.spans.values())
