"""The comparison: every way of answering, and every retriever, on the same questions."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.decoding.beams import BeamConfig
from rag_jax.evaluation.answers import bleu_1, compute_accuracy, exact_match, f1, rouge_l
from rag_jax.evaluation.compare import Method, Record, compare, mean_numbers, timed
from rag_jax.evaluation.rankings import answer_hits
from rag_jax.models import Pretrained
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import BM25, Index, make_text
from rag_jax.runtime.files import read_json
from rag_jax.systems.rag.config import DecodeConfig, RAGConfig, RetrieverConfig
from rag_jax.systems.rag.data import Format, pick_passages
from rag_jax.systems.rag.infer import Engine, Way
from rag_jax.systems.rag.lookup import load_refreshed
from rag_jax.training.trainable import Trainable

# The scores of answers by task; the first one has the interval.
SCORES = {
    "qa": ("exact_match", "f1"),
    "classification": ("accuracy",),
    "generation": ("rouge_l", "bleu_1"),
}
_HITS = (1, 5)  # depths of the hits in the report, besides K
_TOGETHER = 32  # questions of a piece on disk


class Ranking(NamedTuple):
    """The passages found for every question, best first, and their logits of `p(z|x)`."""

    scores: Float[np.ndarray, "N k"]
    rows: Int[np.ndarray, "N k"]


def describe_report(config: RAGConfig) -> ReportSpec:
    """What the report shows: a row for each way of answering and each retriever."""
    task, k = config.task, config.passages
    methods = [m for *_, ways in _list_readings(task, "fast") for m in ways.values()]
    hits = [f"answer@{k}" for k in sorted({*_HITS, k})] if task == "qa" else []

    def make_tables(stages: Path, *_: Any) -> dict[str, Any]:
        path = stages / "memory" / "memory.json"
        if config.data.path is not None:
            return {}
        title = "exact match on the facts that the world's other revision changed"
        return {"tables": {title: read_json(path)}}

    return ReportSpec(
        model=config.generator.name,
        methods=dict.fromkeys(methods, "evaluate"),
        columns=("n", *SCORES[task], *hits, "seconds_per_question"),
        summarize=partial(summarize, task=task),
        extras=make_tables,
    )


def summarize(rows: Sequence[Record], task: str) -> dict[str, Any]:
    """A method's numbers over its questions."""
    numbers: dict[str, Any] = {"n": len(rows)}
    if task == "generation":
        answers = [row["answers"] for row in rows]
        numbers["bleu_1"] = bleu_1([row["prediction"] for row in rows], answers)
    else:
        main = SCORES[task][0]
        numbers["ci95"] = compute_accuracy([row[main] for row in rows])[1]
    names = [name for name in rows[0] if name in SCORES[task] or name.startswith("answer@")]
    seconds = mean_numbers(rows, ["seconds"])["seconds"]
    return numbers | mean_numbers(rows, names) | {"seconds_per_question": seconds}


def choose_way(config: RAGConfig) -> Way:
    """The way of answering of methods that answer in one way: as the generator was trained."""
    return "token" if config.marginal == "token" else "thorough"


def _list_readings(task: str, main: Way) -> list[tuple[str, str | None, dict[Way, str]]]:
    """Whose generator reads whose passages, and the names of the methods by way of decoding.

    In a classification the labels are scored, so the ways of decoding do not differ.
    """
    every: dict[Way, str] = {way: way for way in ("token", "fast", "thorough")}
    return [
        ("joint", None, {"fast": "closed_book"}),
        ("joint", "bm25", {main: "bm25"}),
        ("frozen", "frozen", {main: "frozen"}),
        ("joint", "joint", {main: "joint"} if task == "classification" else every),
    ]


def make_engine(generator: Pretrained, params: Any, format: Format, decode: DecodeConfig) -> Engine:
    """A generator with some parameters, ready to answer."""
    return Engine(
        model=generator.model,
        params=params,
        format=format,
        max_tokens=decode.max_tokens,
        beams=BeamConfig(decode.beams, decode.length_penalty, decode.early_stopping),
        batch_size=decode.batch_size,
    )


