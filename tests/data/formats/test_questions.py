"""A few lines in each dataset's own fields, and what is told of those that are not."""

import gzip
import json

import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.runtime.errors import RagJaxError

PSGS = 'id\ttext\ttitle\n1\tRiga is a city.\tRiga\n2\t"The ""B""."\tB\n'
RIGA, B = Passage("1", "Riga", "Riga is a city."), Passage("2", "B", 'The "B".')
QUESTION = {"id": "q", "question": "Where?", "answers": ["x", "y"]}


def lines(*records):
    return "\n".join(json.dumps(record, ensure_ascii=False) for record in records)


def read(folder, files, *, format="auto", bad_lines=0):
    for name, text in files.items():
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    data = DataConfig(path=str(folder), format=format, bad_lines=bad_lines)
    return read_collection(data, WorldConfig())


def test_dpr_with_passages_of_their_own(tmp_path):
    """Gold passages are found by id, or else by title and text; others are only looked up."""
    train = [
        {
            "question": "Where?",
            "answers": ["x"],
            "positive_ctxs": [{"title": "Riga", "text": "Riga is a city.", "passage_id": "1"}],
            "negative_ctxs": [],
            "hard_negative_ctxs": [{"title": "C", "text": "Other."}],
        },
        {
            "question": "What?",
            "answers": ["y"],
            "positive_ctxs": [{"title": "B", "text": 'The "B".', "passage_id": "77"}],
        },
    ]
    files = {
        "psgs_w100.tsv.gz": PSGS,
        "biencoder-nq-train.json": json.dumps(train, indent=4),
        "nq-dev.qa.csv": "when? said \"he\"\t[\"the '1'\", 'b']\nwhere\t['c']\n",
    }
    found = read(tmp_path, files)
    assert found == read(tmp_path, {}, format="dpr")
    assert found.passages == [RIGA, B]
    assert found.questions == {
        "train": [
            Question("biencoder-nq-train.json:1", "Where?", ("x",), {"1": 1}),
            Question("biencoder-nq-train.json:2", "What?", ("y",), {"2": 1}),
        ],
        "dev": [
            Question("nq-dev.qa.csv:1", 'when? said "he"', ("the '1'", "b"), {}),
            Question("nq-dev.qa.csv:2", "where", ("c",), {}),
        ],
    }
    train[1]["positive_ctxs"][0]["title"] = "D"
    files["biencoder-nq-train.json"] = json.dumps(train, indent=4)
    with pytest.raises(RagJaxError, match="train.json:22 .item 2.: the gold passage '77' is not"):
        read(tmp_path, files)
    assert len(read(tmp_path, {}, bad_lines=1).questions["train"]) == 1


def test_dpr_without_passages_of_their_own(tmp_path):
    found = read(
        tmp_path,
        {
            "a.json": json.dumps(
                [
                    {**QUESTION, "ctxs": [{"id": 7, "title": "T", "text": "U", "score": "1.5"}]},
                    {**QUESTION, "id": "r", "ctxs": [{"title": "T", "text": "U"}, {"text": "V"}]},
                    {**QUESTION, "id": "s", "ctxs": [{"title": "T", "text": "W"}, {"text": "X"}]},
                ]
            )
        },
    )
    texts = [("7", "T", "U"), ("passage", "", "V"), ("T", "T", "W"), ("passage (2)", "", "X")]
    assert found.passages == [Passage(*fields) for fields in texts]
    assert [q.id for q in found.questions["test"]] == ["q", "r", "s"]
    other = {**QUESTION, "ctxs": [{"id": 7, "text": "U"}, {"id": 7, "text": "V"}]}
    with pytest.raises(RagJaxError, match="a.json:1: another passage has the id '7'"):
        read(tmp_path, {"a.json": json.dumps([other])})


