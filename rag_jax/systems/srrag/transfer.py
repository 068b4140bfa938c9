"""The evaluation of a finished run on another dataset, over the dataset's passages."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import DataConfig, build
from rag_jax.pipeline.runner import open_stages, run_session
from rag_jax.runtime.files import read_json
from rag_jax.systems.session import bind
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.evaluate import describe_report, run_evaluation
from rag_jax.systems.srrag.pipeline import list_stages
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.stages import run_corpus


def evaluate_on(
    config: ConfigDict, workdir: Path, data: DataConfig, split: str, out: Path
) -> dict[str, Any]:
    """Answers another dataset's questions with a run's model and datastore, and reports on it.

    Nothing is written into the run's folder.

    Args:
        config: the settings that the run was made with.
        workdir: the run's folder.
        data: the dataset.
        split: of its questions: "test" or "dev".
        out: the folder for the results; the same call again continues there.

    Raises:
        RagJaxError: as `open_stages` and `run_session`.
    """
    settings = build(SRRAGConfig, config)
    finished = ("labels", "stage2", "datastore")
    trained = open_stages(list_stages(Session(settings)), workdir, finished)
    settings = replace(settings, data=data, evaluate_on=split, ablations=False)
    session = Session(settings)
    stages = {stage.name: stage for stage in list_stages(session)}
    # No question of this dataset is trained on.
    corpus = bind(session, run_corpus, check_corpus=session.check_evaluation)
    evaluate = stages["evaluate"]
    made = read_json(trained.path("datastore", "stage.json"))["run"]
    return run_session(
        session,
        [
            replace(stages["corpus"], run=corpus),
            stages["index"],
            stages["lengths"],
            replace(
                evaluate,
                run=bind(session, run_evaluation, trained=trained),
                needs=("corpus", "index", "lengths"),
                settings={**evaluate.settings, "trained": made},
            ),
        ],
        out,
        describe_report(settings, finished=Path(workdir) / "stages"),
    )
