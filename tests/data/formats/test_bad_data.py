"""Whatever the data hold, every reader reads them as they are or says in one line what is wrong."""

import copy
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection, read_passages
from rag_jax.data.passages import Passage
from rag_jax.runtime.errors import RagJaxError

PASSAGES = {"passages.jsonl": [{"id": 1, "title": "Riga", "text": "City"}]}
QUESTION = {"id": "q", "question": "Where?"}
# For each format a good question, and what is beside it.
CONTEXT = {"title": "T", "text": "U"}
INLINE = {"ctx_title": "T", "ctx_text": "U"}
SPAN = {"wikipedia_id": "9", "start_paragraph_id": 1, "end_paragraph_id": 1}
SAMPLES = {
    "jsonl": (QUESTION | {"answers": ["x"], "passage_id": 1, "popularity": 3}, PASSAGES),
    "beir": ({"_id": "q", "text": "Where?"}, {"corpus.jsonl": [{"_id": "7", "text": "U"}]}),
    "dpr": (
        QUESTION
        | {
            "answers": ["x"],
            "positive_ctxs": [CONTEXT | {"psg_id": 7}],
            "ctxs": [{"id": "8", "title": "T", "text": "V", "score": 1.5}],
        },
        {},
    ),
    "kilt": (
        {"id": "q", "input": "Where?", "output": [{"answer": "x", "provenance": [SPAN]}]},
        {"pages.jsonl": [{"_id": "9", "wikipedia_title": "T", "text": ["T", "U"]}]},
    ),
    "flashrag": (
        QUESTION
        | {
            "golden_answers": ["x"],
            "metadata": {"type": "t", "popularity": 1, "relevant": {"5": 1}, "choices": {}},
        },
        {"wiki.jsonl": [{"id": "5", "contents": '"T"\nU'}]},
    ),
    "squad": (
        {
            "title": "T",
            "paragraphs": [{"context": "U", "qas": [QUESTION | {"answers": [{"text": "x"}]}]}],
        },
        {},
    ),
    "triviaqa": (
        {"QuestionId": "q", "Question": "Where?", "Answer": {"Value": "x", "Aliases": ["y"]}},
        PASSAGES,
    ),
    "popqa": (QUESTION | {"prop": "p", "s_pop": 5, "possible_answers": '["x"]'}, PASSAGES),
    "multihop": (
        QUESTION | {"answer": "x", "context": [["T", ["U", "V"]]], "supporting_facts": [["T", 0]]},
        {},
    ),
    "arc": (
        QUESTION
        | INLINE
        | {"choices": {"label": ["1", "2"], "text": ["a", "b"]}, "answerKey": "2"},
        {},
    ),
    "pubhealth": ({"claim_id": "q", "claim": "C.", "label": "true"} | INLINE, {}),
    "asqa": (
        {"sample_id": "q", "ambiguous_question": "Who?", "qa_pairs": [{"short_answers": ["x"]}]},
        PASSAGES,
    ),
    "cwq": ({"ID": "q", "question": "?", "answers": [{"answer": "x", "aliases": []}]}, PASSAGES),
    "fever": (
        {"id": "q", "claim": "C.", "label": "REFUTES", "evidence": [[[1, 2, "Riga", 0]]]},
        PASSAGES,
    ),
    "msmarco": (
        {
            "query_id": "q",
            "query": "Where?",
            "answers": ["x"],
            "wellFormedAnswers": ["X."],
            "passages": [{"is_selected": 1, "passage_text": "U"}],
        },
        {},
    ),
    "strategyqa": ({"qid": "q", "question": "Is it?", "term": "T", "answer": True}, PASSAGES),
}
DOCUMENTS = {"squad": "data", "triviaqa": "Data"}  # the questions are under this key
ODD = '\0\r\n\t"\\,[]{}\u2028\x85\ufeffé\u0301가각\u05d0\u202e\U0001f600\u3000<|endoftext|>\ud800'
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),  # which are no JSON: test_lines.py
    st.text(ODD, max_size=6),
    st.lists(st.one_of(st.none(), st.text(ODD, max_size=3), st.integers()), max_size=2),
    st.dictionaries(st.sampled_from(["text", "title", "A"]), st.integers(), max_size=2),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bad")


