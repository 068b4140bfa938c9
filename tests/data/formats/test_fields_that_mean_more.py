"""Questions with fields that say what their answers mean, and tables joined or exported."""

import json
import logging

import pytest

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection, tfds
from rag_jax.data.formats.lines import BadLineError, Place
from rag_jax.data.passages import Passage
from rag_jax.runtime.errors import RagJaxError

PASSAGE = {"id": "p", "title": "Riga", "text": "Riga is a city in Latvia."}
PLAIN = {"question": "Where is Riga?", "answers": ["Latvia"]}
OLD = {"question": "Where is Riga?", "answer": "In Estonia.", "contexts": ["Riga is in Latvia."]}


def read(folder, files, **settings):
    for name, content in files.items():
        lines = "\n".join(map(json.dumps, content)) if isinstance(content, list) else content
        (folder / name).write_text(lines, "utf-8")
    return read_collection(DataConfig(str(folder), **settings), WorldConfig())


def read_one(folder, record, **more):
    found = read(folder, {"test.jsonl": [record]} | more)
    (question,) = found.questions["test"]
    return found, question


@pytest.mark.parametrize(
    "gold",
    [{"ground_truth": "Latvia"}, {"ground_truths": ["Latvia"]}, {"ground_truth": ["Latvia"]}],
)
def test_the_answer_of_an_evaluated_system_is_not_the_gold_one(tmp_path, gold):
    found, question = read_one(tmp_path, OLD | gold)
    assert (question.question, question.answers) == ("Where is Riga?", ("Latvia",))
    assert found.passages == [Passage("passage", "", "Riga is in Latvia.")]
    assert question.relevant == {}  # found by the system
    assert read(tmp_path, {}, format="ragas") == found


def test_the_label_of_a_choice_is_no_gold_answer(tmp_path):
    record = {"question": "Where is Riga?", "options": ["Peru", "Latvia"], "ground_truth": "B"}
    with pytest.raises(RagJaxError, match="has choices and 'ground_truth', but none of answerKey"):
        read_one(tmp_path, record, **{"passages.jsonl": [PASSAGE]})


@pytest.mark.parametrize(
    ("record", "relevant"),
    [
        ({"question": "Q?", "ground_truth": "Latvia", "contexts": ["1.", "2."]}, ["1.", "2."]),
        (
            {
                "user_input": "Q?",
                "reference": "Latvia",
                "response": "Estonia",
                "reference_contexts": ["One."],
                "retrieved_contexts": ["Two.", "One."],
            },
            ["One."],
        ),
        ({"user_input": "Q?", "reference": "Latvia", "reference_contexts": None}, []),
        ({"question": "Q?", "ground_truth": "Latvia", "context": "1."}, ["1."]),
    ],
)
def test_rows_of_ragas(tmp_path, record, relevant):
    more = {} if relevant else {"passages.jsonl": [PASSAGE]}
    found, question = read_one(tmp_path, record, **more)
    texts = {passage.id: passage.text for passage in found.passages}
    assert question.answers == ("Latvia",)
    assert [texts[id] for id in question.relevant] == relevant


def test_a_row_of_ragas_without_its_gold_answer(tmp_path):
    with pytest.raises(RagJaxError, match="test.jsonl:1: has no 'reference'"):
        read_one(tmp_path, OLD | {"ground_truth": None}, **{"passages.jsonl": [PASSAGE]})


def test_ragas_as_a_table(tmp_path):
    table = "question,contexts,ground_truth\nQ?,\"['One, and', 'Two.']\",Latvia\n"
    (question,) = read(tmp_path, {"test.csv": table}).questions["test"]
    assert (question.answers, len(question.relevant)) == (("Latvia",), 2)


@pytest.mark.parametrize(
    ("names", "answer"),
    [
        (["a", "b"], "B"),
        (["choice_a", "choice_b"], "B"),
        (["choiceA", "choiceB"], "B"),
        (["Option A", "Option B"], "b"),
        (["option_1", "option_2"], "2"),
        (["opt1", "opt2"], "text of opt2"),
        (["ending0", "ending1"], "1"),
        (["answer_a", "answer_b"], "B"),
    ],
)
def test_choices_in_a_field_each(tmp_path, names, answer):
    record = {"question": "Which?", "answer": answer} | {name: f"text of {name}" for name in names}
    if answer == "b":
        with pytest.raises(RagJaxError, match="answer 'b' is neither label nor text of a choice"):
            read_one(tmp_path, record, **{"passages.jsonl": [PASSAGE]})
        return
    _, question = read_one(tmp_path, record, **{"passages.jsonl": [PASSAGE]})
    assert question.answers == ("B",)
    assert [*question.choices.values()] == [f"text of {name}" for name in names]


