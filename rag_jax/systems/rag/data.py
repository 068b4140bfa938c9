"""What the generator reads and writes: a question after each of its passages, and an answer.

An encoder-decoder reads `title / text // question`, as in transformers' retriever; a decoder reads
a prompt, in its chat template if it has one. The question is never cut: a passage that leaves no
room for the question is cut at its end.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from rag_jax.data.batches import pad_rows
from rag_jax.data.packing import Sequences, Size
from rag_jax.data.passages import Passage
from rag_jax.models import Pretrained
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.cuts import report_cut
from rag_jax.runtime.errors import RagJaxError

PassageText = tuple[str, str]  # title and text

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """How questions, passages and answers become tokens.

    Attributes:
        kind: "source" for an encoder-decoder, "prompt" for a decoder that continues plain text,
            "chat" for a decoder that answers a message.
        max_length: largest number of tokens of a question and its passage together.
        prefix: start of an encoder-decoder's input; BART's is empty.
    """

    tokenizer: Tokenizer
    kind: str
    max_length: int
    prefix: str = ""

    def encode_input(self, question: str, passage: PassageText | None) -> tuple[list[int], bool]:
        """The tokens of a question after one passage, or without a passage.

        Returns:
            The tokens, and whether the passage was cut.

        Raises:
            RagJaxError: the question has no room, even without the passage.
        """
        tokens = self._encode(question, passage)
        if len(tokens) <= self.max_length:
            return tokens, False
        title, text = passage or ("", "")
        kept = self.tokenizer.encode(text)
        # Repeatedly, because a word that is cut in half may take one or two tokens more.
        while kept and len(tokens) > self.max_length:
            kept = kept[: max(0, len(kept) + self.max_length - len(tokens))]
            text = self.tokenizer.decode(kept).rstrip("\ufffd")  # half a character
            tokens = self._encode(question, (title, text))
        if len(tokens) > self.max_length:
            tokens = self._encode(question, None)
        if len(tokens) > self.max_length:
            raise RagJaxError(
                f"max_length={self.max_length}: a question has {len(tokens)} tokens by itself; "
                f"raise it, or leave out {question[:80]!r}"
            )
        return tokens, True

    def count_tokens(self, question: str) -> int:
        """Number of tokens of a question without passages."""
        return len(self._encode(question, None))

    def encode_answer(self, answer: str) -> list[int]:
        """An answer's tokens and the token that ends it.

        Raises:
            RagJaxError: the answer has no token.
        """
        text = answer.strip()
        tokens = self.tokenizer.encode(f" {text}" if self.kind == "prompt" else text)
        if not tokens:
            raise RagJaxError(f"answer {answer!r} has no tokens; leave it out")
        return [*tokens, self.tokenizer.eos_id]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self.tokenizer.stop_ids

    def _encode(self, question: str, passage: PassageText | None) -> list[int]:
        question = " ".join(question.split())
        title, text = (" ".join(part.split()) for part in passage or ("", ""))
        if self.kind == "source":
            title = title.removeprefix('"').removesuffix('"')
            before = f"{title} / {text} // " if passage else ""
            joined = f"{self.prefix}{before}{question}".replace("  ", " ")
            return [self.tokenizer.bos_id, *self.tokenizer.encode(joined), self.tokenizer.eos_id]
        before = f"{title}: {text}\n\n" if passage else ""
        if self.kind == "chat":
            message = f"{before}Answer in a few words: {question}"
            turns = [{"role": "user", "content": message}]
            return self.tokenizer.encode_chat(turns, thinking=False)
        return self.tokenizer.encode_prompt(f"{before}Question: {question}\nAnswer:")


def make_format(generator: Pretrained, *, max_length: int, chat: bool = False) -> Format:
    """The format that suits a generator.

    Args:
        chat: whether a decoder's prompt uses its chat template.

    Raises:
        RagJaxError: `max_length` is more than the generator takes, or its tokenizer lacks a token
            that the format needs.
    """
    limit = generator.config.max_length
    if not 1 <= max_length <= limit:
        raise RagJaxError(f"max_length={max_length}: must be from 1 to the generator's {limit}")
    source = isinstance(generator.config, BartConfig)
    for name in ("eos_id", "bos_id")[: 1 + source]:
        if getattr(generator.tokenizer, name) is None:
            raise RagJaxError(f"the generator's tokenizer has no {name}: its answers need one")
    kind = "source" if source else "chat" if chat else "prompt"
    return Format(generator.tokenizer, kind, max_length)


@dataclass(frozen=True)
class Example:
    """A question as the generator reads it.

    Attributes:
        inputs: for each of the `K` passages the tokens of the passage and the question.
        target: tokens of the answer; empty at test time.
    """

    inputs: Sequence[Sequence[int]]
    target: Sequence[int] = ()

    @property
    def width(self) -> int:
        """Number of tokens of the longest input."""
        return max(map(len, self.inputs))

    def measure(self, start_ids: Sequence[int]) -> Size:
        """The size of the question's rows in a sequence; `start_ids` as for `pack_examples`."""
        docs, answer = len(self.inputs), len(start_ids) + len(self.target) - 1
        read = sum(map(len, self.inputs))
        return Size(read, docs * answer) if start_ids else Size(read + docs * answer, 0)


