"""What the method is compared with, and what becomes of it without each of its parts.

Selective retrieval is the same training with the same tokens, but no verbalisation and no
datastore: where the searched source's token (its Retrieve token) is not likely enough, the model
answers at once.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rag_jax.data.questions import Collection
from rag_jax.pipeline.runner import Stage, StageContext
from rag_jax.runtime.files import write_json
from rag_jax.systems.srrag import evaluate, tune, untrained
from rag_jax.systems.srrag.config import RouteConfig
from rag_jax.systems.srrag.sources import make_search

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session

# Methods by the stages that train the model and fill the datastore.
_ABLATIONS = {
    "without_verbalisation": ("stage2_closed_book", "datastore_closed_book"),
    "without_stage2": ("stage1_again", "datastore_stage1_again"),
}


def list_stages(
    session: "Session",
    *,
    tuning: Mapping[str, Any],
    passes: Mapping[str, Any],
    evaluation: Mapping[str, Any],
) -> list[Stage]:
    """The stages that train and evaluate what the method is compared with.

    Args:
        tuning: settings of every training stage; `passes` of every datastore and `evaluation` of
            what evaluates.
    """
    c = session.config
    rows = ("corpus", "contexts", "labels")
    closed_book = {"closed_book": True}
    stages = [
        Stage(
            "selective",
            partial(tune.run_stage1, session, closed_book=True, writes=False),
            settings={**tuning, "stage1": c.stage1},
            needs=rows,
        ),
        Stage(
            "stage1_again",
            partial(tune.run_stage1_again, session),
            settings={**tuning, "stage2": c.stage2},
            needs=(*rows, "stage1"),
        ),
        Stage(
            "stage1_closed_book",
            partial(tune.run_stage1, session, **closed_book),
            settings={**tuning, "stage1": c.stage1},
            needs=rows,
        ),
        Stage(
            "reference_closed_book",
            partial(tune.run_reference, session, stage1="stage1_closed_book", **closed_book),
            settings={**tuning, "microbatch_tokens": c.stage2.microbatch_tokens},
            needs=(*rows, "stage1_closed_book"),
        ),
        Stage(
            "stage2_closed_book",
            partial(
                tune.run_stage2,
                session,
                stage1="stage1_closed_book",
                reference="reference_closed_book",
                **closed_book,
            ),
            settings={**tuning, "stage2": c.stage2},
            needs=(*rows, "stage1_closed_book", "reference_closed_book"),
        ),
    ]
    for trained, datastore in _ABLATIONS.values():
        stages.append(
            Stage(
                datastore,
                partial(evaluate.run_datastore, session, trained=trained),
                settings=passes,
                needs=("corpus", "index", trained),
            )
        )
    made = [name for pair in _ABLATIONS.values() for name in pair]
    compare = Stage(
        "compare",
        partial(run_comparison, session),
        settings={**evaluation, "verbalise": c.verbalise, "selective": c.selective},
        needs=("corpus", "index", "selective", *made),
    )
    return [*stages, compare]


def run_comparison(session: "Session", context: StageContext) -> None:
    """The untrained model with each source, selective retrieval, and the ablations."""
    c = session.config
    corpus = session.read_corpus(context)
    questions = session.list_questions(corpus)
    predictions = _answer_untrained(session, context, corpus)

    engine = evaluate.make_engine(session, context, corpus, trained="selective")
    engine = replace(engine, writes=False)
    settings = replace(c, route=RouteConfig(decision="threshold", tau=c.selective.tau))
    passes = evaluate.answer_with_all(
        context, engine, None, questions, settings, file="selective.jsonl"
    )
    policies = evaluate.list_policies(settings, passes)
    for name, policy in (("selective", "srrag"), ("selective_retrieve", "retrieve")):
        predictions[name] = evaluate.follow(settings, questions, passes, *policies[policy])

    for name, (trained, stage) in _ABLATIONS.items():
        engine = evaluate.make_engine(session, context, corpus, trained=trained)
        datastore = evaluate.read_datastore(session, context, stage)
        passes = evaluate.answer_with_all(
            context, engine, datastore, questions, c, file=f"{name}.jsonl"
        )
        policy = evaluate.list_policies(c, passes)["srrag"]
        predictions[name] = evaluate.follow(c, questions, passes, *policy)
    write_json(context.folder / "predictions.json", predictions)


def _answer_untrained(
    session: "Session", context: StageContext, corpus: Collection
) -> dict[str, list[dict[str, Any]]]:
    """The model as it was, on the documents that it writes and on each source's passages."""
    c = session.config
    search = make_search(session, context, corpus, c.answer.passages)
    ways = {"raw_verbalise": partial(untrained.answer_from_documents, session)}
    external = [number for number, source in enumerate(c.sources) if source.kind == "search"]
    for number in external:
        name = "raw_retrieve" if len(external) == 1 else f"raw_retrieve_{c.sources[number].name}"
        ways[name] = partial(
            untrained.answer_from_passages, session, search=partial(search, number)
        )
    return {
        name: context.map_batches(
            f"{name}.jsonl",
            session.list_questions(corpus),
            answer,
            batch_size=4 * c.answer.batch_size,
            unit=f"questions ({name})",
        )
        for name, answer in ways.items()
    }
