"""Tiny folders in each format, and what is told about one that is not as it should be."""

import json
import tracemalloc

import pytest

from rag_jax.config import DataConfig, WorldConfig, build
from rag_jax.data.formats import copy_collection, describe_source, read_collection, read_passages
from rag_jax.data.gazetteer import build_world
from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question, load_collection
from rag_jax.runtime.errors import RagJaxError

WORLD = WorldConfig(cities=5, train=6, dev=3, test=3)
HEADING = "query-id\tcorpus-id\tscore\n"
BEIR = {
    "corpus.jsonl": '{"_id": "1", "title": "Riga", "text": "City"}\n\n{"_id": "2", "text": "B"}',
    "queries.jsonl": '{"_id": "q1", "text": "Where?"}\n{"_id": "q2", "text": "What?"}\n',
    "qrels/test.tsv": f"{HEADING}q1\t1\t2\nq1\t2\t0\n",
    "qrels/train.tsv": f"{HEADING}q2\t2\t1\nq2\t1\t1\n",
}
JSONL = {
    "train_passages.jsonl": '{"id": "a", "title": "Riga", "text": "Łódź"}\n',
    "dev_passages.jsonl": '{"id": "b", "title": "", "text": "B"}\n',
    "train_questions.jsonl": '{"id": "1", "question": "?", "answers": ["x"], "passage_id": "a"}',
    "questions.jsonl": '{"id": "2", "question": "!", "answers": []}\n',
}


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder


def read(folder, **settings):
    return read_collection(DataConfig(path=str(folder), **settings), WORLD)


def test_beir(tmp_path):
    found = read(write(tmp_path, BEIR))
    assert found.passages == [Passage("1", "Riga", "City"), Passage("2", "", "B")]
    assert found.questions == {
        "test": [Question("q1", "Where?", (), {"1": 2})],
        "train": [Question("q2", "What?", (), {"2": 1, "1": 1})],
    }
    assert found == read(tmp_path, format="beir")


def test_multihop(tmp_path):
    """Paragraphs of one title and text are one passage; another text takes a number."""
    paragraphs = [("Riga", "City", True), ("B", "b", False)], [("Riga", "Film", 1), ("B", "b", 0)]
    names = ("title", "text", "is_supporting")
    for name, found, type_ in zip(
        ("dev_2", "train"), paragraphs, ("comparison", None), strict=True
    ):
        listed = [dict(zip(names, paragraph, strict=True)) for paragraph in found]
        record = {"id": name, "question": "?", "answer": "x", "paragraphs": listed}
        record |= {"type": type_} if type_ else {}
        write(tmp_path, {f"{name}.jsonl": json.dumps(record)})
    found = read(tmp_path)
    passages = [Passage("Riga", "Riga", "City"), Passage("B", "B", "b")]
    assert found.passages == [*passages, Passage("Riga (2)", "Riga", "Film")]
    assert found.questions == {
        "dev": [Question("dev_2", "?", ("x",), {"Riga": 1}, "comparison")],
        "train": [Question("train", "?", ("x",), {"Riga (2)": 1})],
    }
    assert found == read(tmp_path, format="multihop")


def test_jsonl(tmp_path):
    found = read(write(tmp_path, JSONL))
    assert found.passages == [Passage("b", "", "B"), Passage("a", "Riga", "Łódź")]
    assert found.questions == {
        "test": [Question("2", "!", (), {})],
        "train": [Question("1", "?", ("x",), {"a": 1})],
    }
    assert found == read(tmp_path, format="jsonl")


def test_world():
    found, world = read_collection(DataConfig(), WORLD), build_world(**vars(WORLD))
    assert [vars(p) for p in found.passages] == [vars(p) for p in world.passages]
    for split, questions in found.questions.items():
        assert len(questions) == getattr(WORLD, split)
        for ours, theirs in zip(questions, world.questions[split], strict=True):
            assert (ours.id, ours.question, ours.answers) == (
                theirs.id,
                theirs.question,
                theirs.answers,
            )
            # The gold passage, and every other one about the place that says so too.
            assert ours.relevant[theirs.passage_id] == 1
            place = theirs.passage_id.split("/")[1]
            texts = {p.id: p.text for p in found.passages if p.id.split("/")[1] == place}
            assert ours.relevant.keys() <= texts.keys()
            for id in texts.keys() - {theirs.passage_id}:
                assert (id in ours.relevant) is has_answer(texts[id], ours.answers)


