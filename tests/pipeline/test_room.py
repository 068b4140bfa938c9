"""The room on the disk: what stages need, added up, and one line before the long ones begin."""

from collections import namedtuple

import pytest

from rag_jax.pipeline import room
from rag_jax.pipeline.room import Need, add_needs
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import write_json


@pytest.mark.parametrize(
    ("needs", "total"),
    [
        ([], 0),
        ([Need(10, 0)], 10),
        ([Need(10, 5), Need(7, 1)], 18),
        ([Need(10, 50), Need(7, 1)], 60),
        ([Need(10, 0, begun=4)], 6),
        ([Need(10, 0, begun=40)], 0),
        # What a stage replaces is freed when it has ended, not before.
        ([Need(10, 0, replaced=10), Need(10, 0, replaced=10)], 10),
        ([Need(2, 0, replaced=10), Need(10, 0)], 2),
    ],
)
def test_adding_up(needs, total):
    assert add_needs(needs) == total


def make_stages(made, sizes):
    def make(context):
        made.append(context.name)
        (context.folder / "x").write_bytes(b"x" * sizes.get(context.name, 0))

    opened = []

    def measure(name):
        assert opened  # the corpus tells how much there is
        return sizes[name], 0

    return [
        Stage("corpus", make, check=opened.append),
        *(Stage(n, make, {}, ("corpus",), room=lambda n=n: measure(n)) for n in sizes),
    ]


def test_a_full_disk_is_told_before_the_long_stages(tmp_path, monkeypatch):
    sizes, free = {"index": 1000, "train": 500}, [1499]
    usage = namedtuple("usage", ("free",))
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage(free[0]))
    made, refused = [], r"needs about 0.0 GB \(1500 bytes\) on the disk, which has 0.0 GB \(1499 by"
    for _ in range(2):
        with pytest.raises(RagJaxError, match=refused) as caught:
            run_stages(make_stages(made, sizes), tmp_path / "run")
        assert "\n" not in str(caught.value) and "--workdir" in str(caught.value)
        assert made == ["corpus"] and not (tmp_path / "run" / "config.json").exists()
    free[0] = 1500
    run_stages(make_stages(made, sizes), tmp_path / "run")
    # What is made needs no room again.
    free[0] = 0
    run_stages(make_stages(made, sizes), tmp_path / "run")
    assert made == ["corpus", "index", "train"]


def test_a_finished_run_stays_where_there_is_no_room_for_another(tmp_path, monkeypatch):
    made, usage = [], namedtuple("usage", ("free",))
    run_stages(make_stages(made, {"index": 1000}), tmp_path, config={"x": 0})
    write_json(tmp_path / "report.json", {"methods": {}})
    kept = (tmp_path / "report.json").read_bytes(), (tmp_path / "config.json").read_bytes()
    stages = make_stages(made, {"index": 1000})
    stages[1] = Stage("index", stages[1].run, {"x": 1}, ("corpus",), room=stages[1].room)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage(999))
    with pytest.raises(RagJaxError, match="needs about"):
        run_stages(stages, tmp_path, config={"x": 1}, overwrite=True)
    after = (tmp_path / "report.json").read_bytes(), (tmp_path / "config.json").read_bytes()
    assert after == kept and made == ["corpus", "index"]
