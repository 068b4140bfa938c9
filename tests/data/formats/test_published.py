"""Datasets in the fields in which their authors publish them: records of our own writing."""

import json

import numpy as np
import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection, tfds
from rag_jax.data.formats.lines import Place
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.rankings import recall
from rag_jax.retrieval.pairs import list_pairs
from rag_jax.runtime.errors import RagJaxError

WIKI = [
    {"id": "1", "title": "A", "text": "A is American."},
    {"id": "2", "title": "B", "text": "B is a film."},
    {"id": "3", "title": "Z", "text": "Z is American."},
    {"id": "4", "title": "Z", "text": "Z was born in 1950."},
    {"id": "Oslo_-LRB-city-RRB-", "title": "Oslo (city)", "text": "Oslo is a city."},
]
PASSAGES = {"passages.jsonl": "\n".join(map(json.dumps, WIKI))}


def read(folder, files, **settings):
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text, "utf-8")
    return read_collection(DataConfig(str(folder), **settings), WorldConfig())


def read_one(folder, record, *, name="dev.json", **settings):
    """The question of a file with one record, in a folder with a corpus."""
    found = read(folder, PASSAGES | {name: [record]}, **settings)
    (question,) = found.questions["dev"]
    return question


HOTPOT = {
    "_id": "h",
    "question": "Were A and Z of one nationality?",
    "answer": "yes",
    "type": "comparison",
    "supporting_facts": [["A", 0], ["Z", 0], ["Z", 1]],
    "context": [["A", ["A is American."]], ["B", ["B is a film."]]],
}


def test_hotpotqa_with_gold_that_is_not_among_the_paragraphs(tmp_path):
    question = read_one(tmp_path, HOTPOT, name="hotpot_dev_fullwiki_v1.json")
    assert question.relevant == {"1": 1, "3": 1, "4": 1}
    assert recall(["1", "2"], question.relevant, 100) == pytest.approx(1 / 3)
    other = HOTPOT | {"supporting_facts": [["A", 0], ["Y", 0]]}
    with pytest.raises(RagJaxError, match="v1.json:1: no passage has the gold title 'Y'"):
        read_one(tmp_path, other, name="hotpot_dev_fullwiki_v1.json")
    (tmp_path / "passages.jsonl").unlink()


def test_hotpotqa_with_another_edition_of_its_articles(tmp_path):
    """The title names the article; a paragraph that the corpus has is the only gold one."""
    context = [["Z", ["Z was an American."]], ["B", ["B is a film."]]]
    facts = [["Z", 0], ["B", 0]]
    question = read_one(tmp_path, HOTPOT | {"context": context, "supporting_facts": facts})
    assert question.relevant == {"3": 1, "4": 1, "2": 1}
    same = [["Z", ["Z was born in 1950."]]]
    question = read_one(tmp_path, HOTPOT | {"context": same, "supporting_facts": facts[:1]})
    assert question.relevant == {"4": 1}
    missing = HOTPOT | {"context": [["Y", ["Y is a river."]]], "supporting_facts": [["Y", 0]]}
    with pytest.raises(RagJaxError, match="dev.json:1: the gold passage 'Y' is not in the corpus"):
        read_one(tmp_path, missing)


def test_sentences_of_the_corpus_of_hotpotqa(tmp_path):
    page = {"id": "1", "url": "u", "title": "T", "text": ["One.", " Two."]}
    asked = {"question": "?", "answers": ["x"]}
    files = {"wiki.jsonl": json.dumps(page), "test.jsonl": json.dumps(asked)}
    assert read(tmp_path, files).passages == [Passage("1", "T", "One. Two.")]
    nested = json.dumps(page | {"text": [["One."], ["Two."]]})
    with pytest.raises(RagJaxError, match="wiki.jsonl:1: text must be a list of strings"):
        read(tmp_path, {"wiki.jsonl": nested})


def test_hotpotqa_with_gold_that_no_file_holds(tmp_path, caplog):
    other = HOTPOT | {"_id": "i", "supporting_facts": [["B", 0], ["Y", 0]]}
    third = HOTPOT | {"_id": "j", "context": [*HOTPOT["context"], ["Y", ["Y is a river."]]]}
    found = read(tmp_path, {"hotpot_dev_fullwiki_v1.json": [HOTPOT, other, third]})
    relevant = [question.relevant for question in found.questions["dev"]]
    assert relevant == [{"A": 1, "Z": 1}, {"B": 1, "Y": 1}, {"A": 1, "Z": 1}]
    assert [passage.id for passage in found.passages] == ["A", "B", "Y"]
    assert recall(["A", "B"], relevant[0], 100) == 0.5
    assert "2 relevant passages come with no question, such as 'Z'" in caplog.text
    questions = found.questions["dev"]
    pairs = list_pairs(questions, [()] * 3, found.passages)
    assert [(pair.id, pair.positive, pair.relevant) for pair in pairs] == [
        ("h", 0, {0}),
        ("i", 1, {1, 2}),
        ("i", 2, {1, 2}),
        ("j", 0, {0}),
    ]