def open_final_index(
    context: StageContext,
    trained: Any,
    *,
    encoder: Pretrained,
    passage_encoder: Pretrained,
    load_index: Callable[..., Index],
) -> tuple[Index, Pretrained]:
    """The index of the trained question encoder, and the encoder that embedded its passages.

    The index is as it was before training, unless training refreshed it.

    Args:
        context: of a stage that needs the stages "index" and "joint".
        trained: the parameters after the joint training.
    """
    index = load_index(context.path("index", "index"))
    folder = context.path("joint", "")
    refreshed = [int(p.stem.removeprefix("passages-")) for p in folder.glob("passages-*.npy")]
    if not refreshed:
        return index, passage_encoder
    last = load_refreshed(folder, max(refreshed), index.backend)
    return last, replace(encoder, params=trained["query"])


def run_evaluation(
    context: StageContext,
    *,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    labels: Sequence[str],
    generator: Pretrained,
    encoder: Pretrained,
    passage_encoder: Pretrained,
    format: Format,
    make_trainable: Callable[..., Trainable],
    load_index: Callable[..., Index],
    encode_questions: Callable[..., Float[np.ndarray, "N E"]],
    retriever: RetrieverConfig,
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
    trained = {
        name: make_trainable(joint=name == "joint").load_merged(context.path(name, "params"))
        for name in ("frozen", "joint")
    }

    def search(index: Index, name: str) -> Ranking:
        scores, rows = index.search(encode_questions(trained[name]["query"], asked), depth)
        return Ranking(retriever.scale * scores, rows)

    encoders = {"encoder": encoder, "passage_encoder": passage_encoder, "load_index": load_index}
    final, _ = open_final_index(context, trained["joint"], **encoders)
    rankings = {
        None: None,
        "bm25": Ranking(*BM25.build(map(make_text, passages)).search(asked, depth)),
        "frozen": search(load_index(context.path("index", "index")), "frozen"),
        "joint": search(final, "joint"),
    }
    methods = []
    for name, ranking, ways in _list_readings(config.task, choose_way(config)):
        engine = make_engine(generator, trained[name]["generator"], format, config.decode)
        found = rankings[ranking]
        answers = answer_all(context, engine, asked, passages, found, ways, k=k, labels=labels)
        for way, method in ways.items():
            records = [
                {
                    "prediction": answer["answers"][way],
                    "seconds": answer["seconds"],
                    "found": found and _list_found(found, i, passages),
                }
                for i, answer in enumerate(answers)
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
        k: number of passages that are read.
        labels: of a classification.
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

    names = "-".join(ways.values())
    return context.map(
        f"answers_{names}.jsonl",
        range(len(asked)),
        timed(run),
        batch_size=_TOGETHER,
        unit=f"questions ({names})",
    )


def _list_found(
    found: Ranking, question: int, passages: Sequence[Passage]
) -> list[tuple[Passage, float]]:
    rows, scores = found.rows[question].tolist(), found.scores[question].tolist()
    return [(passages[row], score) for row, score in zip(rows, scores, strict=True)]


def grade(question: Question, record: Record, *, task: str, k: int) -> Record:
    """One question's record; hits are DPR's, whether a passage's text has an answer.

    Args:
        record: "prediction", "seconds", and "found": the passages found with their scores, or None.
        k: number of passages that were read.
    """
    prediction, found = record["prediction"], record["found"]
    graded = {
        "id": question.id,
        "question": question.question,
        "answers": question.answers,
        "prediction": prediction,
        "seconds": record["seconds"],
    }
    if task == "generation":
        graded["rouge_l"] = rouge_l(prediction, question.answers)
    elif task == "classification":
        graded["accuracy"] = exact_match(prediction, question.answers)
    else:
        graded["exact_match"] = exact_match(prediction, question.answers)
        graded["f1"] = f1(prediction, question.answers)
    if found is None:
        return graded
    if task == "qa":
        texts = [passage.text for passage, _ in found]
        graded |= answer_hits(texts, question.answers, sorted({*_HITS, k}))
    return graded | {"passages": [{"id": p.id, "score": score} for p, score in found[:k]]}
