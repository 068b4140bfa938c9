"""Prompts, the packed sequence (Wu et al. 2025, section 3), and training examples.

Every piece of the packed sequence is encoded separately, so that training and inference have the
same tokens:

    Question: {question} Background knowledge:<EOQ><source> {knowledge}<EOK> Answer: {answer}

There is one source token for each source, by default `<Self>` and `<Wiki>`, and the tokenizer's
end-of-text token after the answer. The paper prints no exact spacing; here every special token is
between words that carry their own leading space.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rag_jax.config import TrainConfig
from rag_jax.data.batches import BatchPlan
from rag_jax.data.packing import Microbatch, Packing
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import stream_jsonl
from rag_jax.systems.srrag.config import SourceConfig
from rag_jax.training.rows import Row, pack_rows, plan_packing

TERMS = ("source", "verbalisation", "answer")

_MAX_TITLE = 64  # tokens of a title that are read in any case


@dataclass(frozen=True)
class Format:
    """The pieces of the packed sequence as tokens.

    Attributes:
        sources: the knowledge sources, in the order of their numbers.
        max_text: number of tokens that are read of a passage's text.
    """

    tokenizer: Tokenizer
    sources: tuple[SourceConfig, ...]
    max_text: int

    @property
    def source_ids(self) -> tuple[int, ...]:
        """The source tokens."""
        return tuple(self.tokenizer.token_id(source.token) for source in self.sources)

    @property
    def internal(self) -> int:
        """The number of the internal source, the model itself."""
        return [source.kind for source in self.sources].index("verbalise")

    @property
    def end_of_knowledge(self) -> int:
        """The token `<EOK>`."""
        return self.tokenizer.token_id("<EOK>")

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end knowledge and answers."""
        return (self.end_of_knowledge, *self.tokenizer.stop_ids)

    def encode_question(self, question: str) -> list[int]:
        """A question up to `<EOQ>`, where the source is chosen."""
        text = f"Question: {question} Background knowledge:"
        return [*self.tokenizer.encode_prompt(text), self.tokenizer.token_id("<EOQ>")]

    def shorten(self, text: str) -> str:
        """A passage's text, cut to `max_text` tokens."""
        return self.tokenizer.shorten(text, self.max_text)

    def cut(self, passage: Passage) -> tuple[str, str]:
        """The part of a passage's title and text that is read."""
        return self.shorten_title(passage.title), self.shorten(passage.text)

    def shorten_title(self, title: str) -> str:
        """A passage's title, cut to 64 tokens, or to `max_text` if that is more.

        All rows have room for the longest passage, so one endless title would cost the memory of
        all. Short titles are whole, however few tokens of a text are read.
        """
        limit = max(_MAX_TITLE, self.max_text)
        short = len(title.encode(errors="replace")) <= limit  # most are, and need no tokens
        return title if short else self.tokenizer.shorten(title, limit)

    def encode_knowledge(self, text: str) -> list[int]:
        """A knowledge block, without `<EOK>`."""
        return self.tokenizer.encode(f" {text}")

    def encode_answer_cue(self) -> list[int]:
        """`<EOK> Answer:`."""
        return [self.end_of_knowledge, *self.tokenizer.encode(" Answer:")]

    def encode_answer(self, answer: str) -> list[int]:
        """An answer and the token that ends it."""
        return [*self.tokenizer.encode(f" {answer}"), self.tokenizer.eos_id]


def special_tokens(sources: Sequence[SourceConfig]) -> list[str]:
    """The special tokens, by name, that are added to the vocabulary."""
    return ["<EOQ>", "<EOK>", *(source.token for source in sources)]


def share_by_source(
    chosen: Int[np.ndarray, "N"], sources: Sequence[SourceConfig]
) -> dict[str, float]:
    """The share of the questions for which each source was chosen, by the source's name."""
    shares = np.bincount(chosen, minlength=len(sources)) / len(chosen)
    return dict(zip((source.name for source in sources), shares.tolist(), strict=True))


def render_passage(title: str, text: str) -> str:
    """A passage as text, after its title if it has one."""
    return f"{title}: {text}" if title else text


def join_passages(passages: Sequence[tuple[str, str]]) -> str:
    """A knowledge block of (title, text) passages: `[1] title: text [2] title: text`."""
    texts = (render_passage(passage[0], passage[1]) for passage in passages)
    return " ".join(f"[{i}] {text}" for i, text in enumerate(texts, 1))


def make_row(
    format: Format, id: str, question: str, source: int, knowledge: str | None, answer: str | None
) -> Row:
    """Packs one question.

    The row has the term "verbalisation" only if the source is the model itself. The term covers
    `<EOK>` too, so that the model learns to stop writing.

    Args:
        knowledge: None for a sequence without knowledge, in which the answer follows at once.
        answer: None packs the sequence up to `<EOK>`, for the rejected side of a preference pair.
    """
    tokens = format.encode_question(question)
    spans = {"source": (len(tokens), len(tokens) + 1)}
    tokens.append(format.source_ids[source])
    start = len(tokens)
    if knowledge is not None:
        tokens += format.encode_knowledge(knowledge)
    if format.sources[source].kind == "verbalise" and knowledge is not None:
        spans["verbalisation"] = (start, len(tokens) + 1)
    if answer is None:
        return Row(id, [*tokens, format.end_of_knowledge], spans)
    tokens += format.encode_answer_cue()
    start = len(tokens)
    tokens += format.encode_answer(answer)
    spans["answer"] = (start, len(tokens))
    return Row(id, tokens, spans)


# Prompts of the untrained model.

