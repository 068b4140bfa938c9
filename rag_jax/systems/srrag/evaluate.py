"""The comparison: one pass over the questions from every source, and the methods that choose."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.questions import Question
from rag_jax.evaluation import routing
from rag_jax.evaluation.answers import (
    choice_match,
    compute_accuracy,
    contains_answer,
    exact_match,
    match,
    popularity_thirds,
)
from rag_jax.evaluation.compare import Method, Record, compare, describe_question, mean_numbers
from rag_jax.models import Pretrained
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.clock import Clock
from rag_jax.runtime.files import read_json
from rag_jax.runtime.hosts import fetch
from rag_jax.systems.srrag.baselines import answer_directly
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.policy import Datastore, decide, vote
from rag_jax.systems.stages import answer_timed

_COSTS = ("retrieval_rate", "prompt_tokens", "generated_tokens", "seconds_per_question")
COLUMNS = ("n", "accuracy", "head", "middle", "tail", *_COSTS)
ABLATIONS = ("without_verbalisation", "without_stage2")
Policy = tuple[Int[np.ndarray, "N"], Float[np.ndarray, "N S"]]


def describe_report(config: SRRAGConfig, finished: Path | None = None) -> ReportSpec:
    """What the report shows: a row for each method, and what the choice of sources is worth.

    Args:
        finished: the folder of the stages that trained the model, if that is another run's.
    """

    def describe_routing(
        stages: Path, predictions: Mapping[str, Any], methods: Mapping[str, Any]
    ) -> dict[str, Any]:
        statistics = {
            stage: read_json((finished or stages) / stage / "statistics.json")
            for stage in ("labels", "datastore")
        }
        choices = routing.analyse(predictions, config.sources)
        sides = {"predictions": predictions, "sources": config.sources}
        return {
            "tables": routing.list_tables(choices, **statistics, **sides),
            "analysis": {"routing": choices, **statistics},
            "figures": routing.draw_figures(choices, methods),
        }

    external = [source.name for source in config.sources if source.kind == "search"]
    several = external if len(external) > 1 else []
    methods = ["direct", "verbalise", "retrieve", *(f"retrieve_{name}" for name in several)]
    methods = dict.fromkeys([*methods, "srrag", "without_knn"], "evaluate")
    if config.ablations:
        raw = [f"raw_retrieve_{name}" for name in several] or ["raw_retrieve"]
        selective = ("selective", "selective_retrieve")
        methods |= dict.fromkeys(["raw_verbalise", *raw, *selective, *ABLATIONS], "compare")
    paired = "srrag", {"accuracy": "correct"}
    return ReportSpec(config.model.name, methods, COLUMNS, summarize, *paired, describe_routing)


def summarize(rows: Sequence[Record]) -> dict[str, Any]:
    """A method's numbers over its questions.

    Thirds are of the questions whose subject's popularity is known. `contains_answer` is Self-RAG's
    accuracy, letter for letter, which questions with choices do not have.
    """
    scores = [row["correct"] for row in rows]
    accuracy, interval = compute_accuracy(scores) if rows else (0.0, (0.0, 1.0))
    thirds = popularity_thirds([row["popularity"] for row in rows])
    numbers = {"n": len(rows), "accuracy": accuracy, "ci95": interval}
    for third in ("head", "middle", "tail") if any(thirds) else ():
        members = [score for score, name in zip(scores, thirds, strict=True) if name == third]
        numbers[third] = float(np.mean(members)) if members else None
    numbers |= mean_numbers(rows, ["contains_answer"])
    fields = {"retrieval_rate": "retrieved", "seconds_per_question": "seconds"}
    for name in ("exact_match", *_COSTS):
        field = fields.get(name, name)
        numbers[name] = mean_numbers(rows, [field]).get(field)
    # Verbalisations that reached the limit, and searches without a passage.
    return numbers | {name: sum(row[name] for row in rows) for name in ("cut_off", "fell_back")}


def run_evaluation(
    context: StageContext,
    *,
    questions: Sequence[Question],
    base: Pretrained,
    open_engine: Callable[[StageContext, Path], Engine],
    open_datastore: Callable[[StageContext], Datastore],
    config: SRRAGConfig,
    trained: StageContext | None = None,
) -> None:
    """Answers every question directly, from every source, and by every policy.

    Args:
        trained: has the stages "stage2" and "datastore", if another run trained the model.
    """
    trained = trained or context
    engine = open_engine(context, trained.path("stage2", "params"))
    datastore = open_datastore(trained)
    direct = partial(answer_directly, base=base, answer=config.answer, seed=config.seed)
    size = 4 * config.answer.batch_size
    answers = answer_timed(context, "direct", questions, direct, batch_size=size)
    passes = answer_with_all(context, engine, datastore, questions, config, file="passes.jsonl")
    methods = [Method("direct", lambda: answers)]
    for name, policy in list_policies(config, passes).items():
        methods.append(Method(name, partial(apply_policy, config, questions, passes, policy)))
    compare(methods, questions, grade, context.folder)


def answer_with_all(
    context: StageContext,
    engine: Engine,
    datastore: Datastore | None,
    questions: Sequence[Question],
    config: SRRAGConfig,
    *,
    file: str,
) -> list[Record]:
    """Routes every question and answers it from each source.

    The pass is run as it is used: route, then the chosen source alone. The other sources then
    continue from the same cache.

    Args:
        datastore: None to route by the model's probabilities alone.

    Returns:
        For each question the `votes` and, in the order of the sources, the `answers`.
    """
    count = len(config.sources)

    def run(batch: Sequence[Question]) -> list[Record]:
        asked = [question.question for question in batch]
        clock = Clock()
        routed = engine.route(asked)
        probabilities = fetch(routed.probabilities)
        votes = np.ones_like(probabilities)
        if datastore:
            nobody = jnp.full(len(votes), -1)  # these questions have no entry themselves
            settings = {"k": config.datastore.k, "num_sources": count}
            votes = fetch(vote(datastore, routed.key, nobody, **settings))
        chosen = choose(config, probabilities, votes)[: len(batch)]
        routing_seconds = clock.read() / len(batch)
        answers: list[dict[int, Record]] = [{} for _ in batch]
        for is_turn in (np.equal, np.not_equal):  # the chosen source first, then the others
            for source in range(count):
                rows = np.flatnonzero(is_turn(chosen, source))
                clock = Clock()
                answered = engine.answer_questions(routed, rows, source, asked)
                seconds = routing_seconds + clock.read() / max(len(rows), 1)
                for row, record in answered.items():
                    answers[row][source] = record | {"seconds": seconds}
        return [
            {"votes": shares, "answers": [by_source[source] for source in range(count)]}
            for shares, by_source in zip(votes, answers, strict=False)  # votes have padding rows
        ]

    size = 4 * config.answer.batch_size
    return context.map(file, questions, run, batch_size=size, unit="questions (all sources)")


def choose(
    config: SRRAGConfig, probabilities: Float[np.ndarray, "N S"], votes: Float[np.ndarray, "N S"]
) -> Int[np.ndarray, "N"]:
    """The sources by the run's decision."""
    weights, kinds = np.asarray(probabilities, float), [source.kind for source in config.sources]
    rule = {"tau": config.route.tau, "decision": config.route.decision}
    return decide(weights, np.asarray(votes, float), kinds, **rule)


