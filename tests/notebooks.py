"""Runs a notebook's cells as a program, its commands as processes."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "docs" / "notebooks"


def run_notebook(name, **settings):
    """Runs all cells in the working folder, with settings in the place of the first cell of code.

    A line of a shell, `!rag-jax ...`, runs as Jupyter would run it, and must end with status 0.

    Returns:
        What the cells' commands printed.
    """
    cells = json.loads((FOLDER / f"{name}.ipynb").read_text("utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    space, printed = {"__name__": "__main__"}, []
    for number, code in enumerate(codes):
        if code.startswith("!rag-jax "):
            printed.append(_run_command(code.removeprefix("!rag-jax ").format(**space)))
            continue
        exec(compile(code, f"{name}.ipynb, code cell {number + 1}", "exec"), space)
        if number == 0:
            assert {*settings} <= {*space}
            space |= settings
    return printed


def _run_command(line):
    start = "import sys; from rag_jax.commands.main import run; sys.exit(run())"
    command = [sys.executable, "-c", start, *shlex.split(line)]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
