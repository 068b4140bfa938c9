"""Resumable maps: each codec whole, interrupted at every batch, and divided over workers."""

import contextlib
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from rag_jax.pipeline.maps import CODECS, ResumableMap, Worker
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage, StageContext, WorkerDone
from rag_jax.runtime.errors import Preempted
from rag_jax.runtime.files import read_jsonl, write_json

ITEMS, SIZE = [f"item {i}" for i in range(11)], 3
BATCHES = [ITEMS[i : i + SIZE] for i in range(0, len(ITEMS), SIZE)]


def make_records(batch):
    return [{"item": item, "text": "é\u2028\n" * len(item), "score": 1 / 3} for item in batch]


def make_rows(batch):
    numbers = [int(item.split()[1]) for item in batch]
    return np.asarray(numbers, np.float64)[:, None] / [1.0, 3.0]


def make_arrays(batch):
    numbers = np.asarray([int(item.split()[1]) for item in batch])
    return {
        "tokens": np.stack([numbers, numbers**2], axis=1).astype(np.int32),
        "score": (numbers / 3).astype(np.float32),
        "kept": numbers % 2 == 0,
        "states": np.ones((len(batch), 2, 3), np.float16) * numbers[:, None, None],
    }


RESULTS = {".jsonl": make_records, ".npy": make_rows, ".npz": make_arrays}
codecs = pytest.mark.parametrize("suffix", CODECS)


def assert_result(found, suffix, items=ITEMS):
    """The results of all items, in the dtypes in which the codec keeps them."""
    wanted = RESULTS[suffix](items)
    if suffix == ".jsonl":
        assert found == wanted
    elif suffix == ".npy":
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted.astype(np.float32))
    else:
        assert list(found) == list(wanted)
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)


class Bars:
    """A `progress` that keeps what its bars showed: total, start and updates."""

    def __init__(self):
        self.shown = []

    @contextlib.contextmanager
    def __call__(self, total, *, unit, initial):
        self.shown.append([total, unit, initial])
        yield self

    def update(self, count):
        self.shown[-1].append(count)


def run_map(path, *, worker=None, stop_at=None, items=ITEMS, collect=True):
    """Makes the pieces and joins them; interrupts call `stop_at`. Gives batches, bars, result."""
    batches, bars = [], Bars()

    def run(batch):
        if len(batches) == stop_at:
            raise KeyboardInterrupt
        batches.append(list(batch))
        return RESULTS[path.suffix](batch)

    mapped = ResumableMap(path, items, SIZE, worker)
    with pytest.raises(KeyboardInterrupt) if stop_at is not None else contextlib.nullcontext():
        mapped.make_pieces(run, unit="items", progress=bars)
    result = mapped.collect() if collect and stop_at is None else None
    return batches, bars.shown, result


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def name_pieces(suffix, count):
    """The names of the first `count` pieces of `out`, sorted as names are."""
    bounds = [(0, 3), (3, 6), (6, 9), (9, 11)][:count]
    return sorted(f"out.{start}-{stop}{suffix}" for start, stop in bounds)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Workers look for each other's files often."""
    monkeypatch.setattr("rag_jax.pipeline.maps.POLL", 0.01)
    monkeypatch.setattr("rag_jax.pipeline.runner.POLL", 0.01)


@pytest.fixture
def whole(tmp_path, suffix):
    """The file of a map that was not interrupted, as bytes."""
    (tmp_path / "whole").mkdir()
    path = tmp_path / "whole" / f"out{suffix}"
    batches, bars, result = run_map(path)
    assert batches == BATCHES
    assert bars == [[11, "items", 0, 3, 3, 3, 2]]
    assert_result(result, suffix)
    assert list_names(path.parent) == [path.name]
    return path.read_bytes()


@codecs
def test_a_finished_map_is_read(tmp_path, whole, suffix):
    path = tmp_path / "whole" / f"out{suffix}"
    batches, bars, result = run_map(path)
    assert batches == bars == []
    assert_result(result, suffix)
    assert path.read_bytes() == whole


@codecs
@pytest.mark.parametrize("at", range(len(BATCHES)))
def test_interrupted_at_every_batch_and_resumed(tmp_path, whole, suffix, at):
    path = tmp_path / f"out{suffix}"
    batches, _, _ = run_map(path, stop_at=at)
    assert batches == BATCHES[:at]
    assert list_names(tmp_path) == sorted(["whole", *name_pieces(suffix, at)])
    batches, bars, result = run_map(path)
    assert batches == BATCHES[at:]
    assert bars == [[11, "items", 3 * at, *map(len, BATCHES[at:])]]
    assert_result(result, suffix)
    assert list_names(tmp_path) == sorted(["whole", path.name])
    assert path.read_bytes() == whole


