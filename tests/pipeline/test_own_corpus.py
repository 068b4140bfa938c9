"""Passages that are asked in place of a run's: their embeddings are computed once."""

import json
import re

import numpy as np
import pytest

from rag_jax.data.passages import Passage, fingerprint_corpus, write_passages
from rag_jax.pipeline import own_corpus
from rag_jax.pipeline.own_corpus import embed_texts, keep_measured, read_corpus
from rag_jax.retrieval import Index
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import write_json

MADE_BY = {"encoder": "abc", "max_length": 8}
TEXTS = ["a", "b", ("c", "d")]


class Encoder:
    def __init__(self):
        self.calls = 0

    def __call__(self, texts, progress):
        self.calls += 1
        progress(2, len(texts))
        progress(len(texts), len(texts))
        return np.arange(2 * len(texts), dtype=np.float32).reshape(-1, 2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(own_corpus, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "embeddings"


def test_embeddings_come_with_a_count(capsys):
    made = embed_texts(TEXTS, Encoder(), name="own.jsonl", **MADE_BY)
    assert made.shape == (3, 2)
    assert re.fullmatch(
        r"own.jsonl: 3 passages\nown.jsonl: 3 passages in 0\.\d s\n", capsys.readouterr().err
    )


def test_embeddings_are_kept_by_content(cache):
    encode = Encoder()
    made = embed_texts(TEXTS, encode, name="a", **MADE_BY)
    np.testing.assert_array_equal(embed_texts(TEXTS, encode, name="b", **MADE_BY), made)
    assert encode.calls == 1
    others = [(TEXTS[:2], {}), (["a", "b", "c: d"], {}), (TEXTS, {"encoder": "x"})]
    for texts, changed in [*others, (TEXTS, {"max_length": 9})]:
        embed_texts(texts, encode, name="a", **{**MADE_BY, **changed})
    assert encode.calls == 5 and len(list(cache.iterdir())) == 5


@pytest.mark.parametrize("damage", ["cut", "empty", "nan", "rows"])
def test_damaged_embeddings_are_made_again(cache, damage, capsys):
    encode = Encoder()
    made = embed_texts(TEXTS, encode, name="a", **MADE_BY)
    (path,) = cache.iterdir()
    if damage in ("nan", "rows"):
        np.save(path, np.full((3, 2), np.nan) if damage == "nan" else made[:2])
    else:
        path.write_bytes(path.read_bytes()[:-4] if damage == "cut" else b"")
    np.testing.assert_array_equal(embed_texts(TEXTS, encode, name="a", **MADE_BY), made)
    assert encode.calls == 2
    assert "is damaged, and the passages are embedded again" in capsys.readouterr().err


def test_the_index_of_build_index_is_read_and_not_embedded(tmp_path):
    folder, encode = tmp_path / "built", Encoder()
    passages = [Passage(id, "", f"Text {id}.") for id in "abc"]
    embeddings = encode(passages, lambda done, total: None)
    (place := folder / "stages" / "passages").mkdir(parents=True)

    def write(passages):
        write_passages(place / "passages.jsonl", passages)
        write_json(place / "corpus.json", fingerprint_corpus(passages))

    write(passages)
    with pytest.raises(RagJaxError, match="--corpus=.*built: is a work folder, but none"):
        read_corpus(folder, encode, words=9, **MADE_BY)
    named = {"encoder": "abc", "ids": list("abc"), "corpus": fingerprint_corpus(passages)}
    index = Index.build(embeddings, backend="exact", **named)
    index.save(folder / "stages" / "index" / "index")
    found, rows = read_corpus(folder, encode, words=9, **MADE_BY)
    assert list(found) == passages and encode.calls == 1
    np.testing.assert_array_equal(rows, index.embeddings)
    with pytest.raises(RagJaxError, match="encoder"):
        read_corpus(folder, encode, words=9, **(MADE_BY | {"encoder": "other"}))
    write(passages[::-1])  # as while the index is built again
    with pytest.raises(RagJaxError, match="--corpus=.*: its index is of earlier passages.*finish"):
        read_corpus(folder, encode, words=9, **MADE_BY)


def test_a_file_of_passages(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps({"id": "a", "title": "T", "text": "Text."}) + "\n")
    passages, embeddings = read_corpus(path, Encoder(), words=9, **MADE_BY)
    assert passages == [Passage("a", "T", "Text.")] and embeddings.shape == (1, 2)


def test_a_folder_of_documents(tmp_path):
    (tmp_path / "a.md").write_text("# T\nText. More of it.\n")
    passages, embeddings = read_corpus(tmp_path, Encoder(), words=4, **MADE_BY)
    assert passages == [Passage("a.md#2", "T", "Text."), Passage("a.md#2.2", "T", "More of it.")]
    assert embeddings.shape == (2, 2)
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4 cut")
    with pytest.raises(RagJaxError, match=r"b\.pdf.*; fix the line, or move the file away$"):
        read_corpus(tmp_path, Encoder(), words=4, **MADE_BY)


def test_what_the_tokenizer_counts_is_kept_by_content(cache, capsys):
    passages, calls = [Passage("a", "b", "c"), Passage("d", "", "e")], []

    def measure():
        calls.append(None)
        return {"longest": 7, "cut": 0}

    for _ in range(2):
        assert keep_measured(passages, measure, model="abc", cut=8) == {"longest": 7, "cut": 0}
    assert len(calls) == 1
    keep_measured(passages, measure, model="abc", cut=9)
    keep_measured(passages[:1], measure, model="abc", cut=8)
    assert len(calls) == 3
    for path in (cache.parent / "measured").iterdir():
        path.write_text('{"longest": "7"}')
    assert keep_measured(passages, measure, model="abc", cut=8)["longest"] == 7
    assert (
        len(calls) == 4 and "is damaged, and the passages are measured" in capsys.readouterr().err
    )
