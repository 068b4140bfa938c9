"""The comparison: the method, its ablations and other retrievers on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.config import EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import exact_match, f1
from rag_jax.evaluation.compare import (
    Method,
    Record,
    compare,
    describe_question,
    summarize_answers,
    timed,
)
from rag_jax.evaluation.rankings import Ranked, recall, reciprocal_rank
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.runtime.files import read_jsonl
from rag_jax.search_config import BM25Config
from rag_jax.systems.embeddings import embedding
from rag_jax.systems.evaluation import name_model
from rag_jax.systems.reranking import RERANKED, Reranking, add_ranks, rank_anew, rerank_found
from rag_jax.systems.self_retrieval.config import SearchConfig, SelfRetrievalConfig
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.scores import Candidate, score, score_unassessed
from rag_jax.systems.stages import answer_timed, list_ranked, order_found
from rag_jax.systems.words import build_words, tabulate_words

METHODS = ("bm25", "dense", "dense_tuned", "self_retrieval", "without_assessment")
# The row with what each of these finds, reranked; the method's own is without its assessment.
RERANKINGS = {name: f"{name}_reranked" for name in ("bm25", "dense", "dense_tuned")}
RERANKINGS["self_retrieval"] = RERANKED
ABLATIONS = ("without_indexing", "without_titles")
_PASSAGES = ("hits@1", "hits@5", "mrr@5")
_DOCUMENTS = ("document_recall@1", "document_recall@10", "document_mrr@100")
COLUMNS = ("n", *_PASSAGES, *_DOCUMENTS, "exact_match", "f1", "seconds_per_question")
EPOCHS = "Development questions after each epoch"
# What the questions that are asked after each epoch are rated by.
VALIDATED = (*_PASSAGES, "document_recall@1")
# The scores that the report compares question by question.
COMPARED = ("hits@1", "mrr@5", "exact_match")
# ir_measures' names of the numbers that rate a ranking.
MEASURES = {"hits@1": "Success@1", "hits@5": "Success@5", "mrr@5": "RR@5"}
_DEPTH = 100
_TOGETHER = 16  # questions of a piece on disk


def describe_report(config: SelfRetrievalConfig, *, trained: bool = True) -> ReportSpec:
    """What the report shows: a row for each retriever and each ablation.

    Without the tuned encoder for models as loaded, not `trained`.
    """
    names = [name for name in METHODS if trained or name != "dense_tuned"]
    if config.retrieve.rerank.name is not None:
        shown = ([name, RERANKINGS.get(name)] for name in names)
        names = [name for own in shown for name in own if name is not None]
    methods = dict.fromkeys((*names, *ABLATIONS) if config.ablations else names, "evaluate")
    summarize = partial(summarize_answers, names=COLUMNS[1:-1], main="hits@1")
    paired = "self_retrieval", {name: name for name in COMPARED}
    model = name_model(config.model.name, trained)
    make_tables = partial(_make_tables, validated=config.validation)
    return ReportSpec(model, methods, COLUMNS, summarize, *paired, make_tables)


def _make_tables(context: StageContext, *_: Any, validated: int) -> dict[str, Any]:
    tables = tabulate_words(context, "evaluate")
    if validated:
        tables |= {EPOCHS: _tabulate_epochs(context)}
    return {"tables": tables}


def _tabulate_epochs(context: StageContext) -> list[list[str | float]]:
    """What the logs of the full model's trainings say of each epoch, as rows with a heading."""
    rows: list[list[str | float]] = [["training", "epoch", *VALIDATED]]
    for stage in filter(context.needs, ("indexing", "train")):
        log = read_jsonl(context.path(stage, "log.jsonl"))
        ends = [line for line in log if VALIDATED[0] in line]
        rows += [
            [stage, str(epoch), *(line[name] for name in VALIDATED)]
            for epoch, line in enumerate(ends, start=1)
        ]
    return rows


def rank(groups: Sequence[Sequence[Candidate]], scores: Sequence[Sequence[float]]) -> Ranked:
    """Passages by score; passages with equal texts share one."""
    pairs = [
        (row, value)
        for group, values in zip(groups, scores, strict=True)
        for candidate, value in zip(group, values, strict=True)
        for row in candidate.rows
    ]
    return sorted(pairs, key=lambda pair: -pair[1])


