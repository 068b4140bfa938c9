import subprocess
import sys

import pytest

from rag_jax.data import gazetteer, gazetteer_tfds
from rag_jax.errors import RagJaxError

SETTINGS = {"cities": 40, "train": 12, "dev": 0, "test": 9, "seed": 3}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    gazetteer_tfds.load_world(data_dir=folder, **SETTINGS)
    return folder


def test_read_back_equals_built(data_dir, monkeypatch):
    built = gazetteer.build_world(**SETTINGS)
    monkeypatch.setattr(gazetteer, "build_world", _refuse(gazetteer.build_world))
    assert gazetteer_tfds.load_world(data_dir=data_dir, **SETTINGS) == built


def _refuse(original):
    def build_world(**_):
        raise AssertionError("a stored world is built again")

    build_world.__kwdefaults__ = original.__kwdefaults__
    return build_world


def test_random_access(data_dir):
    built = gazetteer.build_world(**SETTINGS).passages
    stored = gazetteer_tfds.open_passages(data_dir=data_dir, **SETTINGS)
    assert len(stored) == len(built)
    for row in (0, 17, len(built) - 1, -1):
        assert stored[row] == built[row]
    assert stored[5:8] == built[5:8]
    with pytest.raises(IndexError):
        stored[len(built)]


def test_worlds_do_not_collide(data_dir):
    other = {**SETTINGS, "revision": 1}
    assert gazetteer_tfds.load_world(data_dir=data_dir, **other) == gazetteer.build_world(**other)
    same = gazetteer_tfds.load_world(data_dir=data_dir, **SETTINGS)
    assert same == gazetteer.build_world(**SETTINGS)


def test_only_passages(tmp_path):
    settings = {"cities": 5, "train": 0, "dev": 0, "test": 0}
    world = gazetteer_tfds.load_world(data_dir=tmp_path, **settings)
    assert world == gazetteer.build_world(**settings)


def test_interruption_leaves_nothing_half_written(tmp_path, monkeypatch):
    def stop_half_way(self, rows):
        yield from enumerate({"id": p.id, "title": p.title, "text": p.text} for p in rows[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gazetteer_tfds.Gazetteer, "_generate_examples", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            gazetteer_tfds.load_world(data_dir=tmp_path, **SETTINGS)
    assert not list(tmp_path.glob("gazetteer/*/1.0.0"))
    world = gazetteer_tfds.load_world(data_dir=tmp_path, **SETTINGS)
    assert world == gazetteer.build_world(**SETTINGS)


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(RagJaxError, match="test=5000: only"):
        gazetteer_tfds.load_world(data_dir=tmp_path, cities=20, train=0, dev=0, test=5000)


def test_quiet_and_without_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from rag_jax.data import gazetteer_tfds\n"
        "gazetteer_tfds.load_world(data_dir=sys.argv[1], cities=3, train=2, dev=1, test=1)\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules), 'imported'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