@pytest.mark.parametrize(
    "row",
    [
        "a\t[1]",
        "a\t['x'",
        "a\t__import__('os')",
        "a",
        "a\t['x']\tb",
        "a\t['x' 'y']",
        "a\t['x', \"y\" 'z']",
    ],
)
def test_bad_rows_of_dpr(tmp_path, row):
    files = {"psgs.tsv": PSGS, "nq-test.qa.csv": f"q\t['x']\n{row}\n"}
    with pytest.raises(RagJaxError, match="nq-test.qa.csv:2: "):
        read(tmp_path, files)
    assert len(read(tmp_path, {}, bad_lines=1).questions["test"]) == 1


def test_a_page_of_kilt_in_a_row_of_hugging_face(tmp_path):
    paragraphs = ["A\n", "One.\n", "Section::::More.\n", "BULLET::::- Two.\n"]
    page = {"wikipedia_id": "290", "wikipedia_title": "A", "text": {"paragraph": paragraphs}}
    page["text"]["paragraph_id"] = [*range(4)]
    asked = {"id": "k", "input": "Which?", "output": [{"answer": "x"}]}
    found = read(tmp_path, {"pages.jsonl": json.dumps(page), "dev.jsonl": json.dumps(asked)})
    assert [(p.id, p.text) for p in found.passages] == [("290#1", "One."), ("290#3", "Two.")]


def test_kilt(tmp_path):
    page = {
        "_id": "290",
        "wikipedia_id": "290",
        "wikipedia_title": "A",
        "text": ["A\n", "One.\n", "Section::::More.\n", "BULLET::::- Two.\n", "  ", "Three."],
    }
    span = {"wikipedia_id": "290", "title": "A", "start_paragraph_id": 1, "end_paragraph_id": 3}
    questions = [
        {
            "id": "k1",
            "input": "Which?",
            "output": [
                {"answer": "x", "provenance": [span]},
                {"answer": "y"},
                {"provenance": [{"wikipedia_id": "290", "start_paragraph_id": 5}]},
                {"answer": "x", "provenance": []},
            ],
        },
        {"id": "k2", "input": "All?", "output": [{"provenance": [{"wikipedia_id": 290}]}]},
        {"id": "k3", "input": "Unknown?"},
    ]
    files = {"kilt_knowledgesource.json": lines(page), "nq-dev-kilt.jsonl": lines(*questions)}
    found = read(tmp_path, files)
    assert found == read(tmp_path, {}, format="kilt")
    ids = ["290#1", "290#3", "290#5"]
    assert found.passages == [
        Passage(id, "A", text) for id, text in zip(ids, ("One.", "Two.", "Three."), strict=True)
    ]
    assert found.questions == {
        "dev": [
            Question("k1", "Which?", ("x", "y"), dict.fromkeys(ids, 1)),
            Question("k2", "All?", (), dict.fromkeys(ids, 1)),
            Question("k3", "Unknown?", (), {}),
        ]
    }
    for span, message in (
        ({"wikipedia_id": "291"}, "no passage is part of page or paragraph '291'"),
        (
            {"wikipedia_id": "290", "start_paragraph_id": 2},
            "no passage is part of page or paragraph '290#2'",
        ),
        (
            {"wikipedia_id": "290", "start_paragraph_id": 2, "end_paragraph_id": 1},
            "paragraphs 2 to 1 must be a range",
        ),
    ):
        wrong = {"id": "k", "input": "?", "output": [{"provenance": [span]}]}
        with pytest.raises(RagJaxError, match=f"kilt.jsonl:1: {message}"):
            read(tmp_path, files | {"nq-dev-kilt.jsonl": lines(wrong)})


