"""The thresholds of all routers, chosen by one rule on development questions.

The threshold of likelihood is chosen on them too, for the answers of `open_reader`.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import judge
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.hosts import fetch
from rag_jax.systems.likelihood import Reader
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.passes import (
    answer_with_all,
    judge_sources,
    list_kinds,
    route_all,
    weigh_passes,
)
from rag_jax.systems.srrag.policy import Datastore
from rag_jax.systems.srrag.session import Session

# Routers on one model's weights, and whether the datastore votes.
ROUTERS = {"srrag": True, "without_knn": False}
_FILE = "thresholds.json"


def list_thresholds(scores: Float[np.ndarray, "N"]) -> Float[np.ndarray, "T"]:
    """Thresholds that divide the questions in every possible way, in ascending order.

    Each is halfway between two neighbouring scores, of which 0 and 1 are the outermost. The last
    one searches for nothing, even if rounding makes a score larger than 1.
    """
    values = np.unique([0.0, *scores])
    return (values + np.append(values[1:], max(1.0, values[-1]))) / 2


def choose_by_rate(scores: Float[np.ndarray, "N"], rate: float) -> dict[str, float]:
    """The least threshold that searches at most a share `rate` of the questions.

    Args:
        scores: questions with a score above the threshold are searched.

    Returns:
        The threshold `tau` and the `retrieval_rate` that it gives.
    """
    taus = list_thresholds(scores)
    rates = [float((scores > tau).mean()) for tau in taus]
    first = next(i for i, found in enumerate(rates) if found <= rate)
    return {"tau": float(taus[first]), "retrieval_rate": rates[first]}


def choose_by_accuracy(
    scores: Float[np.ndarray, "N"],
    internal: Float[np.ndarray, "N"],
    external: Float[np.ndarray, "N"],
) -> dict[str, float]:
    """The most accurate threshold, of several the one that searches least.

    Args:
        scores: questions with a score above the threshold are searched.
        internal: whether the model's own knowledge answers a question, 1 or 0.
        external: whether the searched knowledge does.

    Returns:
        The threshold `tau`, and the `retrieval_rate` and the `accuracy` that it gives.
    """
    taus = list_thresholds(scores)[::-1]
    right = [float(np.where(scores > tau, external, internal).sum()) for tau in taus]
    best = int(np.argmax(right))
    rate = float((scores > taus[best]).mean())
    return {
        "tau": float(taus[best]),
        "retrieval_rate": rate,
        "accuracy": right[best] / len(scores),
    }


def tune_thresholds(
    context: StageContext,
    engine: Engine,
    datastore: Datastore | None,
    questions: Sequence[Question],
    config: SRRAGConfig,
    *,
    file: str,
) -> dict[str, dict[str, float]]:
    """The thresholds of the routers on one model's weights, with and without the datastore.

    Args:
        datastore: None for a model without one.
        file: for the pass over the questions. A rate needs no answers.
    """
    rate, arguments = config.route.rate, (context, engine, datastore, questions, config)
    if rate is not None:
        passes = route_all(*arguments, file=file)
    else:
        passes = answer_with_all(*arguments, tau=0.0, file=file)
    found = {}
    for name, knn in ROUTERS.items():
        weights = weigh_passes(config, passes, knn=knn)
        if rate is not None:
            found[name] = choose_by_rate(weights.search, rate)
            continue
        external = np.asarray([kind == "search" for kind in list_kinds(config)])
        correct = judge_sources(questions, passes)
        best = weights.products[:, external].argmax(axis=1)[:, None]
        searched = np.take_along_axis(correct[:, external], best, axis=1)[:, 0]
        found[name] = choose_by_accuracy(weights.search, correct[:, ~external][:, 0], searched)
    return found


def run_thresholds(
    context: StageContext,
    *,
    dev_questions: Sequence[Question],
    open_engine: Callable[[StageContext, Path], Engine],
    open_datastore: Callable[[StageContext], Datastore],
    config: SRRAGConfig,
) -> None:
    """Chooses the thresholds of SR-RAG and of its model without the datastore.

    Writes `thresholds.json`: for each router `tau`, and what it gives on the questions.
    """
    engine = open_engine(context, context.path("stage2", "params"))
    settings = (context, engine, open_datastore(context), dev_questions, config)
    write_json(context.folder / _FILE, tune_thresholds(*settings, file="passes.jsonl"))


def read_thresholds(context: StageContext, config: SRRAGConfig) -> dict[str, float]:
    """The threshold of each router of SR-RAG's model.

    Args:
        context: of a stage that needs the stage "thresholds", if thresholds are tuned.
    """
    if config.route.is_tuned:
        return take_taus(read_json(context.path("thresholds", _FILE)))
    return dict.fromkeys(ROUTERS, get_fixed(config))


def take_taus(tuned: dict[str, Any]) -> dict[str, float]:
    """The thresholds alone, by the router's name."""
    return {name: chosen["tau"] for name, chosen in tuned.items()}


def get_fixed(config: SRRAGConfig) -> float:
    """The threshold that the settings give; 0 where the decision has none."""
    return config.route.tau or 0.0


def open_reader(context: StageContext, session: Session) -> Reader:
    """Reads for every question the searched source that the model finds likeliest.

    What the model writes from its own knowledge is in no document, so that it gets no verdict.

    Args:
        context: of a stage that needs the stages "index", "lengths" and "stage2".
    """
    engine = session.open_engine(context, context.path("stage2", "params"))
    searched = np.flatnonzero([kind == "search" for kind in list_kinds(session.config)])

    def read(questions: Sequence[str]) -> list[tuple[str, float | None]]:
        routed = engine.route(questions)
        probabilities = fetch(routed.probabilities)[: len(questions), searched]
        sources, answers = searched[probabilities.argmax(axis=1)], []
        for start in range(0, len(questions), engine.batch_size):
            rows = range(start, min(start + engine.batch_size, len(questions)))
            knowledge = engine.gather_knowledge(routed, rows, sources[rows], questions)
            written = engine.write_answers(knowledge)
            for text, value, found in zip(
                written.texts, written.likelihoods, knowledge.found, strict=True
            ):
                answers.append((text, value if found else None))
        return answers

    return Reader(read, judge)
