"""Every file of a folder is read, or named with the reason why it is not."""

import bz2
import gzip
import json
import logging
import lzma

import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection, read_passages
from rag_jax.data.formats.splits import find_split, name_split
from rag_jax.data.passages import Passage
from rag_jax.runtime.errors import RagJaxError

QUESTION = '{"id": "q", "question": "Where is Oslo?", "answers": ["Norway"]}\n'
ONE, TWO = (json.dumps({"id": str(i), "text": f"text {i}"}) + "\n" for i in (1, 2))
HEADING = "query-id\tcorpus-id\tscore\n"
BEIR = {
    "corpus.jsonl": '{"_id": "1", "title": "Masks", "text": ""}\n'
    '{"_id": "2", "title": "", "text": ""}\n{"_id": "3", "title": "", "text": "full"}\n',
    "queries.jsonl": '{"_id": "q", "text": "masks?"}\n{"_id": "r", "text": "none?"}\n',
    "qrels/test.tsv": f"{HEADING}q\t1\t2\nq\t2\t1\nq\t3\t1\n",
}


def read(folder, files=(), **settings):
    for name, content in dict(files).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_collection(DataConfig(str(folder), **settings), WorldConfig())


def read_with(folder, name, content):
    """The ids of the passages of a folder of two good files and another."""
    files = {"passages_1.jsonl": ONE, "test_questions.jsonl": QUESTION, name: content}
    return [passage.id for passage in read(folder, files).passages]


def compress_zstd(data):
    return pytest.importorskip("zstandard").ZstdCompressor().compress(data)


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("passages_2.JSONL", bytes),
        ("passages_2.ndjson", bytes),
        ("Passages_2.NDJSON.GZ", gzip.compress),
        ("passages_2.jsonl.bz2", bz2.compress),
        ("passages_2.jsonl.xz", lzma.compress),
        ("passages_2.jsonl.zst", compress_zstd),
        ("passages_2.jsonl", compress_zstd),
        ("passages_2.json.bz2", lambda data: bz2.compress(data[:5]) + bz2.compress(data[5:])),
        ("passages_2.jsonl.zst", lambda data: compress_zstd(data[:5]) + compress_zstd(data[5:])),
        ("passages_2.jsonl", lambda data: json.dumps(json.loads(data), indent=1).encode()),
        ("passages_2.TSV", lambda data: b"id\ttext\n2\ttext two\n"),
    ],
)
def test_a_part_of_a_corpus_under_any_name(tmp_path, name, pack):
    assert sorted(read_with(tmp_path, name, pack(TWO.encode()))) == ["1", "2"]


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("passages_2.jsonl", POINTER, "is a pointer of Git LFS: run `git lfs pull`"),
        ("passages_2.jsonl", "/annex/objects/SHA256E-s5--4d7a.jsonl\n", "pointer of git-annex"),
        ("passages_2.jsonl", "", "is empty: download the file again, or move it away"),
        ("passages_2.jsonl", " \n\n", "is empty"),
        ("passages_2.json", "[]\n", "is empty"),
        ("passages_2.tsv", "\n", "is empty"),
        ("passages_2.tsv", "id\ttext\n", "holds no passages"),
        ("passages_2.jsonl", TWO.encode("utf-16"), "is UTF-16: save it as UTF-8"),
        ("passages_2.jsonl", TWO.encode("utf-16-le"), "is UTF-16 or damaged"),
        ("passages_2.jsonl", TWO.encode("utf-16-be"), "is UTF-16 or damaged"),
        ("passages_2.jsonl", TWO.encode("utf-32-le"), "is UTF-16 or damaged"),
        ("passages_2.tsv", "id\ttext\n2\tb\n".encode("utf-16-le"), "is UTF-16 or damaged"),
        ("passages_2.jsonl.gz", gzip.compress(TWO.encode("utf-16"), mtime=0), "is UTF-16"),
        ("passages_2.jsonl", b"\0" * 500, "is UTF-16 or damaged"),
        ("passages_2.jsonl", "<!DOCTYPE html><html>404", "is a web page or XML"),
        ("passages_2.jsonl", "<?xml version='1.0'?><Error/>", "is a web page or XML"),
        ("passages_2.json", b"PK\x03\x04rest", "is a zip archive: unpack the archive"),
        ("passages_2.json", b"PAR1rest", "is Parquet: convert the file to JSON lines"),
        ("passages_2.jsonl", '{"doc_id": "2", "content": "two"}\n', "has an unknown format"),
        ("passages_2.tsv", "2\ttext two\tT\n", "has an unknown format"),
        ("passages_2.jsonl.bz2", bz2.compress(TWO.encode())[:-4], "is damaged or cut short"),
        ("passages_2.jsonl.xz", lzma.compress(TWO.encode())[:-9], "is damaged or cut short"),
        ("passages_2.jsonl.zip", b"PK\x03\x04rest", "looks like data, but has no suffix of"),
        ("passages_2.parquet", b"PAR1rest", "looks like data"),
        ("passages_2.tar.gz", gzip.compress(b"x", mtime=0), "looks like data"),
        ("passages_2.jsonl.part", TWO, "looks like data"),
        ("passages_2.txt", TWO, "looks like data"),
        ("passages_2.txt", "id\ttext\n2\ttext two\n", "looks like data"),
        ("passages_2", gzip.compress(TWO.encode(), mtime=0), "looks like data"),
        ("passages_2", "[\n" + TWO + "]", "looks like data"),
        ("passages_2.jsonl.dvc", "outs:\n- md5: 4d\n", "looks like data"),
    ],
)
def test_a_part_that_cannot_be_read_is_named(tmp_path, name, content, message):
    with pytest.raises(RagJaxError, match=f"{name}: {message}|{name}: .*{message}") as caught:
        read_with(tmp_path, name, content)
    assert "\n" not in str(caught.value)