def test_flashrag(tmp_path):
    metadata = {"type": "bridge", "s_pop": 5, "relevant": {"1": 2}, "choices": ["a", "b"]}
    asked = {"id": "f", "question": "Where?", "golden_answers": ["x"]}
    files = {
        "wiki.jsonl": lines(
            {"id": 0, "contents": '"The "B""\nOne\ntwo.'},
            {"id": "1", "contents": "Untitled."},
            {"id": "2", "contents": '"A"\nB', "title": "C\nD"},
            {"id": "3", "contents": "One.\nTwo.", "title": "E"},
            {"id": "4", "contents": "E\nTwo.", "title": "E"},
        ),
        "test.jsonl": lines(asked | {"metadata": metadata}, asked | {"id": "g"}),
    }
    found = read(tmp_path, files)
    assert found == read(tmp_path, {}, format="flashrag")
    assert found.passages == [
        Passage("0", 'The "B"', "One\ntwo."),
        Passage("1", "", "Untitled."),
        Passage("2", "C\nD", "B"),
        Passage("3", "E", "One.\nTwo."),  # the first line is no title
        Passage("4", "E", "Two."),
    ]
    assert found.questions["test"] == [
        Question("f", "Where?", ("x",), {"1": 2}, "bridge", 5),
        Question("g", "Where?", ("x",), {}),
    ]
    for wrong in ({"metadata": 3}, {"metadata": {"relevant": {"1": 0}}}, {"golden_answers": "x"}):
        with pytest.raises(RagJaxError, match="test.jsonl:1: "):
            read(tmp_path, files | {"test.jsonl": lines(asked | wrong)})


@pytest.mark.parametrize("golden", [["C"], []])
def test_labels_of_a_list_of_choices_in_flashrag(tmp_path, golden):
    asked = {"id": "f", "question": "Which?", "golden_answers": golden, "choices": ["a", "b", "c"]}
    files = {"wiki.jsonl": lines({"id": 0, "contents": "x"}), "test.jsonl": lines(asked)}
    (question,) = read(tmp_path, files).questions["test"]
    assert question.choices == {"A": "a", "B": "b", "C": "c"}
    assert question.answers == tuple(golden)
    assert question.question == "Which?\nA: a\nB: b\nC: c"


def test_rows_of_mrqa(tmp_path):
    """A context beside a list of answers is their passage, as in rows of SQuAD."""
    row = {"qid": "q", "question": "Where is Riga?", "answers": ["Latvia"], "context": "In Latvia."}
    found = read(tmp_path, {"dev.jsonl": lines(row)})
    ((passage,), (question,)) = found.passages, found.questions["dev"]
    assert (passage.text, question.answers) == ("In Latvia.", ("Latvia",))
    assert question.relevant == {passage.id: 1} and question.id == "q"
    options = {"answers": ["a", "b"], "correct_answer_id": 1}
    with pytest.raises(RagJaxError, match="dev.jsonl"):
        read(tmp_path, {"dev.jsonl": lines(row | options)})


@pytest.mark.parametrize("name", ["context", "passage"])
@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"answers": ["Latvia", "Latvia", "Latvija"]}, ("Latvia", "Latvija")),
        ({"answer": "Latvia", "answer_aliases": ["Latvija"]}, ("Latvia", "Latvija")),
        ({"answer": ["Latvia"]}, ("Latvia",)),
        ({"answer": True}, ("yes",)),
        ({"answer": False}, ("no",)),
        ({"answer": "Latvia", "is_impossible": True}, ()),
    ],
)
def test_rows_with_a_paragraph(tmp_path, name, fields, answers):
    """The paragraph is the passage, also where the folder has a file of passages."""
    row = {"question": "Is Riga there?", name: "Riga is in Latvia.", "title": "Riga"} | fields
    other = {"id": "o", "title": "Oslo", "text": "Oslo is in Norway."}
    found = read(tmp_path, {"dev.jsonl": lines(row)})
    ((passage,), (question,)) = found.passages, found.questions["dev"]
    assert passage == Passage("Riga", "Riga", "Riga is in Latvia.")
    assert (question.answers, question.relevant) == (answers, {"Riga": 1})
    same = {"id": "r", "title": "Riga", "text": "Riga is in Latvia."}
    found = read(tmp_path, {"passages.jsonl": lines(other, same)})
    assert len(found.passages) == 2 and found.questions["dev"][0].relevant == {"r": 1}