def run_evaluation(
    context: StageContext,
    *,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    open_engine: Callable[..., Engine],
    load_encoders: Callable[[Path | None], Encoders],
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    encode_queries: Callable[..., Float[np.ndarray, "N E"]],
    encoding: EncoderConfig,
    search: SearchConfig,
    bm25: BM25Config,
    reranking: Reranking | None,
    ablations: bool,
) -> None:
    """Ranks and answers by every method; the trained model answers from the first passage.

    A reranker orders anew what the other retrievers find, and what the trained model writes: there
    its order takes the place of the model's own assessment.

    In a stage that does not need "train" and "dense_tuned", models are as loaded.
    """
    asked = [question.question for question in questions]
    engine = open_engine(context, "train")
    # Questions of all engines have one width, so that every program is compiled once.
    width = max(len(engine.format.encode_question(question)) for question in asked)
    engine = replace(engine, width=width)
    rankings = _rank_by_others(
        context,
        passages,
        asked,
        load_encoders,
        encode_passages,
        encode_queries,
        encoding,
        bm25,
    )
    found = _retrieve(context, engine, asked, "self_retrieval")
    candidates = [_read_groups(record) for record in found]
    rankings["without_assessment"] = [rank(g, score_unassessed(g, search)) for g in candidates]
    order = partial(order_found, questions, passages=passages, depth=_DEPTH)
    rankings = {name: order(ranked) for name, ranked in rankings.items()}
    # Other retrievers' searches are not timed.
    seconds = dict.fromkeys(rankings, [0.0] * len(asked))
    seconds["without_assessment"] = [record["seconds"] for record in found]
    methods = {"self_retrieval": _score_found(found, search, order)}
    ranks = dict.fromkeys(rankings, [{}] * len(asked))
    if reranking is not None:
        first = {name: rankings[name] for name in rankings if name in RERANKINGS}
        first["self_retrieval"] = [record["ranked"] for record in methods["self_retrieval"]]
        spent = seconds | {"self_retrieval": seconds["without_assessment"]}
        for name, ranked in first.items():
            row = RERANKINGS[name]
            read = rerank_found(context, name, reranking, asked, ranked, passages)
            rankings[row] = order([reranked for reranked, _ in read])
            ranks[row] = rank_anew(ranked, rankings[row])
            seconds[row] = [s + own for s, (_, own) in zip(spent[name], read, strict=True)]
    answers = _answer_first(context, engine, asked, rankings)

    def list_answers(name: str) -> list[Record]:
        nothing = {"answer": "", "seconds": 0.0}  # no passage to answer from
        firsts = [
            answers[i, ranked[0][0]] if ranked else nothing
            for i, ranked in enumerate(rankings[name])
        ]
        columns = zip(rankings[name], firsts, seconds[name], ranks[name], strict=True)
        return [
            {"ranked": r, "prediction": first["answer"], "seconds": s + first["seconds"], **more}
            for r, first, s, more in columns
        ]

    for name, titled in zip(ABLATIONS, (True, False), strict=True) if ablations else ():
        variant = replace(open_engine(context, name, titled=titled), width=width)
        methods[name] = _score_found(_retrieve(context, variant, asked, name), search, order)
    methods |= {name: list_answers(name) for name in rankings}
    named = [
        Method(name, lambda r=records: r, partial(_name_passages, records, passages), MEASURES)
        for name, records in methods.items()
    ]
    known = {"passages": passages, "titles": find_titles(questions, passages)}
    compare(named, questions, partial(grade, **known), context.folder)


def find_titles(questions: Sequence[Question], passages: Sequence[Passage]) -> dict[str, str]:
    """The titles of the relevant passages, by id, found in one pass through the corpus."""
    wanted = {id for question in questions for id in question.relevant}
    return {passage.id: passage.title for passage in passages if passage.id in wanted}


