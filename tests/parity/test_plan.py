"""launch/plan.py with the real TPU compiler."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
CONFIG = "--config=configs/srrag.py"

pytestmark = pytest.mark.parity


def launch(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "launch/plan.py", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


# Fewer turns and rows do not make fewer programs, but a shorter test.
SMALL = ["--config.model.dtype=bfloat16", "--config.mesh.model=2"]


def test_the_small_run_is_planned_for_four_chips():
    done = launch(CONFIG, "--topology=v5e:2x2", *SMALL)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "4 x TPU v5 lite, mesh 2 data by 2 model, 15.75 GiB a device"
    programs = {line.split("  ")[0]: line for line in lines[4:]}
    assert {"write documents", "stage 2, gradients of pairs", "vote"} <= programs.keys()
    assert "all-reduce" in programs["route"]
    assert all(any(f" {by}" in line for by in ("compute", "memory", "links")) for line in lines[4:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:3x3"], "--topology=v5e:3x3: no such slice; write CHIP:AxB such as v5e:8"),
        (["--topology=h200:8"], "--topology=h200:8: no such slice"),
        ([], "--topology is missing"),
        (
            ["--topology=v5e:2x2", "--config.mesh.data=3"],
            "config.mesh.data=3 by config.mesh.model=1 does not divide 4 device(s)",
        ),
        (
            ["--topology=v5e:2x2", "--config.answer.batch_size=6"],
            "config.answer.batch_size=6 does not divide the mesh",
        ),
    ],
)
def test_a_mistake_takes_one_line(arguments, message):
    done = launch(CONFIG, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("error:") == 1
    assert done.stdout == ""
