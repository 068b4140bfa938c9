"""Passes over questions: the sources' probabilities and votes, and the answers from every source.

A pass is made once; whatever chooses among the sources is then computed from it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Record, judge
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.hosts import fetch
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.policy import Datastore, Weights, decide, vote, weigh
from rag_jax.systems.srrag.steps import Routed


class Beliefs(NamedTuple):
    """Routed questions, and what speaks for each of the `S` sources; `votes` of a datastore."""

    routed: Routed
    probabilities: Float[np.ndarray, "B S"]
    votes: Float[np.ndarray, "B S"] | None


def route(
    engine: Engine, datastore: Datastore | None, config: SRRAGConfig, asked: Sequence[str]
) -> Beliefs:
    """Routes questions that have no entry in the datastore themselves.

    Args:
        datastore: None to route by the model's probabilities alone.
    """
    routed = engine.route(asked)
    probabilities, count = fetch(routed.probabilities), len(asked)
    if datastore is None:
        return Beliefs(routed, probabilities[:count], None)
    nobody = jnp.full(len(probabilities), -1)
    settings = {"k": config.datastore.k, "num_sources": len(config.sources)}
    votes = fetch(vote(datastore, routed.key, nobody, **settings))
    return Beliefs(routed, probabilities[:count], votes[:count])


def route_all(
    context: StageContext,
    engine: Engine,
    datastore: Datastore | None,
    questions: Sequence[Question],
    config: SRRAGConfig,
    *,
    file: str,
) -> list[Record]:
    """Routes every question and answers none.

    Args:
        datastore: None to route by the model's probabilities alone.

    Returns:
        For each question, in the order of the sources, `probabilities` and `votes` (None without a
        datastore).
    """

    def run(batch: Sequence[Question]) -> list[Record]:
        beliefs = route(engine, datastore, config, [question.question for question in batch])
        return _list_beliefs(beliefs)

    size = 4 * config.answer.batch_size
    return context.map(file, questions, run, batch_size=size, unit="questions (routing)")


def _list_beliefs(beliefs: Beliefs) -> list[Record]:
    _, probabilities, votes = beliefs
    shares = [None] * len(probabilities) if votes is None else votes
    return [
        {"probabilities": p, "votes": share} for p, share in zip(probabilities, shares, strict=True)
    ]


def answer_with_all(
    context: StageContext,
    engine: Engine,
    datastore: Datastore | None,
    questions: Sequence[Question],
    config: SRRAGConfig,
    *,
    tau: float,
    file: str,
) -> list[Record]:
    """Routes every question and answers it from each source.

    The pass is run as it is used: route, then the chosen source alone. The other sources then
    continue from the same cache.

    Args:
        datastore: None to route by the model's probabilities alone.
        tau: threshold by which sources are chosen, for the time that answers take.

    Returns:
        For each question what `route_all` gives and, in the order of the sources, the `answers`.
    """
    count = len(config.sources)

    def run(batch: Sequence[Question]) -> list[Record]:
        asked = [question.question for question in batch]
        clock = Clock()
        beliefs = route(engine, datastore, config, asked)
        chosen = choose(config, beliefs.probabilities, beliefs.votes, tau)
        routing_seconds = clock.read() / len(batch)
        answers: list[dict[int, Record]] = [{} for _ in batch]
        for is_turn in (np.equal, np.not_equal):  # the chosen source first, then the others
            for source in range(count):
                rows = np.flatnonzero(is_turn(chosen, source))
                clock = Clock()
                answered = engine.answer_questions(beliefs.routed, rows, source, asked)
                seconds = routing_seconds + clock.read() / max(len(rows), 1)
                for row, record in answered.items():
                    answers[row][source] = record | {"seconds": seconds}
        return [
            belief | {"answers": [by_source[source] for source in range(count)]}
            for belief, by_source in zip(_list_beliefs(beliefs), answers, strict=True)
        ]

    size = 4 * config.answer.batch_size
    return context.map(file, questions, run, batch_size=size, unit="questions (all sources)")


def list_kinds(config: SRRAGConfig) -> list[str]:
    """The kind of each source."""
    return [source.kind for source in config.sources]


def choose(
    config: SRRAGConfig,
    probabilities: Float[np.ndarray, "N S"],
    votes: Float[np.ndarray, "N S"] | None,
    tau: float,
) -> Int[np.ndarray, "N"]:
    """The sources by the run's decision, with a threshold of this value."""
    rule = {"tau": tau, "decision": config.route.decision}
    return decide(probabilities, votes, list_kinds(config), **rule)


def stack_beliefs(
    passes: Sequence[Mapping[str, Any]], *, knn: bool = True
) -> tuple[Float[np.ndarray, "N S"], Float[np.ndarray, "N S"] | None]:
    """The probabilities and the votes of a pass; no votes without `knn` or a datastore."""
    probabilities = np.asarray([found["probabilities"] for found in passes], float)
    votes = [found["votes"] for found in passes]
    if not knn or any(share is None for share in votes):
        return probabilities, None
    return probabilities, np.asarray(votes, float)


def weigh_passes(
    config: SRRAGConfig, passes: Sequence[Mapping[str, Any]], *, knn: bool = True
) -> Weights:
    """What speaks for the sources of each question of a pass, with or without the datastore."""
    rule = {"decision": config.route.decision}
    return weigh(*stack_beliefs(passes, knn=knn), list_kinds(config), **rule)


def judge_sources(
    questions: Sequence[Question], passes: Sequence[Mapping[str, Any]]
) -> Float[np.ndarray, "N S"]:
    """Whether each source's answer is right, 1 or 0."""
    pairs = zip(questions, passes, strict=True)
    judged = [
        [judge(question, a["prediction"]) for a in found["answers"]] for question, found in pairs
    ]
    return np.asarray(judged, float)
