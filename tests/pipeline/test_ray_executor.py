"""Workers of Ray on a cluster of two nodes on this machine: lost, joining, refused, failing."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from divided import PIECES, make_opener, read_notes, read_results, run

from rag_jax.pipeline import ray_cluster, ray_executor, workers
from rag_jax.pipeline.ray_cluster import RaySettings, connect
from rag_jax.pipeline.ray_executor import RayExecutor, open_ray
from rag_jax.retrieval.encode import PIECE
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import write_jsonl
from rag_jax.systems.index.pipeline import build_index

ray = pytest.importorskip("ray")
ROOT, HOST = Path(__file__).parents[2], socket.gethostname()
PATH = os.pathsep.join(map(str, (ROOT, Path(__file__).parent)))


@pytest.fixture(scope="module")
def cluster():
    """A cluster whose first node has two places for workers."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", PATH)
        patch.setenv("JAX_PLATFORMS", "cpu")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        first = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 << 20}
        made = Cluster(initialize_head=True, head_node_args=first)
        try:
            yield made
        finally:
            made.shutdown()


@pytest.fixture(scope="module")
def connected(cluster):
    with connect(RaySettings(cluster.address, None, {"CPU": 1})) as count:
        assert count == 2
        yield


@pytest.fixture(scope="module")
def executor(connected):
    """Two workers, for as long as they live."""
    return RayExecutor(2, {"CPU": 1})


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """What one process makes."""
    folder = tmp_path_factory.mktemp("one")
    run(folder / "run", make_opener(folder / "notes"))
    return read_results(folder / "run")


def list_makers(notes):
    """The processes that made pieces."""
    return {process for process, _ in read_notes(notes, "made")}


def test_a_worker_that_is_killed(tmp_path, executor, expected, capsys):
    """Its piece alone is made again, and another worker takes its place."""
    # No worker makes all before the other has begun.
    faults = {"records 0": "wait:die", "records 3": "die:1", "rows 0": "wait:go", "rows 2": "go:1"}
    opener = make_opener(tmp_path / "notes", **faults)
    run(tmp_path / "run", opener, executor)
    assert read_results(tmp_path / "run") == expected
    made = [piece for _, piece in read_notes(tmp_path / "notes", "made")]
    assert len(made) == len({*made}) == 2 * PIECES
    ((killed, _),) = read_notes(tmp_path / "notes", "die")
    # The driver, two workers, and the one in the killed one's place; none opens the run twice.
    opened = [process for process, _ in read_notes(tmp_path / "notes", "opened")]
    assert len(opened) == len({*opened}) == 4
    assert opened[0] == str(os.getpid()) and killed in opened[1:3]
    # On a busy machine the new one may come when all is made.
    assert len(list_makers(tmp_path / "notes") - {killed}) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("stage both: lost a worker on ") == 1
    assert "stage both: 11 items in" in said


def test_a_piece_that_raises_twice_ends_the_run(tmp_path, executor, expected, capsys):
    opener = make_opener(tmp_path / "notes", **{"records 5": "raise"})
    with pytest.raises(RagJaxError) as caught:
        run(tmp_path / "run", opener, executor)
    line = f"stage both: the piece out.4-6.jsonl failed 2 times, last on {HOST}: "
    assert str(caught.value) == f"{line}ValueError: no such luck"
    assert len(read_notes(tmp_path / "notes", "raise")) == 2
    assert "divided.py" in capsys.readouterr().err  # from the worker's traceback
    # One process makes what is missing.
    run(tmp_path / "run", make_opener(tmp_path / "notes"))
    assert read_results(tmp_path / "run") == expected
    assert len(read_notes(tmp_path / "notes", "made")) == 2 * PIECES


def test_a_fault_that_the_user_can_mend_ends_the_run_at_once(tmp_path, executor):
    opener = make_opener(tmp_path / "notes", **{"records 0": "refuse"})
    with pytest.raises(RagJaxError) as caught:
        run(tmp_path / "run", opener, executor)
    assert str(caught.value) == f"stage both: a worker on {HOST}: the disk is full: free some space"
    assert len(read_notes(tmp_path / "notes", "refuse")) == 1


def test_a_worker_that_differs_is_refused(tmp_path, executor, monkeypatch):
    monkeypatch.setattr(workers, "hash_source", lambda: "another version")
    with pytest.raises(RagJaxError) as caught:
        run(tmp_path / "run", make_opener(tmp_path / "notes"), executor)
    line = f"stage both: a worker on {HOST} is refused: the source of rag_jax is "
    advice = " there and another vers here; give all machines the same code, files and work folder"
    assert str(caught.value).startswith(line) and str(caught.value).endswith(advice)
    assert read_notes(tmp_path / "notes", "made") == []


