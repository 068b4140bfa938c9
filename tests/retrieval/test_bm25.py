"""BM25 against its formula, with wild texts, and through the disk."""

import collections
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rag_jax.retrieval import BM25, Index
from rag_jax.retrieval.analysis import Analysis
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import hash_file
from rag_jax.search_config import BM25Config

TEXTS = [
    ("Oil crisis", "The 1973 oil crisis began in October 1973."),
    ("Seoul", "서울은 대한민국의 수도이다."),
    ("Café", "A café in Besançon, the CAFÉ of Beyoncé."),
    ("ירושלים", "יְרוּשָׁלַיִם היא עיר."),
    ("Empty", ""),
    "",
    "🍕🍕 !!! …",
    "the oil of the oil crisis",
]


def score_slowly(texts, question, settings):
    """The formula in BM25's docstring, term by term, in float64."""
    split, k1, b = Analysis(settings.language).split, settings.k1, settings.b
    words = [split(text if isinstance(text, str) else " ".join(text)) for text in texts]
    mean = sum(map(len, words)) / len(words)
    scores = np.zeros(len(texts))
    for word in split(question):
        n = sum(word in row for row in words)
        for i, row in enumerate(words):
            f = collections.Counter(row)[word]
            if f:
                idf = math.log(1 + (len(words) - n + 0.5) / (n + 0.5))
                scores[i] += idf * f / (f + k1 * (1 - b + b * len(row) / mean))
    return scores


def check_search(texts, questions, k, given=BM25Config()):
    index = BM25.build(texts, given)
    scores, rows = index.search(questions, k)
    settings = index.settings
    assert given in (settings, replace(settings, language="auto"))
    assert len(scores) == len(rows) == len(questions)
    for i, question in enumerate(questions):
        wanted = score_slowly(texts, question, settings)
        count = min(k, int((wanted > 0).sum()))  # a passage that shares no word is no hit
        assert scores[i].shape == rows[i].shape == (count,)
        assert (scores[i].dtype, rows[i].dtype) == (np.float32, np.int32)
        np.testing.assert_allclose(scores[i], wanted[rows[i]], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(scores[i], np.sort(wanted)[::-1][:count], rtol=1e-5, atol=1e-6)
        assert len(set(rows[i].tolist())) == count
        falls = np.diff(scores[i]) < 0
        assert (falls | ((np.diff(scores[i]) == 0) & (np.diff(rows[i]) > 0))).all()


@pytest.mark.parametrize("language", ["none", "english", "russian"])
@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.0, 1.0), (2.5, 0.0)])
@pytest.mark.parametrize("k", [1, 3, len(TEXTS)])
def test_against_the_formula(k, k1, b, language):
    questions = [
        "oil",
        "oil oil crisis?",
        "수도 서울은",
        "cafe",
        "BEYONCE the",
        "ירושלים",
        "🍕",
        "",
    ]
    check_search(TEXTS, questions, k, BM25Config(k1, b, language))


WILD = st.text() | st.text(st.sampled_from("aAbé é각각\u0301ى🍕 -.\n_1ß")) | st.just("a b")


@settings(max_examples=150)
@given(
    texts=st.lists(WILD | st.tuples(WILD, WILD), min_size=1, max_size=9),
    questions=st.lists(WILD, max_size=4),
    data=st.data(),
)
@example(texts=["", " "], questions=["", "a"], data=None)
def test_wild_texts(texts, questions, data):
    k = data.draw(st.integers(1, len(texts))) if data else len(texts)
    check_search(texts, questions, k)


def test_marks_and_case_do_not_hide_a_passage():
    index = BM25.build(TEXTS)
    for question, row in [("besancon", 2), ("BEYONCÉ", 2), ("서울은", 1), ("ירושלים", 3)]:
        assert index.search([question], 1)[1][0].tolist() == [row]


def test_a_passage_without_a_word_in_common_is_no_hit():
    scores, rows = BM25.build(["a", "b", "c", "b"]).search(["b", "nothing", "!", "c b"], 4)
    assert [found.tolist() for found in rows] == [[1, 3], [], [], [2, 1, 3]]
    assert scores[0][0] == scores[0][1] > 0
    assert [len(found) for found in scores] == [2, 0, 0, 3]


def test_many_ties_come_in_row_order():
    texts = ["x", "y"] * 3_000
    rows = BM25.build(texts).search(["x"], 4_000)[1]
    np.testing.assert_array_equal(rows[0], np.arange(0, 6_000, 2))
    rows = BM25.build(texts).search(["x"], 2_000)[1]
    np.testing.assert_array_equal(rows[0], np.arange(0, 4_000, 2))


