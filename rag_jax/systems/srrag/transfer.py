"""The evaluation of a finished run on another dataset, over the dataset's passages."""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import DataConfig, build
from rag_jax.data.questions import Collection, Question
from rag_jax.pipeline.runner import open_stages, run_session
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.systems.session import bind
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.evaluate import describe_report, run_evaluation
from rag_jax.systems.srrag.pipeline import list_stages
from rag_jax.systems.srrag.policy import run_datastore
from rag_jax.systems.srrag.session import Session


class _Session(Session):
    """The session of another dataset, on whose questions nothing is trained.

    Its training questions are the entries that the datastore grows by.
    """

    entries: int = 0

    def check_corpus(self, corpus: Collection) -> None:
        self.check_evaluation(corpus)
        if self.entries:
            self._choose_entries(corpus)

    @cached_property
    def train_questions(self) -> list[Question]:
        return self._choose_entries(self.corpus)

    def _choose_entries(self, corpus: Collection) -> list[Question]:
        chosen = self.choose_questions(corpus, "train", self.entries)
        if len(chosen) < self.entries:
            raise RagJaxError(
                f"--entries={self.entries}: there are {len(chosen)} 'train' questions with answers"
            )
        return chosen


def evaluate_on(
    config: ConfigDict,
    workdir: Path,
    data: DataConfig,
    split: str,
    out: Path,
    *,
    entries: int = 0,
) -> dict[str, Any]:
    """Answers another dataset's questions with a run's model and datastore, and reports on it.

    Nothing is trained, thresholds are the run's, and nothing is written into the run's folder.

    Args:
        split: of its questions: "test" or "dev".
        out: the folder for the results; the same call again continues there.
        entries: number of the dataset's training questions that the datastore grows by, for a
            further method "srrag_grown" (the datastore of paper, section 3.4, takes new questions
            without training). 0 for none.

    Raises:
        RagJaxError: as `open_stages` and `run_session`; or there are fewer training questions.
    """
    settings = build(SRRAGConfig, config)
    tuned = ("thresholds",) if settings.route.is_tuned else ()
    finished = ("labels", "stage2", "datastore", *tuned)
    trained = open_stages(list_stages(Session(settings)), workdir, finished)
    settings = replace(settings, data=data, evaluate_on=split, ablations=False)
    session = _Session(settings)
    session.entries = entries
    report = describe_report(settings, finished=Path(workdir) / "stages", grown=entries > 0)
    return run_session(session, _list_stages(session, trained, finished), out, report)


def _list_stages(
    session: _Session, trained: StageContext, finished: tuple[str, ...]
) -> list[Stage]:
    """The dataset's corpus and index, the entries that the datastore grows by, the evaluation."""
    stages = {stage.name: stage for stage in list_stages(session)}
    runs = [read_json(trained.path(stage, "stage.json"))["run"] for stage in finished[2:]]
    needs = ("corpus", "index", "lengths")
    listed = [stages[name] for name in needs]
    given = {"trained": trained}
    if session.entries:
        entries = replace(
            stages["datastore"],
            name="entries",
            run=bind(session, run_datastore, **given),
            needs=needs,
            settings={**stages["datastore"].settings, "of": runs, "entries": session.entries},
        )
        listed.append(entries)
        needs, given = (*needs, "entries"), {**given, "grown": True}
    evaluate = replace(
        stages["evaluate"],
        run=bind(session, run_evaluation, **given),
        needs=needs,
        settings={**stages["evaluate"].settings, "trained": runs},
    )
    return [*listed, evaluate]
