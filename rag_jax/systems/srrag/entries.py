"""The evaluation on another dataset with a datastore that grew by the dataset's own questions.

The datastore takes new questions without training (paper, section 3.4).
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import DataConfig
from rag_jax.data.questions import Collection, Question
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.evaluation import make_evaluation
from rag_jax.systems.srrag import pipeline
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.evaluate import GROWN_BY, describe_report
from rag_jax.systems.srrag.session import Session


class _Session(Session):
    """The session of another dataset, whose training questions are the new entries."""

    def __init__(self, config: SRRAGConfig, *, entries: int, trains: bool = True):
        super().__init__(config, trains=trains)
        self.entries = entries

    def check_corpus(self, corpus: Collection) -> None:
        super().check_corpus(corpus)
        self._choose_entries(corpus)

    @cached_property
    def train_questions(self) -> Sequence[Question]:
        return self._choose_entries(self.corpus)

    def _choose_entries(self, corpus: Collection) -> Sequence[Question]:
        chosen = self.choose_questions(corpus, "train", self.entries)
        if len(chosen) < self.entries:
            raise RagJaxError(
                f"--entries={self.entries}: there are {len(chosen)} 'train' questions with answers"
            )
        return chosen


def evaluate_with_entries(
    config: ConfigDict,
    workdir: Path,
    data: DataConfig,
    split: str,
    out: Path,
    *,
    entries: int,
    overwrite: bool = False,
) -> dict[str, Any]:
    """As `pipeline.evaluate_on`, with a further method "srrag_grown".

    Args:
        entries: number of the dataset's training questions that the datastore grows by.

    Raises:
        RagJaxError: as `pipeline.evaluate_on`; or there are fewer training questions.
    """
    session, report = partial(_Session, entries=entries), partial(describe_report, grown=True)
    system = pipeline.CONFIG, session, _list_stages, report
    evaluate_on = make_evaluation(*system, trained=pipeline.TRAINED)
    return evaluate_on(config, workdir, data, split, out, overwrite=overwrite)


def _list_stages(session: _Session) -> list[Stage]:
    """The stages with one more, which fills a datastore with the new entries alone."""
    stages = {stage.name: stage for stage in pipeline.list_stages(session)}
    datastore, evaluate = stages["datastore"], stages.pop("evaluate")
    settings = {**datastore.settings, "entries": session.entries}
    entries = replace(datastore, name=GROWN_BY, settings=settings)
    return [*stages.values(), entries, replace(evaluate, needs=(*evaluate.needs, GROWN_BY))]