def test_a_map_that_cannot_be_opened_ends_the_run(tmp_path, executor):
    with pytest.raises(RagJaxError) as caught:
        run(tmp_path / "run", make_opener(tmp_path / "notes", open="raise"), executor)
    line = f"stage both: a worker on {HOST} cannot open out.jsonl: ValueError: no such luck"
    assert str(caught.value) == line


def test_workers_that_are_lost_before_they_make_anything_end_the_run(
    tmp_path, executor, monkeypatch
):
    monkeypatch.setattr(ray_executor, "_LOSSES", 1)
    with pytest.raises(RagJaxError) as caught:
        run(tmp_path / "run", make_opener(tmp_path / "notes", open="die"), executor)
    line = "stage both: 1 workers were lost one after another before they made a piece, the last on"
    assert str(caught.value).startswith(line)
    assert "its worker process has died" in str(caught.value)


def test_a_driver_that_is_stopped(tmp_path, cluster, executor, expected):
    """The command's workers end with it, and one process continues."""
    notes = tmp_path / "notes"
    make_opener(notes)
    program = "import divided, sys; sys.exit(divided.launch())"
    config = [f"--config={ROOT}/configs/srrag.py", f"--workdir={tmp_path / 'run'}"]
    flags = ["--executor=ray", f"--ray_address={cluster.address}", "--workers=2"]
    environment = os.environ | {"PYTHONPATH": PATH, "NOTES": str(notes)}
    for member in executor._members:  # which have the places
        ray.kill(member.actor)

    def start(*flags):
        command = [sys.executable, "-c", program, *config, *flags]
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    with start(*flags) as process:
        end = time.monotonic() + 60
        while len(read_notes(notes, "made")) < PIECES - 1 and time.monotonic() < end:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said = process.communicate()[1]
    assert process.returncode == 0, said
    assert said.endswith("interrupted; the same command continues\n") and "Traceback" not in said
    (notes / "go").touch()
    with start() as process:
        assert process.communicate() and process.returncode == 0
    assert read_results(tmp_path / "run") == expected


def test_a_machine_that_joins_and_leaves(
    tmp_path, cluster, connected, expected, monkeypatch, capsys
):
    """A worker that has no place waits for one; one that is lost with its node is no failure."""
    monkeypatch.setattr(ray_executor, "_TRIES", 1)
    monkeypatch.setattr(ray_executor, "_QUIET", 0.5)
    opener = make_opener(tmp_path / "notes", **{"records 4": "wait:left"})
    executor = RayExecutor(1, {"joining": 1})
    inputs = tmp_path / "run", opener, executor
    running = threading.Thread(target=run, args=inputs, daemon=True)
    running.start()
    for number in (1, 2):
        node = cluster.add_node(num_cpus=0, resources={"joining": 1})
        end = time.monotonic() + 30
        while len(read_notes(tmp_path / "notes", "wait")) < number and time.monotonic() < end:
            time.sleep(0.1)
        if number == 1:
            cluster.remove_node(node)
    (tmp_path / "notes" / "left").touch()
    running.join(30)
    assert read_results(tmp_path / "run") == expected
    assert len(list_makers(tmp_path / "notes")) == 2
    said = capsys.readouterr().err
    assert "stage both: no worker has begun yet; one takes 1 joining, and the cluster has" in said


@pytest.mark.parametrize("listens", [False, True])
def test_an_address_that_nobody_answers(monkeypatch, listens):
    monkeypatch.setattr(ray_cluster, "_ANSWERS_WITHIN", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        if not listens:
            server.close()
        line = f"--ray_address={address}: no Ray cluster answers within "
        for asked in (address, "auto"):
            monkeypatch.setenv("RAY_ADDRESS", address)
            with pytest.raises(RagJaxError, match=line), open_ray(RaySettings(asked, 1, {})):
                pass


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "http://head:8265"])
def test_an_address_of_another_kind(address):
    with pytest.raises(RagJaxError) as caught, open_ray(RaySettings(address, 1, {})):
        pass
    assert str(caught.value).startswith(f"--ray_address={address}: must be auto or HOST:PORT")


def test_an_index_of_two_pieces(tmp_path, cluster, connected):
    passages = [{"id": i, "text": f"Passage number {i}."} for i in range(PIECE + 30)]
    write_jsonl(tmp_path / "passages.jsonl", passages)
    encoder = str(ROOT / "tests" / "golden" / "bert")
    settings = {"encoder": encoder, "backend": "exact", "max_length": 8}
    files = [str(tmp_path / "passages.jsonl")]
    build_index(files, tmp_path / "one", **settings)
    build_index(files, tmp_path / "two", **settings, executor=RayExecutor(2, {"CPU": 1}))
    one, two = (tmp_path / name / "stages" for name in ("one", "two"))
    assert list_bytes(one / "index" / "index") == list_bytes(two / "index" / "index")
    file = "embeddings/embeddings.npy"
    assert (one / file).read_bytes() == (two / file).read_bytes()


def list_bytes(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