def test_a_zstandard_file_that_is_cut_short(tmp_path):
    data = compress_zstd(TWO.encode())
    for length in (len(data) - 3, 8):
        (tmp_path / "a.jsonl.zst").write_bytes(data[:length])
        with pytest.raises(RagJaxError, match="a.jsonl.zst: is damaged or cut short"):
            read_passages([tmp_path / "a.jsonl.zst"])


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "x" * 300 + ":y"])
def test_a_name_that_no_folder_can_have(name):
    with pytest.raises(RagJaxError, match="no such folder"):
        read_collection(DataConfig(f"/{name}"), WorldConfig())


def test_links_to_missing_files(tmp_path):
    (tmp_path / "passages_2.jsonl").symlink_to("/nowhere/passages")
    with pytest.raises(RagJaxError, match="2.jsonl: is a link to /nowhere/passages, which is miss"):
        read_with(tmp_path, "passages_3.jsonl", TWO)


def test_other_files_are_named_in_a_warning(tmp_path, caplog):
    others = {
        "README.md": "# About\n",
        "run.py": "print(1)\n",
        "notes.ipynb": "{}",
        "test_questions.jsonl.sha256": "4d7a\n",
        "parts/part-00.jsonl": TWO,
        "spark.jsonl/part-0": TWO,
        "dev.jsonl": '{"id": 1, "question": "?", "golden_answers": []}',
        ".hidden.jsonl": TWO,
    }
    with caplog.at_level(logging.WARNING):
        read(tmp_path, others | {"passages.jsonl": ONE, "test_questions.jsonl": QUESTION})
    named = {message.split(":")[0].removeprefix(f"{tmp_path}/") for message in caplog.messages}
    left = {"parts/part-00.jsonl", "spark.jsonl/part-0", ".hidden.jsonl"}
    assert named == {*others, "parts", "spark.jsonl"} - left


def test_what_lies_in_a_folder_of_documents_is_named_too(tmp_path, caplog):
    others = {
        "manuals/b.rst": "Lost.",
        "manuals/more.jsonl": TWO,
        "manuals/old.doc": b"\xd0\xcf\x11\xe0",
        "manuals/slides.pptx": b"PK\x03\x04",
        "manuals/sub/x.epub": b"PK\x03\x04",
        "manuals/deep/y.rst": "Lost.",
    }
    read_too = {"a.txt": "A text.", "manuals/c.txt": "Read.", "manuals/deep/d.txt": "Read it."}
    hidden = {"manuals/.h/z.jsonl": TWO, "manuals/.z.jsonl": TWO}
    files = {**others, **read_too, **hidden, "test_questions.jsonl": QUESTION}
    with caplog.at_level(logging.WARNING):
        assert len(read(tmp_path, files).passages) == 3
    told = dict(m.removeprefix(f"{tmp_path}/").split(": ", 1) for m in caplog.messages)
    assert told == {
        "manuals/b.rst": "is not read: is neither JSON nor a table",
        "manuals/more.jsonl": "is not read: lies in a folder: move it up, if it is data",
        "manuals/old.doc": "is not read: is neither JSON nor a table",
        "manuals/slides.pptx": "is not read: lies in a folder: move it up, if it is data",
        "manuals/sub": "is not read: is a folder: move its files up, if they are data",
        "manuals/deep/y.rst": "is not read: is neither JSON nor a table",
    }
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert len(read_passages([tmp_path])) == 3
    told = {m.removeprefix(f"{tmp_path}/").split(": ")[0] for m in caplog.messages}
    single = {*others} - {"manuals/sub/x.epub"}
    assert told == {*single, "manuals/sub", "test_questions.jsonl"}


