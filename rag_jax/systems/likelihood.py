"""Whether an answer is held to be in the passages that were read, by the reader's own likelihood.

A reader gives an answer whether or not its passages have one. The mean log-probability of the
answer's tokens, after the passages, tells right answers from wrong ones better or worse; the stage
"likelihood" measures how well on development questions, and chooses the threshold that asking uses.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from rag_jax.data.questions import Collection, Question
from rag_jax.evaluation.answers import exact_match
from rag_jax.pipeline.ask import Threshold
from rag_jax.pipeline.runner import open_stages
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.progress import log

STAGE = "likelihood"
QUESTIONS = 100  # at most, as each has to be answered
_FILE = "likelihood.json"
_TOGETHER = 64  # questions of a piece on disk

# Questions to their answers from passages and the answers' likelihoods, in nats a token; None where
# no passage was read.
Read = Callable[[Sequence[str]], list[tuple[str, float | None]]]


def choose_threshold(
    likelihoods: Float[np.ndarray, "N"], right: Bool[np.ndarray, "N"]
) -> dict[str, float] | None:
    """The threshold with the best balanced accuracy, of several the lowest.

    Balanced accuracy is the mean of two shares: of the right answers that are not under the
    threshold, and of the wrong ones that are under it. A threshold is halfway between two
    neighbouring likelihoods.

    Returns:
        The `threshold`, its `balanced_accuracy`, and the two shares, `right_kept` and
        `wrong_found`; None if no threshold does better than chance, a balanced accuracy of 0.5.
    """
    values = np.unique(np.asarray(likelihoods, float))
    best: dict[str, float] | None = None
    for threshold in (values[:-1] + values[1:]) / 2 if 0 < right.sum() < len(right) else ():
        kept = float((likelihoods[right] >= threshold).mean())
        found = float((likelihoods[~right] < threshold).mean())
        balanced = (kept + found) / 2
        if balanced > (best["balanced_accuracy"] if best else 0.5):
            best = {"threshold": float(threshold), "balanced_accuracy": balanced}
            best |= {"right_kept": kept, "wrong_found": found}
    return best


def match_exactly(question: Question, prediction: str) -> float:
    """1 for an answer that is one of the question's, else 0."""
    return exact_match(prediction, question.answers)


class Reader(NamedTuple):
    """What answers from passages, and what is a right answer to a question: 1, or else 0."""

    read: Read
    judge: Callable[[Question, str], float] = match_exactly


def run_likelihood(
    context: StageContext,
    *,
    corpus: Collection,
    choose_questions: Callable[..., list[Question]],
    open_reader: Callable[[StageContext], Reader],
) -> None:
    """Answers the development questions and chooses the threshold.

    Writes `answers.jsonl`, each question's answer, likelihood and whether it is right, and
    `likelihood.json`: what `choose_threshold` gives, the number `n` of answers and of those that
    are `right`, or a `threshold` of None and the `reason`.

    Args:
        choose_questions: gives the questions of a split, a number of them; see `Session`.
    """
    records: list[dict[str, Any]] = []
    questions: list[Question] = []
    with contextlib.suppress(RagJaxError):  # the data have none
        questions = choose_questions(corpus, "dev", QUESTIONS)[:QUESTIONS]
    if questions:
        read, judge = open_reader(context)

        def answer(batch: Sequence[Question]) -> list[dict[str, Any]]:
            answered = _read_allowed(read, [question.question for question in batch])
            return [
                {"id": q.id, "prediction": text, "likelihood": value, "right": bool(judge(q, text))}
                for q, (text, value) in zip(batch, answered, strict=True)
            ]

        options = {"batch_size": _TOGETHER, "unit": "questions (likelihood)"}
        records = context.map("answers.jsonl", questions, answer, **options)
    if is_first():
        write_json(context.folder / _FILE, _summarize(records))


def _read_allowed(read: Read, questions: Sequence[str]) -> list[tuple[str, float | None]]:
    """What is read for the questions; nothing for one that is refused, such as a long one."""
    try:
        return read(questions)
    except RagJaxError as error:
        if len(questions) > 1:
            return [_read_allowed(read, [question])[0] for question in questions]
        log(f"left out: {error}")
        return [("", None)]


def _summarize(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    scored = [record for record in records if record["likelihood"] is not None]
    right = np.asarray([record["right"] for record in scored], bool)
    numbers = {"n": len(scored), "right": int(right.sum())}
    if not records:
        return {**numbers, "threshold": None, "reason": "there are no 'dev' questions"}
    best = choose_threshold(np.asarray([r["likelihood"] for r in scored], float), right)
    if best is None:
        reason = (
            f"no threshold tells the {numbers['right']} right ones of {numbers['n']} answers to "
            "the 'dev' questions from the others"
        )
        return {**numbers, "threshold": None, "reason": reason}
    return {**numbers, **best, "rule": "best balanced accuracy, of several the lowest threshold"}


def open_threshold(stages: Sequence[Stage], workdir: Path) -> Threshold | None:
    """The threshold of a finished run; None, and a line that says why.

    Args:
        stages: of the run as it is asked: with other settings its threshold does not hold.
    """
    reason = "whether an answer is right is not measured"
    if STAGE in {stage.name for stage in stages}:
        try:
            path = open_stages(stages, workdir, (STAGE,)).path(STAGE, _FILE)
            with parsing(path):
                chosen = read_json(path)
                if chosen["threshold"] is not None:
                    return _count_sides(chosen)
                reason = str(chosen["reason"])
        except RagJaxError as error:
            reason = str(error)
    log(f"answers get no verdict on whether they are in the documents: {reason}")
    return None


def _count_sides(chosen: Mapping[str, Any]) -> Threshold:
    """The threshold of `likelihood.json`, its shares as numbers of answers."""
    right, wrong = chosen["right"], chosen["n"] - chosen["right"]
    right_above = round(chosen["right_kept"] * right)
    wrong_under = round(chosen["wrong_found"] * wrong)
    return Threshold(
        value=float(chosen["threshold"]),
        under=wrong_under + right - right_above,
        wrong_under=wrong_under,
        above=right_above + wrong - wrong_under,
        right_above=right_above,
    )
