"""The comparison of rankings: by BM25, by the encoders before training and by the trained ones."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Method, Record, compare, describe_question, mean_numbers
from rag_jax.evaluation.rankings import (
    answer_hits,
    ndcg,
    rank_hits,
    recall,
    reciprocal_rank,
)
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.runtime.files import read_jsonl
from rag_jax.search_config import BM25Config
from rag_jax.systems.dpr.config import DPRConfig
from rag_jax.systems.dpr.infer import Ranking, rank_passages
from rag_jax.systems.evaluation import name_model
from rag_jax.systems.reranking import RERANKED, Reranking, add_ranks, rank_anew, rerank_found
from rag_jax.systems.stages import list_ranked, order_found
from rag_jax.systems.words import build_words, tabulate_words

METHODS = ("bm25", "untrained", "trained")
DEPTHS = (1, 5, 20)
RECALL_DEPTH, NDCG_DEPTH = 100, 10
_HITS = [f"{name}@{k}" for name in ("answer", "passage") for k in DEPTHS]
get_id = attrgetter("id")
COLUMNS = ("n", *_HITS, "mrr", f"ndcg@{NDCG_DEPTH}", f"recall@{RECALL_DEPTH}")
# The scores that the report compares question by question.
COMPARED = {name: name for name in ("answer@1", "answer@20", "mrr", f"ndcg@{NDCG_DEPTH}")}
# ir_measures' names of the numbers that rate a ranking.
MEASURES = {f"passage@{k}": f"Success@{k}" for k in DEPTHS} | {
    "mrr": "RR",
    f"ndcg@{NDCG_DEPTH}": f"nDCG@{NDCG_DEPTH}",
    f"recall@{RECALL_DEPTH}": f"R@{RECALL_DEPTH}",
}
_SHOWN = 5  # passages of a ranking that a record names


def describe_report(config: DPRConfig, *, trained: bool = True) -> ReportSpec:
    """What the report shows: a row for each ranking, with one of `trained` encoders."""
    names = METHODS if trained else METHODS[:-1]
    rows = [*names, *[RERANKED] * (config.retrieve.rerank.name is not None)]
    model, methods = name_model(config.encoder.name, trained), dict.fromkeys(rows, "evaluate")
    shown = model, methods, COLUMNS, summarize, names[-1], COMPARED

    def make_tables(context: StageContext, *_: Any) -> dict[str, Any]:
        tables = tabulate_words(context, "evaluate")
        if config.validation.after is None or not trained:
            return {"tables": tables}
        found = read_jsonl(context.path("train", "validation.jsonl"))
        rows = [[str(record["epoch"]), record["average_rank"]] for record in found]
        title = "average rank of a dev question's passage; the smallest one's epoch is kept"
        return {"tables": {title: [["epoch", "average rank"], *rows], **tables}}

    return ReportSpec(*shown, make_tables)


def summarize(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The number of questions, and each metric's mean over the questions that have it."""
    return {"n": len(records), **mean_numbers(records, COLUMNS[1:])}


def run_evaluation(
    context: StageContext,
    *,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    untrained: Encoders,
    load_trained: Callable[..., Encoders],
    encode: Callable[..., Float[np.ndarray, "N E"]],
    bm25: BM25Config,
    depth: int,
    reranking: Reranking | None,
) -> None:
    """Ranks passages for every question by BM25 and by both pairs of encoders.

    A stage that does not need "train" has no trained pair. A reranker orders anew what the last
    pair finds.
    """
    wide = min(depth + 1, len(passages))  # one of them may be the question itself
    asked = [question.question for question in questions]

    def rank(encoders: Encoders, stage: str) -> Ranking:
        encoder = encoders.passage.fingerprint
        index = Index.load(context.path(stage, "index"), encoder=encoder)
        return rank_passages(encoders, index, questions, encode, depth=wide)

    rankings = {
        "bm25": build_words(context, passages, bm25).search(asked, wide),
        "untrained": rank(untrained, "untrained"),
    }
    if context.needs("train"):
        rankings["trained"] = rank(load_trained(context.path("train", "")), "trained")
    order = partial(order_found, questions, passages=passages, depth=depth)
    found = {name: order(list_ranked(*ranking)) for name, ranking in rankings.items()}
    ranks = dict.fromkeys(found, [{}] * len(asked))
    if reranking is not None:
        name = list(found)[-1]
        read = rerank_found(context, name, reranking, asked, found[name], passages)
        found[RERANKED] = order([ranked for ranked, _ in read])
        ranks[RERANKED] = rank_anew(found[name], found[RERANKED])
    methods = []
    for name, rows in found.items():
        hits = [[(passages[row], score) for row, score in own] for own in rows]
        records = [{"found": own} | more for own, more in zip(hits, ranks[name], strict=True)]
        ranked = [[(passage.id, score) for passage, score in own] for own in hits]
        methods.append(Method(name, lambda r=records: r, lambda r=ranked: r, MEASURES))
    compare(methods, questions, score_ranking, context.folder)


def score_ranking(question: Question, record: Record) -> Record:
    """One question's record: the first passages, and every metric that the question's data allow.

    `answer@k` is DPR's accuracy, whether the text of one of the first k passages has an answer;
    `passage@k` is whether one of them is relevant.

    Args:
        record: "found", the passages and their scores, best first; "ranks" if they were reranked.
    """
    found = rank_hits(question, record["found"], get_id)
    ids = [passage.id for passage, _ in found]
    shown = [{"id": p.id, "title": p.title, "text": p.text, "score": s} for p, s in found[:_SHOWN]]
    record = describe_question(question) | {
        "relevant": question.relevant,
        "passages": add_ranks(shown, record),
    }
    if question.answers:
        record |= answer_hits([p.text for p, _ in found], question.spoken_answers, DEPTHS)
    if question.relevant:
        hits = [id in question.relevant for id in ids]
        record |= {f"passage@{k}": float(any(hits[:k])) for k in DEPTHS}
        record["mrr"] = reciprocal_rank(ids, question.relevant)
        record[f"ndcg@{NDCG_DEPTH}"] = ndcg(ids, question.relevant, NDCG_DEPTH)
        record[f"recall@{RECALL_DEPTH}"] = recall(ids, question.relevant, RECALL_DEPTH)
    return record
