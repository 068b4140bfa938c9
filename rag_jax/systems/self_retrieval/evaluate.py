"""The comparison: the method, its ablations and other retrievers on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.decoding import Trie
from rag_jax.evaluation.answers import compute_accuracy, exact_match, f1
from rag_jax.evaluation.compare import Method, Record, compare, mean_numbers, timed
from rag_jax.evaluation.rankings import recall, reciprocal_rank
from rag_jax.models import Pretrained
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import BM25, Index, list_texts
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.systems.self_retrieval.config import SearchConfig, SelfRetrievalConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.scores import Candidate, score, score_unassessed
from rag_jax.training.trainable import Trainable

METHODS = ("bm25", "dense", "dense_tuned", "self_retrieval", "without_assessment")
ABLATIONS = ("without_indexing", "without_titles")
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
_TOGETHER = 16  # questions of a piece on disk
Ranked = list[tuple[int, float]]  # rows of the corpus and scores, best first


def describe_report(config: SelfRetrievalConfig) -> ReportSpec:
    """What the report shows: a row for each retriever and each ablation."""
    methods = (*METHODS, *ABLATIONS) if config.ablations else METHODS
    return ReportSpec(
        model=config.model.name,
        methods=dict.fromkeys(methods, "evaluate"),
        columns=COLUMNS,
        summarize=summarize,
    )


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A method's numbers over its questions; the interval is for hits@1."""
    means = mean_numbers(rows, COLUMNS[1:-1])
    means["seconds_per_question"] = mean_numbers(rows, ["seconds"])["seconds"]
    interval = compute_accuracy([row["hits@1"] for row in rows])[1]
    return {"n": len(rows), **means, "ci95": interval}


def rank(groups: Sequence[Sequence[Candidate]], scores: Sequence[Sequence[float]]) -> Ranked:
    """Passages by score; passages with equal texts share one."""
    pairs = [
        (row, value)
        for group, values in zip(groups, scores, strict=True)
        for candidate, value in zip(group, values, strict=True)
        for row in candidate.rows
    ]
    return sorted(pairs, key=lambda pair: -pair[1])


def open_engine(
    context: StageContext,
    stage: str,
    *,
    titled: bool,
    base: Pretrained,
    trainable: Trainable,
    make_format: Callable[..., Format],
    passages: Sequence[Passage],
    search: SearchConfig,
) -> Engine:
    """The model that a stage trained, ready to retrieve from the corpus."""
    return Engine(
        model=base.model,
        params=trainable.load_merged(context.path(stage, "params")),
        format=make_format(titled=titled),
        passages=passages,
        trie=Trie.load(context.path("trie" if titled else "trie_untitled", "trie")),
        settings=search,
    )


def run_evaluation(
    context: StageContext,
    *,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    base: Pretrained,
    trainable: Trainable,
    make_format: Callable[..., Format],
    search: SearchConfig,
    load_encoders: Callable[..., Encoders],
    encode: Callable[..., np.ndarray],
    ablations: bool,
) -> None:
    """Ranks and answers by every method; the trained model answers from the first passage."""
    asked = [question.question for question in questions]
    opened = {"base": base, "trainable": trainable, "make_format": make_format}
    opened |= {"passages": passages, "search": search}
    engine = open_engine(context, "train", titled=True, **opened)
    # Questions of all engines have one width, so that every program is compiled once.
    width = max(len(engine.format.encode_question(question)) for question in asked)
    engine = replace(engine, width=width)
    rankings = _rank_by_others(context, passages, asked, load_encoders, encode)
    found = _retrieve(context, engine, asked, "self_retrieval")
    candidates = [_read_groups(record) for record in found]
    seconds = [record["seconds"] for record in found]
    rankings["without_assessment"] = [rank(g, score_unassessed(g, search)) for g in candidates]
    answers = _answer_first(context, engine, asked, rankings)

    def list_answers(name: str) -> list[Record]:
        before = seconds if name == "without_assessment" else [0.0] * len(asked)
        return [
            {
                "ranked": ranked,
                "prediction": answers[i, ranked[0][0]]["answer"],
                "seconds": before[i] + answers[i, ranked[0][0]]["seconds"],
            }
            for i, ranked in enumerate(rankings[name])
        ]

    methods = {"self_retrieval": _score_found(found, search)}
    for name, titled in zip(ABLATIONS, (True, False), strict=True) if ablations else ():
        variant = replace(open_engine(context, name, titled=titled, **opened), width=width)
        methods[name] = _score_found(_retrieve(context, variant, asked, name), search)
    methods |= {name: list_answers(name) for name in rankings}
    compare(
        [
            Method(name, lambda r=records: r, partial(_name_passages, records, passages))
            for name, records in methods.items()
        ],
        questions,
        partial(grade, passages=passages),
        context.folder,
    )


