"""The comparison: the methods that choose among the sources, graded and summarised."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation import routing
from rag_jax.evaluation.answers import (
    compute_accuracy,
    contains_answer,
    exact_match,
    popularity_thirds,
)
from rag_jax.evaluation.compare import (
    Method,
    Record,
    compare,
    describe_question,
    judge,
    mean_numbers,
)
from rag_jax.evaluation.rankings import Ranked
from rag_jax.models import Pretrained
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.progress import log
from rag_jax.systems.evaluation import name_model
from rag_jax.systems.reranking import RERANKED, keep_scores, tabulate_reranking
from rag_jax.systems.srrag.baselines import answer_directly
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.passes import (
    answer_with_all,
    choose,
    judge_sources,
    route_all,
    stack_beliefs,
    weigh_passes,
)
from rag_jax.systems.srrag.policy import Datastore, Weights, grow_datastore
from rag_jax.systems.srrag.thresholds import ROUTERS, get_fixed, read_thresholds
from rag_jax.systems.stages import answer_timed

_COSTS = ("retrieval_rate", "prompt_tokens", "generated_tokens", "seconds_per_question")
COLUMNS = ("n", "accuracy", "head", "middle", "tail", *_COSTS)
COMPARED = {"accuracy": "correct"}  # the scores that the report compares question by question
TAUS = "taus.json"  # the thresholds that a stage's methods chose by
# SR-RAG whose datastore has entries of the evaluated dataset, and the stage that finds them.
GROWN, GROWN_BY = "srrag_grown", "entries"
ABLATIONS = ("without_verbalisation", "without_stage2")


class Policy(NamedTuple):
    """The source that a method chooses for each question, and the weights that it chose by."""

    chosen: Int[np.ndarray, "N"]
    weights: Weights


def describe_report(
    config: SRRAGConfig, *, trained: bool = True, grown: bool = False
) -> ReportSpec:
    """What the report shows: a row for each method, and what the choice of sources is worth.

    Args:
        trained: False for the model as loaded. It has no datastore, so neither SR-RAG nor an
            analysis, and a choice by the model alone only where the settings give a threshold.
        grown: whether there is a datastore with further entries.
    """

    def describe_routing(
        context: StageContext, predictions: Mapping[str, Any], methods: Mapping[str, Any]
    ) -> dict[str, Any]:
        statistics = {
            stage: read_json(context.path(stage, "statistics.json"))
            for stage in ("labels", "datastore", *([GROWN_BY] if grown else []))
        }
        taus = {}
        for stage in dict.fromkeys(stage_of.values()):
            taus |= read_json(context.path(stage, TAUS))
        if config.route.decision != "threshold":  # but one router has a threshold whatever the rule
            taus = {name: tau for name, tau in taus.items() if name == "selective_fixed"}
        sides = {"predictions": predictions, "sources": config.sources}
        choices, compared = routing.analyse(**sides), routing.compare(**sides)
        tables = routing.list_tables(choices, compared, statistics, **sides, taus=taus)
        found = {"routing": choices, "routers": compared, "thresholds": taus, **statistics}
        return {
            "tables": tables | tabulate(context)["tables"],
            "analysis": found,
            "figures": routing.make_figures(choices, methods),
        }

    def tabulate(context: StageContext, *_: Any) -> dict[str, Any]:
        is_reranked = config.retrieve.rerank.name is not None
        return {"tables": tabulate_reranking(context, "evaluate") if is_reranked else {}}

    external = [source.name for source in config.sources if source.kind == "search"]
    several = external if len(external) > 1 else []
    own = ["direct", "verbalise", "retrieve", *(f"retrieve_{name}" for name in several)]
    policies = ["srrag", *([GROWN] if grown else []), "without_knn"]
    rows, model = (COLUMNS, summarize), name_model(config.model.name, trained)
    if not trained:
        policies = [] if config.route.is_tuned else ["without_knn"]
    stage_of = dict.fromkeys([*own, *policies], "evaluate")
    if not trained:
        return ReportSpec(model, stage_of, *rows, "direct", COMPARED, tabulate)
    if config.ablations:
        raw = [f"raw_retrieve_{name}" for name in several] or ["raw_retrieve"]
        selective = ("selective", "selective_fixed", "selective_retrieve")
        stage_of |= dict.fromkeys(["raw_verbalise", *raw, *selective, *ABLATIONS], "compare")
    return ReportSpec(model, stage_of, *rows, "srrag", COMPARED, describe_routing)


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
    list_found: Callable[[StageContext, Sequence[str]], dict[int, list[Ranked]]],
    passages: Sequence[Passage],
    config: SRRAGConfig,
) -> None:
    """Answers every question directly, from every source, and by every policy.

    A stage that does not need "stage2" and "datastore" has the model as loaded, and no datastore.
    One that needs "entries" also chooses by a datastore with these entries.
    """
    params = context.path("stage2", "params") if context.needs("stage2") else None
    engine, datastore = open_engine(context, params), None
    if context.needs("datastore"):
        datastore = open_datastore(context)
    taus = _read_taus(context, config)
    direct = partial(answer_directly, base=base, answer=config.answer, seed=config.seed)
    size = 4 * config.answer.batch_size
    answers = answer_timed(context, "direct", questions, direct, batch_size=size)
    settings = {"tau": taus.get("srrag", get_fixed(config)), "file": "passes.jsonl"}
    passes = answer_with_all(context, engine, datastore, questions, config, **settings)
    if config.retrieve.rerank.name is not None:
        found = list_found(context, [question.question for question in questions])
        _keep_reranked(context, questions, found, passes, passages, config)
    methods = [Method("direct", lambda: answers)]

    def add(name: str, passes: Sequence[Record], policy: Policy) -> None:
        methods.append(Method(name, partial(apply_policy, config, questions, passes, policy)))

    for name, policy in list_policies(config, passes, taus).items():
        add(name, passes, policy)
    if datastore is not None and context.needs(GROWN_BY):
        datastore = grow_datastore(datastore, context.path(GROWN_BY, "datastore.npz"))
        inputs = context, engine, datastore, questions, config
        routed = route_all(*inputs, file="grown.jsonl")
        voted = [found | {"votes": r["votes"]} for found, r in zip(passes, routed, strict=True)]
        add(GROWN, voted, list_policies(config, voted, taus)["srrag"])
        taus[GROWN] = taus["srrag"]
    compare(methods, questions, grade, context.folder)
    write_json(context.folder / TAUS, taus)


def _keep_reranked(
    context: StageContext,
    questions: Sequence[Question],
    found: Mapping[int, Sequence[Ranked]],
    passes: Sequence[Record],
    passages: Sequence[Passage],
    config: SRRAGConfig,
) -> None:
    """Keeps a table of the passages that would have been read, and of those that were.

    Args:
        found: by source, of each question, at least what was reranked.
    """
    k, rankings = config.answer.passages, {}
    for number, ranked in found.items():
        read = [record["answers"][number].get("passages", []) for record in passes]
        name = f"{config.sources[number].name}, " if len(found) > 1 else ""
        rankings[f"{name}found"] = [own[:k] for own in ranked]
        rankings[f"{name}{RERANKED}"] = [
            [own[passage["rank_before"] - 1] for passage in places]
            for own, places in zip(ranked, read, strict=True)
        ]
    keep_scores(context, questions, rankings, passages, k=k)


def _read_taus(context: StageContext, config: SRRAGConfig) -> dict[str, float]:
    """The threshold of each router; without a datastore there are fewer routers."""
    if context.needs("datastore"):
        return read_thresholds(context, config)
    taus = {} if config.route.is_tuned else {"without_knn": get_fixed(config)}
    left_out = ", ".join(name for name in ROUTERS if name not in taus)
    log(f"left out, as an untrained model has no datastore to choose by: {left_out}")
    return taus


def list_policies(
    config: SRRAGConfig, passes: Sequence[Record], taus: Mapping[str, float]
) -> dict[str, Policy]:
    """For each method the source that it chooses for every question, and the sources' weights.

    Args:
        taus: the threshold of each router, of those in `ROUTERS`.
    """
    weights = weigh_passes(config, passes)
    always = routing.choose_always(config.sources, weights.products)
    policies = {name: Policy(chosen, weights) for name, chosen in always.items()}
    for name, knn in ROUTERS.items():
        if name in taus:
            chosen = choose(config, *stack_beliefs(passes, knn=knn), taus[name])
            policies[name] = Policy(chosen, weigh_passes(config, passes, knn=knn))
    return policies


def apply_policy(
    config: SRRAGConfig, questions: Sequence[Question], passes: Sequence[Record], policy: Policy
) -> list[Record]:
    """A method's records: the chosen sources' answers, and what is known of every source.

    These are the `votes`, the `scores` (the products), their `mass` over the searched sources, the
    score `search` that a search is decided by, and `correct_by_source`.
    """
    chosen, (products, mass, search) = policy
    columns = zip(chosen.tolist(), products.tolist(), mass.tolist(), search.tolist(), strict=True)
    judged = judge_sources(questions, passes).tolist()
    return [
        found["answers"][number]
        | {
            "number": number,
            "votes": found["votes"],
            "scores": scores,
            "mass": together,
            "search": score,
            "retrieved": float(config.sources[number].kind == "search"),
            "correct_by_source": correct,
        }
        for found, correct, (number, scores, together, score) in zip(
            passes, judged, columns, strict=True
        )
    ]


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
