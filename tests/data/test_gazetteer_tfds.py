import subprocess
import sys

import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data import gazetteer, gazetteer_tfds
from rag_jax.data.formats import read_collection
from rag_jax.runtime.errors import RagJaxError

SETTINGS = {"cities": 40, "train": 12, "dev": 0, "test": 9, "seed": 3}


def read(folder):
    """A prepared world's texts: passages, and questions by split."""
    found = read_collection(DataConfig(str(folder)), WorldConfig())
    return found.passages, {
        split: [(q.id, q.question, q.answers, q.popularity) for q in asked]
        for split, asked in found.questions.items()
    }


def build(**settings):
    """The same of a world that was never stored."""
    world = gazetteer.build_world(**settings)
    return world.passages, {
        split: [(q.id, q.question, q.answers, q.popularity) for q in asked]
        for split, asked in world.questions.items()
        if asked
    }


def test_read_back_equals_built(tmp_path):
    gazetteer_tfds.prepare_world(tmp_path, **SETTINGS)
    assert read(tmp_path) == build(**SETTINGS)


def test_a_stored_world_is_not_built_again(tmp_path, monkeypatch):
    prepare = lambda **changes: gazetteer_tfds.prepare_world(tmp_path, **SETTINGS | changes)  # noqa: E731
    prepare()

    def build_world(**_):
        raise AssertionError("a stored world is built again")

    build_world.__kwdefaults__ = gazetteer.build_world.__kwdefaults__
    monkeypatch.setattr(gazetteer, "build_world", build_world)
    prepare()
    with pytest.raises(AssertionError, match="built again"):  # another world, in a folder beside it
        prepare(revision=1)


def test_only_passages(tmp_path):
    gazetteer_tfds.prepare_world(tmp_path, cities=5, train=0, dev=0, test=0)
    assert len(list(tmp_path.glob("gazetteer/*/1.0.0"))) == 1


def test_interruption_leaves_nothing_half_written(tmp_path, monkeypatch):
    def stop_half_way(self, rows):
        yield from enumerate({"id": p.id, "title": p.title, "text": p.text} for p in rows[:20])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gazetteer_tfds.Gazetteer, "_generate_examples", stop_half_way)
        with pytest.raises(KeyboardInterrupt):
            gazetteer_tfds.prepare_world(tmp_path, **SETTINGS)
    assert not list(tmp_path.glob("gazetteer/*/1.0.0"))
    gazetteer_tfds.prepare_world(tmp_path, **SETTINGS)
    assert read(tmp_path) == build(**SETTINGS)


def test_bad_settings_are_named(tmp_path):
    with pytest.raises(RagJaxError, match="test=5000: only"):
        gazetteer_tfds.prepare_world(tmp_path, cities=20, train=0, dev=0, test=5000)


def test_quiet_and_without_tensorflow(tmp_path):
    code = (
        "import sys\n"
        "from rag_jax.data import gazetteer_tfds\n"
        "gazetteer_tfds.prepare_world(sys.argv[1], cities=3, train=2, dev=1, test=1)\n"
        "assert not {'tensorflow', 'torch'} & set(sys.modules), 'imported'\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
