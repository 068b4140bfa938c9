"""A corpus is embedded once for all stages of a run, and damage is seen."""

import os
from types import SimpleNamespace

import numpy as np
import pytest

from rag_jax.config import EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.systems import embeddings
from rag_jax.systems.embeddings import count_spared, embed_corpus

PASSAGES = [Passage(str(i), "", "text") for i in range(5)]


class Encoded:
    """Counts the passages that are encoded."""

    def __init__(self, workdir):
        self.count, self.stages = 0, workdir / "stages"

    def embed(self, stage, passages=PASSAGES, encoder="e", weight=0.0, pooling="mean", **settings):
        (self.stages / stage).mkdir(parents=True, exist_ok=True)
        context = StageContext(Stage(stage, lambda context: None), self.stages)
        params = {"w": np.float32(weight)}
        loaded = SimpleNamespace(fingerprint=encoder, params=params, model=f"Bert({pooling})")
        return embed_corpus(context, passages, loaded, self.encode, EncoderConfig(**settings))

    def encode(self, encoder, part, widths):
        self.count += len(part)
        return np.asarray([[float(passage.id), self.count] for passage in part], np.float32)


@pytest.fixture
def encoded(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings, "plan_widths", lambda *_, **__: [8])
    return Encoded(tmp_path)


def test_later_stages_take_what_the_first_one_made(encoded, tmp_path, capsys):
    first = np.array(encoded.embed("index"))
    np.testing.assert_array_equal(encoded.embed("search"), first)
    assert encoded.count == 5 and "embeddings of the passages: those of" in capsys.readouterr().err
    (kept,) = (tmp_path / "embeddings").iterdir()
    paths = [kept, *(encoded.stages / stage for stage in ("index", "search"))]
    assert count_spared(encoded.stages / "index") == 0 < count_spared(encoded.stages / "search")
    assert len({os.stat(path / "embeddings.npy").st_ino for path in paths}) == 1  # one file


@pytest.mark.parametrize(
    "other",
    [
        {"passages": [*PASSAGES[:4], Passage("4", "", "another")]},
        {"encoder": "f"},
        {"weight": 1.0},
        {"pooling": "cls"},
        {"max_length": 64},
    ],
)
def test_others_are_made(encoded, other):
    encoded.embed("index")
    encoded.embed("search", **other)
    assert encoded.count == 10
    encoded.embed("again", **other)
    assert encoded.count == 10


def test_a_run_that_was_taken_out_of_its_comparison(encoded, tmp_path):
    (tmp_path / "embeddings").symlink_to(tmp_path / "gone" / "embeddings")
    encoded.embed("index")
    encoded.embed("search")
    assert encoded.count == 5 and not (tmp_path / "embeddings").is_symlink()


def test_damaged_ones_are_made_anew(encoded, tmp_path, capsys):
    first = np.array(encoded.embed("index"))
    (kept,) = (tmp_path / "embeddings").iterdir()
    path = kept / "embeddings.npy"
    path.unlink()  # not the other stage's
    path.write_bytes(b"damaged")
    np.testing.assert_array_equal(encoded.embed("search")[:, 0], first[:, 0])
    assert encoded.count == 10 and "was altered or cut short" in capsys.readouterr().err
    encoded.embed("again")
    assert encoded.count == 10


def test_a_disk_without_links(encoded, monkeypatch):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(os, "link", refuse)
    first = np.array(encoded.embed("index"))
    np.testing.assert_array_equal(encoded.embed("search"), first)
    assert encoded.count == 5
