"""Two processes on this machine do what one does, and only the first writes."""

import os
import socket
import subprocess
import sys
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path

import jax
import numpy as np
import pytest
from on_mesh import worker
from on_mesh.common import FIT_STEPS, fit_rows
from on_mesh.stopped import STEPS
from on_mesh.system_cases import make_session

from rag_jax.runtime import hosts
from rag_jax.runtime.checkpoint import Checkpoints, load_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.runtime.sharding import DECODER_RULES, abstract_params

TESTS = Path(__file__).parents[1]


def find_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def start_two(program, folder, *, devices):
    """Two processes that run a module of tests/on_mesh and meet."""
    address = f"localhost:{find_port()}"
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", f"on_mesh.{program}", address, str(number), folder],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]


def finish(both):
    """What two processes said. If one fails, the other would wait for it, and is ended."""
    with ThreadPoolExecutor() as threads:
        said = [threads.submit(process.communicate) for process in both]
        wait(said, timeout=300, return_when=FIRST_COMPLETED)
        if not any(process.returncode for process in both):
            wait(said, timeout=300)
        for process in both:
            process.kill()
        return [future.result()[0] for future in said]


def test_one_is_told_to_stop_and_all_save_at_the_same_step(tmp_path):
    for word in ("stopped", "went"):
        both = start_two("stopped", tmp_path, devices=1)
        said = finish(both)
        assert [process.returncode for process in both] == [0, 0], "\n".join(said)
        ours, theirs = ([x for x in text.splitlines() if x.startswith(word)] for text in said)
        assert len(ours) == 1 and ours == theirs
    (saved,) = Checkpoints(tmp_path / "stopped" / "checkpoints").steps()
    assert 5 < saved < STEPS


def test_two_processes(tmp_path):
    both = start_two("worker", tmp_path / "two", devices=2)
    worker.run(tmp_path / "one")
    said = finish(both)
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    assert "stage train: kept" in said[0] and "stage" not in said[1]
    assert read_json(tmp_path / "two" / "process0.json") == {"first": True}
    assert not (tmp_path / "two" / "process1.json").exists()

    one, two = (tmp_path / name / "stages" for name in ("one", "two"))
    logs = [read_jsonl(folder / "train" / "log.jsonl") for folder in (one, two)]
    assert len(logs[0]) == worker.STEPS
    for ours, theirs in zip(*logs, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    session = make_session(None, "lora")
    abstract = abstract_params(session.trainable.start(), session.mesh, DECODER_RULES)
    trained = [load_tree(folder / "train" / "params", abstract) for folder in (one, two)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), *trained)
    fitted = [fit_rows(folder / "fit") for folder in (one, two)]
    assert [line["step"] for line in fitted[1][0]] == list(range(FIT_STEPS))
    for ours, theirs in zip(fitted[0][0], fitted[1][0], strict=True):
        assert ours == pytest.approx(theirs, rel=2e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), *(f[1] for f in fitted))
    for name in ("texts.jsonl", "rows.npy", "arrays.npz"):
        files = [(folder / "texts" / name).read_bytes() for folder in (one, two)]
        assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", None, None), "--coordinator=localhost:1: needs --processes=N and"),
        (("localhost:1", 2, 2), "--process=I, from 0 to N - 1, not 2 and 2"),
        (("localhost", 2, 0), "--coordinator=localhost: must be HOST:PORT, with a port from 1 to"),
        (("a:b:1", 2, 0), "--coordinator=a:b:1: must be HOST:PORT"),
        (("localhost:0", 2, 0), "must be HOST:PORT"),
        (("[::1]:65536", 2, 0), "must be HOST:PORT"),
        (("auto", 2, 0), "--coordinator=auto: leave out --processes and --process"),
        (("auto", None, None), "--coordinator=auto: cannot join the other processes: "),
    ],
)
def test_processes_that_cannot_meet(arguments, message):
    with pytest.raises(RagJaxError, match=message) as caught:
        hosts.connect(*arguments)
    assert "\n" not in str(caught.value)
