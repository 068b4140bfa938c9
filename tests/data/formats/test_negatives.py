"""Negatives that DPR's files name: read, stored and trained with."""

import json

import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import copy_collection, read_collection
from rag_jax.data.passages import Passage
from rag_jax.data.questions import QUESTIONS, Question, load_collection
from rag_jax.retrieval import negatives
from rag_jax.retrieval.negatives import make_miner
from rag_jax.retrieval.pairs import list_pairs
from rag_jax.runtime.files import read_json

GOLD, HARD, EASY = ({"title": t, "text": f"text of {t}"} for t in ("Gold", "Hard", "Easy"))
RECORDS = [
    {"positive_ctxs": [GOLD], "hard_negative_ctxs": [HARD, GOLD], "negative_ctxs": [EASY]},
    {"positive_ctxs": [GOLD], "hard_negative_ctxs": [], "negative_ctxs": [EASY, EASY]},
    {"positive_ctxs": [GOLD], "ctxs": [EASY]},
]


def write(folder, *, corpus):
    asked = [{"question": f"{i}?", "answers": ["x"]} | r for i, r in enumerate(RECORDS)]
    (folder / "nq-train.json").write_text(json.dumps(asked))
    if corpus:
        listed = [{"id": "g", **GOLD}, {"id": "h", **HARD}]
        (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, listed)))
    return DataConfig(str(folder))


@pytest.mark.parametrize("corpus", [False, True])
def test_negatives_of_the_data(tmp_path, capsys, corpus):
    """Hard ones, or else the others; gold passages and those not in the corpus are left out."""
    data = write(tmp_path, corpus=corpus)
    found = read_collection(data, WorldConfig()).questions["train"]
    wanted = [("h",), (), ()] if corpus else [("Hard",), ("Easy",), ()]
    assert [question.negatives for question in found] == wanted
    assert (
        "2 left out (negatives that are not in the corpus)" in capsys.readouterr().err
    ) == corpus


def test_negatives_are_stored_where_there_are_any(tmp_path):
    data = write(tmp_path, corpus=False)
    (copy := tmp_path / "copy").mkdir()
    copy_collection(copy, data, WorldConfig(), check=lambda found: None)
    stored = read_json(copy / QUESTIONS)["train"]
    assert [record.get("negatives") for record in stored] == [["Hard"], ["Easy"], None]
    wanted = read_collection(data, WorldConfig()).questions
    assert load_collection(copy).questions == wanted


def test_the_miner_takes_what_the_data_names(monkeypatch):
    passages = [Passage(f"p{i}", "", f"word {i}") for i in range(4)]
    named = Question("a", "word 1", (), {"p1": 1}, negatives=("p3", "p0", "p2"))
    other = Question("b", "word 2", (), {"p2": 1})
    mine = make_miner(passages, [named, other], depth=4, count=2)
    first, second = mine([named, other])
    assert first == {"id": "a", "rows": [3, 0]}
    assert second["id"] == "b" and len(second["rows"]) == 2 and 2 not in second["rows"]
    assert mine([other]) == [second]
    monkeypatch.setattr(negatives, "BM25", None)  # which no question needs here
    assert make_miner(passages, [named], depth=4, count=1)([named]) == [{"id": "a", "rows": [3]}]


class Made(str):
    """An id that counts how many there are at a time."""

    alive = most = 0

    def __new__(cls, text):
        cls.alive += 1
        cls.most = max(cls.most, cls.alive)
        return super().__new__(cls, text)

    def __del__(self):
        type(self).alive -= 1


@pytest.mark.parametrize("count", [50, 100])
def test_ids_of_a_corpus_that_no_question_names_are_not_kept(count):
    class Passages(list):
        def __iter__(self):
            return (Passage(Made(f"p{i}"), "", f"text {i}") for i in range(count))

    passages, rows = Passages([None] * count), [[1], [2]]
    asked = [
        Question("a", "?", (), {"p7": 1, "elsewhere": 1}, negatives=("p9", "p3")),
        Question("b", "?", (), {"p8": 1}, negatives=("p4",)),
    ]
    Made.most = 0
    pairs = list_pairs(asked, rows, passages)
    assert [(pair.question, pair.positive, pair.negatives) for pair in pairs] == [
        (0, 7, (1,)),
        (1, 8, (2,)),
    ]
    mined = make_miner(passages, asked, depth=4, count=2)(asked)
    assert mined == [{"id": "a", "rows": [9, 3]}, {"id": "b", "rows": [4]}]
    assert Made.most <= 5
