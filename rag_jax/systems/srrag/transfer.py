"""Evaluates a finished run of Self-Routing RAG on another dataset."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import ml_collections

from rag_jax.config import DataConfig, build
from rag_jax.data.formats import copy_collection
from rag_jax.pipeline.runner import StageContext, open_stages, run_stages
from rag_jax.runtime.files import read_json
from rag_jax.runtime.hosts import is_first
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.evaluate import run_evaluation
from rag_jax.systems.srrag.pipeline import Session, report_run


def evaluate_on(
    config: ml_collections.ConfigDict, workdir: Path, data: DataConfig, split: str, out: Path
) -> dict[str, Any]:
    """Answers another dataset's questions, with its passages as the corpus, and reports on it.

    The tuned model and its datastore are the run's; nothing is written into its folder.

    Args:
        config: the settings that the run was made with.
        workdir: the run's folder.
        data: the dataset; `split` those of its questions that are evaluated, "test" or "dev".
        out: the folder for what is made; the same call again continues there.

    Raises:
        RagJaxError: as `open_stages` and `pipeline.run`.
    """
    settings = build(SRRAGConfig, config)
    finished = ("labels", "stage2", "datastore")
    made = open_stages(Session(settings).stages(), workdir, finished)
    statistics = {
        stage: read_json(made.path(stage, "statistics.json")) for stage in ("labels", "datastore")
    }
    settings = replace(settings, data=data, evaluate_on=split, ablations=False)
    session = Session(settings)
    by_name = {stage.name: stage for stage in session.stages()}
    evaluation = by_name["evaluate"]
    stages = [
        replace(by_name["corpus"], run=partial(_make_corpus, session)),
        by_name["index"],
        replace(
            evaluation,
            run=partial(run_evaluation, session, made=made),
            needs=("corpus", "index"),
            settings=evaluation.settings
            | {"trained": read_json(made.path("datastore", "stage.json"))["run"]},
        ),
    ]
    with jax.set_mesh(session.mesh):
        records = run_stages(stages, out, config=settings)
    if not is_first():
        return {}
    predictions = read_json(Path(out) / "stages" / "evaluate" / "predictions.json")
    return report_run(settings, out, predictions, statistics=statistics, stages=records)


def _make_corpus(session: Session, context: StageContext) -> None:
    """Copies the passages and questions; none of these are trained on."""
    c = session.config
    copy_collection(context.folder, c.data, c.world, seed=c.seed, check=session.list_questions)