def test_hotpotqa_as_hugging_face_has_it(tmp_path):
    columns = {
        "supporting_facts": {"title": ["A", "Z", "Z"], "sent_id": [0, 0, 1]},
        "context": {"title": ["A", "B"], "sentences": [["A is American."], ["B is a film."]]},
    }
    assert read_one(tmp_path, HOTPOT | columns) == read_one(tmp_path, HOTPOT)
    written = {name: json.dumps(HOTPOT[name]) for name in columns}
    assert read_one(tmp_path, HOTPOT | written) == read_one(tmp_path, HOTPOT)
    with pytest.raises(RagJaxError, match="dev.json:1: is not JSON"):
        read_one(tmp_path, HOTPOT | written | {"context": '[["A"'})
    columns["context"]["title"] = ["A"]
    with pytest.raises(RagJaxError, match="dev.json:1: context must be a list of pairs"):
        read_one(tmp_path, HOTPOT | columns)


def test_pages_of_kilt_that_are_not_in_the_corpus(tmp_path):
    passages = {"passages.jsonl": json.dumps({"id": "7#1", "title": "T", "text": "U"})}
    provenance = [{"wikipedia_id": "7"}, {"wikipedia_id": "8"}]
    record = {"id": "k", "input": "?", "output": [{"answer": "x", "provenance": provenance}]}
    with pytest.raises(RagJaxError, match="no passage is part of page or paragraph '8'"):
        read(tmp_path, passages | {"dev.jsonl": json.dumps(record)})


@pytest.mark.parametrize("wanted", [["1", "3"], ["1", "9"], ["9"]])
def test_pages_of_kilt_that_are_passages_themselves(tmp_path, wanted):
    provenance = [{"wikipedia_id": id} for id in wanted]
    record = {"id": "k", "input": "?", "output": [{"answer": "x", "provenance": provenance}]}
    if "9" in wanted:
        with pytest.raises(RagJaxError, match="no passage is part of page or paragraph '9'"):
            read_one(tmp_path, record)
    else:
        assert read_one(tmp_path, record).relevant == {"1": 1, "3": 1}


def test_paragraphs_of_kilt_that_hugging_face_has_no_number_for(tmp_path):
    passages = {"passages.jsonl": json.dumps({"id": "7#1", "title": "T", "text": "U"})}
    span = {"wikipedia_id": "7", "start_paragraph_id": -1, "end_paragraph_id": -1}
    record = {"id": "k", "input": "?", "output": [{"answer": "x", "provenance": [span]}]}
    found = read(tmp_path, passages | {"dev.json": [record]})
    assert found.questions["dev"][0].relevant == {"7#1": 1}
    record["output"][0]["provenance"] = [span | {"start_paragraph_id": -2}]
    with pytest.raises(RagJaxError, match="start_paragraph_id=-2 must be a non-negative integer"):
        read(tmp_path, {"dev.json": [record]})


@pytest.mark.parametrize("name", ["answer", "answers", "target"])
def test_an_input_with_another_answer_is_not_of_kilt(tmp_path, name):
    with pytest.raises(RagJaxError, match="dev.json: has an unknown format"):
        read_one(tmp_path, {"id": 0, "context": "A book.", "input": "Who?", name: ["the king"]})


MUSIQUE = {
    "id": "2hop__1_2",
    "paragraphs": [
        {"idx": 0, "title": "A", "paragraph_text": "A is American.", "is_supporting": True},
        {"idx": 1, "title": "B", "paragraph_text": "B is a film.", "is_supporting": False},
    ],
    "question": "Which nationality has A?",
    "question_decomposition": [{"id": 1, "question": "A >> nationality", "answer": "American"}],
    "answer": "American",
    "answer_aliases": ["US", "American"],
    "answerable": True,
}


def test_musique(tmp_path):
    found = read(tmp_path, {"musique_full_v1.0_dev.jsonl": json.dumps(MUSIQUE)})
    assert found.passages == [
        Passage("A", "A", "A is American."),
        Passage("B", "B", "B is a film."),
    ]
    assert found.questions["dev"] == [
        Question("2hop__1_2", MUSIQUE["question"], ("American", "US"), {"A": 1})
    ]
    impossible = json.dumps(MUSIQUE | {"answerable": False})
    found = read(tmp_path, {"musique_full_v1.0_dev.jsonl": impossible})
    assert found.questions["dev"][0].answers == ()