def grade(
    question: Question, record: Record, *, passages: Sequence[Passage], titles: Mapping[str, str]
) -> Record:
    """One question's record.

    A passage is a hit if it is relevant. A document, which is all passages of one title, ranks by
    its best passage and is relevant if one of its passages is. A relevant passage that is not in
    the corpus is a document of its own, which is not found.

    Args:
        record: "ranked", rows and scores; "prediction" and "seconds"; "ranks" if reranked.
        titles: of the relevant passages, by id.
    """
    ranked, prediction = record["ranked"], record["prediction"]
    found = [passages[row] for row, _ in ranked]
    ids, ranked_titles = [p.id for p in found], list(dict.fromkeys(p.title for p in found))
    documents = dict.fromkeys((titles.get(id, id) for id in question.relevant), 1)
    shown = [{"id": id, "score": s} for id, (_, s) in zip(ids[:10], ranked, strict=False)]
    return describe_question(question) | {
        "prediction": prediction,
        "hits@1": float(bool(ids) and ids[0] in question.relevant),
        "hits@5": float(any(id in question.relevant for id in ids[:5])),
        "mrr@5": reciprocal_rank(ids[:5], question.relevant),
        "document_recall@1": recall(ranked_titles, documents, 1),
        "document_recall@10": recall(ranked_titles, documents, 10),
        "document_mrr@100": reciprocal_rank(ranked_titles[:100], documents),
        "exact_match": exact_match(prediction, question.answers),
        "f1": f1(prediction, question.answers),
        "passages": add_ranks(shown, record),
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
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    encode_queries: Callable[..., Float[np.ndarray, "N E"]],
    encoding: EncoderConfig,
    bm25: BM25Config,
) -> dict[str, list[Ranked]]:
    """The rankings by BM25 and by the dense encoder, before training and, if trained, after."""
    depth = min(_DEPTH + 1, len(passages))  # one of them may be the question itself
    found = {"bm25": build_words(context, passages, bm25).search(asked, depth)}
    folders: dict[str, Path | None] = {"dense": None}
    if context.needs("dense_tuned"):
        folders["dense_tuned"] = context.path("dense_tuned", "encoder")
    for name, folder in folders.items():
        encoder = load_encoders(folder).passage
        with embedding(context, encode_passages, encoding, file=f"{name}.npy") as embed:
            made_by = {"backend": "exact", "encoder": encoder.fingerprint}
            index = Index.build(embed(encoder, passages), **made_by)
            found[name] = index.search(encode_queries(encoder, asked), depth)
    return {name: list_ranked(*ranking) for name, ranking in found.items()}


def _retrieve(
    context: StageContext, engine: Engine, asked: Sequence[str], name: str
) -> list[Record]:
    """For each question the candidates in groups by title, the answer and the seconds."""

    def run(batch: Sequence[str]) -> list[Record]:
        return [{"groups": groups, "answer": own.text} for groups, own in engine.retrieve(batch)]

    return answer_timed(context, name, asked, run, batch_size=_TOGETHER, file="found")


def _read_groups(record: Record) -> list[list[Candidate]]:
    return [[Candidate(*candidate) for candidate in group] for group in record["groups"]]


def _score_found(
    found: Sequence[Record],
    search: SearchConfig,
    order: Callable[[Sequence[Ranked]], list[Ranked]],
) -> list[Record]:
    """The records of a method that retrieves, assesses and answers."""
    ranked = order([rank(groups, score(groups, search)) for groups in map(_read_groups, found)])
    return [
        {"ranked": r, "prediction": record["answer"], "seconds": record["seconds"]}
        for r, record in zip(ranked, found, strict=True)
    ]


def _answer_first(
    context: StageContext,
    engine: Engine,
    asked: Sequence[str],
    rankings: Mapping[str, Sequence[Ranked]],
) -> dict[tuple[int, int], Record]:
    """Answers by the question's number and the first passage's row, which methods may share."""
    pairs = sorted(
        {(i, found[0][0]) for rows in rankings.values() for i, found in enumerate(rows) if found}
    )

    def run(batch: Sequence[tuple[int, int]]) -> list[Record]:
        rows = [row for _, row in batch]
        return [{"answer": own.text} for own in engine.answer([asked[i] for i, _ in batch], rows)]

    records = context.map("answers.jsonl", pairs, timed(run), batch_size=_TOGETHER, unit="answers")
    return dict(zip(pairs, records, strict=True))