def test_a_copy_is_what_was_read(tmp_path):
    gathered = {
        "dev.json": json.dumps(
            [{"question": "?", "answers": [], "positive_ctxs": [{"title": "Riga", "text": "A"}]}]
        )
    }
    for number, files in enumerate((JSONL, BEIR, gathered, None)):
        data = DataConfig(str(write(tmp_path / f"{number}", files))) if files else DataConfig()
        wanted = read_collection(data, WORLD)
        (copy := tmp_path / f"copy{number}").mkdir()
        seen = []
        copy_collection(copy, data, WORLD, check=seen.append)
        for found in (*seen, load_collection(copy)):
            assert list(found.passages) == wanted.passages and len(wanted.passages) > 0
            assert found.questions == wanted.questions


def test_a_corpus_is_copied_without_being_held(tmp_path):
    """Ten megabytes of passages, one found by its text and one by its page, within two."""
    with open(tmp_path / "passages.jsonl", "w") as file:
        for i in range(2_000):
            record = {"id": f"{i}#1", "title": "T", "text": f"{i} " + "x" * 5_000}
            file.write(json.dumps(record) + "\n")
    positive = {"title": "T", "text": "1500 " + "x" * 5_000}
    dpr = [{"question": "?", "answers": ["x"], "positive_ctxs": [positive]}]
    output = [{"answer": "x", "provenance": [{"wikipedia_id": "7"}]}]
    kilt = json.dumps({"id": "a", "input": "?", "output": output})
    for format, file, text, id in (
        ("dpr", "dev.json", json.dumps(dpr), "1500#1"),
        ("kilt", "dev.jsonl", kilt, "7#1"),
    ):
        (tmp_path / file).write_text(text)
        data = DataConfig(str(tmp_path), format)
        tracemalloc.start()
        try:
            (copy := tmp_path / format).mkdir()
            copy_collection(copy, data, WORLD, check=lambda found: None)
            found = load_collection(copy)
            assert len(found.passages) == 2_000
            assert found.questions["dev"][0].relevant == {id: 1}
            assert tracemalloc.get_traced_memory()[1] < 2_000_000
        finally:
            tracemalloc.stop()
        (tmp_path / file).unlink()


def test_held_out_questions(tmp_path):
    lines = [
        json.dumps({"id": str(i), "question": "?", "answers": [], "passage_id": "a"})
        for i in range(9)
    ]
    files = {"passages.jsonl": JSONL["train_passages.jsonl"]}
    write(tmp_path, files | {"train_questions.jsonl": "\n".join(lines)})
    found, again = read(tmp_path, held_out=4), read(tmp_path, held_out=4)
    assert found == again
    data = DataConfig(str(tmp_path), held_out=4, seed=1)
    other = read_collection(data, WORLD)
    assert other != found and read_collection(data, WORLD, seed=0) == found
    train, dev = ([int(q.id) for q in found.questions[s]] for s in ("train", "dev"))
    assert len(dev) == 4 and sorted(train + dev) == list(range(9))
    assert train == sorted(train) and dev == sorted(dev)
    with pytest.raises(RagJaxError, match="config.data.held_out=9: there are 9 training"):
        read(tmp_path, held_out=9)
    write(tmp_path, {"dev_questions.jsonl": lines[0]})
    with pytest.raises(RagJaxError, match="config.data.held_out=1: the data has a dev split"):
        read(tmp_path, held_out=1)