def test_twins_of_musique_full(tmp_path):
    """A question with the answer's paragraphs and one without them have the same id."""
    twin = MUSIQUE | {"answerable": False, "paragraphs": MUSIQUE["paragraphs"][1:]}
    for pair in ([MUSIQUE, twin], [twin, MUSIQUE]):
        lines = "\n".join(map(json.dumps, pair))
        found = read(tmp_path, {"musique_full_v1.0_dev.jsonl": lines}).questions["dev"]
        assert {q.id: q.answers for q in found} == {
            "2hop__1_2": ("American", "US"),
            "2hop__1_2-unanswerable": (),
        }


def test_complexwebquestions(tmp_path):
    record = {
        "ID": "WebQTest-1_a",
        "compositionality_type": "conjunction",
        "question": "Which?",
        "answers": [
            {"aliases": ["X", "Y"], "answer": "X", "answer_id": "m.1"},
            {"aliases": [], "answer": None, "answer_id": "m.2"},
        ],
        "webqsp_ID": "WebQTest-1",
    }
    found = read_one(tmp_path, record)
    assert found == Question("WebQTest-1_a", "Which?", ("X", "Y"), {}, "conjunction")
    del record["answers"]
    assert read_one(tmp_path, record).answers == ()
    plain = {"ID": "7", "question": "Which?", "answers": ["X", "Y"]}
    assert read_one(tmp_path, plain) == Question("7", "Which?", ("X", "Y"), {})


def test_strategyqa(tmp_path):
    record = {"qid": "s", "term": "A", "question": "Is A?", "answer": True, "facts": ["A."]}
    for answer, wanted in ((True, ("yes",)), (False, ("no",)), (None, ())):
        assert read_one(tmp_path, record | {"answer": answer}) == Question("s", "Is A?", wanted, {})
    with pytest.raises(RagJaxError, match="dev.json:1: answer='yes' must be true or false"):
        read_one(tmp_path, record | {"answer": "yes"})


def test_asqa(tmp_path):
    def ask(text):
        pairs = [{"question": "Who?", "short_answers": [text, "Y"], "context": "No context"}]
        pairs.append({"question": "Who else?", "short_answers": [f"{text} 2"], "wikipage": None})
        return {"ambiguous_question": "Who?", "qa_pairs": pairs, "annotations": [], "wikipages": []}

    document = {"train": {"-1": ask("T"), "-2": ask("U")}, "dev": {"3": ask("D")}}
    for indent in (None, 2):
        found = read(tmp_path, PASSAGES | {"ASQA.json": json.dumps(document, indent=indent)})
        assert found.questions == {
            "train": [
                Question("-1", "Who?", ("T", "Y", "T 2"), {}),
                Question("-2", "Who?", ("U", "Y", "U 2"), {}),
            ],
            "dev": [Question("3", "Who?", ("D", "Y", "D 2"), {})],
        }
    with pytest.raises(RagJaxError, match="ASQA.json:1 .item 2.: has no 'qa_pairs'|item 2"):
        document["train"]["-2"] = {"qa_pairs": 3}
        read(tmp_path, {"ASQA.json": document})
    for rest, message in (
        ("<html>", "'{' is missing"),
        ("[]", "'{' is missing"),
        ("{", "a key|Exp"),
    ):
        with pytest.raises(RagJaxError, match=f"ASQA.json:1: is not JSON .*{message}"):
            read(tmp_path, {"ASQA.json": json.dumps({"dev": {"3": ask("D")}}) + rest})
    (tmp_path / "ASQA.json").unlink()
    found = read_one(tmp_path, ask("D") | {"sample_id": "3"})
    assert found == Question("3", "Who?", ("D", "Y", "D 2"), {})