@pytest.mark.parametrize("value", [["A text."], {"text": "A text."}])
def test_a_paragraph_that_is_no_text_is_not_left_out(tmp_path, value):
    row = {"question": "Who?", "answers": ["x"], "context": value}
    files = {"passages.jsonl": lines({"id": 1, "text": "a"}), "dev.jsonl": lines(row)}
    with pytest.raises(RagJaxError, match="dev.jsonl(: has an unknown format|:1: has no 'id')"):
        read(tmp_path, files)


@pytest.mark.parametrize(("answer", "wanted"), [(True, ("yes",)), (False, ("no",))])
def test_a_plain_answer_that_is_true_or_false(tmp_path, answer, wanted):
    asked = {"question": "Is Riga in Latvia?", "answer": answer}
    files = {"passages.jsonl": lines({"id": 1, "text": "a"}), "dev.jsonl": lines(asked)}
    assert read(tmp_path, files).questions["dev"][0].answers == wanted


def test_asqa_as_alce_has_it(tmp_path):
    pairs = [{"question": "?", "short_answers": [answer]} for answer in ("x", "y")]
    row = {"sample_id": "s", "question": "Who?", "qa_pairs": pairs, "answer": "An essay."}
    files = {"psgs.tsv": PSGS, "asqa_eval.json": json.dumps([row])}
    (question,) = read(tmp_path, files).questions["test"]
    assert (question.id, question.answers) == ("s", ("x", "y"))


def test_a_column_that_is_called_id(tmp_path):
    files = {"psgs.tsv": PSGS, "test.csv": "ID,question,answer\n1,Where is Riga?,Latvia\n"}
    (question,) = read(tmp_path, files).questions["test"]
    assert (question.id, question.answers) == ("1", ("Latvia",))


def test_squad(tmp_path):
    answers = [{"text": "x", "answer_start": 0}, {"text": "x", "answer_start": 9}, {"text": "y"}]
    paragraphs = [
        {"context": "One.", "qas": [{"id": "a", "question": "1?", "answers": answers}]},
        {
            "context": "Two.",
            "qas": [{"id": "b", "question": "2?", "answers": [], "is_impossible": True}],
        },
        {"context": " ", "qas": [{"id": "c", "question": "3?", "answers": []}]},
        {"context": "Four.", "qas": [{"id": "d", "answers": []}]},
    ]
    document = {"version": "v2.0", "data": [{"title": "New_York", "paragraphs": paragraphs}]}
    with pytest.raises(RagJaxError, match="dev-v2.0.json:1: context is blank"):
        read(tmp_path, {"dev-v2.0.json": json.dumps(document)})
    found = read(tmp_path, {}, bad_lines=2)
    assert found == read(tmp_path, {}, format="squad", bad_lines=2)
    assert found.passages == [
        Passage("New York", "New York", "One."),
        Passage("New York (2)", "New York", "Two."),
    ]
    assert found.questions == {
        "dev": [
            Question("a", "1?", ("x", "y"), {"New York": 1}),
            Question("b", "2?", (), {"New York (2)": 1}),
        ]
    }


def test_popqa(tmp_path):
    heading = ("id", "subj", "prop", "s_pop", "question", "possible_answers")
    rows = [
        ("4", "G", "occupation", "142", "What?", '"[""politician"", ""pol\\u00e9""]"'),
        ("5", "L", "capital", "", "Where?", '"[""x""]"'),
    ]
    table = "\n".join("\t".join(row) for row in (heading, *rows))
    found = read(tmp_path, {"popQA.tsv": table, "psgs.tsv": PSGS})
    questions = [
        Question("4", "What?", ("politician", "polé"), {}, "occupation", 142),
        Question("5", "Where?", ("x",), {}, "capital", None),
    ]
    assert found.questions == {"test": questions}
    assert found == read(tmp_path, {}, format="popqa")
    (tmp_path / "popQA.tsv").unlink()
    records = [
        {"idx": 4, "prop": "occupation", "s_pop": 142, "answers": ["politician", "polé"]},
        {"idx": 5, "prop": "capital", "s_pop": None, "possible_answers": '["x"]'},
    ]
    asked = ("What?", "Where?")
    records = [r | {"question": text} for r, text in zip(records, asked, strict=True)]
    assert read(tmp_path, {"questions.jsonl": lines(*records)}).questions["test"] == questions
    for wrong in ({"s_pop": -1}, {"s_pop": "1e3"}, {"s_pop": True}, {"answers": "x"}, {"prop": 1}):
        with pytest.raises(RagJaxError, match="questions.jsonl:1: "):
            read(tmp_path, {"questions.jsonl": lines(records[0] | wrong)})


