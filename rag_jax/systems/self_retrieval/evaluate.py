"""The comparison: the method, its ablations and other retrievers on the same questions."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.evaluation.answers import compute_accuracy, exact_match, f1
from rag_jax.evaluation.rankings import recall, reciprocal_rank, write_run
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import BM25, Index, list_texts
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.files import write_jsonl
from rag_jax.runtime.hosts import is_first
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.scores import Candidate, score, score_unassessed
from rag_jax.systems.self_retrieval.train import load_tuned

if TYPE_CHECKING:
    from rag_jax.systems.self_retrieval.pipeline import Session

COLUMNS = (
    "n",
    "hits@1",
    "hits@5",
    "mrr@5",
    "document_recall@1",
    "document_recall@10",
    "document_mrr@100",
    "exact_match",
    "f1",
    "seconds_per_question",
)
_DEPTH = 100
_TOGETHER = 16  # questions between two writes to disk
Ranked = list[tuple[int, float]]  # rows of the corpus and scores, best first


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A method's numbers over its questions; the interval is that of hits@1."""
    numbers: dict[str, Any] = {"n": len(rows)}
    for name in COLUMNS[1:]:
        values = [row[name] for row in rows if name in row]
        if values:
            numbers[name] = float(np.mean(values))
    numbers["ci95"] = compute_accuracy([row["hits@1"] for row in rows])[1]
    return numbers


def grade(
    question: Question, ranked: Ranked, passages: Sequence[Passage], prediction: str
) -> dict[str, Any]:
    """One question's record.

    A passage is a hit if it is relevant; a document, which is all passages of one title, ranks by
    its best passage and is relevant if one of its passages is.
    """
    found = [passages[row] for row, _ in ranked]
    ids = [passage.id for passage in found]
    titles = list(dict.fromkeys(passage.title for passage in found))
    title_of = {
        passage.id: passage.title for passage in passages if passage.id in question.relevant
    }
    documents = dict.fromkeys(title_of.values(), 1)
    return {
        "id": question.id,
        "question": question.question,
        "answers": question.answers,
        "prediction": prediction,
        "hits@1": float(bool(ids) and ids[0] in question.relevant),
        "hits@5": float(any(id in question.relevant for id in ids[:5])),
        "mrr@5": reciprocal_rank(ids[:5], question.relevant),
        "document_recall@1": recall(titles, documents, 1),
        "document_recall@10": recall(titles, documents, 10),
        "document_mrr@100": reciprocal_rank(titles[:100], documents),
        "exact_match": exact_match(prediction, question.answers),
        "f1": f1(prediction, question.answers),
        "passages": [{"id": id, "score": s} for id, (_, s) in zip(ids[:10], ranked, strict=False)],
    }


def rank(groups: Sequence[Sequence[Candidate]], scores: Sequence[Sequence[float]]) -> Ranked:
    """Passages by score; those that are the same to the letter share one."""
    pairs = [
        (row, value)
        for group, own in zip(groups, scores, strict=True)
        for candidate, value in zip(group, own, strict=True)
        for row in candidate.rows
    ]
    return sorted(pairs, key=lambda pair: -pair[1])


