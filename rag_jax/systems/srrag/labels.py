"""Which source helps a training question more: the answer's likelihood under every context."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from rag_jax.data.batches import choose_bucket, choose_widths
from rag_jax.decoding import prefill
from rag_jax.pipeline.runner import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_json, write_jsonl
from rag_jax.systems.srrag.config import LabelRule, SourceConfig
from rag_jax.systems.srrag.contexts import (
    encode_answer_prompt,
    render_context,
    score_answers,
    split_prefix,
)

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session


def choose_source(scores: Float[np.ndarray, "S n"], rule: LabelRule = "top_half_majority") -> int:
    """The source whose contexts help more (paper, section 3.2 and appendix C.1).

    Args:
        scores: log-likelihood of the gold answer under each source's `n` contexts.
        rule: "top_half_majority" takes the source that owns most of the better half of all
            contexts; "mean" the one with the best mean, as the paper's algorithm 1 has it;
            "best_single" the one with the best context; "all_rank" the one whose contexts rank
            best on average, equal ones sharing their ranks.

    Returns:
        The source's number. A tie goes to the source with the best single context, or else to the
        first.
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
        worth = -stats.rankdata(-scores).reshape(sources, n).sum(axis=1)
    tied = np.flatnonzero(worth == worth.max())
    return int(tied[np.argmax(scores[tied].max(axis=1))])


def choose_closed_book(
    scores: Float[np.ndarray, "S n"], closed_book: float, kinds: Sequence[str], rule: LabelRule
) -> int:
    """The source that would help more if the model wrote nothing down: it answers at once instead.

    Args:
        closed_book: log-likelihood of the gold answer under the question alone, which stands in
            for every verbalisation.
    """
    written = np.asarray([kind == "verbalise" for kind in kinds])
    return choose_source(np.where(written[:, None], closed_book, scores), rule)


def run_labels(session: "Session", context: StageContext) -> None:
    """The likelihood of the answer under every context, and the source that helps more."""
    c = session.config
    questions = session.list_training(session.read_corpus(context))
    gathered = read_jsonl(context.path("contexts", "contexts.jsonl"))
    texts = [
        [[render_context(text) for text in source] for source in record["contexts"]]
        for record in gathered
    ]
    # The model often writes the same thing under different demonstrations: scored once.
    items = sorted({(q, t) for q, by_source in enumerate(texts) for s in by_source for t in s})
    score = _make_scorer(session, context)
    found = dict(zip(items, score("scores.jsonl", items, "contexts"), strict=True))
    alone = [(q, "") for q in range(len(questions))]
    closed_book = score("closed_book.jsonl", alone, "questions alone")
    kinds = [source.kind for source in c.sources]
    records = []
    for q, (question, by_source) in enumerate(zip(questions, texts, strict=True)):
        scores = np.asarray([[found[q, text] for text in source] for source in by_source])
        records.append(
            {
                "id": question.id,
                "source": choose_source(scores, c.label.rule),
                "scores": scores,
                "closed_book": closed_book[q],
                "closed_book_source": choose_closed_book(
                    scores, closed_book[q], kinds, c.label.rule
                ),
                "model": session.model_fingerprint,
            }
        )
    write_jsonl(context.folder / "labels.jsonl", records)
    write_json(context.folder / "statistics.json", count_labels(records, c.sources))


def _make_scorer(
    session: "Session", context: StageContext
) -> Callable[[str, Sequence[tuple[int, str]], str], list[float]]:
    """Gives `log p(answer | question, context)` of (question's number, context) pairs."""
    base, batch_size = session.base, session.config.label.batch_size
    questions = session.list_training(session.read_corpus(context))
    answers = [base.tokenizer.encode(f" {q.answers[0]}") for q in questions]

    def score_all(file: str, items: Sequence[tuple[int, str]], unit: str) -> list[float]:
        prompts = [
            encode_answer_prompt(base.tokenizer, questions[q].question, text, questions[q].choices)
            for q, text in items
        ]
        prefix, prompts = split_prefix(prompts)
        sizes = [len(p) + len(answers[item[0]]) for p, item in zip(prompts, items, strict=True)]
        widths = choose_widths(sizes, program_tokens=2500)
        shared = prefill(base.model, base.params, prefix)

        def score(batch: Sequence[int]) -> list[dict[str, Any]]:
            longest = max(sizes[i] for i in batch)
            scores = score_answers(
                base.model,
                base.params,
                [prompts[i] for i in batch],
                [answers[items[i][0]] for i in batch],
                prefix=shared,
                width=choose_bucket(longest, widths),
                batch_size=batch_size,
            )
            return [{"item": i, "score": value} for i, value in zip(batch, scores, strict=True)]

        by_length = sorted(range(len(items)), key=sizes.__getitem__)
        records = context.map_batches(file, by_length, score, batch_size=batch_size, unit=unit)
        scores = {record["item"]: record["score"] for record in records}
        return [scores[i] for i in range(len(items))]

    return score_all


def read_labels(session: "Session", context: StageContext) -> list[dict[str, Any]]:
    """The labels of the training questions.

    Raises:
        RagJaxError: naming the line that another model labelled; which source helps is a
            property of the model.
    """
    path = context.path("labels", "labels.jsonl")
    labels, model = read_jsonl(path), session.model_fingerprint
    for number, label in enumerate(labels, 1):
        if label["model"] != model:
            raise RagJaxError(
                f"{path}, line {number}: labelled by the model {label['model'][:12]}, but this "
                f"run's is {model[:12]}; remove {path.parent}, and the run labels again"
            )
    return labels


def count_labels(
    labels: Sequence[dict[str, Any]], sources: Sequence[SourceConfig]
) -> dict[str, Any]:
    """Statistics of the labels: how many there are, the share of each source, and how often
    verbalising flips the label: without it, another source would have been chosen."""
    chosen = np.asarray([label["source"] for label in labels])
    closed_book = np.asarray([label["closed_book_source"] for label in labels])
    shares = np.bincount(chosen, minlength=len(sources)) / len(labels)
    without = np.bincount(closed_book, minlength=len(sources)) / len(labels)
    names = [source.name for source in sources]
    return {
        "n": len(labels),
        "share": dict(zip(names, shares.tolist(), strict=True)),
        "share_closed_book": dict(zip(names, without.tolist(), strict=True)),
        "flipped_by_verbalising": float((chosen != closed_book).mean()),
    }