# The paper's request (appendix B.1): a Wikipedia-style background document, without introduction.
# Demonstrations are earlier turns of the chat: a small model copies their style better that way.
_INSTRUCTION = (
    "You write a short Wikipedia-style background document that helps to answer the question. "
    "Begin with the document itself and leave out links."
)
_ANSWER_CUE = "The answer is"


def encode_document_prompt(
    tokenizer: Tokenizer, question: str, demonstrations: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """The untrained model's prompt for a background document, after demonstrations."""
    turns = [{"role": "system", "content": _INSTRUCTION}]
    for asked, document in demonstrations:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": document}]
    asked = [*turns, {"role": "user", "content": question}]
    return tokenizer.encode_chat(asked, thinking=False)


def encode_answer_prompt(
    tokenizer: Tokenizer, question: str, knowledge: str = "", choices: Iterable[str] = ()
) -> list[int]:
    """The untrained model's prompt for an answer, with or without knowledge, up to its cue.

    Args:
        choices: the labels to choose from; none for a free answer.
    """
    labels = list(choices)
    task = "Answer the question with a few words."
    if labels:  # Self-RAG's instructions for ARC and for PubHealth, in one sentence for both
        task = f"Choose the best answer: {', '.join(labels[:-1])} or {labels[-1]}."
    before = f"Background knowledge: {knowledge}\n\n" if knowledge else ""
    text = f"{task}\n\n{before}Question: {question}"
    prompt = tokenizer.encode_chat([{"role": "user", "content": text}], thinking=False)
    return [*prompt, *tokenizer.encode(_ANSWER_CUE)]


def render_context(context: str | Sequence[str]) -> str:
    """A context as text: a verbalisation unchanged, a passage as `title: text`."""
    return context if isinstance(context, str) else render_passage(*context)


# Training examples.


@dataclass(frozen=True)
class Example:
    """A training question's sequences.

    Attributes:
        row: the question with the source's best context.
        rejected: the question with the worst verbalisation; None unless the source is the model
            itself and its best and worst verbalisations differ.
    """

    source: int
    row: Row
    rejected: Row | None

    @property
    def rows(self) -> list[Row]:
        """The example's row, or its pair of rows."""
        return [self.row] if self.rejected is None else [self.row, self.rejected]


def make_examples(
    format: Format,
    questions: Sequence[Question],
    contexts: Path,
    labels: Sequence[dict[str, Any]],
    *,
    extra_mean: float,
    limit: int,
    seed: int,
    closed_book: bool = False,
    writes: bool = True,
) -> list[Example]:
    """Packs every training question with the contexts that its label asks for.

    A searched row has `max(p - 1, 0)` further passages, `p` Poisson. The best passage is in random
    order among them: its place then says nothing, as at test time.

    Args:
        contexts: `contexts.jsonl`, each question's contexts by source.
        extra_mean: mean of `p`.
        closed_book: whether to use the labels without verbalising.
        writes: whether the model writes knowledge before the answer if it is the source itself.

    Raises:
        RagJaxError: a row is longer than the model's context.
    """
    rng = np.random.default_rng((seed, 1))
    examples = []
    for question, record, label in zip(questions, stream_jsonl(contexts), labels, strict=True):
        source = label["closed_book_source" if closed_book else "source"]
        scores = np.asarray(label["scores"][source])
        texts = record["contexts"][source]
        best, worst = int(scores.argmax()), int(scores.argmin())
        pack = partial(make_row, format, question.id, question.question, source)
        answer, rejected = question.answers[0], None
        if source == format.internal and not writes:
            row = pack(None, answer)
        elif source == format.internal:
            row = pack(texts[best], answer)
            if texts[best] != texts[worst]:
                rejected = pack(texts[worst], None)
        else:
            others = [i for i in rng.permutation(len(texts)) if i != best]
            extra = max(int(rng.poisson(extra_mean)) - 1, 0)
            chosen = rng.permutation([best, *others[:extra]])
            row = pack(join_passages([texts[i] for i in chosen]), answer)
        if len(row.tokens) > limit:
            raise RagJaxError(
                f"question {row.id}: {len(row.tokens)} tokens with its contexts, over the model's "
                f"context of {limit}; lower config.model.max_text"
            )
        examples.append(Example(source, row, rejected))
    return examples


def plan_examples(
    examples: Sequence[Example], settings: TrainConfig, config: DecoderConfig, *, seed: int
) -> tuple[BatchPlan, Packing]:
    """Which examples make a step's batch, and which of those share a sequence.

    Both sides of an example with a rejected side are in one sequence.
    """
    sources = [example.source for example in examples]
    plan = BatchPlan(sources, batch_size=settings.batch_size, seed=seed)
    kinds = ["pairs" if example.rejected else "rows" for example in examples]
    return plan, plan_packing([e.rows for e in examples], plan, settings, config, kinds=kinds)


def pack_examples(
    examples: Sequence[Example],
    packing: Packing,
    micro: Microbatch,
    *,
    scale: float,
    reduction: str,
) -> dict[str, np.ndarray]:
    """The arrays of a microbatch; of pairs, every second row of a sequence is a rejected side.

    Args:
        scale: weight of an example in the batch's loss.
        reduction: "mean" over a term's tokens, or "sum".
    """
    targets = packing.shapes[micro.kind].targets
    sequences = [[row for i in s for row in examples[i].rows] for s in micro.sequences]
    sizes = {"width": micro.width, "targets": targets, "batch": micro.rows}
    return pack_rows(sequences, terms=TERMS, **sizes, scale=scale, reduction=reduction)
