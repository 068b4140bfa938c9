"""Prompts, answers and training examples as tokens, and how examples are batched.

In plain text a prompt is

    Passage 1: {title}: {text}
    Passage 2: {title}: {text}

    Question: {question}
    The answer is

without the passages where the knowledge is to come from the parameters alone. In a chat template
the prompt is a message after a system message, and the answer also begins after "The answer is".

With reasoning, worked examples come before the passages, an instruction to reason comes before the
question, and the answer begins after "Answer:" and says in its last sentence what the answer is.

The released code ends an answer with a full stop and cuts predictions at the first full stop or
comma, which cuts "U.S." and "15,140" apart. Here the end-of-text token ends an answer, and what is
read of a prediction is its first clause (`phrases.cut_clause`).
"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from types import MappingProxyType
from typing import TypeVar

import numpy as np
from jaxtyping import Int

from rag_jax.data.batches import choose_bucket, choose_widths, round_up
from rag_jax.data.passages import Passage
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.systems.asking import Pair
from rag_jax.systems.prag.config import AugmentConfig, PRAGConfig
from rag_jax.systems.prag.demonstrations import DEMONSTRATIONS
from rag_jax.systems.prag.phrases import cut_clause

T = TypeVar("T")

_INSTRUCTION = (
    "Answer the question with a few words. Use the passages, if there are any, and what you know."
)
_CUE = "The answer is"
_REASON = (
    "Answer the question step by step. Use the passages, if there are any, and what you know. End "
    "with 'So the answer is ...'."
)
_REASON_CUE = "Answer:"
_STATED = re.compile(r"\bthe answer is\b:?", re.IGNORECASE)


@dataclass(frozen=True)
class Augmented:
    """The augmentation of a document: rewrites, and questions with their answers."""

    rewrites: tuple[str, ...]
    pairs: tuple[Pair, ...]


@dataclass(frozen=True)
class Format:
    """How questions, passages and answers become tokens.

    Attributes:
        max_text: number of tokens that are read of a passage's text.
        reasoning: whether answers are reasoned before they are said.
        demonstrations: number of worked examples before a question.
    """

    tokenizer: Tokenizer
    chat: bool
    max_text: int
    reasoning: bool = False
    demonstrations: int = 0

    def encode_prompt(
        self,
        question: str,
        passages: Sequence[Passage] = (),
        *,
        augmented: Mapping[str, Augmented] = MappingProxyType({}),
    ) -> list[int]:
        """A question, after its passages if there are any, up to where the answer starts.

        Args:
            augmented: augmentations by passage id, each read after its passage.
        """
        texts = [*self._start_prompt(passages, augmented), f"Question: {_join_words(question)}"]
        cue = _REASON_CUE if self.reasoning else _CUE
        if not self.chat:
            return self.tokenizer.encode_prompt("\n\n".join(texts) + f"\n{cue}")
        asked = self.tokenizer.encode_chat(self._make_turns(texts), thinking=False)
        return asked + self.tokenizer.encode(cue)

    def encode_passages(self, passages: Sequence[Passage]) -> list[int]:
        """The prompt of `encode_prompt` up to the end of its passages, without a question."""
        texts = self._start_prompt(passages, {})
        if not self.chat:
            return self.tokenizer.encode_prompt("\n\n".join(texts))
        options = {"add_generation_prompt": False, "thinking": False}
        return self.tokenizer.encode_chat(self._make_turns(texts), **options)

    def _make_turns(self, texts: Sequence[str]) -> list[dict[str, str]]:
        instruction = _REASON if self.reasoning else _INSTRUCTION
        user = {"role": "user", "content": "\n\n".join(texts)}
        return [{"role": "system", "content": instruction}, user]

    def _start_prompt(
        self, passages: Sequence[Passage], augmented: Mapping[str, Augmented]
    ) -> list[str]:
        """The parts of a prompt before the question: demonstrations and passages."""
        shown = DEMONSTRATIONS[: self.demonstrations]
        worked = [f"Question: {question}\n{_REASON_CUE} {answer}" for question, answer in shown]
        return worked + self._list_passages(passages, augmented)

    def _list_passages(
        self, passages: Sequence[Passage], augmented: Mapping[str, Augmented]
    ) -> list[str]:
        """The passages, one a line, as the part of a prompt; nothing without passages."""
        lines = []
        for i, passage in enumerate(passages, 1):
            title = [_join_words(passage.title)] if passage.title.strip() else []
            texts = augmented.get(passage.id, Augmented((), ()))
            for version in (passage.text, *texts.rewrites):
                lines.append(f"Passage {i}: {': '.join([*title, self.cut_text(version)])}")
            for pair in texts.pairs:
                question, answer = _join_words(pair.question), self.choose_answer(pair)
                lines.append(f"Question: {question}\nAnswer: {answer}")
        return ["\n".join(lines)] if lines else []

    def choose_answer(self, pair: Pair) -> str:
        """The answer that is trained on: the full one with reasoning, else the short one."""
        return _join_words(pair.full_answer if self.reasoning else pair.answer)

    def state_answer(self, answer: str) -> str:
        """A gold answer as the model is to write it where nobody has written a reasoning."""
        return f"So the answer is {_join_words(answer)}." if self.reasoning else answer

    def encode_answer(self, answer: str) -> list[int]:
        """An answer and the token that ends it."""
        return [*self.tokenizer.encode(f" {_join_words(answer)}"), self.tokenizer.eos_id]

    def cut_text(self, text: str) -> str:
        """A text in one line, cut to the `max_text` tokens that are read."""
        return self.tokenizer.shorten(_join_words(text), self.max_text)

    def is_cut(self, text: str) -> bool:
        """Whether a text has more than `max_text` tokens."""
        return len(self.tokenizer.encode(_join_words(text))) > self.max_text

    def decode_answer(self, tokens: Sequence[int]) -> str:
        """The answer that a model wrote: the first clause of its text.

        With reasoning the first clause after the first "the answer is", if the text says so.
        """
        text = self.tokenizer.decode(tokens).strip()
        if self.reasoning:
            text = _STATED.split(text, maxsplit=1)[-1].strip()
        return cut_clause(text)

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """The tokens that end an answer."""
        return self.tokenizer.stop_ids


@dataclass(frozen=True)
class Variant:
    """A way to encode documents: which augmentations are trained on, and from which adapter.

    Attributes:
        start: "random" or "warm".
    """

    start: str
    rewrites: bool = True
    questions: bool = True

    def reduce(self, augmented: Augmented) -> Augmented:
        """The part of an augmentation that is trained on."""
        rewrites = augmented.rewrites if self.rewrites else ()
        return Augmented(rewrites, augmented.pairs if self.questions else ())


def list_variants(config: PRAGConfig) -> dict[str, Variant]:
    """The ways to encode documents, by stage: the method's own and its ablations."""
    start = config.encode.start
    variants = {"encode": Variant(start)}
    if config.ablations:
        other = {"random": "warm", "warm": "random"}[start]
        variants["without_rewrites"] = Variant(start, rewrites=False)
        variants["without_questions"] = Variant(start, questions=False)
        variants[f"{other}_start"] = Variant(other)
    return variants