def test_answers_that_only_look_as_if_they_ran_together(tmp_path):
    files = {"psgs.tsv": PSGS, "nq-test.qa.csv": "q\t[\"the 'x' 'y'\", 'z']\n"}
    assert read(tmp_path, files).questions["test"][0].answers == ("the 'x' 'y'", "z")


def test_a_paragraph_of_hotpotqa_may_have_a_title_alone(tmp_path):
    record = {"_id": "5a", "question": "Who?", "answer": "x", "supporting_facts": None}
    record["context"] = [["A", ["One."]], ["B", []]]
    found = read(tmp_path, {"hotpot_dev_distractor_v1.json": json.dumps([record])})
    assert found.passages == [Passage("A", "A", "One."), Passage("B", "B", "")]


def test_hotpotqa_as_published(tmp_path):
    record = {
        "_id": "5a",
        "question": "Who?",
        "answer": "x",
        "type": "bridge",
        "supporting_facts": [["A", 0], ["B", 1]],
        "context": [["A", ["One.", " Two."]], ["B", ["b", "b"]], ["C", ["c"]]],
    }
    test = {"_id": "5b", "question": "Whom?", "context": [["A", ["One. Two."]]]}
    found = read(tmp_path, {"hotpot_dev_distractor_v1.json": json.dumps([record, test])})
    texts = {"A": "One. Two.", "B": "b b", "C": "c"}
    assert found.passages == [Passage(title, title, text) for title, text in texts.items()]
    assert found.questions == {
        "dev": [
            Question("5a", "Who?", ("x",), {"A": 1, "B": 1}, "bridge"),
            Question("5b", "Whom?", (), {}),
        ]
    }
    for wrong in ({"context": ["A"]}, {"supporting_facts": {}}, {"context": [["", ["", " "]]]}):
        with pytest.raises(RagJaxError, match="v1.json:1: "):
            read(tmp_path, {"hotpot_dev_distractor_v1.json": json.dumps([record | wrong])})


def test_triviaqa_as_published(tmp_path):
    data = [
        {"QuestionId": "tc_1", "Question": "Who?", "Answer": {"Value": "X", "Aliases": ["Y", "X"]}},
        {"QuestionId": "tc_2", "Question": "Whom?"},
        {"QuestionId": "tc_3", "Question": "?", "Answer": "X"},
    ]
    files = {"wikipedia-dev.json": json.dumps({"Data": data, "Split": "dev"}), "psgs.tsv": PSGS}
    found = read(tmp_path, files, bad_lines=1)
    assert found == read(tmp_path, {}, format="triviaqa", bad_lines=1)
    assert found.questions == {
        "dev": [Question("tc_1", "Who?", ("X", "Y"), {}), Question("tc_2", "Whom?", (), {})]
    }


def test_arc_in_its_three_spellings(tmp_path):
    by_label = {"1": "Air", "2": "Sea", "3": "Sky"}
    listed = {"text": ["Air", "Sea", "Sky"], "label": ["A", "B", "C"]}
    stem = {
        "stem": "Which?",
        "choices": [{"text": t, "label": n} for n, t in by_label.items()],
    }
    records = [
        {"id": "a", "question": "Which?", "choices": by_label, "answer": "2", "ctx_text": None},
        {"id": "b", "question": "Which?", "choices": listed, "answerKey": "B"},
        {"id": "c", "question": stem, "answerKey": "2", "ctx_title": "T", "ctx_text": "U"},
        {"id": "d", "question": stem},
    ]
    found = read(tmp_path, {"dev.jsonl": lines(*records)})
    assert found.passages == [Passage("T", "T", "U")]
    text, choices = "Which?\nA: Air\nB: Sea\nC: Sky", dict(zip("ABC", listed["text"], strict=True))
    assert found.questions["dev"] == [
        Question(id, text, answers, {}, choices=choices)
        for id, answers in (("a", ("B",)), ("b", ("B",)), ("c", ("B",)), ("d", ()))
    ]
    for wrong in ({"answer": "4"}, {"choices": {}}, {"choices": {"A": 1}}, {"choices": ["A"]}):
        with pytest.raises(RagJaxError, match="dev.jsonl:1: "):
            read(tmp_path, {"dev.jsonl": lines(records[0] | wrong, records[2])})