def test_fever(tmp_path):
    evidence = [[[1, 2, "Oslo_-LRB-city-RRB-", 0], [1, 3, "Z", 1]], [[4, 5, "Not_here", 0]]]
    records = [
        {
            "id": 1,
            "verifiable": "VERIFIABLE",
            "label": "SUPPORTS",
            "claim": "C.",
            "evidence": evidence,
        },
        {"id": 2, "label": "REFUTES", "claim": "D.", "evidence": [[[1, 2, "Oslo_(city)", 0]]]},
        {"id": 3, "label": "NOT ENOUGH INFO", "claim": "E.", "evidence": [[[6, None, None, None]]]},
        {"id": 4, "claim": "F."},
    ]
    lines = "\n".join(map(json.dumps, records))
    found = read(tmp_path, PASSAGES | {"shared_task_dev.jsonl": lines}).questions["dev"]
    choices = {"true": "SUPPORTS", "false": "REFUTES", "unknown": "NOT ENOUGH INFO"}
    assert [(q.id, q.question, q.answers, q.relevant, q.choices) for q in found] == [
        (id, f"True, false or unknown? {claim}", answers, dict.fromkeys(relevant, 1), choices)
        for id, claim, answers, relevant in (
            ("1", "C.", ("true",), ["Oslo_-LRB-city-RRB-", "3", "4"]),
            ("2", "D.", ("false",), ["Oslo_-LRB-city-RRB-"]),
            ("3", "E.", ("unknown",), []),
            ("4", "F.", (), []),
        )
    ]
    for wrong in ({"label": "MAYBE"}, {"evidence": [[["A", 0]]]}, {"evidence": {"1": []}}):
        with pytest.raises(RagJaxError, match="dev.json:1: (label|evidence) "):
            (tmp_path / "shared_task_dev.jsonl").unlink(missing_ok=True)
            read_one(tmp_path, records[0] | wrong)


MARCO = {
    "query_id": 5,
    "query": "what is A?",
    "query_type": "DESCRIPTION",
    "answers": ["a film"],
    "wellFormedAnswers": ["A is a film."],
    "passages": [
        {"is_selected": 1, "passage_text": "A is a film.", "url": "u"},
        {"is_selected": 0, "passage_text": "B is a book.", "url": "v"},
    ],
}


def test_msmarco(tmp_path):
    others = [
        MARCO | {"query_id": 6, "wellFormedAnswers": "[]"},
        MARCO | {"query_id": 7, "wellFormedAnswers": "[]", "answers": ["No Answer Present."]},
    ]
    columns = {name: {} for name in sorted(MARCO)}
    for row, record in enumerate([MARCO, *others]):
        for name, value in record.items():
            columns[name][str(row)] = value
    found = read(tmp_path, {"dev_v2.1.json": columns})
    assert [p.text for p in found.passages] == ["A is a film.", "B is a book."]
    gold = {found.passages[0].id: 1}
    assert found.questions["dev"] == [
        Question("5", "what is A?", ("A is a film.",), gold, "DESCRIPTION"),
        Question("6", "what is A?", ("a film",), gold, "DESCRIPTION"),
        Question("7", "what is A?", (), gold, "DESCRIPTION"),
    ]
    lists = {name: [p[name] for p in MARCO["passages"]] for name in ("is_selected", "passage_text")}
    lines = [MARCO | {"passages": lists}, *others]
    (tmp_path / "dev_v2.1.json").unlink()
    assert read(tmp_path, {"dev_v1.1.json": "\n".join(map(json.dumps, lines))}) == found


def test_judgements_of_msmarco_that_are_hidden(tmp_path):
    """The test files have -1 for every passage."""
    passages = [{**MARCO["passages"][0], "is_selected": flag} for flag in (-1, 0, 1)]
    passages = [{**p, "passage_text": f"Text {i}."} for i, p in enumerate(passages)]
    question = MARCO | {"passages": passages, "answers": [], "wellFormedAnswers": []}
    found = read(tmp_path, {"eval.json": [question]})
    assert len(found.passages) == 3
    assert list(found.questions["test"][0].relevant) == [found.passages[2].id]
    with pytest.raises(RagJaxError, match="eval.json:1: is_selected='0' must be 0 or 1"):
        read(tmp_path, {"eval.json": [MARCO | {"passages": [{**passages[0], "is_selected": "0"}]}]})


TEVATRON = {
    "query_id": "5",
    "query": "what is A?",
    "answers": ["a film"],
    "positive_passages": [{"docid": "2", "title": "B", "text": "B is a film."}],
    "negative_passages": [{"docid": "1", "title": "A", "text": "A is American."}],
}


@pytest.mark.parametrize("answers", [True, False])
def test_rows_of_tevatron(tmp_path, answers):
    """MIRACL and Mr. TyDi have no answers."""
    record = {name: TEVATRON[name] for name in TEVATRON if answers or name != "answers"}
    wanted = Question("5", "what is A?", ("a film",) * answers, {"2": 1}, negatives=("1",))
    assert read_one(tmp_path, record) == wanted
    (tmp_path / "passages.jsonl").unlink()
    found = read(tmp_path, {"dev.json": [record]})
    assert found.questions["dev"] == [wanted]
    assert [passage.id for passage in found.passages] == ["2", "1"]
    corpus = "\n".join(
        json.dumps({"docid": row["id"], "title": row["title"], "text": row["text"]}) for row in WIKI
    )
    found = read(tmp_path, {"corpus.jsonl": corpus})
    assert found.questions["dev"] == [wanted] and len(found.passages) == len(WIKI)


