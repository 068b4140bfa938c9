"""The evaluation of a finished run, or of models as loaded, on another dataset."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from rag_jax.config import DataConfig, build
from rag_jax.pipeline.finished import NOTHING, find_finished, list_evaluation
from rag_jax.pipeline.protect import check_results, check_same
from rag_jax.pipeline.runner import ReportSpec, run_session
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.progress import log
from rag_jax.runtime.track import check_tracker
from rag_jax.systems.session import Session


def make_evaluation(
    settings: type,
    session_type: Callable[..., Session],
    list_stages: Callable[[Any], list[Stage]],
    describe_report: Callable[..., ReportSpec],
    *,
    trained: tuple[str, ...],
    untrain: Callable[[Any], Any] = lambda config: config,
) -> Callable[..., dict[str, Any]]:
    """The function that evaluates a system on another dataset, over the dataset's passages.

    Args:
        session_type: makes a session from the settings and `trains`.
        describe_report: what the report of some settings shows, and of which models: of `trained`
            ones, or of models as loaded.
        trained: the stages that are taken from the finished run; without one, every stage that
            needs them does without or is left out.
        untrain: changes the settings for models as loaded.
    """

    def evaluate_on(
        config: ConfigDict,
        workdir: Path | None,
        data: DataConfig,
        split: str,
        out: Path,
        *,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Answers another dataset's questions over its passages, and reports on that.

        Nothing is trained, and nothing is written into the finished run's folder.

        Args:
            config: of the finished run.
            workdir: the finished run's folder; None for the models as loaded, before any training.
            split: of its questions: "test" or "dev".
            out: the folder for the results; the same call again continues there.
            overwrite: whether results of another model or of other settings may be overwritten.

        Raises:
            RagJaxError: as `find_finished`, `check_results` and `run_session`; `out` is in the
                finished run's folder, or has trained stages of its own; nothing is trained, and
                the run is of another system or of other settings.
        """
        own = build(settings, config)
        check_tracker(own)
        _check_out(out, workdir, trained)
        if workdir:  # before any model is looked for
            find_finished([], workdir, ())
        changes: dict[str, Any] = {"data": data, "evaluate_on": split}
        if "ablations" in {field.name for field in fields(own)}:
            changes["ablations"] = False
        changed = replace(own if workdir else untrain(own), **changes)
        session = session_type(changed, trains=False)
        stages = list_stages(session)
        names = [stage.name for stage in stages if stage.name in trained]
        given = NOTHING
        if workdir:
            finished = list_stages(session_type(own))
            given = find_finished(finished, workdir, names)
            if not names:
                check_same(finished, workdir, own.system)
                log(f"{workdir}: with these settings nothing is trained that could be taken over")
        stages = list_evaluation(stages, trained, given=workdir is not None)
        report = describe_report(changed, trained=workdir is not None)
        if not overwrite:
            check_results(stages, out, given=given.records, model=report.model, config=changed)
        options = {"given": given, "overwrite": overwrite, "flag": "--out"}
        return run_session(session, stages, out, report, **options)

    return evaluate_on


def _check_out(out: Path, workdir: Path | None, trained: tuple[str, ...]) -> None:
    """Raises a RagJaxError if the results would be written among what was trained."""
    resolved = out.resolve()
    if workdir and workdir.resolve() in (resolved, *resolved.parents):
        raise RagJaxError(
            f"--out={out}: is in the work folder {workdir}, which must not change; choose another"
        )
    if any((out / "stages" / name).exists() for name in trained):
        raise RagJaxError(f"--out={out}: has a run that was trained there; choose another folder")


def name_model(name: str, trained: bool) -> str:
    """A model's name in a report, which says so if the model is as loaded."""
    return name if trained else f"{name}, untrained"
