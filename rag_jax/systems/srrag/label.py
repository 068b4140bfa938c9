"""The label of a training question: the source that helps more, by the answer's likelihood."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.data.batches import choose_bucket, choose_widths, pad_rows, round_up
from rag_jax.data.questions import Question
from rag_jax.data.token_rows import TokenRows
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.prompts import prefill
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_json, write_jsonl
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.srrag import steps
from rag_jax.systems.srrag.config import LabelConfig, LabelRule, SourceConfig
from rag_jax.systems.srrag.data import encode_answer_prompt, render_context, share_by_source

PROGRAM_TOKENS = 2500  # on CPU, see `LabelConfig`


@checked
def choose_source(scores: Float[np.ndarray, "S n"], rule: LabelRule = "top_half_majority") -> int:
    """The source whose contexts help more (paper, section 3.2 and appendix C.1).

    Args:
        scores: log-likelihood of the gold answer under each source's `n` contexts.
        rule: "top_half_majority" takes the source that owns most of the better half of all
            contexts; "mean" the source with the best mean, as in the paper's algorithm 1;
            "best_single" the source with the best context; "all_rank" the source whose contexts
            have the best ranks on average, equal contexts sharing their ranks.

    Returns:
        The source's number. A tie goes to the source with the best single context, or else to the
        first source.
    """
    sources, n = scores.shape
    if rule == "top_half_majority":
        order = np.argsort(-scores, axis=None, kind="stable")
        worth = np.bincount(order[: sources * n // 2] // n, minlength=sources)
    elif rule == "mean":
        worth = scores.mean(axis=1)
    elif rule == "best_single":
        worth = scores.max(axis=1)
    else:
        from scipy import stats  # imported here: slow, and asking needs none

        worth = -stats.rankdata(-scores).reshape(sources, n).sum(axis=1)
    tied = np.flatnonzero(worth == worth.max())
    return int(tied[np.argmax(scores[tied].max(axis=1))])


def choose_closed_book(
    scores: Float[np.ndarray, "S n"], closed_book: float, kinds: Sequence[str], rule: LabelRule
) -> int:
    """The source that helps more if the model answers at once instead of verbalising.

    Args:
        closed_book: log-likelihood of the gold answer after the question alone, which replaces the
            scores of the verbalisations.
    """
    written = np.asarray([kind == "verbalise" for kind in kinds])
    return choose_source(np.where(written[:, None], closed_book, scores), rule)


def run_labels(
    context: StageContext,
    *,
    train_questions: Sequence[Question],
    base: Pretrained,
    sources: Sequence[SourceConfig],
    label: LabelConfig,
    model_fingerprint: str,
) -> None:
    """Scores each answer under every context, and chooses the source that helps more."""
    gathered = read_jsonl(context.path("contexts", "contexts.jsonl"))
    texts = [
        [[render_context(text) for text in source] for source in record["contexts"]]
        for record in gathered
    ]
    # The model often writes equal texts after different demonstrations: each is scored once.
    items = sorted({(q, t) for q, by_source in enumerate(texts) for s in by_source for t in s})
    score = _make_scorer(context, base, train_questions, label)
    likelihoods = dict(zip(items, score("scores.jsonl", items, "contexts"), strict=True))
    alone = [(q, "") for q in range(len(train_questions))]
    closed_book = score("closed_book.jsonl", alone, "questions alone")
    kinds = [source.kind for source in sources]
    records = []
    for q, (question, by_source) in enumerate(zip(train_questions, texts, strict=True)):
        scores = np.asarray([[likelihoods[q, text] for text in source] for source in by_source])
        records.append(
            {
                "id": question.id,
                "source": choose_source(scores, label.rule),
                "scores": scores,
                "closed_book": closed_book[q],
                "closed_book_source": choose_closed_book(scores, closed_book[q], kinds, label.rule),
                "model": model_fingerprint,
            }
        )
    write_jsonl(context.folder / "labels.jsonl", records)
    write_json(context.folder / "statistics.json", count_labels(records, sources))


def _make_scorer(
    context: StageContext, base: Pretrained, questions: Sequence[Question], settings: LabelConfig
) -> Callable[[str, Sequence[tuple[int, str]], str], list[float]]:
    """A function from (question's number, context) pairs to `log p(answer | question, context)`."""
    answers = [base.tokenizer.encode(f" {q.answers[0]}") for q in questions]
    batch_size = settings.batch_size
    program_tokens = count_program_tokens(settings.program_tokens, on_cpu=PROGRAM_TOKENS)

    def score_all(file: str, items: Sequence[tuple[int, str]], unit: str) -> list[float]:
        prompts = TokenRows(
            encode_answer_prompt(base.tokenizer, questions[q].question, text, questions[q].choices)
            for q, text in items
        )
        start = prompts.count_shared()
        rest = [length - start for length in prompts.lengths]
        sizes = [size + len(answers[q]) for size, (q, _) in zip(rest, items, strict=True)]
        widths = choose_widths(sizes, program_tokens=program_tokens)
        shared = prefill(base.model, base.params, prompts[0][:start].tolist())

        def score(batch: Sequence[int]) -> list[dict[str, Any]]:
            width = choose_bucket(max(sizes[i] for i in batch), widths)
            rows = [prompts[i][start:] for i in batch], [answers[items[i][0]] for i in batch]
            options = {"prefix": shared, "width": width, "batch_size": batch_size}
            scores = score_answers(base, *rows, **options)
            return [{"item": i, "score": value} for i, value in zip(batch, scores, strict=True)]

        by_length = sorted(range(len(items)), key=sizes.__getitem__)
        records = context.map(file, by_length, score, batch_size=batch_size, unit=unit)
        scores = {record["item"]: record["score"] for record in records}
        return [scores[i] for i in range(len(items))]

    return score_all


def score_answers(
    base: Pretrained,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    prefix: Cache,
    width: int,
    batch_size: int,
) -> list[float]:
    """`log p(answer | prompt)` in nats, summed over the answer's tokens, for at most `batch_size`.

    Args:
        prompts: the tokens between the shared prefix and the answer.
        prefix: the cache of what comes before every prompt.
        width: number of tokens that prompt and answer are padded to.
    """
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    tokens, mask = pad_rows(rows, width, pad_id=0, batch=batch_size)
    places = round_up(max(map(len, answers)), 8)
    at = np.zeros((batch_size, places), np.int32)
    weights = np.zeros((batch_size, places), np.float32)
    for r, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        at[r, : len(answer)] = len(prompt) - 1 + np.arange(len(answer))
        weights[r, : len(answer)] = 1
    targets = np.take_along_axis(tokens, np.minimum(at + 1, width - 1), axis=1)
    arrays = shard_batch((tokens, mask, at, targets, weights))
    scores = steps.score_contexts(base.model, base.params, prefix, *arrays)
    return fetch(scores)[: len(rows)].tolist()


def read_labels(path: Path, model_fingerprint: str) -> list[dict[str, Any]]:
    """The labels of the training questions.

    Raises:
        RagJaxError: naming the line that another model labelled; the source that helps depends on
            the model.
    """
    labels = read_jsonl(path)
    for number, label in enumerate(labels, 1):
        if label["model"] != model_fingerprint:
            raise RagJaxError(
                f"{path}, line {number}: labelled by the model {label['model'][:12]}, but this "
                f"run's is {model_fingerprint[:12]}; delete {path.parent} and rerun to relabel"
            )
    return labels


def count_labels(
    labels: Sequence[dict[str, Any]], sources: Sequence[SourceConfig]
) -> dict[str, Any]:
    """Statistics of the labels.

    Returns:
        `n`; `share` and `share_closed_book` of each source, with and without verbalising; and
        `flipped_by_verbalising`, the share of the questions for which the two labels differ.
    """
    chosen = np.asarray([label["source"] for label in labels])
    closed_book = np.asarray([label["closed_book_source"] for label in labels])
    return {
        "n": len(labels),
        "share": share_by_source(chosen, sources),
        "share_closed_book": share_by_source(closed_book, sources),
        "flipped_by_verbalising": float((chosen != closed_book).mean()),
    }
