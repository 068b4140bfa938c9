"""Rows of a comparison: one rule for all answers, joined by question, with what they cost."""

import json
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest

from rag_jax.comparison.config import SYSTEMS, CompareConfig
from rag_jax.comparison.grade import grade_records, grade_rows, list_frontier, summarize
from rag_jax.comparison.rows import ROWS, Row, find_row, weigh_changes, weigh_documents
from rag_jax.data.questions import Question
from rag_jax.evaluation.compare import judge
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import open_room

QUESTIONS = [
    Question("a", "Where is Riga?", ("Latvia",), {}),
    Question("b", "Where is Oslo?", ("Norway", "Norge"), {}),
    Question("c", "Is it? A: yes B: no", ("B",), {}, choices={"A": "yes", "B": "no"}),
]


def predict(*texts, **more):
    """Records of the questions, with the answers and scores of a system of its own."""
    ids = [question.id for question in QUESTIONS]
    return [
        {"id": id, "prediction": text, "answers": ["?"], "exact_match": 1.0, **more}
        for id, text in zip(ids, texts, strict=True)
    ]


def test_one_rule_for_all_answers():
    a, b, c = QUESTIONS
    assert judge(a, "It lies in Latvia, I think.") == judge(b, "norge!") == 1
    assert judge(a, "Latvians") == judge(b, "") == 0
    assert (judge(c, "The answer is B"), judge(c, "A")) == (1, 0)


def test_records_are_joined_by_question_and_graded_anew():
    records = predict("Latvia", "Sweden", "B", seconds=0.5, prompt_tokens=3)[::-1]
    graded = grade_records(records, QUESTIONS, Row("none", searches=False))
    assert [record["id"] for record in graded] == ["a", "b", "c"]
    assert [record["correct"] for record in graded] == [1, 0, 1]
    assert graded[1]["answers"] == ("Norway", "Norge")
    assert all(r["retrieved"] == 0 and r["seconds"] == 0.5 for r in graded)
    assert not {"exact_match", "generated_tokens"} & {*graded[0]}
    origin = {"source": "Wiki", "probabilities": [0.5, 0.5], "passages": [{"id": "p", "score": 1}]}
    (first, *_) = grade_records(predict("", "", "", **origin), QUESTIONS, Row("none"))
    assert first | origin == first  # for the report's page
    searched = grade_records(predict("", "", "", retrieved=1.0), QUESTIONS, Row("", searches=None))
    assert [record["retrieved"] for record in searched] == [1, 1, 1]
    reranked = predict("", "", "", retrieved=[{"id": "p", "score": 1.0}])
    reranked = grade_records(reranked, QUESTIONS, Row("", searches=None))
    assert "retrieval_rate" not in summarize(reranked)


@pytest.mark.parametrize(
    "records",
    [
        predict("x", "y", "z")[:2],
        [*predict("x", "y", "z"), {"id": "d", "prediction": ""}],
        [*predict("x", "y", "z")[:2], *predict("x", "y", "z")[:1]],
    ],
)
def test_other_questions(records):
    assert grade_records(records, QUESTIONS, Row("")) is None


def write_run(folder, methods):
    (folder / "predictions").mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps({"methods": {name: {} for name in methods}}))
    for name, text in methods.items():
        (folder / "predictions" / f"{name}.jsonl").write_text(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"id": "a", "prediction": "x"}\n', "answers other questions than the comparison asks"),
        ("[1]\n", r"direct\.jsonl cannot be read"),
        ('{"id": "a"}\n', r"direct\.jsonl"),
    ],
)
def test_predictions_that_cannot_be_compared(tmp_path, text, message):
    write_run(tmp_path / "prag", {"direct": text})
    with pytest.raises(RagJaxError, match=message):
        grade_rows("prag", tmp_path / "prag", QUESTIONS)


