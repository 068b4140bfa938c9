"""The untrained model's answers: at once, from passages, or from a document that it writes."""

from collections.abc import Callable, Sequence

from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Record
from rag_jax.models import Pretrained
from rag_jax.systems.srrag.config import GroundedAnswerConfig, VerbaliseConfig
from rag_jax.systems.srrag.data import encode_answer_prompt, encode_document_prompt, join_passages
from rag_jax.systems.srrag.infer import list_places
from rag_jax.systems.srrag.verbalise import clean_document, write_texts


def answer_directly(
    questions: Sequence[Question], *, base: Pretrained, answer: GroundedAnswerConfig, seed: int
) -> list[Record]:
    """Answers to the questions alone."""
    return _predict(questions, [""] * len(questions), base, answer, seed)


def answer_from_passages(
    questions: Sequence[Question],
    *,
    search: Callable[[Sequence[str]], list[list[tuple[str, str]]]],
    base: Pretrained,
    answer: GroundedAnswerConfig,
    seed: int,
) -> list[Record]:
    """Answers from retrieved passages, in the form that the trained model reads them in."""
    found = search([question.question for question in questions])
    knowledge = [join_passages(passages) for passages in found]
    records = _predict(questions, knowledge, base, answer, seed)
    return [
        record | {"knowledge": text, "retrieved": 1.0} | ({"passages": places} if places else {})
        for record, text, places in zip(records, knowledge, map(list_places, found), strict=True)
    ]


def answer_from_documents(
    questions: Sequence[Question],
    *,
    base: Pretrained,
    verbalise: VerbaliseConfig,
    answer: GroundedAnswerConfig,
    seed: int,
) -> list[Record]:
    """Answers from a document that the model writes first (GenRead without demonstrations)."""
    tokenizer, limit = base.tokenizer, verbalise.max_tokens
    prompts = [encode_document_prompt(tokenizer, question.question) for question in questions]
    sizes = {"max_tokens": limit, "batch_size": verbalise.batch_size}
    written = write_texts(base, prompts, **sizes, seed=seed, temperature=verbalise.temperature)
    knowledge = [clean_document(tokenizer.decode(w), finished=len(w) < limit) for w in written]
    records = _predict(questions, knowledge, base, answer, seed)
    return [
        record
        | {
            "knowledge": text,
            "prompt_tokens": record["prompt_tokens"] + len(prompt),
            "generated_tokens": record["generated_tokens"] + len(tokens),
            "cut_off": len(tokens) >= limit,
        }
        for record, text, prompt, tokens in zip(records, knowledge, prompts, written, strict=True)
    ]


def _predict(
    questions: Sequence[Question],
    knowledge: Sequence[str],
    base: Pretrained,
    answer: GroundedAnswerConfig,
    seed: int,
) -> list[Record]:
    """Greedy answers after some knowledge, and the number of tokens read and written."""
    prompts = [
        encode_answer_prompt(base.tokenizer, question.question, text, question.choices)
        for question, text in zip(questions, knowledge, strict=True)
    ]
    sizes = {"max_tokens": answer.max_tokens, "batch_size": answer.batch_size}
    written = write_texts(base, prompts, **sizes, seed=seed)
    return [
        {
            "prediction": base.tokenizer.decode(tokens).strip(),
            "retrieved": 0.0,
            "prompt_tokens": len(prompt),
            "generated_tokens": len(tokens),
            "cut_off": False,
            "fell_back": False,
        }
        for prompt, tokens in zip(prompts, written, strict=True)
    ]
