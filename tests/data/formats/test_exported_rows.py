"""Rows of SQuAD, TriviaQA and OpenBookQA as Hugging Face exports them, as JSON lines."""

import json

import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.errors import RagJaxError

SQUAD = [
    {
        "id": "s1",
        "title": "Old_Riga",
        "context": "Riga is a city in Latvia.",
        "question": "Where is Riga?",
        "answers": {"text": ["Latvia", "Latvia", "in Latvia"], "answer_start": [18, 18, 15]},
    },
    {
        "id": "s2",
        "title": "Old_Riga",
        "context": "Riga is a city in Latvia.",
        "question": "When is Riga?",
        "answers": {"text": [], "answer_start": []},
    },
]
TRIVIAQA = [
    {
        "question": "Where is Riga?",
        "question_id": "tc_1",
        "entity_pages": {"title": ["Riga"], "wiki_context": ["Not read."]},
        "answer": {"value": "Latvia", "aliases": ["Latvija", "Latvia"], "type": "WikipediaEntity"},
    },
    {"question": "When?", "question_id": "tc_2", "answer": {"value": "<unk>", "aliases": []}},
]
OPENBOOKQA = {
    "id": "7-980",
    "question_stem": "The sun is",
    "choices": {"text": ["a star", "a lamp"], "label": ["A", "B"]},
    "answerKey": "A",
}
PASSAGE = {"id": "p", "title": "Riga", "text": "Riga is a city in Latvia."}


def read(folder, files, **settings):
    for name, records in files.items():
        (folder / name).write_text("\n".join(map(json.dumps, records)), "utf-8")
    return read_collection(DataConfig(str(folder), **settings), WorldConfig())


def test_squad(tmp_path):
    """The paragraphs are the corpus; a question without answers cannot be answered."""
    found = read(tmp_path, {"train.jsonl": SQUAD})
    assert found.passages == [Passage("Old Riga", "Old Riga", "Riga is a city in Latvia.")]
    assert found.questions["train"] == [
        Question("s1", "Where is Riga?", ("Latvia", "in Latvia"), {"Old Riga": 1}),
        Question("s2", "When is Riga?", (), {"Old Riga": 1}),
    ]
    assert found == read(tmp_path, {}, format="squad")


def test_triviaqa(tmp_path):
    files = {"passages.jsonl": [PASSAGE], "validation.jsonl": TRIVIAQA}
    found = read(tmp_path, files)
    assert found.questions["dev"] == [
        Question("tc_1", "Where is Riga?", ("Latvia", "Latvija"), {}),
        Question("tc_2", "When?", (), {}),
    ]
    assert found == read(tmp_path, {}, format="triviaqa")


def test_openbookqa(tmp_path):
    found = read(tmp_path, {"passages.jsonl": [PASSAGE], "test.jsonl": [OPENBOOKQA]})
    choices = {"A": "a star", "B": "a lamp"}
    text = "The sun is\nA: a star\nB: a lamp"
    assert found.questions["test"] == [Question("7-980", text, ("A",), {}, choices=choices)]


@pytest.mark.parametrize(
    ("record", "fault", "problem"),
    [
        (SQUAD[0], {"answers": "Latvia"}, "answers must be a list of strings"),
        (SQUAD[0], {"answers": [1]}, "answers must be a list of strings"),
        (SQUAD[0], {"answers": {"text": "Latvia"}}, "text must be a list of strings"),
        (SQUAD[0], {"context": " "}, "context is blank"),
        (SQUAD[0], {"question": None}, "has no 'question'"),
        (TRIVIAQA[0], {"answer": "Latvia"}, "answer must be an object"),
        (TRIVIAQA[0], {"answer": {"value": "Latvia"}}, "has no 'aliases'"),
        (OPENBOOKQA, {"question_stem": ""}, "question is blank"),
        (OPENBOOKQA, {"answerKey": "E"}, "answer 'E' is neither label nor text of a choice"),
    ],
)
def test_bad_rows(tmp_path, record, fault, problem):
    """The first row tells the format; the second has the fault."""
    with pytest.raises(RagJaxError, match=f"dev.jsonl:2: {problem}"):
        read(tmp_path, {"dev.jsonl": [record, record | {"id": "2", "question_id": "2"} | fault]})
