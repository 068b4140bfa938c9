"""Augmentation of documents by a language model: rewrites, and questions with their answers.

The model is asked in plain text, after an example, and its answers must be in the passage. Unusable
texts are retried a bounded number of times, with other random draws.
"""

import re
from collections.abc import Sequence

from rag_jax.data.passages import Passage
from rag_jax.decoding import Sampling
from rag_jax.evaluation.answers import match, normalize_answer
from rag_jax.models import Pretrained
from rag_jax.systems.prag.config import AugmentConfig
from rag_jax.systems.prag.data import Augmented, Pair
from rag_jax.systems.prag.phrases import VALUE
from rag_jax.systems.stages import continue_prompts

_REWRITE = (
    "Restate the passage in other words. Keep every name, place, number and term as it is, and "
    "what is said of it. Write the new passage alone."
)
_ASK = (
    "Write {count} different questions that the passage answers. Each answer is a few words that "
    "stand in the passage. Write "
)
_SHORT = "two lines for each, 'Question: ...' and 'Answer: ...'."
_FULL = (
    "three lines for each, 'Question: ...', 'Answer: ...' and 'Full answer: ...', a sentence that "
    "has the answer and what it follows from."
)
# One example, because small models copy its form.
_SAMPLE = (
    "The Eiffel Tower: The Eiffel Tower is an iron tower in Paris, built by the company of Gustave "
    "Eiffel from 1887 to 1889. It is 330 metres tall."
)
_SAMPLE_REWRITE = (
    "In Paris stands the Eiffel Tower, a tower of iron that is 330 metres tall. The company of "
    "Gustave Eiffel built it between 1887 and 1889."
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
_MARK, _COLON = r"[\W\d]{0,200}", r"\s{0,20}\d{0,20}\s{0,20}[:.)]\s*"  # "**1.", " 1:"
# In lines that are neither blank nor begin or end with white space.
_PAIR = re.compile(
    rf"^{_MARK}question{_COLON}(?P<question>\S.*)\n"
    rf"{_MARK}answer{_COLON}(?P<answer>\S.*)$"
    rf"(?:\n{_MARK}full\s{{1,20}}answer{_COLON}(?P<full>\S.*)$)?",
    re.IGNORECASE | re.MULTILINE,
)
_KEPT = 0.7  # least share of a passage's names and numbers in its rewrite


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
        pair = Pair(found["question"], found["answer"].rstrip("."), found["full"] or "")
        usable = match(source, [pair.answer]) and not match(pair.question, [pair.answer])
        if usable and (not full or match(pair.full_answer, [pair.answer])):
            pairs.setdefault(normalize_answer(pair.question), pair if full else Pair(*pair[:2]))
    return list(pairs.values())


def is_rewrite(text: str, passage: Passage) -> bool:
    """Whether a text says the same in other words, judged by the passage's names and numbers."""
    values = {found[0] for found in VALUE.finditer(passage.text)}
    kept = sum(bool(match(text, [value])) for value in values)
    same = normalize_answer(text) == normalize_answer(passage.text)
    return bool(text.strip()) and not same and kept >= _KEPT * len(values)


def augment_by_model(
    passages: Sequence[Passage],
    augment: AugmentConfig,
    writer: Pretrained,
    *,
    full: bool,
    seed: int,
) -> list[Augmented]:
    """Asks the model until every document has enough, or the retries are used up.

    Args:
        full: whether full answers are asked for.
    """
    rewrites: dict[str, list[str]] = {passage.id: [] for passage in passages}
    pairs: dict[str, dict[str, Pair]] = {passage.id: {} for passage in passages}
    ask = _ASK.format(count=augment.questions) + (_FULL if full else _SHORT)
    sample = "\n".join(_show_pair(pair, full) for pair in _SAMPLE_PAIRS[: augment.questions])
    for attempt in range(1 + augment.retries):
        draw = seed + 2 * attempt
        short = [p for p in passages if len(rewrites[p.id]) < augment.rewrites]
        written = _write(short, augment, writer, _REWRITE, _SAMPLE_REWRITE, seed=draw)
        for passage, text in zip(short, written, strict=True):
            text = " ".join(text.split())
            if is_rewrite(text, passage) and text not in rewrites[passage.id]:
                rewrites[passage.id].append(text)
        short = [p for p in passages if len(pairs[p.id]) < augment.questions]
        written = _write(short, augment, writer, ask, sample, seed=draw + 1)
        for passage, text in zip(short, written, strict=True):
            for pair in parse_pairs(text, passage, full=full):
                pairs[passage.id].setdefault(pair.question, pair)
        if not augment.temperature:  # another try would write the same
            break
    return [
        Augmented(tuple(rewrites[p.id]), tuple(pairs[p.id].values())[: augment.questions])
        for p in passages
    ]


def _show_pair(pair: Pair, full: bool) -> str:
    text = f"Question: {pair.question}\nAnswer: {pair.answer}"
    return f"{text}\nFull answer: {pair.full_answer}" if full else text


def _write(
    passages: Sequence[Passage],
    augment: AugmentConfig,
    writer: Pretrained,
    instruction: str,
    sample: str,
    *,
    seed: int,
) -> list[str]:
    """The model's answers to an instruction about each passage, after one example."""
    turns = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": _SAMPLE},
        {"role": "assistant", "content": sample},
    ]
    prompts = [
        writer.tokenizer.encode_chat([*turns, {"role": "user", "content": f"{p.title}: {p.text}"}])
        for p in passages
    ]
    sizes = {"max_tokens": augment.max_tokens, "batch_size": augment.batch_size}
    sampling = Sampling(temperature=augment.temperature, top_k=augment.top_k)
    written = continue_prompts(writer, prompts, **sizes, sampling=sampling, seed=seed)
    return [writer.tokenizer.decode(tokens).strip() for tokens in written]