def test_pubhealth(tmp_path):
    labels = ("true", "mixture", "False", "unproven")
    records = [
        {"claim_id": i, "claim": f"C{i}.", "label": label, "ctx_title": "T", "ctx_text": f"U{i}"}
        for i, label in enumerate(labels)
    ]
    found = read(tmp_path, {"test.jsonl": lines(*records)})
    assert [p.id for p in found.passages] == ["T", "T (2)"]
    choices = {"true": "SUPPORTS", "false": "REFUTES"}
    assert found.questions["test"] == [
        Question("0", "True or false? C0.", ("true",), {}, choices=choices),
        Question("2", "True or false? C2.", ("false",), {}, choices=choices),
    ]
    with pytest.raises(RagJaxError, match="test.jsonl:1: label 'no' must be true, false, mixture"):
        read(tmp_path, {"test.jsonl": lines(records[0] | {"label": "no"})})
    table = 'claim_id\tclaim\tmain_text\tlabel\n7\tC.\t"Two\nlines"\ttrue\n'
    (tmp_path / "test.jsonl").unlink()
    found = read(tmp_path, {"dev.tsv": table, "psgs.tsv": PSGS})
    assert found.questions["dev"] == [
        Question("7", "True or false? C.", ("true",), {}, choices=choices)
    ]


def test_trec_judgements(tmp_path):
    files = {
        "corpus.jsonl": lines({"_id": "d1", "text": "A"}, {"_id": "d 2", "text": "B"}),
        "queries.jsonl.gz": lines({"_id": "1", "text": "Where?"}, {"_id": "2", "text": "What?"}),
    }
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.txt").write_text("1 0 d1 2\n1\t0\td 2\t-1\n2\t0\td 2\t1\n2 0 d1\n")
    with pytest.raises(RagJaxError, match="test.txt:4: must be query, passage and grade"):
        read(tmp_path, files)
    assert read(tmp_path, {}, bad_lines=1).questions == {
        "test": [Question("1", "Where?", (), {"d1": 2}), Question("2", "What?", (), {"d 2": 1})]
    }


def test_questions_that_are_there_twice(tmp_path):
    files = {
        "passages.jsonl": lines({"id": 1, "text": "A"}),
        "dev_questions.jsonl": lines(QUESTION),
    }
    files |= {"questions.jsonl": lines(QUESTION, QUESTION | {"question": "Who?"})}
    with pytest.raises(
        RagJaxError, match="questions.jsonl:2: another test question has the id 'q'"
    ):
        read(tmp_path, files)
    found = read(tmp_path, {}, bad_lines=1).questions
    assert found == {s: [Question("q", "Where?", ("x", "y"), {})] for s in ("dev", "test")}


def test_a_long_list_of_answers_is_not_read(tmp_path, monkeypatch):
    """Reading takes 200 times the memory of the text, so the length is looked at before."""
    from rag_jax.data.formats import dpr
    from rag_jax.data.formats.lines import BadLineError, Place

    monkeypatch.setattr(dpr.ast, "literal_eval", lambda text: pytest.fail("it is read"))
    row = ("Where?", "[" + "'a'," * 300_000 + "]")
    with pytest.raises(BadLineError, match="1,200,002 characters, more than the limit of 1,048,5"):
        dpr.parse_row(row, Place(tmp_path / "nq.csv", 1, 1))
