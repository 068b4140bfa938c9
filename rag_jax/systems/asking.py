"""Questions with their answers that a language model writes about a passage.

The model is asked in its chat template, after one example, because small models copy its form. Its
answers must stand in the passage.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from rag_jax.data.passages import Passage
from rag_jax.evaluation.answers import match, normalize_answer
from rag_jax.evaluation.texts import drop_thoughts
from rag_jax.models import Pretrained
from rag_jax.systems.stages import continue_prompts


class Pair(NamedTuple):
    """A question about a document with its answer, short and as a sentence; "" for no sentence."""

    question: str
    answer: str
    full_answer: str = ""


_ASK = (
    "Write {count} different questions that the passage answers. Each answer is a few words that "
    "stand in the passage. Write "
)
_SHORT = "two lines for each, 'Question: ...' and 'Answer: ...'."
_FULL = (
    "three lines for each, 'Question: ...', 'Answer: ...' and 'Full answer: ...', a sentence that "
    "has the answer and what it follows from."
)
_SAMPLE = (
    "The Eiffel Tower: The Eiffel Tower is an iron tower in Paris, built by the company of Gustave "
    "Eiffel from 1887 to 1889. It is 330 metres tall."
)
_SAMPLE_PAIRS = (
    Pair(
        "In which city is the Eiffel Tower?",
        "Paris",
        "The Eiffel Tower is an iron tower in Paris.",
    ),
    Pair(
        "Whose company built the Eiffel Tower?",
        "Gustave Eiffel",
        "The Eiffel Tower was built by the company of Gustave Eiffel.",
    ),
    Pair("How tall is the Eiffel Tower?", "330 metres", "The Eiffel Tower is 330 metres tall."),
    Pair("What is the Eiffel Tower made of?", "iron", "The Eiffel Tower is a tower of iron."),
    Pair(
        "When was the Eiffel Tower finished?",
        "1889",
        "The Eiffel Tower was built from 1887 to 1889, so it was finished in 1889.",
    ),
)
_MARK = r"[\W\d]{0,200}"  # "**1."
_COLON = r"\s{0,20}\d{0,20}\s{0,20}\*{0,3}[:.)]\*{0,3}\s*"  # " 1:", ":**", "**:"
# In lines that are neither blank nor begin or end with white space.
_PAIR = re.compile(
    rf"^{_MARK}question{_COLON}(?P<question>\S.*)\n"
    rf"{_MARK}answer{_COLON}(?P<answer>\S.*)$"
    rf"(?:\n{_MARK}full\s{{1,20}}answer{_COLON}(?P<full>\S.*)$)?",
    re.IGNORECASE | re.MULTILINE,
)


def parse_pairs(text: str, passage: Passage, *, full: bool) -> list[Pair]:
    """The usable questions and answers of a model's text: those whose answer is in the passage.

    A question that contains its answer, or repeats another question, is left out.

    Args:
        full: whether full answers were asked for; a pair whose full answer is missing, or does not
            contain the answer, is left out.
    """
    pairs: dict[str, Pair] = {}
    source = f"{passage.title}: {passage.text}"
    lines = "\n".join(filter(None, map(str.strip, text.split("\n"))))
    for found in _PAIR.finditer(lines):
        question, answer, answered = map(_unmark, found.group("question", "answer", "full"))
        pair = Pair(question, _unquote(_unmark(answer.rstrip("."))), answered)
        usable = match(source, [pair.answer]) and not match(pair.question, [pair.answer])
        if usable and (not full or match(pair.full_answer, [pair.answer])):
            pairs.setdefault(normalize_answer(pair.question), pair if full else Pair(*pair[:2]))
    return list(pairs.values())


def _unmark(text: str | None) -> str:
    """A text without the marks of Markdown at its ends; "" for None."""
    return (text or "").strip("*` ")


def _unquote(text: str) -> str:
    """A text without the quotation marks around the whole of it."""
    pairs = ('""', "\u201c\u201d", "''", "\u2018\u2019")
    is_quoted = len(text) > 2 and any(text[0] == a and text[-1] == b for a, b in pairs)
    return text[1:-1] if is_quoted else text


def ask_for_pairs(
    writer: Pretrained, passages: Sequence[Passage], count: int, *, full: bool, **options: Any
) -> list[list[Pair]]:
    """The usable ones of about `count` questions with answers that a model writes on each passage.

    Args:
        full: whether full answers are asked for.
        options: as for `write_texts`.
    """
    instruction = _ASK.format(count=count) + (_FULL if full else _SHORT)
    sample = "\n".join(_show_pair(pair, full) for pair in _SAMPLE_PAIRS[:count])
    written = write_texts(writer, passages, instruction, sample, **options)
    pairs = zip(written, passages, strict=True)
    return [parse_pairs(text, passage, full=full) for text, passage in pairs]


def _show_pair(pair: Pair, full: bool) -> str:
    text = f"Question: {pair.question}\nAnswer: {pair.answer}"
    return f"{text}\nFull answer: {pair.full_answer}" if full else text


def write_texts(
    writer: Pretrained,
    passages: Sequence[Passage],
    instruction: str,
    sample: str,
    **options: Any,
) -> list[str]:
    """The model's answers to an instruction about each passage, after one example.

    Args:
        sample: what the model is shown as the answer about a passage on the Eiffel Tower.
        options: of `generate`.
    """
    turns = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": _SAMPLE},
        {"role": "assistant", "content": sample},
    ]
    asked = [[*turns, {"role": "user", "content": f"{p.title}: {p.text}"}] for p in passages]
    prompts = [writer.tokenizer.encode_chat(messages, thinking=False) for messages in asked]
    return decode_texts(writer, continue_prompts(writer, prompts, **options))


def decode_texts(writer: Pretrained, written: Sequence[Sequence[int]]) -> list[str]:
    """The texts of what a model has written, without what it thought before."""
    return [drop_thoughts(writer.tokenizer.decode(tokens)).strip() for tokens in written]