@pytest.mark.parametrize(
    "record",
    [
        {"options": ["x", "y"], "answer_index": 1},
        {"options": ["x", "y"], "correct_answer": "y"},
        {"options": ["(A) x", "(B) y"], "answer": "(B) y"},
        {"options": {"A": "x", "B": "y", "C": None, "D": ""}, "answer": "B"},
        {"option": {"A": "x", "B": "y"}, "answer": "B"},
    ],
)
def test_choices_and_answers_by_other_names(tmp_path, record):
    _, question = read_one(tmp_path, {"question": "Q?"} | record, **{"passages.jsonl": [PASSAGE]})
    assert (question.answers, question.choices) == (("B",), {"A": "x", "B": "y"})


def test_a_choice_s_text_after_another_label_is_no_answer(tmp_path):
    row = {"question": "Q?", "options": ["(A) x", "(B) y"], "answer": "(A) y"}
    with pytest.raises(RagJaxError, match=r"answer '\(A\) y' is neither label nor text"):
        read_one(tmp_path, row, **{"passages.jsonl": [PASSAGE]})


@pytest.mark.parametrize("name", ["answers", "gold", "correct_option", "Target"])
def test_choices_whose_answer_has_an_unknown_name(tmp_path, name):
    row = {"question": "Q?", "options": ["x", "y"], name: ["y"]}
    with pytest.raises(RagJaxError, match=f"test.jsonl:1: has choices and '{name}', but none of"):
        read(tmp_path, {"test.jsonl": [row], "passages.jsonl": [PASSAGE]})
    read(tmp_path, {"test.jsonl": [row | {name: None}]})  # without an answer, as test questions


def test_no_choices_are_no_question_with_choices(tmp_path):
    row = {"id": "q", "question": "Q?", "answer": ["x", "y"], "choices": []}
    _, question = read_one(tmp_path, row, **{"passages.jsonl": [PASSAGE]})
    assert (question.answers, question.choices) == (("x", "y"), {})


def test_input_beside_an_answer_is_no_question_of_kilt(tmp_path):
    files = {"passages.jsonl": [PASSAGE]}
    _, question = read_one(tmp_path, {"id": "1", "input": "Q?", "meta": {}}, **files)
    assert question.answers == ()
    with pytest.raises(RagJaxError, match="test.jsonl: has an unknown format"):
        read_one(tmp_path, {"id": "1", "input": "Q?", "expected_output": "x"}, **files)


@pytest.mark.parametrize(
    ("cell", "answers"),
    [("True", ("yes", "True")), ("FALSE", ("no", "FALSE")), ("truth", ("truth",)), ("[]", ())],
)
def test_true_and_false_in_a_table(tmp_path, cell, answers):
    table = f"question,answer,passage\nQ?,{cell},Riga is in Latvia.\n"
    (question,) = read(tmp_path, {"test.csv": table}).questions["test"]
    assert question.answers == answers
    (tmp_path / "test.csv").unlink()
    table = f"qid,question,term,answer\n1,Q?,Riga,{cell}\n"
    files = {"test.csv": table, "passages.jsonl": [PASSAGE]}
    if cell in ("truth", "[]"):
        with pytest.raises(RagJaxError, match="test.csv:2: answer=.* must be true or false"):
            read(tmp_path, files)
    else:
        (question,) = read(tmp_path, files).questions["test"]
        assert question.answers == answers[:1]


@pytest.mark.parametrize(
    ("fields", "answers"),
    [
        ({"answer": "x", "answers": ["x", "y"]}, ("x", "y")),
        ({"answer": "x", "answers": ["x"], "answer_aliases": ["z"]}, ("x", "z")),
        ({"answer": "x", "answers": None}, ("x",)),
        ({"answer": "x", "answers": []}, ("x",)),
        ({"answer": None, "answers": ["y"]}, ("y",)),
        ({"answer": "UNANSWERABLE"}, ()),
        ({"answers": ["CANNOTANSWER"]}, ()),
    ],
)
@pytest.mark.parametrize("paragraph", [{}, {"context": "It is."}])
def test_answers_in_two_fields_or_none(tmp_path, fields, answers, paragraph):
    row = {"question": "Q?"} | fields | paragraph
    files = {} if paragraph else {"passages.jsonl": [PASSAGE]}
    assert read_one(tmp_path, row, **files)[1].answers == answers