def grade(question: Question, record: Record, *, passages: Sequence[Passage]) -> Record:
    """One question's record.

    A passage is a hit if it is relevant. A document, which is all passages of one title, ranks by
    its best passage and is relevant if one of its passages is.

    Args:
        record: "ranked", rows and scores; "prediction" and "seconds".
        passages: the corpus.
    """
    ranked, prediction = record["ranked"], record["prediction"]
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
        "seconds": record["seconds"],
    }


def _name_passages(
    records: Sequence[Record], passages: Sequence[Passage]
) -> list[list[tuple[str, float]]]:
    return [[(passages[row].id, value) for row, value in r["ranked"]] for r in records]


def _rank_by_others(
    context: StageContext,
    passages: Sequence[Passage],
    asked: Sequence[str],
    load_encoders: Callable[..., Encoders],
    encode: Callable[..., np.ndarray],
) -> dict[str, list[Ranked]]:
    """The rankings by BM25 and by the dense encoder, before and after training."""
    depth, texts = min(_DEPTH, len(passages)), list_texts(passages)
    found = {"bm25": BM25.build(texts).search(asked, depth)}
    folders = {"dense": None, "dense_tuned": context.path("dense_tuned", "encoder")}
    for name, folder in folders.items():
        encoder = load_encoders(folder).passage
        embeddings = encode(encoder, texts)
        index = Index.build(embeddings, backend="exact", encoder=encoder.fingerprint)
        found[name] = index.search(encode(encoder, asked), depth)
    return {
        name: [
            list(zip(*pair, strict=True))
            for pair in zip(rows.tolist(), scores.tolist(), strict=True)
        ]
        for name, (scores, rows) in found.items()
    }


def _retrieve(
    context: StageContext, engine: Engine, asked: Sequence[str], name: str
) -> list[Record]:
    """For each question the candidates in groups by title, the answer and the seconds."""

    def run(batch: Sequence[str]) -> list[Record]:
        return [{"groups": groups, "answer": answer} for groups, answer in engine.retrieve(batch)]

    file, unit = f"found_{name}.jsonl", f"questions ({name})"
    return context.map(file, asked, timed(run), batch_size=_TOGETHER, unit=unit)


def _read_groups(record: Record) -> list[list[Candidate]]:
    return [[Candidate(*candidate) for candidate in group] for group in record["groups"]]


def _score_found(found: Sequence[Record], search: SearchConfig) -> list[Record]:
    """The records of a method that retrieves, assesses and answers."""
    groups = [_read_groups(record) for record in found]
    return [
        {
            "ranked": rank(candidates, score(candidates, search)),
            "prediction": record["answer"],
            "seconds": record["seconds"],
        }
        for candidates, record in zip(groups, found, strict=True)
    ]


def _answer_first(
    context: StageContext,
    engine: Engine,
    asked: Sequence[str],
    rankings: Mapping[str, Sequence[Ranked]],
) -> dict[tuple[int, int], Record]:
    """Answers from each first passage, by the question's number and the passage's row.

    Methods with the same first passage share an answer.
    """
    pairs = sorted({(i, found[0][0]) for rows in rankings.values() for i, found in enumerate(rows)})

    def run(batch: Sequence[tuple[int, int]]) -> list[Record]:
        answers = engine.answer([asked[i] for i, _ in batch], [row for _, row in batch])
        return [{"answer": answer} for answer in answers]

    records = context.map("answers.jsonl", pairs, timed(run), batch_size=_TOGETHER, unit="answers")
    return dict(zip(pairs, records, strict=True))