def test_numbers_of_a_row():
    seconds = [0.1, 0.2, 0.3]
    records = [
        {"correct": float(i < 2), "seconds": s, "retrieved": i % 2, "prompt_tokens": 10 * i}
        for i, s in enumerate(seconds)
    ]
    numbers = summarize(records)
    assert numbers["n"] == 3 and numbers["accuracy"] == pytest.approx(2 / 3)
    assert numbers["ci95"][0] < 2 / 3 < numbers["ci95"][1]
    assert (numbers["seconds_median"], numbers["seconds_95th"]) == pytest.approx((0.2, 0.29))
    assert (numbers["retrieval_rate"], numbers["prompt_tokens"]) == pytest.approx((1 / 3, 10))
    assert "generated_tokens" not in numbers
    bare = summarize([{"correct": 1.0}])
    assert {*bare} == {"n", "accuracy", "ci95"}


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_row_of_a_system_is_explained(system):
    """Its stages and artefacts are named as the system names them."""
    settings = CompareConfig().settings(system, Path("data"))
    described = open_room(system, "pipeline").describe_report(settings).methods
    assert {*described} <= {*ROWS[system]}
    source = Path(open_room(system, "pipeline").__file__).read_text("utf-8")
    source += "corpus warm_up encode"  # names that are made
    for row in ROWS[system].values():
        kept = {pattern.partition("/")[0] for pattern in row.keeps}
        named = *row.made_by, *row.growing, *row.remade, *row.unmade
        assert all(f'"{name}"' in source or name in source.split() for name in named)
        assert all(name in source for name in kept)


def test_bytes_a_document(tmp_path):
    for path, size in {
        "corpus/passages.jsonl": 100,
        "index/embeddings.npy": 999,
        "index/Wiki/dataset.npy": 40,
        "encode/adapters/x/a": 30,
        "encode/adapters/b": 30,
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x" * size)
    (tmp_path / "evaluate").mkdir()
    (tmp_path / "evaluate" / "adapters.json").write_text('{"documents": 2}')

    def weigh(system, method):
        return weigh_documents(find_row(system, method), tmp_path, 10)

    assert weigh("srrag", "direct") == 0
    assert weigh("srrag", "retrieve") == 14
    assert weigh("prag", "parametric") == 30 and weigh("prag", "both") == 40
    assert weigh("srrag", "an_ablation") is None


def test_seconds_of_a_further_document_and_of_one_less(tmp_path):
    for stage, text in {
        "augment/augmented.jsonl": "{}\n" * 4,
        "evaluate/adapters.json": "",
    }.items():
        (tmp_path / stage).parent.mkdir()
        (tmp_path / stage).write_text(text or '{"documents": 2}')
    seconds = {"index": 20.0, "trie": 3.0, "train": 50.0, "augment": 8.0, "encode": 40.0}

    def weigh(system, method):
        return weigh_changes(find_row(system, method), seconds, tmp_path, 10)

    assert weigh("srrag", "direct") == weigh("srrag", "verbalise") == {}  # hold no document
    # A tenth of the index; four documents were augmented, and two have adapters.
    assert weigh("srrag", "retrieve") == {"add_seconds": 2.0, "remove_seconds": 0.0}
    assert weigh("rag", "shared_bm25") == {"add_seconds": 0.0, "remove_seconds": 0.0}
    assert weigh("prag", "both") == {"add_seconds": 2.0 + 20.0, "remove_seconds": 0.0}
    # The weights are the index: all is trained again, of which the negatives were not mined here.
    assert weigh("self_retrieval", "self_retrieval") == {"add_seconds": 53.0, "remove_seconds": 3.0}


def test_frontier():
    points = {"a": (1, 0.5), "b": (2, 0.4), "c": (2, 0.9), "d": (0, 0.1), "e": (3, 0.9)}
    assert list_frontier(points) == ["d", "a", "c"]
    assert list_frontier({"x": (1, 0.5), "y": (1, 0.5)}) == ["x", "y"]


costs = st.integers(0, 3), st.integers(0, 3)


@hypothesis.given(st.dictionaries(st.sampled_from("abcdef"), st.tuples(*costs), min_size=1))
def test_the_frontier_is_what_no_point_beats(points):
    def beats(one, other):
        return one != other and one[0] <= other[0] and one[1] >= other[1]

    best = {n for n, p in points.items() if not any(beats(q, p) for q in points.values())}
    assert {*list_frontier(points)} == best
