"""What SR-RAG is compared with, and its ablations: the stages that train them, and their answers.

Selective retrieval is the same training with the same tokens, but without verbalisation and without
a datastore: where the searched source's token (its Retrieve token) is not likely enough, the model
answers at once.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import Method, compare, timed
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.systems.session import Session, bind
from rag_jax.systems.srrag.baselines import answer_from_documents, answer_from_passages
from rag_jax.systems.srrag.config import RouteConfig, SRRAGConfig
from rag_jax.systems.srrag.evaluate import (
    answer_with_all,
    apply_policy,
    grade,
    list_policies,
)
from rag_jax.systems.srrag.infer import Engine, Search
from rag_jax.systems.srrag.policy import read_datastore, run_datastore
from rag_jax.systems.srrag.train import run_reference, run_stage1, run_stage1_again, run_stage2

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
    """The stages that train and evaluate what the method is compared with.

    Args:
        training: settings of every training stage.
        passes: settings of every datastore.
        evaluation: settings of every evaluation.
    """
    c = session.config
    rows, closed_book = ("corpus", "contexts", "labels"), {"closed_book": True}
    stage1, stage2 = {**training, "stage1": c.stage1}, {**training, "stage2": c.stage2}
    after = {"after": "stage1_closed_book", **closed_book}
    selective = bind(session, run_stage1, closed_book=True, writes=False)
    stages = [
        Stage("selective", selective, stage1, needs=rows),
        Stage("stage1_again", bind(session, run_stage1_again), stage2, needs=(*rows, "stage1")),
        Stage("stage1_closed_book", bind(session, run_stage1, **closed_book), stage1, needs=rows),
        Stage(
            "reference_closed_book",
            bind(session, run_reference, **after),
            {**training, "microbatch_tokens": c.stage2.microbatch_tokens},
            needs=(*rows, "stage1_closed_book"),
        ),
        Stage(
            "stage2_closed_book",
            bind(session, run_stage2, reference="reference_closed_book", **after),
            stage2,
            needs=(*rows, "stage1_closed_book", "reference_closed_book"),
        ),
    ]
    for trained, datastore in _TRAINED.values():
        run = bind(session, run_datastore, after=trained)
        stages.append(Stage(datastore, run, passes, ("corpus", "index", "lengths", trained)))
    made = [name for pair in _TRAINED.values() for name in pair]
    compare = Stage(
        "compare",
        bind(session, run_comparison),
        {**evaluation, "verbalise": c.verbalise, "selective": c.selective},
        needs=("corpus", "index", "lengths", "selective", *made),
    )
    return [*stages, compare]


def run_comparison(
    context: StageContext,
    *,
    questions: Sequence[Question],
    base: Pretrained,
    open_engine: Callable[[StageContext, Path], Engine],
    open_search: Callable[[StageContext, int], Search],
    check_size: Callable[[int], None],
    config: SRRAGConfig,
) -> None:
    """Answers by the untrained model with each source, selective retrieval, and the ablations."""
    methods = _list_untrained(context, questions, base, open_search, config)

    engine = replace(open_engine(context, context.path("selective", "params")), writes=False)
    route = RouteConfig(decision="threshold", tau=config.selective.tau)
    selective = replace(config, route=route)
    passes = answer_with_all(
        context, engine, None, questions, selective, file="selective_passes.jsonl"
    )
    policies = list_policies(selective, passes)
    for name, policy in (("selective", "srrag"), ("selective_retrieve", "retrieve")):
        records = partial(apply_policy, selective, questions, passes, policies[policy])
        methods.append(Method(name, records))

    for name, (trained, stage) in _TRAINED.items():
        engine = open_engine(context, context.path(trained, "params"))
        path = context.path(stage, "datastore.npz")
        datastore = read_datastore(path, config.datastore, check_size)
        passes = answer_with_all(
            context, engine, datastore, questions, config, file=f"{name}_passes.jsonl"
        )
        policy = list_policies(config, passes)["srrag"]
        methods.append(Method(name, partial(apply_policy, config, questions, passes, policy)))
    compare(methods, questions, grade, context.folder)


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

    def answer(name: str) -> list[dict[str, Any]]:
        return context.map(
            f"answers_{name}.jsonl",
            questions,
            timed(ways[name]),
            batch_size=4 * config.answer.batch_size,
            unit=f"questions ({name})",
        )

    return [Method(name, partial(answer, name)) for name in ways]