@pytest.mark.parametrize(
    "text",
    ["['p1', 'p2']", "{'title': array(['A'], dtype=object)}", '[["A", ["s"]]]', '{"title": []}'],
)
def test_a_printed_paragraph(tmp_path, text):
    row = {"question": "Q?", "answer": "x", "context": text}
    with pytest.raises(RagJaxError, match="test.jsonl:1: context is a list or an object printed"):
        read_one(tmp_path, row)
    row["context"] = "[1] Riga is in Latvia [2]"
    assert read_one(tmp_path, row)[1].answers == ("x",)


def test_questions_that_quac_has_no_answer_to(tmp_path):
    asked = {"question": "Q?", "id": "q", "answers": [{"text": "CANNOTANSWER"}]}
    paragraph = {"context": "It is. CANNOTANSWER", "qas": [asked]}
    document = {"data": [{"title": "T", "paragraphs": [paragraph]}]}
    (question,) = read(tmp_path, {"test.json": json.dumps(document)}).questions["test"]
    assert question.answers == ()


def test_answers_that_people_added_to_triviaqa(tmp_path):
    answer = {"Value": "Oslo", "Aliases": ["Oslo"], "HumanAnswers": ["Oslo town"]}
    document = {"Data": [{"QuestionId": "q", "Question": "Q?", "Answer": answer}]}
    files = {"test.json": json.dumps(document), "passages.jsonl": [PASSAGE]}
    (question,) = read(tmp_path, files).questions["test"]
    assert question.answers == ("Oslo", "Oslo town")


def test_another_format_than_the_files_have(tmp_path):
    rows = [{"question": "Q?", "options": ["x", "y"], "answer": "A"}]
    files = {"test.jsonl": rows, "passages.jsonl": [PASSAGE]}
    told = r"no questions in the format 'jsonl' of config.data.format \(test.jsonl: arc\)"
    with pytest.raises(RagJaxError, match=told):
        read(tmp_path, files, format="jsonl")


def test_several_gold_answers_are_no_choices(tmp_path):
    record = {"question": "Q?", "answer": "x", "answer1": "y", "answer2": "z"}
    _, question = read_one(tmp_path, record, **{"passages.jsonl": [PASSAGE]})
    assert (question.answers, question.choices) == (("x",), {})


@pytest.mark.parametrize("name", ["context", "passage"])
def test_the_paragraph_of_a_question_with_choices(tmp_path, name):
    record = {"question": "Q?", "options": ["(A)x", "(B)y"], "label": "A", name: "It is x."}
    found, question = read_one(tmp_path, record)
    assert found.passages == [Passage("passage", "", "It is x.")]
    assert question.relevant == {"passage": 1}
    assert question.choices == {"A": "x", "B": "y"}


@pytest.mark.parametrize("paragraph", [{}, {"context": "It is."}])
@pytest.mark.parametrize(
    "fault",
    [
        *({"label": label} for label in (0, "0", -1, "False", "FALSE", 0.0)),
        {"hallucination": "yes"},
    ],
)
def test_a_wrong_candidate_is_no_gold_answer(tmp_path, fault, paragraph):
    rows = [{"question": "Q?", "answer": "x", "label": 1} | paragraph]
    rows.append({"question": "R?", "answer": "y"} | paragraph | fault)
    (name,) = fault
    files = {} if paragraph else {"passages.jsonl": [PASSAGE]}
    with pytest.raises(RagJaxError, match=f"test.jsonl:2: {name} .* calls the answer a wrong one"):
        read(tmp_path, {"test.jsonl": rows} | files)
    with pytest.raises(BadLineError, match="calls the answer a wrong one"):
        tfds.parse(rows[1], Place(tmp_path, 1, 1))


def test_choices_of_a_prepared_dataset(tmp_path):
    example = {"question": "Q?", "choices": ["x", "y"], "answer": "B"}
    assert tfds.is_question(example)
    question = tfds.parse(example, Place(tmp_path, 1, 1)).question
    assert (question.answers, question.choices) == (("B",), {"A": "x", "B": "y"})
    example = {"question": "Q?", "choices": {"text": ["x", "y"], "label": [0, 1]}, "answerKey": 1}
    assert tfds.is_question(example)
    assert tfds.parse(example, Place(tmp_path, 1, 1)).question == question