@codecs
def test_a_removed_piece_alone_is_made_again(tmp_path, whole, suffix):
    path = tmp_path / f"out{suffix}"
    run_map(path, stop_at=3)
    (tmp_path / f"out.3-6{suffix}").unlink()
    batches, bars, _ = run_map(path)
    assert batches == [BATCHES[1], BATCHES[3]]
    assert bars == [[11, "items", 6, 3, 2]]
    assert path.read_bytes() == whole


@codecs
def test_interrupted_before_and_after_joining(tmp_path, whole, suffix):
    path = tmp_path / f"out{suffix}"
    run_map(path, collect=False)
    assert list_names(tmp_path) == sorted(["whole", *name_pieces(suffix, 4)])
    batches, _, result = run_map(path)
    assert batches == [] and path.read_bytes() == whole
    # Joined, and not all pieces removed: they are removed now.
    for name in name_pieces(suffix, 4)[1:]:
        (tmp_path / name).write_bytes(b"")
    batches, _, result = run_map(path)
    assert batches == [] and path.read_bytes() == whole
    assert_result(result, suffix)
    assert list_names(tmp_path) == sorted(["whole", path.name])


@codecs
@pytest.mark.parametrize("count", [2, 3, 9])
def test_divided_over_workers_that_run_in_any_order(tmp_path, whole, suffix, count):
    orders = itertools.permutations(range(count)) if count < 4 else [range(count)[::-1]]
    for number, order in enumerate(orders):
        path = tmp_path / str(number) / f"out{suffix}"
        path.parent.mkdir()
        for index in order:
            batches, bars, _ = run_map(path, worker=Worker(index, count), collect=False)
            own = BATCHES[index::count]
            assert batches == own
            assert bars == ([[sum(map(len, own)), "items", 0, *map(len, own)]] if own else [])
        _, _, result = run_map(path, worker=Worker(0, count))
        assert_result(result, suffix)
        batches, _, result = run_map(path, worker=Worker(count - 1, count))
        assert batches == []
        assert_result(result, suffix)
        assert list_names(path.parent) == [path.name]
        assert path.read_bytes() == whole


@codecs
@pytest.mark.parametrize("at", [0, 1])
def test_an_interrupted_worker_makes_only_its_missing_pieces(tmp_path, whole, suffix, at):
    path = tmp_path / f"out{suffix}"
    batches, _, _ = run_map(path, worker=Worker(1, 2), stop_at=at)
    assert batches == BATCHES[1::2][:at]
    run_map(path, worker=Worker(0, 2), collect=False)
    batches, bars, _ = run_map(path, worker=Worker(1, 2), collect=False)
    own = BATCHES[1::2]
    assert batches == own[at:]
    assert bars == [[5, "items", 3 * at, *map(len, own[at:])]]
    run_map(path, worker=Worker(0, 2))
    assert path.read_bytes() == whole


@codecs
def test_one_process_ends_what_workers_began(tmp_path, whole, suffix):
    path = tmp_path / f"out{suffix}"
    run_map(path, worker=Worker(2, 3), collect=False)
    batches, bars, _ = run_map(path)
    assert batches == [BATCHES[0], BATCHES[1], BATCHES[3]]
    assert bars == [[11, "items", 3, 3, 3, 2]]
    assert path.read_bytes() == whole


@codecs
def test_a_worker_stops_when_the_map_is_joined_in_the_meantime(tmp_path, whole, suffix):
    path = tmp_path / f"out{suffix}"
    batches = []

    def run(batch):
        batches.append(batch)
        path.write_bytes(whole)
        return RESULTS[suffix](batch)

    mapped = ResumableMap(path, ITEMS, SIZE, Worker(0, 2))
    mapped.make_pieces(run, unit="items", progress=Bars())
    assert batches == BATCHES[:1]
    assert_result(mapped.collect(), suffix)
    assert list_names(tmp_path) == sorted(["whole", path.name])


