"""What is written in a format is read as it was, and by the format's own rules."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import BadLines, dpr, flashrag, kilt, read_collection, read_passages
from rag_jax.data.formats.records import read_records
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.rankings import read_run, write_run
from rag_jax.runtime.errors import RagJaxError

ODD = ' \0\r\n\t"\\,[]{}#%20\x1c\u2028\x85\ufeffé\u0301가\u05d0\U0001f600\u3000'
CHARACTERS = st.one_of(st.sampled_from(ODD), st.characters(exclude_categories=["Cs"]))
TEXTS = st.text(CHARACTERS, max_size=8)
FILLED = st.text(CHARACTERS, min_size=1, max_size=8).filter(str.strip)
PASSAGES = st.lists(st.builds(Passage, FILLED, TEXTS, FILLED), max_size=3, unique_by=lambda p: p.id)


@st.composite
def draw_question(draw):
    choices = draw(st.dictionaries(TEXTS, TEXTS, max_size=2))
    answer = st.sampled_from(sorted(choices)) if choices else TEXTS
    return Question(
        draw(FILLED),
        draw(FILLED),
        tuple(draw(st.lists(answer, max_size=2))),
        draw(st.dictionaries(TEXTS, st.integers(1, 9), max_size=2)),
        draw(TEXTS),
        draw(st.none() | st.integers(0, 10**9)),
        choices,
    )


QUESTIONS = st.lists(draw_question(), max_size=3, unique_by=lambda question: question.id)
SCORES = st.floats(width=32, allow_nan=False, allow_infinity=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("written")


def parse(path, parse):
    return [parse(record, place) for place, record in read_records(path, BadLines())]


@settings(max_examples=40)
@given(questions=QUESTIONS, passages=PASSAGES, data=st.data())
def test_any_results(folder, questions, passages, data):
    size = len(passages)
    scores = st.lists(SCORES, min_size=size, max_size=size, unique=True)  # a run has no equal ones
    falling = scores.map(lambda values: sorted(values, reverse=True))
    ranked = [list(zip(passages, data.draw(falling), strict=True)) for _ in questions]

    dpr.write_results(folder / "dpr.json", questions, ranked)
    items = parse(folder / "dpr.json", dpr.parse)
    kept = [(q.id, q.question, q.answers) for q in questions]
    assert [(i.question.id, i.question.question, i.question.answers) for i in items] == kept
    assert [[(c.passage, c.score) for c in i.contexts] for i in items] == ranked

    flashrag.write_questions(folder / "flashrag.jsonl", questions)
    items = parse(folder / "flashrag.jsonl", flashrag.parse)
    assert [item.question for item in items] == questions
    flashrag.write_passages(folder / "corpus.jsonl", passages)
    if passages:
        assert read_passages([folder / "corpus.jsonl"]) == passages

    answers = [data.draw(FILLED) for _ in questions]
    kilt.write_predictions(folder / "kilt.jsonl", questions, answers, [passages] * len(questions))
    items = parse(folder / "kilt.jsonl", kilt.parse)
    assert [(i.question.id, i.question.question) for i in items] == [k[:2] for k in kept]
    assert [item.question.answers for item in items] == [(answer,) for answer in answers]
    assert [item.pages for item in items] == [tuple(p.id for p in passages)] * len(questions)

    named = [[(passage.id, score) for passage, score in found] for found in ranked]
    write_run(folder / "a.trec", "a run", [q.id for q in questions], named)
    wanted = {q.id: found for q, found in zip(questions, named, strict=True) if found}
    found = read_run(folder / "a.trec")
    single = {q: [(id, float(np.float32(x))) for id, x in ranked] for q, ranked in found.items()}
    assert single == wanted


def test_as_others_read_them(tmp_path):
    riga = Passage("7#3", "Riga", "Riga is a city.")
    question = Question("q 1", "Where?", ("a city",), {"7#3": 1}, "t", 5)
    score = float(np.float32(0.1))
    dpr.write_results(tmp_path / "dpr.json", [question], [[(riga, score)]])
    (record,) = json.loads((tmp_path / "dpr.json").read_text())
    assert record["ctxs"] == [
        {
            "id": "7#3",
            "title": "Riga",
            "text": "Riga is a city.",
            "score": str(score),
            "has_answer": True,
        }
    ]
    kilt.write_predictions(tmp_path / "kilt.jsonl", [question], ["city"], [[riga]])
    (output,) = json.loads((tmp_path / "kilt.jsonl").read_text())["output"]
    span = {"title": "Riga", "start_paragraph_id": 3, "end_paragraph_id": 3}
    assert output == {"answer": "city", "provenance": [{"wikipedia_id": "7"} | span]}
    flashrag.write_passages(tmp_path / "corpus.jsonl", [riga])
    assert json.loads((tmp_path / "corpus.jsonl").read_text())["contents"].startswith('"Riga"\n')
    write_run(tmp_path / "a.trec", "bm25", ["q 1"], [[("7#3", score)]])
    assert (tmp_path / "a.trec").read_text() == "q%201 Q0 7#3 1 0.100000001 bm25\n"


def test_written_files_are_a_folder_to_read(tmp_path):
    passages = [Passage("1", "Riga", "City"), Passage("2", "", "B\nC")]
    questions = [Question("q", "Where?", ("A",), {"2": 3}, "t", 0, {"A": "a"})]
    flashrag.write_passages(tmp_path / "corpus.jsonl", passages)
    flashrag.write_questions(tmp_path / "dev.jsonl", questions)
    found = read_collection(DataConfig(path=str(tmp_path)), WorldConfig())
    assert (found.passages, found.questions) == (passages, {"dev": questions})


@pytest.mark.parametrize("line", ["q Q0 p 1 high n", "q Q0 p 1 1.0", "q Q0 p 1 nan n", ""])
def test_bad_runs(tmp_path, line):
    (tmp_path / "a.trec").write_text(f"q Q0 p 1 -1.5e-3 n\n{line}\n")
    with pytest.raises(RagJaxError, match="a.trec:2: must be question, Q0, passage, rank"):
        read_run(tmp_path / "a.trec")
    (tmp_path / "a.trec").write_bytes(b"\xff\n")
    with pytest.raises(RagJaxError, match="a.trec: is not UTF-8"):
        read_run(tmp_path / "a.trec")
    with pytest.raises(RagJaxError, match="no.trec: cannot be read"):
        read_run(tmp_path / "no.trec")
