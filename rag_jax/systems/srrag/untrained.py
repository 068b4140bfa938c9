"""What the model answers before any training: at once, from passages, or from its own document."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import choice_match, contains_answer, exact_match, match
from rag_jax.runtime.clock import Clock
from rag_jax.systems.srrag.contexts import (
    clean_document,
    encode_answer_prompt,
    encode_document_prompt,
)
from rag_jax.systems.srrag.data import join_passages

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session


def answer_directly(session: "Session", questions: Sequence[Question]) -> list[dict[str, Any]]:
    """Answers to the questions alone."""
    clock = Clock()
    records = _predict(session, questions, [""] * len(questions))
    return _finish(questions, records, clock)


def answer_from_passages(
    session: "Session",
    questions: Sequence[Question],
    search: Callable[[Sequence[str]], list[list[tuple[str, str]]]],
) -> list[dict[str, Any]]:
    """Answers from what is searched, in the form that the tuned model reads it in."""
    clock = Clock()
    found = search([question.question for question in questions])
    knowledge = [join_passages(passages) for passages in found]
    records = _predict(session, questions, knowledge)
    for record, text in zip(records, knowledge, strict=True):
        record |= {"knowledge": text, "retrieved": 1.0}
    return _finish(questions, records, clock)


def answer_from_documents(
    session: "Session", questions: Sequence[Question]
) -> list[dict[str, Any]]:
    """Answers from a document that the model writes first (GenRead without demonstrations)."""
    c, tokenizer = session.config.verbalise, session.base.tokenizer
    clock = Clock()
    prompts = [encode_document_prompt(tokenizer, question.question) for question in questions]
    written = session.generate(
        prompts, max_tokens=c.max_tokens, batch_size=c.batch_size, temperature=c.temperature
    )
    ended = [len(tokens) < c.max_tokens for tokens in written]
    knowledge = [
        clean_document(tokenizer.decode(tokens), finished=finished)
        for tokens, finished in zip(written, ended, strict=True)
    ]
    records = _predict(session, questions, knowledge)
    for i, record in enumerate(records):
        record["knowledge"] = knowledge[i]
        record["prompt_tokens"] += len(prompts[i])
        record["generated_tokens"] += len(written[i])
        record["cut_off"] = not ended[i]
    return _finish(questions, records, clock)


def _predict(
    session: "Session", questions: Sequence[Question], knowledge: Sequence[str]
) -> list[dict[str, Any]]:
    """Greedy answers given some knowledge, and the tokens that they took."""
    answer, tokenizer = session.config.answer, session.base.tokenizer
    prompts = [
        encode_answer_prompt(tokenizer, question.question, text, question.choices)
        for question, text in zip(questions, knowledge, strict=True)
    ]
    written = session.generate(prompts, max_tokens=answer.max_tokens, batch_size=answer.batch_size)
    return [
        {
            "prediction": tokenizer.decode(tokens).strip(),
            "retrieved": 0.0,
            "prompt_tokens": len(prompt),
            "generated_tokens": len(tokens),
            "cut_off": False,
            "fell_back": False,
        }
        for prompt, tokens in zip(prompts, written, strict=True)
    ]


def _finish(
    questions: Sequence[Question], records: Sequence[dict[str, Any]], clock: Clock
) -> list[dict[str, Any]]:
    seconds = clock.read() / len(questions)
    return [
        grade(question, record | {"seconds": seconds})
        for question, record in zip(questions, records, strict=True)
    ]


def judge(question: Question, prediction: str) -> float:
    """1 if a prediction is right, else 0: if it names the right choice where the question leaves
    choices, and elsewhere if it holds an answer."""
    if question.choices:
        return choice_match(prediction, question.answers, question.choices)
    return match(prediction, question.answers)


def grade(question: Question, record: dict[str, Any]) -> dict[str, Any]:
    """A prediction's record with the question and its scores."""
    prediction = record["prediction"]
    scores = {
        "correct": judge(question, prediction),
        "exact_match": exact_match(prediction, question.answers),
    }
    if not question.choices:
        scores["contains_answer"] = contains_answer(prediction, question.answers)
    return {
        "id": question.id,
        "question": question.question,
        "answers": question.answers,
        "popularity": question.popularity,
        **scores,
        **record,
    }