@codecs
def test_processes_other_than_the_first_write_nothing(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr("rag_jax.runtime.files.is_first", lambda: False)
    CODECS[suffix].write(tmp_path / f"out{suffix}", RESULTS[suffix](ITEMS))
    assert list_names(tmp_path) == []


@codecs
@pytest.mark.parametrize("count", [0, 2, 4])
def test_another_number_of_results_is_a_fault(tmp_path, suffix, count):
    def run(batch):
        return RESULTS[suffix]((batch * 2)[:count])

    mapped = ResumableMap(tmp_path / f"out{suffix}", ITEMS, SIZE)
    with pytest.raises(ValueError, match=rf"out{suffix}: {count} results for range\(0, 3\)"):
        mapped.make_pieces(run, unit="items", progress=Bars())
    assert list_names(tmp_path) == []


def test_arrays_of_unequal_numbers_of_rows_are_a_fault(tmp_path):
    def run(batch):
        return {"a": np.zeros(len(batch)), "b": np.zeros(len(batch) + 1)}

    with pytest.raises(ValueError):
        ResumableMap(tmp_path / "out.npz", ITEMS, SIZE).make_pieces(
            run, unit="items", progress=Bars()
        )
    assert list_names(tmp_path) == []


def test_no_items_make_an_empty_file_of_records(tmp_path):
    batches, bars, result = run_map(tmp_path / "out.jsonl", items=[])
    assert batches == bars == result == []
    assert (tmp_path / "out.jsonl").read_bytes() == b""


@codecs
def test_items_need_no_more_than_a_length_and_slices(tmp_path, suffix):
    class Items:
        def __len__(self):
            return len(ITEMS)

        def __getitem__(self, part):
            assert isinstance(part, slice)
            return ITEMS[part]

    assert_result(run_map(tmp_path / f"out{suffix}", items=Items())[2], suffix)


# Several files of one stage.

FILES = ("records.jsonl", "rows.npy", "arrays.npz")


class Run:
    """A worker's run of a stage that maps `FILES` in one order and declares them in another."""

    def __init__(self, workdir, worker, order):
        self.workdir, self.worker, self.order = workdir, worker, order
        self.batches, self.ended = [], False

    def map(self, context):
        for file in self.order:
            run = RESULTS[file[file.index(".") :]]
            result = context.map(file, ITEMS, self.count(run), batch_size=SIZE, unit="items")
            assert_result(result, file[file.index(".") :])
        write_json(context.folder / "sum", 1)
        self.ended = True

    def count(self, run):
        return lambda batch: self.batches.append(batch) or run(batch)

    def run(self):
        stage = Stage("map", self.map, shardable=FILES)
        try:
            return run_stages([stage], self.workdir, worker=self.worker)
        except Preempted as error:
            return error


@pytest.mark.parametrize("order", list(itertools.permutations(FILES)))
def test_workers_divide_files_in_any_order(tmp_path, order):
    alone = Run(tmp_path / "one", None, FILES)
    alone.run()
    runs = [Run(tmp_path / "run", Worker(index, 2), order) for index in range(2)]
    with ThreadPoolExecutor() as threads:
        ended = [future.result(60) for future in [threads.submit(run.run) for run in runs]]
    assert len(ended[0]) == 1 and isinstance(ended[1], Preempted)
    # After the last of its files a worker leaves the stage's end to worker 0.
    assert [run.ended for run in runs] == [True, False]
    for index, run in enumerate(runs):
        assert run.batches == 3 * BATCHES[index::2]
    one, two = (tmp_path / name / "stages" / "map" for name in ("one", "run"))
    assert list_names(one) == list_names(two)
    for file in (*FILES, "sum"):
        assert (one / file).read_bytes() == (two / file).read_bytes()


def test_a_worker_is_done_after_the_last_shardable_file(tmp_path):
    """It waits for worker 0 to join the others first."""
    stage = Stage("map", lambda context: None, shardable=("b.jsonl", "a.jsonl"))
    first, second = (StageContext(stage, tmp_path, Worker(index, 2)) for index in range(2))
    first.folder.mkdir()
    sizes = {"batch_size": SIZE, "unit": "items"}
    with ThreadPoolExecutor() as threads:
        waiting = threads.submit(second.map, "a.jsonl", ITEMS, make_records, **sizes)
        assert first.map("a.jsonl", ITEMS, make_records, **sizes) == make_records(ITEMS)
        assert waiting.result(60) == make_records(ITEMS)
        with pytest.raises(WorkerDone):
            second.map("b.jsonl", ITEMS, make_records, **sizes)
    assert first.map("b.jsonl", ITEMS, make_records, **sizes) == make_records(ITEMS)
    assert read_jsonl(first.folder / "b.jsonl") == make_records(ITEMS)