def test_save_and_load(tmp_path):
    index, questions = BM25.build(TEXTS), ["the oil", "서울은", ""]
    index.save(tmp_path / "bm25")
    loaded = BM25.load(tmp_path / "bm25")
    assert loaded.size == len(TEXTS)
    for ours, theirs in zip(index.search(questions, 5), loaded.search(questions, 5), strict=True):
        for one, other in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(one, other)
    assert not list((tmp_path / "bm25").glob("*.pkl"))
    for path in (tmp_path / "bm25").glob("*.npy"):
        np.load(path, allow_pickle=False)


def test_the_same_texts_give_the_same_files(tmp_path):
    """In processes with different string hashes, too."""
    code = (
        f"from rag_jax.retrieval import BM25; BM25.build({TEXTS!r}).save({str(tmp_path / 'b')!r})"
    )
    environment = {"PYTHONHASHSEED": "7", "PATH": "", "PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    BM25.build(TEXTS).save(tmp_path / "a")
    hashes = [json.loads((tmp_path / x / "index.json").read_text())["sha256"] for x in "ab"]
    assert hashes[0] == hashes[1]


def test_a_corpus_without_words_survives_saving(tmp_path):
    BM25.build(["", "!"]).save(tmp_path / "bm25")
    scores, rows = BM25.load(tmp_path / "bm25").search(["", "a"], 2)
    assert [found.tolist() for found in (*scores, *rows)] == [[], [], [], []]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BM25.build([]), "texts are empty: the corpus has no passage"),
        (lambda: BM25.build("one"), "texts is one string: pass a list"),
        (lambda: BM25.build(["a", None]), "texts: entry 1 is neither a string nor a pair"),
        (lambda: BM25.build([("a", "b", "c")]), "texts: entry 0 is neither a string nor a pair"),
        (lambda: BM25.build([("a", 3)]), "texts: entry 0 is neither a string nor a pair"),
        (lambda: BM25.build(["a"]).search(["a"], 0), "k is 0: it must be from 1 to 1"),
        (lambda: BM25.build(["a"]).search(["a"], 2), "k is 2: it must be from 1 to 1"),
        (lambda: BM25.build(["a"]).search("a", 1), "questions is one string: pass a list"),
        (lambda: BM25.build(["a"]).search([None], 1), "questions: entry 0 is neither"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(RagJaxError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def swap_data(folder: Path):
    data = bytearray((folder / "data.csc.index.npy").read_bytes())
    data[-1] ^= 1
    (folder / "data.csc.index.npy").write_bytes(bytes(data))


DAMAGE = {
    "no manifest": (lambda f: (f / "index.json").unlink(), "index.json is missing: build"),
    "altered": (swap_data, "data.csc.index.npy was altered or cut short"),
    "missing": (lambda f: (f / "vocab.index.json").unlink(), "vocab.index.json is missing"),
    "foreign": (lambda f: (f / "corpus.pkl").write_text(""), "corpus.pkl is not part of an index"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_folders(tmp_path, damage, message):
    BM25.build(TEXTS).save(tmp_path / "bm25")
    damage(tmp_path / "bm25")
    with pytest.raises(RagJaxError, match=message):
        BM25.load(tmp_path / "bm25")


def edit_array(name, change):
    def edit(folder):
        path = folder / f"{name}.csc.index.npy"
        array = np.load(path)
        change(array)
        np.save(path, array)

    return edit


def edit_json(name, **changes):
    def edit(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def set_item(index, value):
    return lambda array: array.__setitem__(index, value)


CONTRADICTIONS = {
    "row below zero": (edit_array("indices", set_item(0, -1)), "a row is none of the"),
    "row beyond": (edit_array("indices", set_item(0, 99)), "a row is none of the"),
    "start": (edit_array("indptr", set_item(0, 1)), "the words' rows do not follow each other"),
    "starts": (edit_array("indptr", set_item(1, 99)), "the words' rows do not follow"),
    "nan": (edit_array("data", set_item(0, np.nan)), "a score is NaN or infinite"),
    "word beyond": (edit_json("vocab.index.json", a=10**6), "a word's number is out of range"),
    "word": (edit_json("vocab.index.json", a="b"), "a word's number is out of range"),
    "backend": (edit_json("params.index.json", backend="numba"), "backend is 'numba', not 'numpy'"),
    "k1": (edit_json("params.index.json", k1=float("inf")), "k1 is inf, not 1.2"),
    "count": (edit_json("params.index.json", num_docs=2), "has 2 passages, not the"),
    "unknown": (edit_json("params.index.json", a=1), "TypeError"),
}


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_files_that_contradict_each_other(tmp_path, change, message):
    """Even if their author wrote a manifest for them."""
    folder = tmp_path / "bm25"
    BM25.build(TEXTS).save(folder)
    change(folder)
    manifest = json.loads((folder / "index.json").read_text())
    manifest["sha256"] = {name: hash_file(folder / name) for name in manifest["sha256"]}
    (folder / "index.json").write_text(json.dumps(manifest))
    with pytest.raises(RagJaxError, match=message) as error:
        BM25.load(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_kinds_of_index_are_not_mistaken(tmp_path):
    BM25.build(TEXTS).save(tmp_path / "bm25")
    with pytest.raises(RagJaxError, match="backend 'bm25', which this version does not read here"):
        Index.load(tmp_path / "bm25", encoder="e")
    Index.build(np.eye(3), backend="exact", encoder="e").save(tmp_path / "exact")
    with pytest.raises(RagJaxError, match="backend 'exact', which this version does not read here"):
        BM25.load(tmp_path / "exact")


@pytest.mark.parametrize(
    ("texts", "question"),
    [
        (["奥斯陆是挪威的首都", "基多是厄瓜多尔的首都", "里加在河边"], "厄瓜多尔的首都是哪里"),
        (["オスロはノルウェーの首都", "キトはエクアドルの首都", "川"], "エクアドルはどこですか"),
        (["ออสโลเป็นเมืองหลวง", "กีโตเป็นเมืองหลวงของเอกวาดอร์", "แม่น้ำ"], "เอกวาดอร์อยู่ที่ไหน"),
    ],
)
def test_scripts_without_spaces_are_found_by_pairs_of_characters(texts, question):
    (rows,) = BM25.build(texts).search([question], 1)[1]
    assert rows.tolist() == [1]


ENGLISH = ["The cat is running in the garden.", "A dog ran to the house.", "Cats and dogs."]


def test_an_english_corpus_has_stems_and_stop_words(capfd):
    index = BM25.build(ENGLISH)
    assert index.settings == BM25Config(language="english")
    assert "language english (50% of the words of 3 passages are" in capfd.readouterr().err
    assert index.search(["runs"], 3)[1][0].tolist() == [0]
    found = [rows.tolist() for rows in index.search(["the houses of a dog", "is it the"], 3)[1]]
    assert found == [[1, 2], []]


def test_the_language_is_told_by_passages_all_over_the_corpus():
    """One in a thousand is looked at, the first and the last among them."""
    texts = ["der Hund und die Katze"] * 3_000
    assert BM25.build(texts).settings.language == "none"
    assert BM25.build(texts[:1_500] + ENGLISH * 500).settings.language == "english"
    assert BM25.build(["서울은 수도이다"] * 3).settings.language == "none"
    assert BM25.build(["", "!"]).settings.language == "none"


def test_a_stored_index_keeps_its_settings(tmp_path):
    settings = BM25Config(0.9, 0.4, "german")
    BM25.build(ENGLISH, settings).save(tmp_path / "bm25")
    for wanted in (None, settings, replace(settings, language="auto")):
        assert BM25.load(tmp_path / "bm25", wanted).settings == settings
    for change in ({"language": "english"}, {"language": "none"}, {"k1": 1.2}, {"b": 0.5}):
        (name, value) = next(iter(change.items()))
        message = f"was built with {name} {getattr(settings, name)}, not {value}: build"
        with pytest.raises(RagJaxError, match=message):
            BM25.load(tmp_path / "bm25", replace(settings, **change))


def edit_manifest(folder, change):
    path = folder / "index.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


OLD = {
    "older form": (lambda m: m.pop("analysis"), "is of an older version, which kept no analysis"),
    "no language": (lambda m: m.pop("language"), "is of an older version"),
    "analysis": (
        lambda m: m.update(analysis="ab"),
        "another analysis ('english', 'ab') than",
    ),
    "other type": (lambda m: m.update(analysis=[1]), "has terms of another analysis"),
    "language": (lambda m: m.update(language="none"), "has terms of another analysis ('none', "),
    "auto": (lambda m: m.update(language="auto"), "has terms of another analysis ('auto', "),
    "unknown": (lambda m: m.update(language="latin"), "settings.language='latin': must be one of"),
    "k1": (lambda m: m.update(k1=-1.0), "settings.k1=-1.0: must be at least 0"),
}


@pytest.mark.parametrize(("change", "message"), OLD.values(), ids=OLD)
def test_indices_of_another_analysis_are_refused(tmp_path, change, message):
    BM25.build(ENGLISH).save(tmp_path / "bm25")
    edit_manifest(tmp_path / "bm25", change)
    with pytest.raises(RagJaxError) as error:
        BM25.load(tmp_path / "bm25")
    assert message in str(error.value) and str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_settings_are_checked():
    with pytest.raises(RagJaxError, match="settings.language='latin': must be one of 'auto', 'no"):
        BM25.build(ENGLISH, BM25Config(language="latin"))
    with pytest.raises(RagJaxError, match="settings.b=2.0: must be from 0 to 1"):
        BM25.build(ENGLISH, BM25Config(b=2))