def test_passages_of_tevatron_beside_a_question(tmp_path):
    record = {"question": "?"} | {n: TEVATRON[n] for n in TEVATRON if not n.startswith("query")}
    assert read_one(tmp_path, record).relevant == {"2": 1}


@pytest.mark.parametrize(
    "fields",
    [
        {"answer": "the king"},
        {"answers": ["x"], "positives": {"doc_id": ["1"], "score": [1.0]}, "negatives": {}},
    ],
)
def test_queries_with_more_than_is_read_are_refused(tmp_path, fields):
    with pytest.raises(RagJaxError, match="dev.json: has an unknown format"):
        read_one(tmp_path, {"query_id": 1, "query": "Who?"} | fields)


def test_queries_with_answers_alone(tmp_path):
    record = {"query_id": 1, "query": "Who?", "answers": ["x"]}
    assert read_one(tmp_path, record) == Question("1", "Who?", ("x",), {})


@pytest.mark.parametrize("ids", [{"qid": "q"}, {"id": "q", "qid": "r"}])
@pytest.mark.parametrize("format", ["auto", "squad"])
def test_lines_of_mrqa(tmp_path, format, ids):
    asked = {**ids, "question": "What?", "answers": ["C", "C", "a C"], "detected_answers": []}
    paragraphs = [{"id": "", "context": f"Text {i}.", "qas": [asked]} for i in (1, 2)]
    paragraphs[1]["qas"] = [asked | {"id": "s"}, asked | {"id": "t", "answers": "C"}]
    header = {"header": {"dataset": "NewsQA", "split": "dev"}}
    lines = "\n".join(map(json.dumps, [header, *paragraphs]))
    with pytest.raises(RagJaxError, match="dev.jsonl:3: answers must be a list of objects"):
        read(tmp_path, {"NewsQA-dev.jsonl": lines}, format=format)
    found = read(tmp_path, {}, format=format, bad_lines=1)
    first, second = found.passages
    assert (first.text, second.text) == ("Text 1.", "Text 2.")
    assert found.questions["dev"] == [
        Question("q", "What?", ("C", "a C"), {first.id: 1}),
        Question("s", "What?", ("C", "a C"), {second.id: 1}),
    ]


def test_a_field_called_header_is_not_of_mrqa(tmp_path):
    passage = {"header": {"dataset": "x"}, "id": "1", "text": "A text."}
    asked = {"question": "?", "answers": ["x"]}
    files = {"a.jsonl": json.dumps(passage), "test.jsonl": json.dumps(asked)}
    assert read(tmp_path, files).passages == [Passage("1", "", "A text.")]


def test_nq_open(tmp_path):
    """Ids are made of the text, so neither the place nor the file's name makes a difference."""
    lines = [json.dumps({"question": q, "answer": ["X", "Y"]}) for q in ("a?", "b?", "a?")]
    found = read(tmp_path, PASSAGES | {"NQ-open.dev.jsonl": "\n".join(lines)}).questions["dev"]
    assert [(q.question, q.answers) for q in found] == [
        (text, ("X", "Y")) for text in ("a?", "b?", "a?")
    ]
    a, b, again = (q.id for q in found)
    assert len({a, b}) == 2 and again == f"{a}-2"
    (tmp_path / "NQ-open.dev.jsonl").unlink()
    found = read(tmp_path, {"validation.json": "[" + ",".join(lines[::-1]) + "]"}).questions["dev"]
    assert [q.id for q in found] == [a, b, again]


def test_webquestions(tmp_path):
    listed = '(list (description "Jaxon \\"J\\" Bieber") (description Haiti) (description "(B)"))'
    record = {"url": "u", "targetValue": listed, "utterance": "who is it?"}
    found = read_one(tmp_path, record)
    assert found.answers == ('Jaxon "J" Bieber', "Haiti", "(B)")
    assert read_one(tmp_path, record | {"url": "v"}).id == found.id
    hugging_face = {"url": "u", "question": "who is it?", "answers": list(found.answers)}
    assert read_one(tmp_path, hugging_face) == found
    for wrong in ("(list (number 5))", "Haiti", '(list (description "Haiti))', "(description a)"):
        with pytest.raises(RagJaxError, match="dev.json:1: targetValue .* must be a list of desc"):
            read_one(tmp_path, record | {"targetValue": wrong})


