"""The comparison: every way of answering, and every retriever, on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import bleu_1, distinct_ngrams, exact_match, f1, rouge_l
from rag_jax.evaluation.compare import Method, Record, compare, describe_question, summarize_answers
from rag_jax.evaluation.questions import q_bleu_1
from rag_jax.evaluation.rankings import answer_hits
from rag_jax.models import Pretrained
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.runtime.files import read_json
from rag_jax.systems.evaluation import name_model
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import Format, PassageText, pick_passages
from rag_jax.systems.rag.infer import Engine, Way
from rag_jax.systems.rag.rankings import Ranking, rank_by_words, reorder
from rag_jax.systems.reranking import RERANKED, Reranking, add_ranks, rank_anew, rerank_found
from rag_jax.systems.stages import answer_timed, list_ranked
from rag_jax.systems.words import build_words, tabulate_words

# The scores of answers by task; the first one has the interval.
SCORES = {
    "qa": ("exact_match", "f1"),
    "classification": ("accuracy",),
    "generation": ("rouge_l", "bleu_1", "q_bleu_1", "distinct_trigrams"),
}
# Of all answers of a method together; no single question has them.
_JOINT_SCORES = ("bleu_1", "distinct_trigrams")
# The generators that are trained for what they read (Lewis et al. 2020, section 4.5).
ABLATIONS = ("closed_book", "bm25")
_HITS = (1, 5)  # depths of the hits in the report, besides K
_TOGETHER = 32  # questions of a piece on disk


class Reading(NamedTuple):
    """Whose generator reads whose passages, and the names of the methods by way of decoding.

    Attributes:
        trained: stage that trained the generator.
        found: name of the ranking that is read; None to read none.
    """

    trained: str
    found: str | None
    ways: dict[Way, str]


def describe_report(config: RAGConfig, *, trained: bool = True) -> ReportSpec:
    """What the report shows: a row for each way of answering and each retriever.

    Without "frozen" for models as loaded, not `trained`: a generator that was trained alone.
    """
    task, main, k = config.task, choose_way(config), config.passages_read
    labelled = task == "classification"
    hits = [f"answer@{k}" for k in sorted({*_HITS, k})] if task == "qa" else []

    def make_tables(context: StageContext, predictions: Mapping[str, Any], *_: Any) -> Any:
        tables: dict[str, Any] = {}
        analysis: dict[str, Any] = {}
        if task == "generation":
            answers = [record["answers"][0] for record in next(iter(predictions.values()))]
            share = distinct_ngrams(answers, 3)
            shown = "none" if share is None else share
            tables["distinct tri-grams of the data"] = [["texts", "share"], ["answers", shown]]
        if config.decode.curve:
            title = f"{SCORES[task][0].replace('_', ' ')} by the number of passages read"
            tables[title] = read_json(context.path("curve", "curve.json"))
        if config.ranked_questions:
            found = read_json(context.path("hits", "hits.json"))
            tables |= found["tables"]
            analysis["hits"] = found["paired"]
        if config.data.path is None:
            title = "exact match on the facts that the world's other revision changed"
            tables[title] = read_json(context.path("memory", "memory.json"))
        return {"tables": tables | tabulate_words(context, "evaluate"), "analysis": analysis}

    columns = ("n", *SCORES[task], *hits, "seconds_per_question")
    model, readings = name_model(config.generator.name, trained), list_readings(config)
    readings = [reading for reading in readings if trained or reading.trained == "joint"]
    methods = dict.fromkeys(list_names(readings), "evaluate")
    if config.ablations:
        methods |= dict.fromkeys(ABLATIONS, "compare")
    numbers, reference = partial(summarize, task=task), "joint" if labelled else main
    paired = reference, {name: name for name in SCORES[task] if name not in _JOINT_SCORES}
    return ReportSpec(model, methods, columns, numbers, *paired, make_tables)


def summarize(rows: Sequence[Record], task: str) -> dict[str, Any]:
    """A method's numbers over its questions."""
    names = [name for name in rows[0] if name in SCORES[task] or name.startswith("answer@")]
    if task != "generation":
        return summarize_answers(rows, names, main=SCORES[task][0])
    answers = [row["answers"] for row in rows]
    written = [row["prediction"] for row in rows]
    numbers = summarize_answers(rows, names, main=None) | {"bleu_1": bleu_1(written, answers)}
    distinct = distinct_ngrams(written, 3)
    return numbers if distinct is None else numbers | {"distinct_trigrams": distinct}


def choose_way(config: RAGConfig) -> Way:
    """The way of answering of methods that answer in one way: as the generator was trained."""
    return "token" if config.marginal == "token" else "thorough"