def test_the_table_of_files(tmp_path, capsys):
    claims = [{"claim_id": i, "claim": f"C{i}", "label": "true"} for i in range(3)]
    claims += [{"claim_id": 9, "claim": "C", "label": "unproven"}, {"claim_id": 10}]
    files = {"dev.jsonl": "\n".join(map(json.dumps, claims)), "passages.jsonl": ONE + TWO + ONE}
    found = read(tmp_path, files | {"about.txt": "Hello"}, bad_lines=2)
    assert (len(found.passages), len(found.questions["dev"])) == (2, 3)
    assert [line.removeprefix(f"{tmp_path}/") for line in capsys.readouterr().err.splitlines()] == [
        "about.txt: all left out (is neither JSON nor a table)",
        "passages.jsonl: passages: 2 read, 1 skipped (the last: 3: another passage has the id '1')",
        "dev.jsonl: pubhealth, dev: 3 read, 1 skipped (the last: 5: has no 'label' "
        "(its fields: claim_id)), "
        "1 left out (label mixture or unproven)",
    ]


def test_a_record_of_two_splits_is_told(tmp_path, caplog):
    files = {"passages.jsonl": ONE, "train.jsonl": QUESTION, "test.jsonl": QUESTION}
    files["test_2.jsonl"] = QUESTION.replace('"q"', '"r"')
    with caplog.at_level(logging.WARNING):
        found = read(tmp_path, files)
    assert [len(found.questions[split]) for split in ("train", "test")] == [1, 2]
    told = [message.replace(f"{tmp_path}/", "") for message in caplog.messages]
    assert told == [
        "test_2.jsonl (test): 1 questions and their answers are in test.jsonl (test) too, as at "
        "line 1",
        "train.jsonl (train): 1 questions and their answers are in test.jsonl (test) too, as at "
        "line 1",
    ]


def test_answers_without_words_are_told(tmp_path, caplog):
    asked = {"id": "q", "question": "?", "answers": ["The", "a", "!", "A 1", "Who", "+", "이", "Ⅸ"]}
    with caplog.at_level(logging.WARNING):
        read(tmp_path, {"passages.jsonl": ONE, "test.jsonl": json.dumps(asked)})
    (told,) = caplog.messages
    assert told.endswith("1: the answer 'The' has no words to match (such answers: 4)")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("training_questions.jsonl", "train"),
        ("development_questions.jsonl", "dev"),
        ("Validation.JSON", "dev"),
        ("hotpot_dev_fullwiki_v1.json", "dev"),
        ("eval.jsonl.gz", "test"),
        ("nq-evaluation.tsv", "test"),
        ("testing.jsonl", "test"),
        ("MyTrainQuestions.jsonl", "train"),
        ("trainset.json", "train"),
        ("devset2.json", "dev"),
        ("valid.csv", "dev"),
        ("HotpotQATrain.jsonl", "train"),
        ("TriviaQADevSet.json", "dev"),
        ("NQTraining.json", "train"),
        ("RAGTest.json", "test"),
        ("device_questions.jsonl", "test"),
        ("strain_questions.jsonl", "test"),
        ("WHO-developed.jsonl", "test"),
        ("latest.jsonl", "test"),
        ("questions.jsonl", "test"),
    ],
)
def test_names_of_splits(tmp_path, name, split):
    assert find_split(tmp_path / name) == split
    assert name_split(split) == split


@pytest.mark.parametrize(
    "name",
    [
        "trn.json",
        "validate.json",
        "train_dev.json",
        "testdev.json",
        "trainsmall.json",
        "devtest.json",
        "dev-test.json",
        "nqtrain.json",
        "NQtrain.json",
        "minidev.jsonl",
        "qatrainset.json",
        "retraining.json",
    ],
)
def test_doubtful_names_of_splits(tmp_path, name):
    with pytest.raises(RagJaxError, match=f"{name}: which split does '.*' name"):
        read(tmp_path, {"passages.jsonl": ONE, name: QUESTION})