@pytest.mark.parametrize(
    ("fields", "wanted"),
    [
        ({"answers": ["x"], "answer_aliases": ["y"]}, ("x", "y")),
        ({"answer": "x", "answer_aliases": ["y", "x"]}, ("x", "y")),
        ({"answer": ["x", "z"], "answer_aliases": ["y"]}, ("x", "z", "y")),
        ({"answer": "x", "answer_aliases": None}, ("x",)),
        ({"answers": ["x"], "is_impossible": True}, ()),
        ({"answer": "x", "answerable": False}, ()),
        ({"answers": ["x"], "is_impossible": False}, ("x",)),
    ],
)
def test_aliases_and_impossible_questions(tmp_path, fields, wanted):
    assert read_one(tmp_path, {"id": "q", "question": "?"} | fields).answers == wanted


@pytest.mark.parametrize("answers", [["", "x", " "], ["\t", "\n"]])
def test_blank_answers_of_any_format_are_left_out(tmp_path, answers):
    """With one, an empty prediction would be right."""
    squad = {"id": "1", "question": "?", "answers": [{"text": a} for a in answers]}
    paragraphs = [{"context": "A is American.", "qas": [squad]}]
    aliases = {"Value": "", "Aliases": answers}
    files = {
        "dev.jsonl": {"id": "1", "question": "?", "answers": answers},
        "fr_dev.jsonl": {"id": "2", "question": "?", "golden_answers": answers},
        "qa_dev.csv": f"?\t{answers}\n",
        "dpr_dev.json": [{"question": "?", "answers": answers, "ctxs": []}],
        "squad_dev.json": {"data": [{"title": "A", "paragraphs": paragraphs}]},
        "trivia_dev.json": {"Data": [{"QuestionId": "1", "Question": "?", "Answer": aliases}]},
        "popqa_dev.jsonl": {
            **{"id": "1", "question": "?", "prop": "", "s_pop": 1},
            "possible_answers": json.dumps(answers),
        },
    }
    for name, content in files.items():
        folder = tmp_path / name
        folder.mkdir()
        (question,) = read(folder, PASSAGES | {name: content}).questions["dev"]
        assert question.answers == (("x",) if "x" in answers else ()), name


