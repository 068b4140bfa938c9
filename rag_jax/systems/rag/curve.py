"""The curve of the answers' scores by the number of passages read (Lewis et al. 2020, figure 3)."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Record
from rag_jax.evaluation.rankings import answer_hits
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index
from rag_jax.runtime.files import write_json
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.evaluate import SCORES, answer_all, choose_way, score_answer
from rag_jax.systems.rag.infer import Engine, Way
from rag_jax.systems.rag.rankings import Ranking


def run_curve(
    context: StageContext,
    *,
    questions: Sequence[Question],
    passages: Sequence[Passage],
    labels: Sequence[str],
    load_trained: Callable[[StageContext, str], PyTree],
    make_engine: Callable[[PyTree], Engine],
    open_final_index: Callable[[StageContext, PyTree], tuple[Index, Pretrained]],
    encode_questions: Callable[..., Float[np.ndarray, "N E"]],
    config: RAGConfig,
) -> None:
    """Answers every question with each of `decode.curve`'s numbers of passages.

    Writes `curve.json`: for each number the main score of RAG-Token and of RAG-Sequence (Thorough),
    or of a classification's labels, and for short answers the share of questions with an answer in
    the passages read. A number above the corpus's size is that size.
    """
    task, asked = config.task, [question.question for question in questions]
    trained = load_trained(context, "joint")
    engine, (index, _) = make_engine(trained["generator"]), open_final_index(context, trained)
    queries = encode_questions(trained["query"], asked)
    numbers = sorted({min(k, index.size) for k in config.decode.curve})
    scores, rows = index.search(queries, max(numbers))
    found = Ranking(config.retriever.scale * scores, rows)
    both: tuple[Way, ...] = ("token", "thorough")
    ways = (choose_way(config),) if task == "classification" else both
    table: list[list[str | float]] = [
        ["passages", *ways, *(["answer in them"] if task == "qa" else [])]
    ]
    for k in numbers:
        names, options = {way: f"{way}_{k}" for way in ways}, {"k": k, "labels": labels}
        answers = answer_all(context, engine, asked, passages, found, names, **options)
        means = [_mean_score(questions, answers, way, task) for way in ways]
        if task == "qa":
            read = [[passages[row].text for row in places[:k]] for places in rows.tolist()]
            pairs = zip(read, questions, strict=True)
            hits = [answer_hits(texts, q.spoken_answers, [k])[f"answer@{k}"] for texts, q in pairs]
            means.append(float(np.mean(hits)))
        table.append([str(k), *means])
    write_json(context.folder / "curve.json", table)


def _mean_score(
    questions: Sequence[Question], answers: Sequence[Record], way: Way, task: str
) -> float:
    """The mean of the task's main score over the answers by one way of decoding."""
    pairs = zip(questions, answers, strict=True)
    scores = [score_answer(question, record["answers"][way], task) for question, record in pairs]
    return float(np.mean([score[SCORES[task][0]] for score in scores]))