def make_examples(
    format: Format,
    questions: Sequence[str],
    passages: Sequence[Sequence[PassageText | None]],
    answers: Sequence[str] | None = None,
) -> list[Example]:
    """Encodes questions with their passages; logs how many passages were cut.

    Args:
        passages: `K` for each question; None for no passage.

    Raises:
        RagJaxError: as `encode_input` and `encode_answer`, or a question has no passage, or another
            number of them than the first.
    """
    examples, cut = [], 0
    for i, question in enumerate(questions):
        if not passages[i] or len(passages[i]) != len(passages[0]):
            raise RagJaxError(
                f"passages: question {i} has {len(passages[i])}, the first {len(passages[0])}; "
                "give every question the same number, at least 1"
            )
        encoded = [format.encode_input(question, passage) for passage in passages[i]]
        cut += sum(was_cut for _, was_cut in encoded)
        target = [] if answers is None else format.encode_answer(answers[i])
        examples.append(Example([tokens for tokens, _ in encoded], target))
    total = sum(map(len, passages))
    report_cut(_logger, "passages", cut=cut, count=total, max_length=format.max_length)
    return examples


def pick_passages(
    passages: Sequence[Passage], rows: Int[np.ndarray, "N K"]
) -> list[list[PassageText | None]]:
    """Titles and texts of the passages in some rows of a corpus; None for row -1, no passage."""

    def pick(row: int) -> PassageText | None:
        return None if row < 0 else (passages[row].title, passages[row].text)

    return [[pick(row) for row in found] for found in rows.tolist()]


def pack_inputs(
    examples: Sequence[Example], *, width: int, batch: int
) -> tuple[Int[np.ndarray, "R L"], Bool[np.ndarray, "R L"]]:
    """Tokens and mask of `R = batch * K` rows, a question's passages next to each other."""
    docs = len(examples[0].inputs)
    rows = [tokens for example in examples for tokens in example.inputs]
    return pad_rows(rows, width, pad_id=0, batch=batch * docs)


