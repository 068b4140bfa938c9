"""What the model reads and writes: prompts with and without passages, answers, training examples.

In plain text a prompt is

    Passage 1: {title}: {text}
    Passage 2: {title}: {text}

    Question: {question}
    The answer is

without the passages where knowledge is to come from the parameters alone. In a chat template this
is a message behind a system message, and the answer begins behind "The answer is" too.

The released code ends an answer with a full stop and cuts predictions at the first one, or comma,
which takes "U.S." and "15,140" apart. Here the end-of-text token ends an answer.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from rag_jax.data.passages import Passage
from rag_jax.models.tokenizer import Tokenizer

_INSTRUCTION = (
    "Answer the question with a few words. Use the passages, if there are any, and what you know."
)
_CUE = "The answer is"
# What an untrained model goes on with behind an answer: a line, a sentence or a clause.
_END = re.compile(r"\n|[.!?](?=\s+[^\Wa-z_]|\s*$)|,\s")


@dataclass(frozen=True)
class Format:
    """How questions, passages and answers become tokens.

    Attributes:
        chat: whether the model is asked in its chat template.
        max_text: tokens that are read of a passage's text.
    """

    tokenizer: Tokenizer
    chat: bool
    max_text: int

    def encode_prompt(self, question: str, passages: Sequence[Passage] = ()) -> list[int]:
        """A question behind some passages, or none, up to where its answer starts."""
        lines = [
            f"Passage {i}: {': '.join(filter(None, (_join_words(p.title), self.cut_text(p.text))))}"
            for i, p in enumerate(passages, 1)
        ]
        parts = ["\n".join(lines)] * bool(lines) + [f"Question: {_join_words(question)}"]
        if not self.chat:
            return self.tokenizer.encode("\n\n".join(parts) + f"\n{_CUE}")
        turns = [("system", _INSTRUCTION), ("user", "\n\n".join(parts))]
        messages = [{"role": role, "content": content} for role, content in turns]
        prompt = self.tokenizer.encode_chat(messages)
        return [*prompt, *self.tokenizer.encode(_CUE)]

    def encode_answer(self, answer: str) -> list[int]:
        """An answer and the token that ends it."""
        return [*self.tokenizer.encode(f" {_join_words(answer)}"), self.tokenizer.eos_id]

    def encode_text(self, passage: Passage) -> list[int]:
        """A passage by itself."""
        return self.tokenizer.encode(f"{_join_words(passage.title)}: {self.cut_text(passage.text)}")

    def cut_text(self, text: str) -> str:
        """A text in one line, up to the last of the tokens that are read of it."""
        return self.tokenizer.shorten(_join_words(text), self.max_text)

    def is_cut(self, text: str) -> bool:
        """Whether a text has more tokens than are read of it."""
        return len(self.tokenizer.encode(_join_words(text))) > self.max_text

    def decode_answer(self, tokens: Sequence[int]) -> str:
        """The answer in what the model wrote: the first clause of it."""
        text = self.tokenizer.decode(tokens).strip()
        return _END.split(text, maxsplit=1)[0].strip()

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends an answer."""
        return (self.tokenizer.eos_id,)


@dataclass(frozen=True)
class Augmented:
    """What was made of a document: `rewrites` of its text, and questions with their answers."""

    rewrites: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]


def make_examples(
    form: Format, passage: Passage, augmented: Augmented, *, questions: int
) -> list[list[int]]:
    """A document's training examples as tokens, in the order in which they are trained on.

    The layout of the released code (the paper's triples, eq. 4, are all combinations): the first
    half of the questions, rounded up, each behind the passage and behind every rewrite; the others
    behind nothing. With one rewrite and three questions that makes five examples. The loss is
    taken over all of an example's tokens. Without questions it is the passage and its rewrites.

    Args:
        questions: how many every document has; one with fewer repeats its own.
    """
    versions = [passage, *(Passage(passage.id, passage.title, text) for text in augmented.rewrites)]
    if not augmented.pairs:
        return [form.encode_text(version) for version in versions]
    examples = []
    pairs = itertools.islice(itertools.cycle(augmented.pairs), questions)
    for i, (question, answer) in enumerate(pairs):
        given = [[version] for version in versions] if i < (questions + 1) // 2 else [[]]
        examples += [
            form.encode_prompt(question, passages) + form.encode_answer(answer)
            for passages in given
        ]
    return examples


def _join_words(text: str) -> str:
    return " ".join(text.split())
