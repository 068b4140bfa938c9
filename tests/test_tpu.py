"""launch/tpu.sh with a gcloud that tells what it was asked."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "launch" / "tpu.sh"


def launch(tmp_path, *arguments):
    """Runs the script; gives its result and gcloud's arguments, one a line."""
    fake = tmp_path / "gcloud"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True)


def test_one_command_on_every_worker(tmp_path):
    words = ["python", "launch/train.py", "--config.model.name=a model"]
    done = launch(tmp_path, "--zone=z", "--project=p", "slice", *words)
    assert done.returncode == 0
    *asked, line = done.stdout.splitlines()
    wanted = ["compute", "tpus", "tpu-vm", "ssh", "slice", "--zone=z", "--project=p"]
    assert asked == [*wanted, "--worker=all"]
    before = "--command=cd ~/rag_jax 2> /dev/null; "
    assert line.startswith(before)
    # The far side's shell sees the words that were meant.
    shown = line.removeprefix(before)
    seen = subprocess.run(["bash", "-c", f"printf '%s\\n' {shown}"], capture_output=True, text=True)
    assert seen.stdout.splitlines() == words


def test_one_argument_is_a_line_of_shell(tmp_path):
    done = launch(tmp_path, "--zone=z", "slice", "cd ~ && ls *.py")
    assert done.stdout.splitlines()[-1].endswith("; cd ~ && ls *.py")


@pytest.mark.parametrize("arguments", [(), ("slice", "ls"), ("--zone=z", "slice")])
def test_too_little_said(tmp_path, arguments):
    done = launch(tmp_path, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: launch/tpu.sh")
    assert done.stdout == ""


def test_unknown_flag(tmp_path):
    done = launch(tmp_path, "--zne=z", "slice", "ls")
    assert (done.returncode, done.stderr) == (
        2,
        "error: --zne=z: not a flag of launch/tpu.sh; see --help\n",
    )