@pytest.mark.parametrize(
    "names",
    [
        ("dev.jsonl", "validation.jsonl"),
        ("train_1.jsonl", "training_2.jsonl"),
        ("test.jsonl", "nq.jsonl"),
        ("dev.jsonl", "dev.json"),
        ("dev.jsonl", "dev.jsonl.gz"),
        ("test.jsonl", "evaluation.jsonl"),
    ],
)
def test_two_files_that_mean_one_split(tmp_path, names):
    files = {name: QUESTION.replace('"q"', f'"{name}"') for name in names}
    with pytest.raises(RagJaxError, match="means the split '.*', as .* does"):
        read(tmp_path, files | {"passages.jsonl": ONE})


def test_parts_of_a_split(tmp_path):
    names = ("train_1.jsonl", "train_2.jsonl", "train_2_more.jsonl")
    files = {name: QUESTION.replace('"q"', f'"{name}"') for name in names}
    found = read(tmp_path, files | {"passages.jsonl": ONE})
    assert len(found.questions["train"]) == 3


def test_documents_of_beir_without_a_text(tmp_path, capsys):
    """A title is a document, and an empty document keeps its row; the judgements of both count."""
    found = read(tmp_path, BEIR)
    assert found.passages == [
        Passage("1", "Masks", ""),
        Passage("2", "", ""),
        Passage("3", "", "full"),
    ]
    assert found.questions["test"][0].relevant == {"1": 2, "2": 1, "3": 1}
    assert "queries.jsonl: beir: 2 read, 1 left out (no judgements)" in capsys.readouterr().err


def test_judgements(tmp_path):
    judged = BEIR["qrels/test.tsv"]
    assert read(tmp_path, BEIR | {"qrels/test.tsv": judged + "q\t1\t2\n"}) == read(tmp_path, BEIR)
    twice = "test.tsv:5: passage '1' of query 'q' has grade 0 here and 2 before"
    with pytest.raises(RagJaxError, match=twice):
        read(tmp_path, BEIR | {"qrels/test.tsv": judged + "q\t1\t0\n"})
    with pytest.raises(RagJaxError, match="test.tsv:1: must be query, passage and grade"):
        read(tmp_path, BEIR | {"qrels/test.tsv": "q\t1\t1.5\nq\t3\t1\n"})
    with pytest.raises(RagJaxError, match="test.tsv: holds no questions"):
        read(tmp_path, BEIR | {"qrels/test.tsv": HEADING})


def test_judgements_as_json_lines(tmp_path):
    """MTEB's datasets have them so, with grades that may be written as 1.0."""
    given = ("q", "1", 2.0), ("q", 2, 1), ("q", "3", 1)
    keys = "query-id", "corpus-id", "score"
    lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in given]
    expected = read(tmp_path, BEIR).questions["test"][0].relevant
    (tmp_path / "qrels" / "test.tsv").unlink()
    files = {name: content for name, content in BEIR.items() if not name.startswith("qrels/")}
    found = read(tmp_path, files | {"qrels/test.jsonl": "\n".join(lines)})
    assert found.questions["test"][0].relevant == expected
    for grade in ("1.5", "true", '"1"', "null", "1e999", str(10**12)):
        with pytest.raises(RagJaxError, match=r"test.jsonl:1: score=.* must be a whole number"):
            bad = '{"query-id": "q", "corpus-id": "1", "score": %s}' % grade  # noqa: UP031
            read(tmp_path, files | {"qrels/test.jsonl": bad})


def test_splits_of_beir(tmp_path, caplog):
    judged = BEIR["qrels/test.tsv"]
    files = BEIR | {"qrels/validation.tsv": judged}
    with caplog.at_level(logging.WARNING):
        assert {*read(tmp_path, files).questions} == {"dev", "test"}
    (told,) = caplog.messages
    assert "validation.tsv (dev): 1 questions and their answers are in" in told
    with pytest.raises(RagJaxError, match="validation.tsv: means the split 'dev', as dev.tsv does"):
        read(tmp_path, {"qrels/dev.tsv": judged})
    (tmp_path / "qrels" / "validation.tsv").unlink()
    with pytest.raises(RagJaxError, match="corpus.jsonl.gz: BEIR's folder has one corpus.jsonl"):
        read(tmp_path, {"corpus.jsonl.gz": gzip.compress(b"{}")})