def test_impossible_questions_of_squad(tmp_path):
    asked = {"id": "q", "question": "?", "answers": [{"text": "plausible"}], "is_impossible": True}
    document = {"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [asked]}]}]}
    found = read(tmp_path, {"dev-v2.0.json": document}).questions["dev"]
    assert found == [Question("q", "?", (), {"T": 1})]
    example = {"question": b"?", "is_impossible": np.bool_(True), "answers": {"text": [b"x"]}}
    place = Place(tmp_path, 1, 1)
    assert tfds.parse(tfds._simplify(example, place), place).question.answers == ()
    with pytest.raises(RagJaxError, match="dev-v2.0.json:1 .item 2.: has no 'paragraphs'"):
        read(tmp_path, {"dev-v2.0.json": {"data": [document["data"][0], {"title": "T"}]}})


SHOWN = "Which?\nA: sun\nB: moon\nC: Mars"
CHOICES = {"A": "sun", "B": "moon", "C": "Mars"}
TEXTS = list(CHOICES.values())


@pytest.mark.parametrize(
    "fields",
    [
        {"golden_answers": [2], "choices": TEXTS},
        {"golden_answers": [TEXTS[2]], "choices": TEXTS},
        {"golden_answers": [2], "metadata": {"choices": TEXTS}},
        {"choices": TEXTS, "answer": 2},
        {"choices": TEXTS, "answer": "C"},
        {"choices": {"label": ["0", "1", "2"], "text": TEXTS}, "answerKey": "2"},
        {"choices": {"label": [1, 2, 3], "text": TEXTS}, "answerKey": 3},
        {"choices": {"1": "sun", "2": "moon", "3": "Mars"}, "answer": "3"},
        {"choices": {"label": [*CHOICES], "text": TEXTS}, "answerKey": "C"},
    ],
)
def test_choices_by_number_and_by_label(tmp_path, fields):
    found = read_one(tmp_path, {"id": "q", "question": "Which?"} | fields)
    assert found == Question("q", SHOWN, ("C",), {}, choices=CHOICES)


@pytest.mark.parametrize(
    "fields",
    [
        {"golden_answers": [3], "choices": TEXTS},
        {"golden_answers": [-1], "choices": TEXTS},
        {"golden_answers": [True], "choices": TEXTS},
        {"golden_answers": [0]},
        {"golden_answers": [0, "sun"], "choices": TEXTS},
        {"choices": TEXTS, "answer": 3},
        {"choices": TEXTS, "answer": "Venus"},
        {"choices": [str(i) for i in range(27)], "answer": 0},
        {"choices": {"label": ["A", "A"], "text": ["a", "b"]}, "answerKey": "A"},
        {"choices": {"label": ["A", None], "text": ["a", "b"]}, "answerKey": "A"},
        {"choices": {"A": "a", "B": "b"}, "answerKey": 1},
    ],
)
def test_choices_that_leave_it_open(tmp_path, fields):
    with pytest.raises(RagJaxError, match="dev.json:1: "):
        read_one(tmp_path, {"id": "q", "question": "Which?"} | fields)


@pytest.mark.parametrize("more", [{}, {"para": "Of it."}])
def test_choices_that_are_objects(tmp_path, more):
    choices = [{"label": k, "text": t, **more} for k, t in (("1", "Earth"), ("2", "Mars"))]
    record = {"id": "q", "question": "Which?", "choices": choices, "answerKey": "2"}
    question = read_one(tmp_path, record)
    assert (question.answers, question.choices) == (("B",), {"A": "Earth", "B": "Mars"})


def test_marks_of_a_text_are_kept(tmp_path):
    """A clean-up drops what a format adds, and nothing that the text begins or ends with."""
    page = {
        "wikipedia_id": "7",
        "wikipedia_title": "T",
        "text": ["T", "-ism is a suffix.", "BULLET::::- x"],
    }
    lines = [
        {"id": 1, "contents": 'The film "Heat"\nU'},
        {"id": 2, "contents": '"Heroes" (song)\nU'},
    ]
    texts = "\n".join(map(json.dumps, [page, *lines]))
    asked = {"id": "q", "question": "?", "answers": ["x"]}
    found = read(tmp_path, {"passages.jsonl": texts, "test.jsonl": json.dumps(asked)}).passages
    assert [(p.title, p.text) for p in found] == [
        ("T", "-ism is a suffix."),
        ("T", "x"),
        ('The film "Heat"', "U"),
        ('"Heroes" (song)', "U"),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"options": TEXTS, "answer": "C"},
        {"options": CHOICES, "answer_idx": "C", "answer": "Mars"},
        {"options": TEXTS, "answer": 2, "answer_index": 2},
        {"options": TEXTS, "label": "C"},
        {"options": TEXTS, "answer": None, "label": 2},
        {"options": [f"{a}){text}" for a, text in CHOICES.items()], "correct": "C"},
        {"options": [f"({a}) {text}" for a, text in CHOICES.items()], "label": "C"},
    ],
)
def test_choices_named_options(tmp_path, fields):
    found = read_one(tmp_path, {"id": "q", "question": "Which?"} | fields)
    assert found == Question("q", SHOWN, ("C",), {}, choices=CHOICES)


RECLOR = {
    "context": "The sun is a star.",
    "question": "Which?",
    "answers": TEXTS,
    "label": 2,
    "id_string": "val_0",
}


def test_reclor(tmp_path):
    """Its answers are the choices; the test questions have no label."""
    test = {name: RECLOR[name] for name in RECLOR if name != "label"} | {"id_string": "test_0"}
    found = read(tmp_path, {"val.json": [RECLOR], "test.json": [test]})
    (passage,) = found.passages
    assert passage.text == "The sun is a star."
    gold = {passage.id: 1}
    assert found.questions == {
        "dev": [Question("val_0", SHOWN, ("C",), gold, choices=CHOICES)],
        "test": [Question("test_0", SHOWN, (), gold, choices=CHOICES)],
    }
    with pytest.raises(RagJaxError, match="val.json:1: there is no choice 3 among 3"):
        read(tmp_path, {"val.json": [RECLOR | {"label": 3}]})


@pytest.mark.parametrize(
    "fields",
    [
        {"answers": TEXTS, "label": 2},
        {"answers": TEXTS, "correct": 2},
        {**CHOICES, "answer": "C"},
        {**CHOICES, "D": "", "E": None, "label": "C"},
        {**{f"option_{label.lower()}": CHOICES[label] for label in CHOICES}, "answer": "C"},
        {**{f"option{i}": text for i, text in enumerate(TEXTS, 1)}, "answer": "3"},
        {**{f"option{i}": text for i, text in enumerate(TEXTS, 1)}, "answer": 3},
    ],
)
def test_choices_in_other_fields(tmp_path, fields):
    found = read_one(tmp_path, {"id": "q", "question": "Which?"} | fields)
    assert found == Question("q", SHOWN, ("C",), {}, choices=CHOICES)