def list_readings(config: RAGConfig) -> list[Reading]:
    """The readings of a run; `shared` ones are of the generator of the reading "joint"."""
    task, main = config.task, choose_way(config)
    every: dict[Way, str] = {way: way for way in ("token", "fast", "thorough")}
    # In a classification the labels are scored, so the ways of decoding do not differ.
    readings = [
        Reading("joint", None, {"fast": "shared_closed_book"}),
        Reading("joint", "bm25", {main: "shared_bm25"}),
        Reading("frozen", "frozen", {main: "frozen"}),
        Reading("joint", "joint", {main: "joint"} if task == "classification" else every),
    ]
    if config.retrieve.rerank.name is not None:
        readings.append(Reading("joint", RERANKED, {main: RERANKED}))
    return readings


def list_names(readings: Sequence[Reading]) -> list[str]:
    """The names of the methods of some readings."""
    return [name for reading in readings for name in reading.ways.values()]


def choose_depth(config: RAGConfig, size: int) -> int:
    """Number of passages that are ranked, of `size`: enough for the hits and to be read."""
    return min(max(*_HITS, config.passages_read), size)


def run_evaluation(
    context: StageContext,
    *,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    labels: Sequence[str],
    load_trained: Callable[[StageContext, str], PyTree],
    make_engine: Callable[[PyTree], Engine],
    load_index: Callable[[Path], Index],
    open_final_index: Callable[[StageContext, PyTree], tuple[Index, Pretrained]],
    encode_questions: Callable[..., Float[np.ndarray, "N E"]],
    reranking: Reranking | None,
    config: RAGConfig,
) -> None:
    """Answers every question in every way.

    `frozen` is the generator trained with the retriever as it was. All other methods use the
    generator trained together with the question's encoder: `shared_closed_book` without passages,
    `shared_bm25` with BM25's passages and scores, and the last three with the trained encoder's
    passages. In a stage that needs no training, all of them are as loaded.

    `reranked` reads those of the trained encoder's passages that a reranker puts first, with
    `p(z|x)` as the encoder has it.
    """
    asked = [question.question for question in questions]
    depth = choose_depth(config, len(passages))
    deep = depth if reranking is None else reranking.count(depth, len(passages))
    trained = {name: load_trained(context, name) for name in ("frozen", "joint")}
    open_index = partial(open_final_index, context, trained["joint"])
    options = {"load_index": load_index, "open_final_index": open_index, "config": config}
    options |= {"encode_questions": encode_questions, "depth": depth, "deep": deep}
    rankings = rank_all(context, asked, passages, trained, **options)
    joint = rankings["joint"]
    rankings["joint"] = Ranking(joint.scores[:, :depth], joint.rows[:, :depth])
    facts: dict[str, list[Record]] = {}
    if reranking is not None:
        found = list_ranked(*joint)
        read = rerank_found(context, "joint", reranking, asked, found, passages)
        first = [ranked[:depth] for ranked, _ in read]
        rankings[RERANKED] = reorder(found, first)
        seconds = [{"seconds": seconds} for _, seconds in read]
        pairs = zip(rank_anew(found, first), seconds, strict=True)
        facts[RERANKED] = [ranks | spent for ranks, spent in pairs]
    engines = {name: make_engine(params["generator"]) for name, params in trained.items()}
    shared = {"passages": passages, "labels": labels, "config": config}
    readings = list_readings(config)
    compare_readings(context, readings, engines, rankings, questions, **shared, facts=facts)


def rank_all(
    context: StageContext,
    asked: Sequence[str],
    passages: Sequence[Passage],
    trained: Mapping[str, PyTree],
    *,
    load_index: Callable[[Path], Index],
    open_final_index: Callable[[], tuple[Index, Pretrained]],
    encode_questions: Callable[..., Float[np.ndarray, "N E"]],
    config: RAGConfig,
    depth: int,
    deep: int | None = None,
) -> dict[str, Ranking]:
    """The passages that BM25, the retriever as it was and the trained one find for questions.

    Args:
        trained: the parameters of the stages "frozen" and "joint".
        depth: number of passages of a question.
        deep: number of the trained retriever's passages, if it is another.
    """

    def search(index: Index, name: str, depth: int) -> Ranking:
        scores, rows = index.search(encode_questions(trained[name]["query"], asked), depth)
        return Ranking(config.retriever.scale * scores, rows)

    words = build_words(context, passages, config.bm25)
    return {
        "bm25": rank_by_words(words, asked, depth),
        "frozen": search(load_index(context.path("index", "index")), "frozen", depth),
        "joint": search(open_final_index()[0], "joint", deep or depth),
    }