def test_source_follows_the_contents(tmp_path):
    data = DataConfig(path=str(write(tmp_path, BEIR)))
    before = describe_source(data, WORLD)
    assert describe_source(data, WorldConfig()) == before
    write(tmp_path, {"qrels/test.tsv": BEIR["qrels/test.tsv"] + "q2\t1\t1\n"})
    assert describe_source(data, WORLD) != before
    assert describe_source(DataConfig(), WORLD) != describe_source(DataConfig(), WorldConfig())
    with pytest.raises(RagJaxError, match="config.data.path=nowhere: no such folder"):
        describe_source(DataConfig(path="nowhere"), WORLD)


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        (
            BEIR,
            {"corpus.jsonl": '{"_id": "1", "text": "A"}\n{"text": 1}'},
            "corpus.jsonl:2: has no 'id'",
        ),
        (BEIR, {"corpus.jsonl": '{"_id": 1.5, "text": "A"}'}, "jsonl:1: _id=1.5 must be a string"),
        (BEIR, {"corpus.jsonl": "{\n"}, "corpus.jsonl:1: is not JSON"),
        (BEIR, {"corpus.jsonl": "[1]"}, "corpus.jsonl:1: must be an object"),
        (BEIR, {"corpus.jsonl": ""}, "corpus.jsonl: holds no passages"),
        (
            BEIR,
            {"corpus.jsonl": '{"_id": "1", "text": "A"}\n' * 2},
            "corpus.jsonl:2: another passage has the id '1'",
        ),
        (
            BEIR,
            {"qrels/test.tsv": f"{HEADING}q9\t1\t1\n"},
            "test.tsv:2: query 'q9' is not among the queries",
        ),
        (
            BEIR,
            {"qrels/test.tsv": f"{HEADING}q1\t9\t1\n"},
            "test.tsv:2: passage '9' is not in the corpus",
        ),
        (
            BEIR,
            {"qrels/test.tsv": f"{HEADING}q1 1 1\n"},
            "test.tsv:2: must be query, passage and grade",
        ),
        (
            JSONL,
            {"questions.jsonl": '{"id": 1, "question": "?", "answers": "x"}'},
            ":1: answers must be a list of strings",
        ),
        (JSONL, {"questions.jsonl": '{"id": "1", "answers": []}'}, ":1: has no 'question'"),
        (
            JSONL,
            {"questions.jsonl": '{"id": "1", "question": "?", "answers": [], "passage_id": "z"}'},
            "questions.jsonl:1: no passage has the id 'z'",
        ),
    ],
)
def test_errors_name_file_and_line(tmp_path, files, changes, message):
    write(tmp_path, files | changes)
    with pytest.raises(RagJaxError) as caught:
        read(tmp_path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("lines", "relevant"),
    [
        ("corpus-id\tquery-id\tscore\n1\tq1\t1\n", {"1": 1}),
        ("#query-id\tcorpus-id\tscore\nq1\t1\t1\n", {"1": 1}),
        ("qid\tQ0\tdocid\trel\nq1\t0\t2\t1\n", {"2": 1}),
        ("a\tb\tc\nq1\t1\t1.0\nq1\t2\t2 \n", {"1": 1, "2": 2}),
    ],
)
def test_columns_of_judgements(tmp_path, lines, relevant):
    write(tmp_path, BEIR | {"qrels/test.tsv": lines})
    assert [q.relevant for q in read(tmp_path).questions["test"]] == [relevant]


def test_a_judgement_in_words_is_no_heading(tmp_path):
    write(tmp_path, BEIR | {"qrels/test.tsv": "q1\t1\tyes\n"})
    with pytest.raises(RagJaxError, match="test.tsv:1: must be query, passage and grade"):
        read(tmp_path)


