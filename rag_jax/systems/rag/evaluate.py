"""The comparison: every way of answering, and every retriever, on the same questions."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import bleu_1, exact_match, f1, rouge_l
from rag_jax.evaluation.compare import Method, Record, compare, describe_question, summarize_answers
from rag_jax.evaluation.rankings import answer_hits
from rag_jax.models import Pretrained
from rag_jax.models.nn.layers import MASKED
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import BM25, Index, make_text
from rag_jax.runtime.files import read_json
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import pick_passages
from rag_jax.systems.rag.infer import Engine, Way
from rag_jax.systems.stages import answer_timed, list_ranked

# The scores of answers by task; the first one has the interval.
SCORES = {
    "qa": ("exact_match", "f1"),
    "classification": ("accuracy",),
    "generation": ("rouge_l", "bleu_1"),
}
_HITS = (1, 5)  # depths of the hits in the report, besides K
_TOGETHER = 32  # questions of a piece on disk


class Ranking(NamedTuple):
    """The passages found for every question, best first, and their logits of `p(z|x)`.

    Places without a passage have row -1.
    """

    scores: Float[np.ndarray, "N k"]
    rows: Int[np.ndarray, "N k"]


def describe_report(config: RAGConfig) -> ReportSpec:
    """What the report shows: a row for each way of answering and each retriever."""
    task, k = config.task, config.passages
    names = [name for *_, ways in _list_readings(task, "fast") for name in ways.values()]
    hits = [f"answer@{k}" for k in sorted({*_HITS, k})] if task == "qa" else []

    def make_tables(stages: Path, *_: Any) -> dict[str, Any]:
        if config.data.path is not None:
            return {}
        title = "exact match on the facts that the world's other revision changed"
        return {"tables": {title: read_json(stages / "memory" / "memory.json")}}

    columns = ("n", *SCORES[task], *hits, "seconds_per_question")
    methods, numbers = dict.fromkeys(names, "evaluate"), partial(summarize, task=task)
    reference = "joint" if task == "classification" else choose_way(config)
    # BLEU is of all answers together and has no question's score.
    paired = reference, {name: name for name in SCORES[task] if name != "bleu_1"}
    return ReportSpec(config.generator.name, methods, columns, numbers, *paired, make_tables)


def summarize(rows: Sequence[Record], task: str) -> dict[str, Any]:
    """A method's numbers over its questions."""
    names = [name for name in rows[0] if name in SCORES[task] or name.startswith("answer@")]
    if task != "generation":
        return summarize_answers(rows, names, main=SCORES[task][0])
    answers = [row["answers"] for row in rows]
    bleu = bleu_1([row["prediction"] for row in rows], answers)
    return summarize_answers(rows, names, main=None) | {"bleu_1": bleu}


def pad_hits(
    scores: Sequence[Float[np.ndarray, "n"]], rows: Sequence[Int[np.ndarray, "n"]], k: int
) -> Ranking:
    """A ranking of exactly `k` places from at most `k` hits for each question.

    Places without a hit have no probability; where nothing was found, the first place has all of
    it, and the question is answered without a passage.
    """
    ranking = Ranking(
        np.full((len(rows), k), MASKED, np.float32), np.full((len(rows), k), -1, np.int32)
    )
    for i, (found, worth) in enumerate(zip(rows, scores, strict=True)):
        ranking.rows[i, : len(found)], ranking.scores[i, : len(found)] = found, worth
        if not len(found):
            ranking.scores[i, 0] = 0
    return ranking


def choose_way(config: RAGConfig) -> Way:
    """The way of answering of methods that answer in one way: as the generator was trained."""
    return "token" if config.marginal == "token" else "thorough"


def _list_readings(task: str, main: Way) -> list[tuple[str, str | None, dict[Way, str]]]:
    """Whose generator reads whose passages, and the names of the methods by way of decoding."""
    every: dict[Way, str] = {way: way for way in ("token", "fast", "thorough")}
    # In a classification the labels are scored, so the ways of decoding do not differ.
    return [
        ("joint", None, {"fast": "closed_book"}),
        ("joint", "bm25", {main: "bm25"}),
        ("frozen", "frozen", {main: "frozen"}),
        ("joint", "joint", {main: "joint"} if task == "classification" else every),
    ]


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
    config: RAGConfig,
) -> None:
    """Answers every question in every way.

    `frozen` is the generator trained with the retriever as it was. All other methods use the
    generator trained together with the question's encoder: `closed_book` without passages, `bm25`
    with BM25's passages and scores as the logits of `p(z|x)` (Lewis et al. 2020, section 4.5), and
    the last three with the trained encoder's passages.
    """
    asked, k = [question.question for question in questions], config.passages
    depth = min(max(*_HITS, k), len(passages))
    trained = {name: load_trained(context, name) for name in ("frozen", "joint")}

    def search(index: Index, name: str) -> Ranking:
        scores, rows = index.search(encode_questions(trained[name]["query"], asked), depth)
        return Ranking(config.retriever.scale * scores, rows)

    final, _ = open_final_index(context, trained["joint"])
    rankings = {
        None: None,
        "bm25": pad_hits(*BM25.build(map(make_text, passages)).search(asked, depth), depth),
        "frozen": search(load_index(context.path("index", "index")), "frozen"),
        "joint": search(final, "joint"),
    }
    methods = []
    for name, ranking, ways in _list_readings(config.task, choose_way(config)):
        engine, found = make_engine(trained[name]["generator"]), rankings[ranking]
        answers = answer_all(context, engine, asked, passages, found, ways, k=k, labels=labels)
        ranked = list_ranked(*found) if found else [None] * len(asked)
        for way, method in ways.items():
            records = [
                {
                    "prediction": answer["answers"][way],
                    "seconds": answer["seconds"],
                    "found": pairs and [(passages[row], score) for row, score in pairs if row >= 0],
                }
                for answer, pairs in zip(answers, ranked, strict=True)
            ]
            methods.append(Method(method, lambda r=records: r))
    compare(methods, questions, partial(grade, task=config.task, k=k), context.folder)


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
        record: "prediction", "seconds", and "found": the passages found with their scores, or None.
    """
    prediction, answers, found = record["prediction"], question.answers, record["found"]
    seconds = record["seconds"]
    graded = describe_question(question) | {"prediction": prediction, "seconds": seconds}
    if task == "generation":
        graded["rouge_l"] = rouge_l(prediction, answers)
    elif task == "classification":
        graded["accuracy"] = exact_match(prediction, answers)
    else:
        graded["exact_match"] = exact_match(prediction, answers)
        graded["f1"] = f1(prediction, answers)
    if found is None:
        return graded
    if task == "qa":
        graded |= answer_hits([p.text for p, _ in found], answers, sorted({*_HITS, k}))
    return graded | {"passages": [{"id": p.id, "score": score} for p, score in found[:k]]}
