"""Resumable maps: each codec whole, interrupted at every batch, and with pieces made elsewhere."""

import contextlib

import numpy as np
import pytest

from rag_jax.pipeline.maps import CODECS, ResumableMap, make_here

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


def run_map(path, *, stop_at=None, items=ITEMS, collect=True, make_all=make_here):
    """Makes the pieces and joins them; interrupts call `stop_at`. Gives batches, bars, result."""
    batches, bars = [], Bars()

    def run(batch):
        if len(batches) == stop_at:
            raise KeyboardInterrupt
        batches.append(list(batch))
        return RESULTS[path.suffix](batch)

    mapped = ResumableMap(path, items, SIZE)
    with pytest.raises(KeyboardInterrupt) if stop_at is not None else contextlib.nullcontext():
        mapped.make_pieces(run, unit="items", progress=bars, make_all=make_all)
    result = mapped.collect() if collect and stop_at is None else None
    return batches, bars.shown, result


def list_names(folder):
    return sorted(path.name for path in folder.iterdir())


def name_pieces(suffix, count):
    """The names of the first `count` pieces of `out`, sorted as names are."""
    bounds = [(0, 3), (3, 6), (6, 9), (9, 11)][:count]
    return sorted(f"out.{start}-{stop}{suffix}" for start, stop in bounds)


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
def test_pieces_made_elsewhere_in_any_order(tmp_path, whole, suffix):
    path = tmp_path / f"out{suffix}"
    run_map(path, stop_at=1)
    asked = []

    def make_all(batches, make):
        asked.extend(batches)
        for batch in reversed(batches):
            make(batch)
            yield batch

    batches, bars, result = run_map(path, make_all=make_all)
    assert batches == BATCHES[:0:-1]
    assert asked == [range(3, 6), range(6, 9), range(9, 11)]
    assert bars == [[11, "items", 3, 2, 3, 3]]
    assert_result(result, suffix)
    assert path.read_bytes() == whole


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
