"""The evaluation of a finished run on another dataset, over the dataset's passages."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import DataConfig, build
from rag_jax.data.questions import Collection
from rag_jax.pipeline.runner import open_stages, run_session
from rag_jax.runtime.files import read_json
from rag_jax.systems.session import bind
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.evaluate import describe_report, run_evaluation
from rag_jax.systems.srrag.pipeline import list_stages
from rag_jax.systems.srrag.session import Session


class _Session(Session):
    """The session of another dataset, on whose questions nothing is trained."""

    def check_corpus(self, corpus: Collection) -> None:
        self.check_evaluation(corpus)


def evaluate_on(
    config: ConfigDict, workdir: Path, data: DataConfig, split: str, out: Path
) -> dict[str, Any]:
    """Answers another dataset's questions with a run's model and datastore, and reports on it.

    Nothing is written into the run's folder.

    Args:
        split: of its questions: "test" or "dev".
        out: the folder for the results; the same call again continues there.

    Raises:
        RagJaxError: as `open_stages` and `run_session`.
    """
    settings = build(SRRAGConfig, config)
    tuned = ("thresholds",) if settings.route.is_tuned else ()
    finished = ("labels", "stage2", "datastore", *tuned)
    trained = open_stages(list_stages(Session(settings)), workdir, finished)
    settings = replace(settings, data=data, evaluate_on=split, ablations=False)
    session = _Session(settings)
    stages = {stage.name: stage for stage in list_stages(session)}
    evaluate, needs = stages["evaluate"], ("corpus", "index", "lengths")
    runs = [read_json(trained.path(stage, "stage.json"))["run"] for stage in finished[2:]]
    made = {"trained": runs}
    evaluate = replace(
        evaluate,
        run=bind(session, run_evaluation, trained=trained),
        needs=needs,
        settings={**evaluate.settings, **made},
    )
    report = describe_report(settings, finished=Path(workdir) / "stages")
    return run_session(session, [*(stages[name] for name in needs), evaluate], out, report)