def list_policies(config: SRRAGConfig, passes: Sequence[Record]) -> dict[str, Policy]:
    """For each method the source that it chooses for every question, and the sources' scores.

    The scores are the products that the choice is made by, or without the datastore the
    probabilities alone. Always retrieving is from the searched source with the largest product;
    with several searched sources there is also a method for each.
    """
    probabilities = np.asarray([found["answers"][0]["probabilities"] for found in passes])
    votes = np.asarray([found["votes"] for found in passes])
    products, alone = probabilities * votes, np.ones_like(votes)
    kinds = [source.kind for source in config.sources]
    external = [number for number, kind in enumerate(kinds) if kind == "search"]
    always = {"verbalise": np.full(len(passes), kinds.index("verbalise"))}
    always["retrieve"] = np.asarray(external)[products[:, external].argmax(axis=1)]
    for number in external if len(external) > 1 else ():
        always[f"retrieve_{config.sources[number].name}"] = np.full(len(passes), number)
    policies = {name: (chosen, products) for name, chosen in always.items()}
    policies["srrag"] = (choose(config, probabilities, votes), products)
    policies["without_knn"] = (choose(config, probabilities, alone), probabilities)
    return policies


def apply_policy(
    config: SRRAGConfig, questions: Sequence[Question], passes: Sequence[Record], policy: Policy
) -> list[Record]:
    """A method's records: the chosen sources' answers, and the correctness of every source."""
    chosen, scores = policy
    return [
        found["answers"][number]
        | {
            "number": number,
            "votes": found["votes"],
            "scores": worth,
            "retrieved": float(config.sources[number].kind == "search"),
            "correct_by_source": [judge(question, a["prediction"]) for a in found["answers"]],
        }
        for question, found, number, worth in zip(
            questions, passes, chosen.tolist(), scores.tolist(), strict=True
        )
    ]


def judge(question: Question, prediction: str) -> float:
    """1 for a right prediction, else 0.

    A question with choices needs the right choice, any other question an answer in the prediction.
    """
    if question.choices:
        return choice_match(prediction, question.answers, question.choices)
    return match(prediction, question.answers)


def grade(question: Question, record: Record) -> Record:
    """A prediction's record with its question and scores."""
    prediction, answers = record["prediction"], question.answers
    scores = {
        "correct": judge(question, prediction),
        "exact_match": exact_match(prediction, answers),
    }
    if not question.choices:
        scores["contains_answer"] = contains_answer(prediction, answers)
    about = describe_question(question) | {"popularity": question.popularity}
    return {**about, **scores, **record}