def pack_examples(
    sequences: Sequence[Sequence[Example]],
    *,
    start_ids: Sequence[int],
    width: int,
    written: int,
    items: int,
    answer: int,
    batch: int,
    scale: float,
) -> dict[str, np.ndarray]:
    """The generator's arrays of one microbatch.

    All of a question's rows are in one sequence, the question after each passage. A decoder's row
    goes on with the answer. An encoder-decoder writes the answers in a sequence of their own, each
    by reading its own row of the other.

    Args:
        sequences: the questions of each sequence S; at most `batch` sequences.
        start_ids: tokens that an encoder-decoder's answer starts with; none for a decoder.
        width: number of tokens W of a sequence.
        written: number of tokens P of a sequence of an encoder-decoder's answers.
        items: number of questions Q that a sequence is padded to. These have weight 0.
        answer: number of tokens T that an answer is padded to.
        scale: weight of a question in the batch's loss.

    Returns:
        `tokens`, `segments` and `positions` `[S, W]`, as of `rows.pack_rows`; of an
        encoder-decoder's answers `written`, `written_segments` and `written_positions` `[S, P]`;
        `at` `[S, Q * K * T]`, the positions whose next tokens are the targets; `targets` and
        `target_mask` `[S * Q, T]`; `weight` `[S * Q]`.
    """
    docs, start = len(sequences[0][0].inputs), len(start_ids)
    read = Sequences(batch, width)
    answers = Sequences(batch, written) if start_ids else read
    at = np.zeros((batch, items, docs, answer), np.int32)
    for s, examples in enumerate(sequences):
        for q, example in enumerate(examples):
            begun = example.target[:-1]
            for k, tokens in enumerate(example.inputs):
                first = read.add(s, tokens if start_ids else [*tokens, *begun]) + len(tokens) - 1
                if start_ids:
                    first = answers.add(s, [*start_ids, *begun]) + start - 1
                at[s, q, k, : len(example.target)] = first + np.arange(len(example.target))
    targets = [e.target for examples in sequences for e in _fill(examples, items)]
    targets, target_mask = pad_rows(targets, answer, pad_id=0, batch=batch * items)
    names = ("tokens", "segments", "positions")
    arrays = dict(zip(names, read.list_arrays(), strict=True))
    if start_ids:
        names = ("written", "written_segments", "written_positions")
        arrays |= zip(names, answers.list_arrays(), strict=True)
    weight = np.where(target_mask.any(axis=1), scale, 0).astype(np.float32)
    arrays |= {"at": at.reshape(batch, -1), "targets": targets, "target_mask": target_mask}
    return arrays | {"weight": weight}


def _fill(examples: Sequence[Example], items: int) -> list[Example]:
    return [*examples, *[Example([])] * (items - len(examples))]


def list_slots(sequences: Sequence[Sequence[int]], *, batch: int, items: int) -> list[int]:
    """The question in each of the `batch * items` places of `pack_examples`; -1 for none."""
    slots = np.full((batch, items), -1)
    for s, questions in enumerate(sequences):
        slots[s, : len(questions)] = questions
    return slots.reshape(-1).tolist()


def pack_scores(
    doc_scores: Float[np.ndarray, "N K"], slots: Sequence[int]
) -> dict[str, np.ndarray]:
    """One microbatch's logits of `p(z|x)`, `doc_scores` `[B, K]`, of passages that are fixed.

    Args:
        doc_scores: of all questions of the step.
        slots: the questions of the microbatch, from `list_slots`.
    """
    return {"doc_scores": _pick(doc_scores, slots)}


def pack_queries(
    queries: Sequence[Sequence[int]],
    embeddings: Float[np.ndarray, "N K E"],
    slots: Sequence[int],
    *,
    width: int,
) -> dict[str, np.ndarray]:
    """The retriever's arrays of one microbatch: questions, and embeddings of their passages.

    Args:
        queries: of all questions of the step, as are the embeddings.
        slots: the questions of the microbatch, from `list_slots`.
        width: number of tokens Q that a question is padded to.

    Returns:
        `query` and `query_mask` `[B, Q]`, and `passages` `[B, K, E]`.
    """
    # A padding row has one token: attention needs at least one.
    rows = [queries[i] if i >= 0 else [0] for i in slots]
    query, mask = pad_rows(rows, width, pad_id=0)
    return {"query": query, "query_mask": mask, "passages": _pick(embeddings, slots)}


def _pick(
    values: Float[np.ndarray, "N *rest"], slots: Sequence[int]
) -> Float[np.ndarray, "B *rest"]:
    """The values of each place's question; zeros for none."""
    picked = np.zeros((len(slots), *values.shape[1:]), np.float32)
    filled = np.asarray(slots) >= 0
    picked[filled] = values[np.asarray(slots)[filled]]
    return picked