def read(folder, format, records, others, *, bad_lines=0):
    place = folder / format
    (place / "qrels").mkdir(parents=True, exist_ok=True)
    name = "queries.jsonl" if format == "beir" else "train_a.jsonl"
    for file, listed in {name: records, **others}.items():
        lines = (json.dumps(record) + "\n" for record in listed)  # in ASCII, so all can be written
        (place / file).write_text("".join(lines), "ascii")
    if format == "beir":
        (place / "qrels" / "train.tsv").write_text("".join(f"{id}\t7\t1\n" for id in "qrs"))
    if format in DOCUMENTS:
        (place / name).write_text(json.dumps({DOCUMENTS[format]: records}, indent=0), "ascii")
    data = DataConfig(path=str(place), format=format, bad_lines=bad_lines)
    return read_collection(data, WorldConfig())


def rename(record, id):
    """The record with another id, which is "q" in all samples, and nothing else is."""
    return json.loads(json.dumps(record).replace('"q"', f'"{id}"'))


def list_paths(value, path=()):
    """The path of every value within a JSON value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from list_paths(value[key], (*path, key))


def spoil(record, path, value, *, remove):
    """The record with another value at a path, or none."""
    record = copy.deepcopy(record)
    *parents, last = path
    inner = record
    for key in parents:
        inner = inner[key]
    if remove:
        del inner[last]
    else:
        inner[last] = value
    return record


def check(folder, format, bad):
    """A record is read, or named and, with leave, skipped: good ones are read all the same."""
    good, others = SAMPLES[format]
    records = [good, bad, rename(good, "s")]
    try:
        read(folder, format, records, others)
    except RagJaxError as error:
        assert re.match(rf"{folder}\S+:\d+(?: \(item \d\))?: .+", str(error))
        assert "\n" not in str(error)
    found = read(folder, format, records, others, bad_lines=2).questions["train"]
    assert {"q", "s"} <= {question.id for question in found}
    for question in found:
        assert question.question.strip()
        for text in (question.id, question.question, *question.answers):
            text.encode()  # which half a surrogate pair cannot be


@pytest.mark.parametrize("format", SAMPLES)
def test_a_record_with_anything_missing(folder, format):
    good = rename(SAMPLES[format][0], "r")
    for path in list_paths(good):
        for value in (None, "", 0, [], {}):
            check(folder, format, spoil(good, path, value, remove=False))
        check(folder, format, spoil(good, path, None, remove=True))


@settings(max_examples=30)
@pytest.mark.parametrize("format", SAMPLES)
@given(data=st.data())
def test_a_record_with_anything_else(folder, format, data):
    good = rename(SAMPLES[format][0], "r")
    path = data.draw(st.sampled_from(list(list_paths(good))))
    check(folder, format, spoil(good, path, data.draw(VALUES), remove=False))


TEXTS = st.text(
    st.one_of(st.sampled_from(ODD.replace("\ud800", "")), st.characters(exclude_categories=["Cs"])),
    min_size=1,
    max_size=20,
).filter(str.strip)


@settings(max_examples=40)
@given(id=TEXTS, title=TEXTS, text=TEXTS)
def test_any_text_is_kept(folder, id, title, text):
    record = {"id": id, "title": title, "text": text}
    path = folder / "any.jsonl"
    for encoded in (json.dumps(record), json.dumps(record, ensure_ascii=False)):
        path.write_bytes(b"\xef\xbb\xbf" + encoded.encode() + b"\r\n")
        assert read_passages([path]) == [Passage(id, title, text)]


def test_a_passage_of_a_million_characters(tmp_path):
    text = "한\u0301 " * 333_333 + "ends"
    others = {
        "lines.jsonl": json.dumps({"id": 1, "text": text}),
        "array.json": json.dumps([{"id": 2, "text": text}]),
        "table.tsv": f"id\ttext\n3\t{text}\n",
        "page.jsonl": json.dumps({"_id": "4", "wikipedia_title": "T", "text": ["T", text]}),
    }
    for name, written in others.items():
        (tmp_path / name).write_text(written, "utf-8")
        (passage,) = read_passages([tmp_path / name])
        assert passage.text == text, name


@pytest.mark.parametrize("read_bad", [0, 1])
def test_empty_and_missing(tmp_path, read_bad):
    lines = [
        {"id": 1, "text": "One."},
        {"id": 2, "title": " ", "text": " \u3000\n"},
        {"id": "", "text": "Three."},
        {"id": 1, "text": "Again."},
    ]
    messages = ["the text of passage '2' is blank", "id is empty", "another passage has the id '1'"]
    for number, message in enumerate(messages, 2):
        path = tmp_path / "a.jsonl"
        path.write_text("\n".join(map(json.dumps, (lines[0], lines[number - 1]))))
        if read_bad:
            assert [p.id for p in read_passages([path], bad_lines=1)] == ["1"]
        else:
            with pytest.raises(RagJaxError, match=f"a.jsonl:2: {message}"):
                read_passages([path])
