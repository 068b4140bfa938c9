"""What SR-RAG is compared with, and its ablations: the stages that train them, and their answers.

Selective retrieval is the same training with the same tokens and the same number of steps, but
without verbalisation and without a datastore: where the searched source's token (its Retrieve
token) is not likely enough, the model answers at once. Every router's threshold is chosen by the
same rule.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Method, Record, compare
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.files import write_json
from rag_jax.systems.session import Session, make_stage
from rag_jax.systems.srrag.baselines import answer_from_documents, answer_from_passages
from rag_jax.systems.srrag.config import RouteConfig, SRRAGConfig
from rag_jax.systems.srrag.evaluate import TAUS, apply_policy, grade, list_policies
from rag_jax.systems.srrag.infer import Engine, Search
from rag_jax.systems.srrag.passes import answer_with_all
from rag_jax.systems.srrag.policy import Datastore, run_datastore
from rag_jax.systems.srrag.thresholds import ROUTERS, get_fixed, tune_thresholds
from rag_jax.systems.srrag.train import run_reference, run_stage1, run_stage1_again, run_stage2
from rag_jax.systems.stages import answer_timed

# For each ablation the stages that train the model and fill the datastore.
_TRAINED = {
    "without_verbalisation": ("stage2_closed_book", "datastore_closed_book"),
    "without_stage2": ("stage1_again", "datastore_stage1_again"),
}


def list_ablations(
    session: Session,
    *,
    training: Mapping[str, Any],
    passes: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> list[Stage]:
    """The stages that train and evaluate what the method is compared with."""
    c, stage = session.config, partial(make_stage, session)
    rows, closed_book = ("corpus", "contexts", "labels"), {"closed_book": True}
    stage1, stage2 = {**training, "stage1": c.stage1}, {**training, "stage2": c.stage2}
    reference = {**training, "microbatch_tokens": c.stage2.microbatch_tokens}
    first, second = "stage1_closed_book", "reference_closed_book"
    trains = {"room": session.estimate_training}
    after = {"after": first, **closed_book}
    preference = {"reference": second, **after, **trains}
    answers = {"writes": False, **closed_book, **trains}
    again = {"after": "selective", **answers}
    stages = [
        stage("selective", run_stage1, stage1, *rows, **answers),
        stage("selective_again", run_stage1_again, stage2, *rows, "selective", **again),
        stage("stage1_again", run_stage1_again, stage2, *rows, "stage1", **trains),
        stage(first, run_stage1, stage1, *rows, **closed_book, **trains),
        stage(second, run_reference, reference, *rows, first, **after),
        stage("stage2_closed_book", run_stage2, stage2, *rows, first, second, **preference),
    ]
    for trained, datastore in _TRAINED.values():
        needs = ("corpus", "index", "lengths", trained)
        options = {"after": trained, "room": session.estimate_datastore}
        stages.append(stage(datastore, run_datastore, passes, *needs, **options))
    compared = {**evaluation, "verbalise": c.verbalise, "selective": c.selective}
    needs = ("corpus", "index", "lengths", "selective_again")
    made = [name for pair in _TRAINED.values() for name in pair]
    return [*stages, stage("compare", run_comparison, compared, *needs, *made, version=3)]


def run_comparison(
    context: StageContext,
    *,
    questions: Sequence[Question],
    dev_questions: Sequence[Question],
    base: Pretrained,
    open_engine: Callable[[StageContext, Path], Engine],
    open_search: Callable[[StageContext, int], Search],
    open_datastore: Callable[[StageContext, str], Datastore],
    config: SRRAGConfig,
) -> None:
    """Answers by the untrained model with each source, selective retrieval, and the ablations."""
    methods, taus = _list_untrained(context, questions, base, open_search, config), {}

    def answer(name: str, engine: Engine, datastore: Datastore | None) -> list[Record]:
        """A pass with the threshold that `name` gets as a router."""
        taus[name] = get_fixed(config)
        if config.route.is_tuned:
            inputs = (context, engine, datastore, dev_questions, config)
            tuned = tune_thresholds(*inputs, file=f"{name}_dev.jsonl")
            taus[name] = tuned["srrag"]["tau"]
        settings = {"tau": taus[name], "file": f"{name}_passes.jsonl"}
        return answer_with_all(context, engine, datastore, questions, config, **settings)

    def add(name: str, passes: Sequence[Record], config: SRRAGConfig, policy: str) -> None:
        policies = list_policies(config, passes, dict.fromkeys(ROUTERS, taus[name]))
        records = partial(apply_policy, config, questions, passes, policies[policy])
        methods.append(Method(name, records))

    engine = open_engine(context, context.path("selective_again", "params"))
    passes = answer("selective", replace(engine, writes=False), None)
    add("selective", passes, config, "srrag")
    # The paper's rule, whatever the run's is.
    fixed = replace(config, route=RouteConfig(tau=config.selective.tau))
    taus |= {"selective_fixed": config.selective.tau, "selective_retrieve": 0.0}
    add("selective_fixed", passes, fixed, "srrag")
    add("selective_retrieve", passes, config, "retrieve")

    for name, (trained, stage) in _TRAINED.items():
        engine = open_engine(context, context.path(trained, "params"))
        add(name, answer(name, engine, open_datastore(context, stage)), config, "srrag")
    compare(methods, questions, grade, context.folder)
    del taus["selective_retrieve"]
    write_json(context.folder / TAUS, taus)


def _list_untrained(
    context: StageContext,
    questions: Sequence[Question],
    base: Pretrained,
    open_search: Callable[[StageContext, int], Search],
    config: SRRAGConfig,
) -> list[Method]:
    """The untrained model, with the documents that it writes and with each source's passages."""
    search = open_search(context, config.answer.passages)
    settings = {"base": base, "answer": config.answer, "seed": config.seed}
    verbalise = config.verbalise
    ways = {"raw_verbalise": partial(answer_from_documents, verbalise=verbalise, **settings)}
    external = [n for n, source in enumerate(config.sources) if source.kind == "search"]
    for number in external:
        name = f"raw_retrieve_{config.sources[number].name}"
        name = "raw_retrieve" if len(external) == 1 else name
        ways[name] = partial(answer_from_passages, search=partial(search, number), **settings)

    size = 4 * config.answer.batch_size

    def answer(name: str) -> list[Record]:
        return answer_timed(context, name, questions, ways[name], batch_size=size)

    return [Method(name, partial(answer, name)) for name in ways]