def run_evaluation(session: "Session", context: StageContext) -> None:
    """Every method on the same questions; the trained model answers from the first passage."""
    c, corpus = session.config, session.read_corpus(context)
    questions = session.list_questions(corpus, c.evaluate_on)
    asked = [question.question for question in questions]
    engine = make_engine(session, context, corpus, "train", titled=True)
    width = max(len(engine.form.encode_question(question)) for question in asked)
    engine = dataclasses.replace(engine, width=width)

    def save(name: str, ranked: Sequence[Ranked], answers: Sequence[str], seconds) -> None:
        records = [
            grade(question, found, corpus.passages, given) | {"seconds_per_question": spent}
            for question, found, given, spent in zip(
                questions, ranked, answers, seconds, strict=True
            )
        ]
        write_jsonl(context.folder / f"{name}.jsonl", records)
        save_run(name, ranked)

    def save_run(name: str, ranked: Sequence[Ranked]) -> None:
        named = [[(corpus.passages[row].id, value) for row, value in found] for found in ranked]
        if is_first():
            path = context.folder / f"{name}.trec"
            write_run(path, name, [question.id for question in questions], named)

    ranked = _rank_by_others(session, context, corpus, asked)
    variants = {"self_retrieval": engine}
    if c.ablations:
        for name, titled in (("without_indexing", True), ("without_titles", False)):
            variant = make_engine(session, context, corpus, name, titled=titled)
            variants[name] = dataclasses.replace(variant, width=width)
    spent: dict[str, list[float]] = {}  # seconds before the answer
    for name, variant in variants.items():
        records = _retrieve(context, variant, asked, name)
        groups = [
            [[Candidate(*candidate) for candidate in group] for group in record["groups"]]
            for record in records
        ]
        seconds = [record["seconds"] for record in records]
        answers = [record["answer"] for record in records]
        save(name, [rank(found, score(found, c.search)) for found in groups], answers, seconds)
        if name == "self_retrieval":
            spent["without_assessment"] = seconds
            ranked["without_assessment"] = [
                rank(found, score_unassessed(found, c.search)) for found in groups
            ]
    # One answer for all methods with the same first passage.
    pairs = {(i, found[0][0]) for rows in ranked.values() for i, found in enumerate(rows)}
    read = _answer(context, engine, asked, sorted(pairs))
    for name, rows in ranked.items():
        own = [read[i, found[0][0]] for i, found in enumerate(rows)]
        before = spent.get(name, [0.0] * len(own))
        seconds = [a + r["seconds"] for a, r in zip(before, own, strict=True)]
        save(name, rows, [r["answer"] for r in own], seconds)


def _rank_by_others(
    session: "Session", context: StageContext, corpus: Collection, asked: Sequence[str]
) -> dict[str, list[Ranked]]:
    """What BM25 and the dense encoder, as it is and trained, find."""
    depth, texts = min(_DEPTH, len(corpus.passages)), list_texts(corpus.passages)
    found = {"bm25": BM25.build(texts).search(asked, depth)}
    for name in ("dense", "dense_tuned"):
        encoders = session.load_encoders(context, name)
        index = Index.build(
            session.encode(encoders.passage, texts), backend="exact",
            encoder=encoders.passage.fingerprint,
        )  # fmt: skip
        found[name] = index.search(session.encode(encoders.question, asked), depth)
    return {
        name: [
            list(zip(*pair, strict=True))
            for pair in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        for name, (scores, rows) in found.items()
    }


def make_engine(
    session: "Session", context: StageContext, corpus: Collection, stage: str, *, titled: bool
) -> Engine:
    """A trained model, ready to retrieve from the corpus."""
    return Engine(
        model=session.base.model,
        params=load_tuned(session, context.path(stage, "params")),
        form=session.make_format(titled=titled),
        passages=corpus.passages,
        trie=session.load_trie(context, titled=titled),
        settings=session.config.search,
    )


def _retrieve(
    context: StageContext, engine: Engine, asked: Sequence[str], name: str
) -> list[dict[str, Any]]:
    def run(batch: Sequence[str]) -> list[dict[str, Any]]:
        clock = Clock()
        found = engine.retrieve(batch)
        seconds = clock.read() / len(batch)
        return [{"groups": groups, "answer": a, "seconds": seconds} for groups, a in found]

    file = f"found_{name}.jsonl"
    return context.map_batches(file, asked, run, batch_size=_TOGETHER, unit=f"questions ({name})")


def _answer(
    context: StageContext, engine: Engine, asked: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], dict[str, Any]]:
    """Answers from one row of the corpus each, by the question's number and the row."""

    def run(batch: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        clock = Clock()
        answers = engine.answer([asked[i] for i, _ in batch], [row for _, row in batch])
        seconds = clock.read() / len(batch)
        return [{"answer": answer, "seconds": seconds} for answer in answers]

    records = context.map_batches("answers.jsonl", pairs, run, batch_size=_TOGETHER, unit="answers")
    return dict(zip(pairs, records, strict=True))