def test_missing_files(tmp_path):
    with pytest.raises(RagJaxError, match="config.data.path=.*nowhere: no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(RagJaxError, match="holds no questions"):
        read(tmp_path)
    with pytest.raises(RagJaxError, match="holds no corpus.jsonl"):
        read(tmp_path, format="beir")
    with pytest.raises(RagJaxError, match="holds no questions in the format 'dpr'"):
        read(tmp_path, format="dpr")
    write(tmp_path, {"passages.jsonl": JSONL["dev_passages.jsonl"]})
    with pytest.raises(RagJaxError, match="holds no questions"):
        read(tmp_path)
    write(tmp_path, {name: BEIR[name] for name in ("corpus.jsonl", "queries.jsonl")})
    with pytest.raises(RagJaxError, match="passages.jsonl: BEIR's folder has one corpus.jsonl"):
        read(tmp_path)
    (tmp_path / "passages.jsonl").unlink()
    with pytest.raises(RagJaxError, match="qrels: holds no .tsv file"):
        read(tmp_path)
    write(tmp_path, {"test.tsv": BEIR["qrels/test.tsv"]})
    with pytest.raises(RagJaxError, match="test.tsv: .* move it to qrels if it has judgements"):
        read(tmp_path)
    (tmp_path / "test.tsv").unlink()
    write(tmp_path, {"qrels/test.tsv": HEADING})
    (tmp_path / "queries.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(RagJaxError, match="queries.jsonl:1: is not UTF-8"):
        read(tmp_path)


def test_files_that_leave_it_open(tmp_path):
    write(tmp_path, JSONL)
    write(tmp_path, {"dev.jsonl": '{"id": 1, "question": "?", "golden_answers": []}'})
    assert len(read(tmp_path).questions) == 2  # others are not looked at beside *questions
    for name in ("train_questions.jsonl", "questions.jsonl"):
        (tmp_path / name).unlink()
    write(tmp_path, {"test.jsonl": '{"id": 1, "question": "?", "answers": ["x"]}'})
    several = "several formats .dev.jsonl: flashrag, test.jsonl: jsonl.: set config.data.format"
    with pytest.raises(RagJaxError, match=several):
        read(tmp_path)
    assert [q.id for q in read(tmp_path, format="flashrag").questions["dev"]] == ["1"]
    write(tmp_path, {"other.json": '{"name": 1}'})
    with pytest.raises(RagJaxError, match="other.json: has an unknown format: move the file away"):
        read(tmp_path)
    (tmp_path / "other.json").unlink()
    write(tmp_path, {"test.jsonl": '{"claim_id": 1, "claim": "x", "label": "unproven"}'})
    with pytest.raises(RagJaxError, match="holds no questions"):
        read(tmp_path, format="pubhealth")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"format": "beir"}, "data.format='beir': set data.path to the data folder"),
        ({"format": "world", "path": "x"}, "data.format='world': the world is built in"),
        ({"held_out": 3}, "data.held_out=3: the built-in world has a dev split; set it to 0"),
    ],
)
def test_settings_that_contradict_each_other(values, message):
    with pytest.raises(RagJaxError, match=message):
        build(DataConfig, values, path="data")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (b"", "bad.jsonl: holds no passages"),
        (b"{\n", "bad.jsonl:1: is not JSON"),
        (b"\n[1]\n", "bad.jsonl:2 .item 1.: must be an object"),
        (b"\xff\n", "bad.jsonl:1: is not UTF-8"),
        (b'{"text": "x"}\n', "bad.jsonl:1: has no 'id'"),
        (b'{"id": true, "text": "x"}\n', "bad.jsonl:1: id=True must be a string"),
        (b'{"id": 1}\n', "bad.jsonl:1: has no 'text'"),
        (b'{"id": 1, "text": " \\n"}\n', "bad.jsonl:1: the text of passage '1' is blank"),
        (b'{"id": 1, "text": "x", "title": 3}\n', "bad.jsonl:1: title=3 must be a string"),
        (b'{"id": 1, "text": "x"}\n{"id": "1", "text": "y"}\n', "bad.jsonl:2: another passage has"),
        (b'{"id": 1, "text": "\\ud800"}\n', "bad.jsonl:1: text holds half a surrogate pair"),
    ],
)
def test_bad_passages(tmp_path, lines, message):
    (tmp_path / "bad.jsonl").write_bytes(lines)
    with pytest.raises(RagJaxError, match=message) as error:
        read_passages([tmp_path / "bad.jsonl"])
    assert "\n" not in str(error.value)


def test_passages_of_several_files(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": 7, "text": "One.\\u2028Still."}\n\n', "utf-8")
    (tmp_path / "b.jsonl").write_text('{"id": "서울", "title": "Seoul", "text": "수도"}', "utf-8")
    assert read_passages([tmp_path / "a.jsonl", str(tmp_path / "b.jsonl")]) == [
        Passage("7", "", "One.\u2028Still."),
        Passage("서울", "Seoul", "수도"),
    ]