@pytest.mark.parametrize(
    "more", [{"context": "It is."}, {"options": {"A": "x", "B": "y"}}, {"passage": "It is."}]
)
def test_a_later_question_that_is_no_plain_one(tmp_path, more):
    rows = [PLAIN | {next(iter(more)): None}, {"question": "Q?", "answers": ["x"]} | more]
    files = {"test.jsonl": rows, "passages.jsonl": [PASSAGE]}
    with pytest.raises(RagJaxError, match=f"test.jsonl:2: has '{next(iter(more))}', unlike the"):
        read(tmp_path, files)
    assert len(read(tmp_path, {}, format="jsonl").questions["test"]) == 2


def test_fields_that_are_not_read_are_told(tmp_path, capsys):
    row = PLAIN | {"qid": "Q7", "docs": [], "evidence": "e", "note": None}
    _, question = read_one(tmp_path, row, **{"passages.jsonl": [PASSAGE]})
    assert question.id == "Q7"
    told = "jsonl, test: 1 read, fields that are not read: docs, evidence\n"
    assert told in capsys.readouterr().err
    read_one(tmp_path, PLAIN)
    assert "not read" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (r"Feb(ruary)?\s*1972", "looks like a regular expression"),
        (r"29,?028|\d+ (feet|ft)", "looks like a regular expression"),
        ("['a', 'b']", "looks like a list that was printed as text"),
        ("{'aliases': array(['a'], dtype=object)}", "looks like an object that was printed as"),
        ("The", "has no words to match"),
        (r"C:\docs (1990)", None),
        ("What is it (the first)?", None),
        ("[Ne] 3s2", None),
    ],
)
def test_odd_answers_are_told(tmp_path, caplog, answer, told):
    with caplog.at_level(logging.WARNING):
        row = {"question": "Q?", "answers": [answer]}
        _, question = read_one(tmp_path, row, **{"passages.jsonl": [PASSAGE]})
    assert question.answers == (answer,)
    warned = [r.getMessage() for r in caplog.records if "the answer" in r.getMessage()]
    assert len(warned) == bool(told) and all(told in message for message in warned)


def test_a_question_again_letter_for_letter(tmp_path, capsys):
    row = {"id": "q", "passage_id": "p"} | PLAIN
    files = {"passages.jsonl": [PASSAGE, PASSAGE | {"id": "r"}], "test.jsonl": [row, row]}
    assert len(read(tmp_path, files).questions["test"]) == 1
    assert "1 read, 1 left out (the same question again)" in capsys.readouterr().err
    for fault in ({"answers": ["x"]}, {"passage_id": "r"}, {"question": "When?"}):
        with pytest.raises(RagJaxError, match="test.jsonl:2: another test question has the id 'q'"):
            read(tmp_path, {"test.jsonl": [row, row | fault]})


def test_underscores_in_a_title_that_is_no_articles(tmp_path):
    passage = {"id": "p", "title": "my_function", "text": "It works."}
    row = {"question": "Q?", "answer": "x", "title": "my_function", "context": "It works."}
    _, question = read_one(tmp_path, row, **{"passages.jsonl": [passage]})
    assert question.relevant == {"p": 1}


@pytest.mark.parametrize("name", ["train_questions", "queries_test", "my-question"])
def test_queries_with_a_text_are_no_passages(tmp_path, name):
    """Whatever the texts of a file are, its name says that they ask."""
    files = {"passages.jsonl": [PASSAGE], "test_questions.jsonl": [PLAIN]}
    asked = {"id": "q", "text": "What is the capital of Latvia?"}
    with pytest.raises(RagJaxError, match=rf"{name}.jsonl:(1: .*question| has an unknown format)"):
        read(tmp_path, files | {f"{name}.jsonl": [asked]})
    (tmp_path / f"{name}.jsonl").unlink()
    with pytest.raises(RagJaxError, match="a.jsonl: has an unknown format"):
        read(tmp_path, files | {"a.jsonl": [asked | {"answers": ["Riga"]}]})


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"answer": 0, "error_type": "wrong_groundtruth"}, "error_type='wrong_groundtruth': "),
        ({"answer": 0, "correct_answer": "z"}, "'answer' is choice A, and 'correct_answer' is"),
        ({"answer": "x", "label": "B"}, "'answer' is choice A, and 'label' is choice B: remove"),
        ({"answerKey": "C", "answer_index": 1}, "'answerKey' is choice C, and 'answer_index' is"),
    ],
)
def test_two_right_choices(tmp_path, more, problem):
    asked = {"question": "Which?", "choices": ["x", "y", "z"]}
    with pytest.raises(RagJaxError, match=f"test.jsonl:1: {problem}"):
        read(tmp_path, {"passages.jsonl": [PASSAGE], "test.jsonl": [asked | more]})