def compare_readings(
    context: StageContext,
    readings: Sequence[Reading],
    engines: Mapping[str, Engine],
    rankings: Mapping[str, Ranking],
    questions: Sequence[Question],
    *,
    passages: Sequence[Passage],
    labels: Sequence[str],
    config: RAGConfig,
    facts: Mapping[str, Sequence[Record]] | None = None,
) -> None:
    """Answers and grades the questions by every reading's methods, a file each.

    Args:
        engines: by the name of the stage that trained the generator.
        facts: for rankings that were reranked each question's `ranks` and `seconds`, by name.
    """
    asked, k, methods = [question.question for question in questions], config.passages_read, []
    for name, ranking, ways in readings:
        found = rankings[ranking] if ranking else None
        options = {"k": k, "labels": labels}
        answers = answer_all(context, engines[name], asked, passages, found, ways, **options)
        ranked = list_ranked(*found) if found else [None] * len(asked)
        counts = count_prompts(engines[name].format, asked, passages, found, k)
        more = (facts or {}).get(ranking, [{}] * len(asked))
        for way, method in ways.items():
            records = [
                {
                    "prediction": answer["answers"][way],
                    **own,
                    "seconds": answer["seconds"] + own.get("seconds", 0.0),
                    "prompt_tokens": tokens,
                    "found": pairs and [(passages[row], score) for row, score in pairs if row >= 0],
                }
                for answer, pairs, tokens, own in zip(answers, ranked, counts, more, strict=True)
            ]
            methods.append(Method(method, lambda r=records: r))
    compare(methods, questions, partial(grade, task=config.task, k=k), context.folder)


def count_prompts(
    format: Format,
    asked: Sequence[str],
    passages: Sequence[Passage],
    found: Ranking | None,
    k: int,
) -> list[int]:
    """The number of tokens that the generator reads for each question: of all K inputs.

    Args:
        found: the passages of each question; None to read none.
    """
    read: Sequence[Sequence[PassageText | None]] = [[None]] * len(asked)
    if found is not None:
        read = pick_passages(passages, found.rows[:, :k])
    return [
        sum(len(format.encode_input(question, passage)[0]) for passage in own)
        for question, own in zip(asked, read, strict=True)
    ]


def answer_all(
    context: StageContext,
    engine: Engine,
    asked: Sequence[str],
    passages: Sequence[Passage],
    found: Ranking | None,
    ways: dict[Way, str],
    *,
    k: int,
    labels: Sequence[str] = (),
) -> list[Record]:
    """For each question its answer in every way, and the seconds of all ways together.

    Args:
        found: the passages of each question; None to read none.
        ways: names of methods by way of decoding.
    """

    def run(batch: Sequence[int]) -> list[Record]:
        read, scores = [[None]] * len(batch), np.zeros((len(batch), 1), np.float32)
        if found is not None:
            read, scores = pick_passages(passages, found.rows[batch, :k]), found.scores[batch, :k]
        questions = [asked[i] for i in batch]
        if labels:
            best = engine.classify(questions, read, scores, labels).argmax(axis=1).tolist()
            given = {way: [labels[i] for i in best] for way in ways}
        else:
            answers = engine.answer(questions, read, scores, ways=list(ways))
            given = {way: [best[0][0] for best in rows] for way, rows in answers.items()}
        return [{"answers": {way: given[way][b] for way in ways}} for b in range(len(batch))]

    name, places = "-".join(ways.values()), range(len(asked))
    return answer_timed(context, name, places, run, batch_size=_TOGETHER)


def grade(question: Question, record: Record, *, task: str, k: int) -> Record:
    """One question's record; hits are DPR's, whether a passage's text has an answer.

    Args:
        record: "prediction", "seconds", "prompt_tokens", "found": the passages found with their
            scores, or None; and "ranks" if they were reranked.
    """
    prediction, found = record["prediction"], record["found"]
    graded = describe_question(question) | {"prediction": prediction}
    graded |= {name: record[name] for name in ("seconds", "prompt_tokens")}
    graded |= score_answer(question, prediction, task)
    if found is None:
        return graded
    if task == "qa":
        texts = [passage.text for passage, _ in found]
        graded |= answer_hits(texts, question.spoken_answers, sorted({*_HITS, k}))
    read = [{"id": p.id, "score": score} for p, score in found[:k]]
    return graded | {"passages": add_ranks(read, record)}


def score_answer(question: Question, prediction: str, task: str) -> dict[str, float]:
    """The scores of one answer by the task's metrics that a single question has."""
    answers = question.answers
    if task == "generation":
        return {"rouge_l": rouge_l(prediction, answers), "q_bleu_1": q_bleu_1(prediction, answers)}
    if task == "classification":
        return {"accuracy": exact_match(prediction, answers)}
    return {"exact_match": exact_match(prediction, answers), "f1": f1(prediction, answers)}
