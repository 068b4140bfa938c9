"""What the generator reads and writes: a question behind each of its passages, and an answer.

An encoder-decoder reads `title / text // question`, as in transformers' retriever; a decoder reads
a prompt, of the chat template where it has one. The question is never cut: a passage that leaves no
room for it loses its end.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float, Int

from rag_jax.data import passages as formats
from rag_jax.data.batches import pad_rows
from rag_jax.models import Pretrained
from rag_jax.models.nn.bart import BartConfig
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError

Passage = tuple[str, str]  # title and text

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Format:
    """How questions, passages and answers become tokens.

    Attributes:
        kind: "source" for an encoder-decoder, "prompt" for a decoder that goes on after plain
            text, "chat" for one that answers a message.
        max_length: tokens that a question and its passage may have together.
        prefix: what an encoder-decoder's input starts with; BART's is empty.
    """

    tokenizer: Tokenizer
    kind: str
    max_length: int
    prefix: str = ""

    def encode_input(self, question: str, passage: Passage | None) -> tuple[list[int], bool]:
        """A question's tokens behind one passage, or behind none.

        Returns:
            The tokens, and whether the passage was cut.

        Raises:
            RagJaxError: the question has no room, even without the passage.
        """
        tokens = self._lay_out(question, passage)
        if len(tokens) <= self.max_length:
            return tokens, False
        title, text = passage or ("", "")
        kept = self.tokenizer.encode(text)
        # Several times, as what is left takes another token or two where a word was cut in half.
        while kept and len(tokens) > self.max_length:
            kept = kept[: max(0, len(kept) + self.max_length - len(tokens))]
            text = self.tokenizer.decode(kept).rstrip("\ufffd")  # half a character
            tokens = self._lay_out(question, (title, text))
        if len(tokens) > self.max_length:
            tokens = self._lay_out(question, None)
        if len(tokens) > self.max_length:
            raise RagJaxError(
                f"max_length={self.max_length}: a question has {len(tokens)} tokens by itself; "
                f"raise it, or leave out {question[:80]!r}"
            )
        return tokens, True

    def encode_answer(self, answer: str) -> list[int]:
        """An answer's tokens and the one that ends it.

        Raises:
            RagJaxError: the answer has none of its own.
        """
        text = answer.strip()
        tokens = self.tokenizer.encode(f" {text}" if self.kind == "prompt" else text)
        if not tokens:
            raise RagJaxError(f"answer {answer!r} has no tokens; leave it out")
        return [*tokens, self.tokenizer.eos_id]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer."""
        return (self.tokenizer.eos_id,)

    def _lay_out(self, question: str, passage: Passage | None) -> list[int]:
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
            return self.tokenizer.encode_chat([{"role": "user", "content": message}])
        return self.tokenizer.encode(f"{before}Question: {question}\nAnswer:")


def make_format(generator: Pretrained, *, max_length: int, chat: bool = False) -> Format:
    """The format that suits a generator.

    Args:
        chat: whether a decoder is asked in its chat template.

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
    """A question as the generator sees it.

    Attributes:
        inputs: tokens of the question behind each of its `K` passages.
        target: tokens of the answer; empty where there is none to learn from.
    """

    inputs: list[list[int]]
    target: list[int] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Tokens of the longest input."""
        return max(map(len, self.inputs))


def make_examples(
    form: Format,
    questions: Sequence[str],
    passages: Sequence[Sequence[Passage | None]],
    answers: Sequence[str] | None = None,
) -> list[Example]:
    """Encodes questions with their passages; logs how many passages were cut.

    Args:
        passages: `K` for each question; None in the place of one for no passage.
        answers: one for each question.

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
        encoded = [form.encode_input(question, passage) for passage in passages[i]]
        cut += sum(was_cut for _, was_cut in encoded)
        target = [] if answers is None else form.encode_answer(answers[i])
        examples.append(Example([tokens for tokens, _ in encoded], target))
    if cut:
        total = sum(map(len, passages))
        _logger.warning("%d of %d passages were cut to %d tokens", cut, total, form.max_length)
    return examples


def pick_passages(
    passages: Sequence[formats.Passage], rows: Int[np.ndarray, "N K"]
) -> list[list[Passage]]:
    """What the generator reads of the passages in some rows."""
    return [[(passages[row].title, passages[row].text) for row in found] for found in rows.tolist()]


def pack_inputs(
    examples: Sequence[Example], *, width: int, batch: int
) -> tuple[Int[np.ndarray, "R L"], Bool[np.ndarray, "R L"]]:
    """Tokens and mask of `R = batch * K` rows, a question's passages next to each other."""
    docs = len(examples[0].inputs)
    rows = [tokens for example in examples for tokens in example.inputs]
    return pad_rows(rows, width, pad_id=0, batch=batch * docs)


def pack_examples(
    examples: Sequence[Example], *, width: int, targets: int, batch: int, scale: float
) -> dict[str, np.ndarray]:
    """Arrays of one microbatch; its shapes depend on the settings and `K` alone.

    Args:
        examples: at most `batch`; the rest is padding without weight.
        width: tokens an input is padded to.
        targets: tokens an answer is padded to.
        scale: weight of a question in the batch's loss.

    Returns:
        `tokens` and `mask` `[B * K, L]`, `targets` and `target_mask` `[B, T]`, `weight` `[B]`.
    """
    tokens, mask = pack_inputs(examples, width=width, batch=batch)
    answers, answer_mask = pad_rows(
        [example.target for example in examples], targets, pad_id=0, batch=batch
    )
    weight = np.where(np.arange(batch) < len(examples), scale, 0).astype(np.float32)
    arrays = {"tokens": tokens, "mask": mask, "targets": answers, "target_mask": answer_mask}
    return arrays | {"weight": weight}


def encode_queries(
    tokenizer: Tokenizer, questions: Sequence[str], *, max_length: int
) -> list[list[int]]:
    """Questions as the query encoder reads them; logs how many are cut, which keeps their start."""
    rows = [tokenizer.encode_with_specials(q, max_length=max_length + 1) for q in questions]
    long = [i for i, row in enumerate(rows) if len(row) > max_length]
    for i in long:
        rows[i] = tokenizer.encode_with_specials(questions[i], max_length=max_length)
    if long:
        _logger.warning(
            "%d of %d questions were cut to %d tokens", len(long), len(rows), max_length
        )
    return rows


def pack_queries(
    queries: Sequence[Sequence[int]],
    embeddings: Float[np.ndarray, "N K E"],
    *,
    width: int,
    batch: int,
) -> dict[str, np.ndarray]:
    """Arrays of one microbatch's retrieval: questions, and the passages found for them.

    Returns:
        `query` and `query_mask` `[B, Q]`, and `passages` `[B, K, E]`.
    """
    # An empty row is one token long: attention over no token at all has no meaning.
    filled = [*queries, *[[0]] * (batch - len(queries))]
    query, mask = pad_rows(filled, width, pad_id=0, batch=batch)
    passages = np.zeros((batch, *embeddings.shape[1:]), np.float32)
    passages[: len(embeddings)] = embeddings
    return {"query": query, "query_mask": mask, "passages": passages}