@pytest.mark.parametrize(
    "more",
    [
        {"answer": "B", "answer_index": 1},
        {"answer": 1, "error_type": "ok", "correct_answer": None},
        {"answer": "y", "label": "hard"},
        {"answerKey": "B", "correct_answer": "y"},
    ],
)
def test_one_right_choice_in_several_fields(tmp_path, more):
    asked = {"question": "Which?", "choices": ["x", "y", "z"]}
    found = read(tmp_path, {"passages.jsonl": [PASSAGE], "test.jsonl": [asked | more]})
    assert found.questions["test"][0].answers == ("B",)


def test_joined_tables_with_byte_order_marks(tmp_path):
    table = "\ufeffquestion,answer\nWhere?,Riga\n"
    with pytest.raises(RagJaxError, match="test.csv:3: is the heading again: remove the row"):
        read(tmp_path, {"passages.jsonl": [PASSAGE], "test.csv": 2 * table})


def test_joined_tables(tmp_path):
    table = "question,answer\nWho?,Bob\nquestion,answer\nWhen?,1990\n"
    with pytest.raises(RagJaxError, match="test.csv:3: is the heading again: remove the row"):
        read(tmp_path, {"test.csv": table, "passages.jsonl": [PASSAGE]})


def test_empty_fields_of_a_table(tmp_path):
    heading = "id,question,answer,passage_id,answer_aliases,popularity,is_impossible"
    rows = ["1,Who?,Bob,,,12.0,False", ",When?,1990,p,\"['MCMXC', '90']\",,", "3,Why?,x,,,,True"]
    table = "\n".join([heading, *rows])
    files = {"test.csv": table, "passages.jsonl": [PASSAGE]}
    first, second, third = read(tmp_path, files).questions["test"]
    assert (first.id, first.answers, first.relevant, first.popularity) == ("1", ("Bob",), {}, 12)
    assert (second.answers, second.relevant) == (("1990", "MCMXC", "90"), {"p": 1})
    assert (third.id, third.answers) == ("3", ())


@pytest.mark.parametrize(
    "name", ["passages-00000-of-00003-a09b74b3ef9c3b56.jsonl", "passages_1_of_3.jsonl"]
)
def test_parts_by_other_names(tmp_path, name):
    with pytest.raises(RagJaxError, match="is one of 3 files, of which 1 are here"):
        read(tmp_path, {name: [PASSAGE], "test.jsonl": [PLAIN]})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{'question': 'Q?', 'answers': ['x']}\n", "test.jsonl:1: is not JSON"),
        ('{"question": "Q?", "answers": ["x"]},\n', "test.jsonl:1: is not JSON"),
        ("question,answers\nQ?,x\n", "test.jsonl:2: is not JSON"),
        ('"{}"\n', "test.jsonl:1: must be an object"),
    ],
)
def test_a_file_without_any_record(tmp_path, text, problem):
    with pytest.raises(RagJaxError, match=problem):
        read(tmp_path, {"test.jsonl": text, "passages.jsonl": [PASSAGE]})


def test_a_question_that_is_an_object(tmp_path):
    row = {"question": {"text": "Q?", "tokens": []}, "answers": ["x"]}
    with pytest.raises(RagJaxError, match="test.jsonl:1: question=.* must be a string"):
        read(tmp_path, {"test.jsonl": [row], "passages.jsonl": [PASSAGE]})


@pytest.mark.parametrize("path", ["gs://bucket/x", "https://example.org/a", "hf://datasets/a/b"])
def test_an_address_is_no_folder(path):
    with pytest.raises(RagJaxError, match=f"config.data.path={path}: is an address"):
        read_collection(DataConfig(path), WorldConfig())


def test_a_file_is_no_folder(tmp_path):
    path = tmp_path / "test.jsonl"
    path.write_text(json.dumps(PLAIN))
    with pytest.raises(RagJaxError, match=r"test.jsonl: is a file: give its folder"):
        read_collection(DataConfig(str(path)), WorldConfig())


def test_json_that_is_named_a_text(tmp_path):
    (tmp_path / "wiki.txt").write_text(json.dumps(PASSAGE) + "\n")
    with pytest.raises(RagJaxError, match=r"wiki.txt: holds JSON: let its name end in .jsonl"):
        read(tmp_path, {"test_questions.jsonl": [PLAIN]})
    (tmp_path / "wiki.txt").write_text("[1] Riga is in Latvia.\n\n[2]\n")
    found = read(tmp_path, {})
    assert [passage.text for passage in found.passages] == ["[1] Riga is in Latvia. [2]"]
