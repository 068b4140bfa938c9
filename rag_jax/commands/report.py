"""Writes the page of a finished run, or of several side by side: one HTML file to look into.

    python launch/report.py RUN [RUN ...] [--out=FILE]

A RUN is a work folder of train, evaluate or compare. The page has every question with each method's
source, probabilities, passages, answer and whether it is right; filters; the tables and figures;
and the training curves. It needs no network and no other file.

Every run writes its own page, RUN/report.html, which this command writes again. Of several runs the
page is report.html in the present folder, or the FILE of --out: their questions are matched, and
methods are named by their run.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from rag_jax.pipeline import command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.paths import expand_path
from rag_jax.runtime.terminal import write_text

PAGE = "report.html"


def read(arguments: Sequence[str]) -> tuple[list[Path], Path]:
    """The work folders of a command line, and the file to write.

    Raises:
        RagJaxError: a flag that there is not, no run, or a run that is there twice.
    """
    runs, out = [], None
    words = iter(arguments)
    for argument in words:
        name, sign, value = argument.partition("=")
        if name in ("--out", "-out"):
            out = command.read_path({"out": value if sign else next(words, "")}, "out")
        elif argument.startswith("-"):
            raise RagJaxError(f"{argument}: not a flag of this command, which has --out=FILE")
        else:
            runs.append(expand_path(argument))
    if not runs:
        raise RagJaxError("RUN is missing: name the work folder of a finished run")
    for place, run in enumerate(runs):
        if run.resolve() in [other.resolve() for other in runs[:place]]:
            raise RagJaxError(f"{run}: is there twice; name every run once")
    return runs, out or (runs[0] if len(runs) == 1 else Path()) / PAGE


def main(arguments: list[str]) -> None:
    """Writes the page of the command line's runs."""
    runs, out = read(arguments)
    # Imported here because it takes a second; see `command`.
    from rag_jax.evaluation.page import MARK, write_page
    from rag_jax.evaluation.run_data import REPORT, read_run
    from rag_jax.evaluation.run_passages import ROOM
    from rag_jax.runtime.files import explain_disk_errors
    from rag_jax.runtime.outside import require_file

    for run in runs:
        if not (run / REPORT).exists():
            raise RagJaxError(explain_missing(run))
    if os.path.isdir(out):  # Path's own method raises an error at a name that is too long
        raise RagJaxError(f"--out={out}: is a folder; name a file")
    if not os.path.isdir(out.parent):
        raise RagJaxError(f"--out={out}: there is no folder {out.parent}; make it first")
    if os.path.exists(out) and out not in [run / PAGE for run in runs]:
        require_file(out, "name a file with --out")
        with open(out, "rb") as file:
            is_page = MARK.encode() in file.read(1 << 16)
        if not is_page:
            raise RagJaxError(
                f"{out}: is no page of a run, and would be overwritten; name --out=FILE"
            )
    data = [read_run(run, room=ROOM // len(runs)) for run in runs]
    first = data[0]
    title = f"{first['system']}: {first['model']} on {first['dataset']}"
    if len(data) > 1:
        title = f"{', '.join(run['name'] for run in data)}, side by side"
    with explain_disk_errors(out.parent, "--out"):
        write_page(out, title, data)
    write_text(f"report: {out}")


def explain_missing(run: Path) -> str:
    """Why a folder has no report: it is no run, or a stage of its evaluation has not ended."""
    advice = "run launch/train.py with its --config and --workdir, which goes on from there"
    if run.is_file():
        return f"{run}: is a file; name the work folder of a run"
    if not run.is_dir():
        return f"{run}: there is no such folder"
    if not (run / "stages").is_dir():
        if any(run.glob("*/stages")):
            return f"{run}: has no report; finish the comparison, or name the folder of one run"
        return f"{run}: is no work folder of a run: it has neither report.json nor stages"
    ended = {path.parent.name for path in (run / "stages").glob("[!.]*/stage.json")}
    missing = [stage for stage in list_needed(run) if stage not in ended]
    if missing:
        return f"{run}: has no evaluation yet: stage {missing[0]} is not finished; {advice}"
    return f"{run}: its stages are finished, but not its report; {advice}"


def list_needed(run: Path) -> list[str]:
    """The stages that the report of a run is made of, by the settings in its `config.json`."""
    from rag_jax.config import build
    from rag_jax.runtime.files import read_json
    from rag_jax.systems import list_systems, open_room

    path = run / "config.json"
    if not path.exists():  # before the end of the first stage
        return ["corpus"]
    settings = read_json(path)
    system = settings.get("system") if isinstance(settings, dict) else None
    if system not in list_systems("evaluate"):
        raise RagJaxError(f"{path}: system={system!r} has no report; name the folder of a run")
    room = open_room(system, "pipeline")
    report = room.describe_report(build(room.CONFIG, settings))
    return list(dict.fromkeys(report.methods.values()))


def run() -> int:
    """Runs `main` and returns the exit status."""
    return command.run(main, __doc__, resumes=False)
