"""Which written questions are kept: those that can be told, and answered by their passage alone."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rag_jax.data.passages import Passage
from rag_jax.data.words import count_words, space_characters
from rag_jax.evaluation.answers import match, normalize_answer
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_jsonl, write_jsonl
from rag_jax.systems.asking import decode_texts
from rag_jax.systems.questions.config import CheckConfig
from rag_jax.systems.stages import continue_prompts

_INSTRUCTION = (
    "Answer the question with a few words, without a sentence around them. Use the passage, if "
    "there is one, and what you know."
)
# A question that can be understood only beside its passage.
_POINTS = re.compile(
    r"\b(?:this|the|that|given|above) (?:passage|text|document|article|paragraph|section|excerpt)\b"
    r"|\baccording to (?:the|this)\b|\bmentioned\b",
    re.IGNORECASE,
)


_SMALL = {"of", "and", "in", "on", "for", "to", "with", "by", "from", "at", "is", "are", "or", "as"}


class Draft(NamedTuple):
    """A written question with its answer, and the id of its passage."""

    passage: str
    question: str
    answer: str


def list_drafts(records: Sequence[Mapping[str, Any]]) -> list[Draft]:
    """The questions of `drafts.jsonl`."""
    return [Draft(record["passage"], *pair) for record in records for pair in record["pairs"]]


def sift(
    drafts: Sequence[Draft], passages: Mapping[str, Passage], *, copied: int, answer_words: int
) -> tuple[list[Draft], list[tuple[Draft, str]]]:
    """The questions that stand for themselves; and the others with what is wrong with each.

    Left out are questions that point at a passage or name nothing, that have an answer of more than
    `answer_words` words, that copy `copied` words in a row from their passage, that were asked
    before, and all that were asked of several passages with different answers.

    Args:
        passages: by id.
    """
    answers: dict[str, set[str]] = defaultdict(set)
    for draft in drafts:
        answers[normalize_answer(draft.question)].add(normalize_answer(draft.answer))
    kept: dict[str, Draft] = {}
    left = []
    for draft in drafts:
        asked = normalize_answer(draft.question)
        if _POINTS.search(draft.question):
            left.append((draft, "points at its passage"))
        elif not names_something(draft.question, passages[draft.passage].title):
            left.append((draft, "names nothing"))
        elif count_words(draft.answer) > answer_words:
            left.append((draft, f"has an answer of more than {answer_words} words"))
        elif len(answers[asked]) > 1:
            left.append((draft, "has several answers"))
        elif asked in kept:
            left.append((draft, "was asked before"))
        elif is_copied(draft.question, passages[draft.passage].text, copied):
            left.append((draft, f"copies {copied} words of its passage"))
        else:
            kept[asked] = draft
    return [*kept.values()], left


def names_something(question: str, title: str) -> bool:
    """Whether a question has a name, as a capital after its first word, or a word of the title.

    "What is its area?" has neither. A script without capitals is let pass.
    """
    words, known = (space_characters(text).split() for text in (question, title))
    if not any(letter.lower() != letter.upper() for letter in question):
        return True
    has_name = any(letter.isupper() for word in words[1:] for letter in word[:2])
    shared = {normalize_answer(word) for word in words} & {normalize_answer(word) for word in known}
    return has_name or bool(shared - {"", *_SMALL})


def is_copied(question: str, text: str, count: int) -> bool:
    """Whether a run of a question's words, of that length, stands in a text."""
    words, source = (space_characters(normalize_answer(t)).split() for t in (question, text))
    rows = {tuple(source[i : i + count]) for i in range(len(source) - count + 1)}
    return any(tuple(words[i : i + count]) in rows for i in range(len(words) - count + 1))


def run_check(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    base: Pretrained,
    check_by: CheckConfig,
    max_text: int,
) -> None:
    """Has the model answer every question that stands for itself, with its passage and without.

    Writes `answered.jsonl`, lines of a draft with `with_passage` and `without`, what the model
    answers, and `left_out.jsonl`, lines of the other drafts with a `reason`.
    """
    drafts = list_drafts(read_jsonl(context.path("write", "drafts.jsonl")))
    ids = {draft.passage for draft in drafts}
    asked = {passage.id: passage for passage in passages if passage.id in ids}
    texts = {id: f"{p.title}: {p.text}" for id, p in asked.items()}
    kept, left = sift(drafts, asked, copied=check_by.copied, answer_words=check_by.answer_words)
    out = [draft._asdict() | {"reason": reason} for draft, reason in left]
    write_jsonl(context.folder / "left_out.jsonl", out)
    options = {"max_tokens": check_by.max_tokens, "batch_size": check_by.batch_size}

    def answer(batch: Sequence[Draft], given: Sequence[str]) -> list[str]:
        prompts = [
            base.tokenizer.encode_chat(
                [
                    {"role": "system", "content": _INSTRUCTION},
                    {"role": "user", "content": f"{passage}Question: {draft.question}"},
                ],
                thinking=False,
            )
            for draft, passage in zip(batch, given, strict=True)
        ]
        return decode_texts(base, continue_prompts(base, prompts, **options))

    def run(batch: Sequence[Draft]) -> list[dict[str, Any]]:
        cut = (base.tokenizer.shorten(texts[draft.passage], max_text) for draft in batch)
        read = answer(batch, [f"Passage: {text}\n\n" for text in cut])
        known = answer(batch, [""] * len(batch))
        columns = zip(batch, read, known, strict=True)
        return [draft._asdict() | {"with_passage": r, "without": k} for draft, r, k in columns]

    size = check_by.batch_size
    context.map("answered.jsonl", kept, run, batch_size=size, unit="questions (answered)")


def judge(record: Mapping[str, Any]) -> str:
    """What is wrong with a question that was answered; "" if nothing is."""
    if not match(record["with_passage"], [record["answer"]]):
        return "is not answered so from its passage"
    if match(record["without"], [record["answer"]]):
        return "is answered without its passage"
    return ""
