"""A system's process: how its end is told, and that a signal reaches it once."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from rag_jax.comparison import runs

STUB = """
    #!{python}
    import json, os, signal, sys, time
    do, _ = json.loads(sys.stdin.readline())
    folder, outcome = sys.argv[-2], os.fdopen(int(sys.argv[-1]), "w")

    def stop(number, frame):
        with open(os.path.join(folder, "saved"), "a") as file:
            file.write("saved ")
        time.sleep(0.2)
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    if do == "done":
        outcome.write("done")
    elif do == "fails":
        outcome.write("config.x: wrong")
        outcome.flush()
        os._exit(1)
    elif do == "dies":
        os._exit(3)
    elif do == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif do == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        open(os.path.join(folder, "ready"), "w").close()
        time.sleep(60)
"""


@pytest.fixture
def child(monkeypatch, tmp_path):
    """A small program in the place of Python and the system."""
    path = tmp_path / "stub"
    path.write_text(textwrap.dedent(STUB).lstrip().format(python=f"{sys.executable} -S"))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(runs.sys, "executable", str(path))
    return path


@pytest.mark.parametrize(
    ("does", "error"),
    [
        ("done", None),
        ("fails", "config.x: wrong"),
        ("dies", "ended early with status 3; the same command continues"),
        ("crashes", "was ended by SIGSEGV; the same command continues"),
        ("killed", "was killed (SIGKILL), as for want of memory; the same command continues"),
    ],
)
def test_the_end_of_a_run(child, tmp_path, does, error):
    assert runs.run_system("rag", does, tmp_path, overwrite=False) == error


def test_a_run_that_never_began(monkeypatch, tmp_path):
    monkeypatch.setattr(runs.sys, "executable", "/bin/false")
    settings = "x" * (1 << 20)  # more than a pipe holds
    said = runs.run_system("rag", settings, tmp_path, overwrite=False)
    assert said.startswith("ended early with status 1")


def test_a_system_whose_settings_are_wrong(tmp_path):
    """The real process: the error is told in one line, and nothing is made."""
    said = runs.run_system("rag", {"passages": 0}, tmp_path / "rag", overwrite=False)
    assert said == "config.passages=0: must be at least 1"
    assert list(tmp_path.iterdir()) == []


def test_a_finished_run_of_others_is_kept(tmp_path):
    (tmp_path / "report.json").write_text('{"system": "prag"}')
    said = runs.run_system("rag", {}, tmp_path, overwrite=False)
    assert "holds a finished run that this command would overwrite (system: prag -> rag" in said
    assert not (tmp_path / "stages").exists()


def test_a_run_does_not_outlive_the_comparison():
    code = "import time; from rag_jax.comparison import child; child.watch(); time.sleep(60)"
    run = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    run.stdin.close()  # as the end of the comparison does, whatever ended it
    assert run.wait(60) == -signal.SIGTERM


def test_an_interrupted_comparison_has_its_run_save_once(child, tmp_path, monkeypatch):
    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    # A suite that runs in the background was told to ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Thread(target=interrupt, daemon=True).start()
        with pytest.raises(KeyboardInterrupt):
            runs.run_system("rag", "waits", tmp_path, overwrite=False)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (tmp_path / "saved").read_text() == "saved "