def make_examples(
    format: Format, passage: Passage, augmented: Augmented, *, questions: int
) -> list[list[int]]:
    """A document's training examples as tokens, in the order in which they are trained on.

    The layout of the released code (the paper's triples, eq. 4, are all combinations): the first
    half of the questions, rounded up, each after the passage and after every rewrite; the other
    questions without a passage. One rewrite and three questions make five examples. The loss is
    taken over all tokens of an example. Without questions, the examples are the prompts of the
    passage and of its rewrites.

    Args:
        questions: number of questions of every document; a document with fewer repeats its own.
    """
    versions = [passage, *(Passage(passage.id, passage.title, text) for text in augmented.rewrites)]
    if not augmented.pairs:
        return [format.encode_passages([version]) for version in versions]
    examples = []
    pairs = itertools.islice(itertools.cycle(augmented.pairs), questions)
    for i, pair in enumerate(pairs):
        given = [[version] for version in versions] if i < (questions + 1) // 2 else [[]]
        prompts = [format.encode_prompt(pair.question, passages) for passages in given]
        answer = format.encode_answer(format.choose_answer(pair))
        examples += [prompt + answer for prompt in prompts]
    return examples


def count_examples(augment: AugmentConfig) -> int:
    """Number of examples that `make_examples` makes of a whole augmentation: 5 by default."""
    if not augment.questions:
        return 1 + augment.rewrites
    return (augment.questions + 1) // 2 * augment.rewrites + augment.questions