def test_choices_in_columns_of_a_table(tmp_path):
    table = "id,question,A,B,C,D,answer\nq,Which?,sun,moon,Mars,,C\n"
    (found,) = read(tmp_path, PASSAGES | {"ceval_val.csv": table}).questions["dev"]
    assert found == Question("q", SHOWN, ("C",), {}, choices=CHOICES)


@pytest.mark.parametrize(
    "fields",
    [
        {"answers": ["x"], "label": 0},
        {"answers": TEXTS, "label": 3},
        {"answers": TEXTS, "label": True},
        {"answers": TEXTS, "answer": "sun", "label": 1},
        {"answers": TEXTS, "A": "sun"},
        {"answers": TEXTS, "label": 1, "ctxs": []},
    ],
)
def test_answers_that_are_no_choices(tmp_path, fields):
    found = read_one(tmp_path, {"id": "q", "question": "Which?"} | fields)
    assert found == Question("q", "Which?", tuple(fields["answers"]), {})


def test_a_letter_is_no_answer_without_its_choice(tmp_path):
    with pytest.raises(RagJaxError, match="dev.json: has an unknown format"):
        read_one(tmp_path, {"id": "q", "question": "Which?", "choice": TEXTS, "answer": "C"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "has no 'answers'"),
        ({"answer": None}, r"answer is null: write \[\] for"),
        ({"answers": None}, "has no 'answers'"),
        ({"answer": "a", "answers": ["b"]}, r"answer='a' is not among answers=\['b'\]: keep the"),
    ],
)
def test_a_question_without_an_answer_is_a_bad_line(tmp_path, fields, message):
    asked = [{"id": i, "question": "?"} | f for i, f in enumerate(({"answer": "x"}, fields))]
    files = PASSAGES | {"dev_questions.jsonl": "\n".join(map(json.dumps, asked))}
    with pytest.raises(RagJaxError, match=f"questions.jsonl:2: {message}"):
        read(tmp_path, files)


@pytest.mark.parametrize("name", ["article", "options"])
def test_an_answer_with_more_than_a_question_is_not_guessed_at(tmp_path, name):
    record = {"id": "q", "question": "?", "answer": "B", name: "A text."}
    with pytest.raises(
        RagJaxError, match="dev.json: has an unknown format|dev.json:1: choices must"
    ):
        read_one(tmp_path, record)


@pytest.mark.parametrize(("answer", "label"), [("C", "C"), (TEXTS[2], "C"), ("else", None)])
def test_an_answer_is_the_label_or_the_text_of_a_choice(tmp_path, answer, label):
    record = {"id": "q", "question": "Which?", "golden_answers": [answer]}
    record["metadata"] = {"choices": CHOICES}
    if label is None:
        with pytest.raises(RagJaxError, match="dev.json:1: answer 'else' is neither label nor tex"):
            read_one(tmp_path, record)
    else:
        assert read_one(tmp_path, record).answers == (label,)


def test_rows_of_fever_are_told_from_claims(tmp_path):
    row = {"id": 1, "claim": "c", "label": "SUPPORTS", "evidence_wiki_url": "A"}
    with pytest.raises(RagJaxError, match="dev.json:1: is one piece of evidence"):
        read_one(tmp_path, row)


def test_pages_of_fever(tmp_path):
    """Many pages have a title and no text, and letters are composed in more than one way."""
    pages = [
        {"id": "", "text": "", "lines": ""},
        {"id": "A_-LRB-b-RRB-", "text": "", "lines": ""},
        {"id": "Café", "text": "A café . ", "lines": "0\tA café ."},
    ]
    evidence = [[[1, 2, "Cafe\u0301", 0], [1, 3, "A_-LRB-b-RRB-", 0]]]
    claim = {"id": 1, "label": "SUPPORTS", "claim": "C.", "evidence": evidence}
    files = {"wiki-001.jsonl": "\n".join(map(json.dumps, pages)), "dev.jsonl": json.dumps(claim)}
    found = read(tmp_path, files)
    passages = [Passage("A_-LRB-b-RRB-", "A (b)", ""), Passage("Café", "Café", "A café .")]
    assert found.passages == passages
    assert found.questions["dev"][0].relevant == {passage.id: 1 for passage in passages}
    nameless = json.dumps({"id": "", "text": "A text.", "lines": ""})
    with pytest.raises(RagJaxError, match="wiki-001.jsonl:1: id is empty"):
        read(tmp_path, {"wiki-001.jsonl": nameless})