def test_passages_with_a_title_alone(tmp_path):
    listed = [{"id": 1, "title": "Riga", "text": ""}, {"id": 2, "title": "Oslo", "text": None}]
    listed += [{"id": 3, "title": "Rome"}, {"id": 4, "contents": '"Bonn"\n'}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, listed)))
    titles = ("Riga", "Oslo", "Rome", "Bonn")
    wanted = [Passage(str(id), title, "") for id, title in enumerate(titles, 1)]
    assert read_passages([tmp_path / "a.jsonl"]) == wanted


@pytest.mark.parametrize(
    "record",
    [
        {"id": "1", "title": "A", "content": "long text"},
        {"_id": "1", "title": "A", "txt": "long text", "metadata": {}},
        {"id": "1", "title": "A", "passage": "long text"},
    ],
)
def test_a_text_by_another_name_is_not_left_out(tmp_path, record):
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    fields = ", ".join(record)
    with pytest.raises(RagJaxError, match=rf"a.jsonl:1: has no 'text' \(its fields: {fields}\)"):
        read_passages([tmp_path / "a.jsonl"])


def test_an_empty_text_does_not_hide_the_contents(tmp_path):
    record = {"id": "1", "text": "", "contents": '"T"\nbody'}
    (tmp_path / "a.jsonl").write_text(json.dumps(record))
    assert read_passages([tmp_path / "a.jsonl"]) == [Passage("1", "T", "body")]


@pytest.mark.parametrize("missing", ["passages-00000-of-00002", "passages-00001-of-00002"])
def test_a_missing_part(tmp_path, missing):
    files = {f"passages-0000{i}-of-00002.jsonl": text for i, text in enumerate((ONE, TWO))}
    files["test-00001-of-00001.jsonl"] = QUESTION
    assert len(read(tmp_path, files).passages) == 2
    (tmp_path / f"{missing}.jsonl").unlink()
    with pytest.raises(RagJaxError, match="of-00002.jsonl: is one of 2 files, of which 1 are here"):
        read(tmp_path)


@pytest.mark.parametrize("data", [[1, 2], [None], ["x"]])
def test_data_that_are_no_articles(tmp_path, data):
    with pytest.raises(RagJaxError, match="stats.json: has an unknown format"):
        read(tmp_path, {"passages.jsonl": ONE, "stats.json": json.dumps({"data": data})})


@pytest.mark.parametrize("beside", [{}, {"state.json": "{}"}, {"data-0.arrow": "ARROW1"}])
def test_datasets_of_hugging_face(tmp_path, caplog, beside):
    """`dataset_info.json` is Hugging Face's too, and says nothing of the files beside it."""
    info = {"builder_name": "json", "dataset_name": "x", "features": {}, "splits": {}}
    files = {"hf/train/dataset_info.json": json.dumps(info), "dataset_infos.json": "{}"}
    files |= {"dataset_info.json": json.dumps(info)}
    files |= {f"hf/train/{name}": content for name, content in beside.items()}
    with caplog.at_level(logging.WARNING):
        assert read_with(tmp_path, "passages_2.jsonl", TWO) == ["1", "2"]
        read(tmp_path, files)
    assert {m.split(":")[0].removeprefix(f"{tmp_path}/") for m in caplog.messages} == {
        "dataset_info.json",
        "dataset_infos.json",
        "hf",
    }
    with pytest.raises(RagJaxError, match="data-0.arrow: looks like data"):
        read(tmp_path, {"data-0.arrow": b"ARROW1"})


@pytest.mark.parametrize("heading", ["docno\tqid\trel", "document_id\tquery_id\trelevance"])
def test_the_heading_of_judgements_in_another_order(tmp_path, heading):
    found = read(tmp_path, BEIR | {"qrels/test.tsv": f"{heading}\n2\tq\t1\n"})
    assert found.questions["test"][0].relevant == {"2": 1}


def test_a_heading_that_names_some_columns(tmp_path):
    with pytest.raises(RagJaxError, match="test.tsv:1: name the columns query-id, corpus-id an"):
        read(tmp_path, BEIR | {"qrels/test.tsv": "text\tquery_id\trelevance\n2\tq\t1\n"})
    found = read(tmp_path, BEIR | {"qrels/test.tsv": "query_id\titem\tworth\nq\t2\t1\n"})
    assert found.questions["test"][0].relevant == {"2": 1}