def repeat_examples(examples: Sequence[T], count: int) -> list[T]:
    """Examples from first to last, again and again until there are `count`.

    An ablation has fewer examples; so it takes as many optimiser steps as the whole recipe.
    """
    return list(itertools.islice(itertools.cycle(examples), count))


# Groups of documents that are trained together.

MOST_PROGRAMS = 6
# Of all computed tokens; the second one where compiling costs more than all the training.
MAX_PADDING, MOST_PADDING = 0.15, 0.2


@dataclass(frozen=True)
class Groups:
    """Documents in groups of one size, whose adapters are trained together.

    Attributes:
        size: number of documents of a group; the last group may have fewer, and is filled up.
        order: all documents, group after group.
        widths: for each group the number of tokens that each example is padded to.
        padding: share of padding among the computed tokens.
    """

    size: int
    order: list[int]
    widths: list[list[int]]
    padding: float

    @property
    def programs(self) -> int:
        """Number of programs, one for each width."""
        return len({width for widths in self.widths for width in widths})


def group_documents(
    lengths: Int[np.ndarray, "D E"], *, together: int, program_tokens: int, multiple: int = 1
) -> Groups:
    """Groups documents of similar length, at few widths, so that little is padding.

    One program is compiled for each width, and there are at most `MOST_PROGRAMS`. If the cheapest
    widths leave more than `MAX_PADDING`, more widths are tried and then smaller groups. Where the
    programs cost more than all the training, `MOST_PADDING` will do.

    Args:
        lengths: number of tokens of each of a document's examples.
        together: largest number of documents of a group.
        program_tokens: as for `choose_widths`, for all documents of a group together.
        multiple: the size of a group is a multiple of this, so that a mesh divides it.
    """
    order = np.argsort(lengths.sum(axis=1), kind="stable")
    best, size = None, min(together, len(lengths))
    while True:
        # Groups of nearly one size: a last group of a single document would be mostly padding.
        even = round_up(-(-len(order) // -(-len(order) // size)), multiple)
        made, is_full = _choose_at(lengths, order, size=even, program_tokens=program_tokens)
        if best is None or made.padding < best.padding:
            best = made
        if is_full or size <= multiple:
            return best
        size //= 2


def _choose_at(
    lengths: Int[np.ndarray, "D E"], order: Int[np.ndarray, "D"], *, size: int, program_tokens: int
) -> tuple[Groups, bool]:
    """The groups of one size with as many widths as it takes, and whether padding is little."""
    choose, tokens = partial(_choose, lengths, order, size=size), program_tokens
    made = choose(program_tokens=tokens // size)
    while made.programs > MOST_PROGRAMS:
        tokens = 2 * max(size, tokens)
        made = choose(program_tokens=tokens // size)
    while True:
        is_dear = made.programs * program_tokens > lengths.sum()
        is_full = made.padding < (MOST_PADDING if is_dear else MAX_PADDING)
        if is_full or not tokens:
            return made, is_full
        tokens = 3 * tokens // 4
        more = choose(program_tokens=tokens // size)
        if more.programs > MOST_PROGRAMS:
            return made, is_full
        made = more


def _choose(
    lengths: Int[np.ndarray, "D E"], order: Int[np.ndarray, "D"], *, size: int, program_tokens: int
) -> Groups:
    starts = range(0, len(order), size)
    longest = [lengths[order[start : start + size]].max(axis=0).tolist() for start in starts]
    buckets = choose_widths(list(itertools.chain(*longest)), program_tokens=program_tokens)
    widths = [[choose_bucket(length, buckets) for length in row] for row in longest]
    padding = 1 - lengths.sum() / (size * np.sum(widths))
    return Groups(size, order.tolist(), widths, float(padding))


def _join_words(text: str) -> str:
    return " ".join(text.split())
