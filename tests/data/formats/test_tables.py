"""Tables whose fields are quoted, tables whose fields hold quotes like any letter, and doubts."""

import csv
import io

import pytest
from damage import at_most
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection, read_passages
from rag_jax.data.formats.lines import BadLines
from rag_jax.data.formats.tables import read_heading, read_rows, read_table
from rag_jax.runtime.errors import RagJaxError


def rows(path, text, *, limit=0):
    path.write_text(text, "utf-8", newline="")
    return [row for _, row in read_rows(path, BadLines(limit, quiet=True))]


@pytest.mark.parametrize(
    "field",
    [
        '"Hello is a song.',
        '"Hey" single',
        'He said "no"',
        '12" TV',
        '"A" and "B"',
        '"He said "yes""',
        '"',
        '"""',
    ],
)
def test_a_stray_quote_is_a_character(tmp_path, field):
    """Where one field cannot be read as quoted, no field is."""
    listed = [["id", "text", "title"], ["1", field, "T"], ["2", "b", '"Hey"'], ["3", '"c', "T"]]
    text = "".join("\t".join(row) + "\n" for row in listed)
    assert rows(tmp_path / "a.tsv", text) == listed
    (tmp_path / "b.tsv").write_text(text)
    assert [p.text for p in read_passages([tmp_path / "b.tsv"])] == [field, "b", '"c']


def test_a_thousand_rows_after_a_stray_quote(tmp_path):
    listed = [f"{i}\ttext {i}\tT{i}" for i in range(1_000)]
    listed[2] = '2\t"text 2\tT2'
    (tmp_path / "a.tsv").write_text("id\ttext\ttitle\n" + "\n".join(listed))
    assert len(read_passages([tmp_path / "a.tsv"])) == 1_000


def test_labels_after_a_stray_quote(tmp_path):
    """A main text that begins with a quote does not take over the next claims' labels."""
    head = "claim_id\tclaim\tmain_text\tlabel\n"
    claims = ['1\tC.\t"The text.\tfalse', "2\tD.\tText.\ttrue", '3\tE.\tText, "quoted".\ttrue']
    (tmp_path / "test.tsv").write_text(head + "\n".join(claims))
    (tmp_path / "passages.jsonl").write_text('{"id": 1, "text": "a"}')
    found = read_collection(DataConfig(str(tmp_path)), WorldConfig()).questions["test"]
    assert [(q.id, q.answers) for q in found] == [
        ("1", ("false",)),
        ("2", ("true",)),
        ("3", ("true",)),
    ]


def test_questions_that_begin_with_a_quote(tmp_path):
    """DPR's tables have no heading, so the first row may be the one with a quote."""
    listed = ["\"hello who sang it\t['Adele']", "where\t['Oslo']", "who wrote \"hey\"\t['Paul']"]
    (tmp_path / "passages.jsonl").write_text('{"id": 1, "text": "a"}')
    for order in (listed, listed[::-1]):
        (tmp_path / "nq-test.qa.csv").write_text("\n".join(order))
        found = read_collection(DataConfig(str(tmp_path)), WorldConfig())
        assert [q.question for q in found.questions["test"]] == [o.split("\t")[0] for o in order]


def test_a_quoted_table_with_an_open_quote(tmp_path):
    text = 'id\ttext\n1\t"a ""b"""\n2\t"c\n3\td\n'
    for limit in (0, 9):
        with pytest.raises(RagJaxError, match="a.tsv:3: a field begins with a quote that is not"):
            rows(tmp_path / "a.tsv", text, limit=limit)


def test_lines_that_are_one_row_or_two(tmp_path):
    """Both readings hold: a field over two lines, or two rows with a quote each."""
    text = 'id\ttext\ttitle\n1\t"one\tA\n2\t12"\tB\n'
    with pytest.raises(RagJaxError, match="a.tsv:2: begins a quoted field over several lines, or"):
        rows(tmp_path / "a.tsv", text)
    assert len(rows(tmp_path / "a.tsv", text + '3\ta "b" c\tC\n')) == 4
    assert len(rows(tmp_path / "a.tsv", text + '3\t"a ""b"" c"\tC\n')) == 3


def test_columns_of_one_name(tmp_path):
    (tmp_path / "a.tsv").write_text("id\ttext\ttext\n1\ta\tb\n")
    with pytest.raises(RagJaxError, match="a.tsv: two columns have the name 'text': rename one"):
        read_passages([tmp_path / "a.tsv"])


FIELDS = st.text(st.sampled_from("ab\t,\"\n' "), max_size=6)


@given(
    listed=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=4),
    separator=st.sampled_from("\t,"),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_what_csv_writes_is_read_or_refused(tmp_path_factory, listed, separator, quoting):
    """A table of Python's own writer is read as written, or the ambiguous row is named."""
    written = io.StringIO()
    listed = [("id", "text", "title"), *(row for row in listed if "".join(row).strip())]
    csv.writer(written, delimiter=separator, quoting=quoting).writerows(listed)
    path = tmp_path_factory.getbasetemp() / "written.csv"
    try:
        assert rows(path, written.getvalue()) == [list(row) for row in listed]
    except RagJaxError as error:
        assert "begins a quoted field over several lines" in str(error)
        assert quoting == csv.QUOTE_MINIMAL


@given(listed=st.lists(st.tuples(*[st.text(st.sampled_from('ab" '), min_size=1)] * 3), max_size=4))
def test_unquoted_rows_are_kept_or_refused(tmp_path_factory, listed):
    """No row of a table without quoting is joined with another, whatever quotes it holds."""
    text = "id\ttext\ttitle\n" + "".join("\t".join(row) + "\n" for row in listed)
    path = tmp_path_factory.getbasetemp() / "unquoted.tsv"
    kept = sum(bool("".join(row).strip()) for row in listed)
    try:
        found = rows(path, text)
        assert len(found) - 1 == kept or '""' in text
    except RagJaxError as error:
        assert "quote" in str(error)


def test_headings(tmp_path):
    path = tmp_path / "a.csv"
    for text, wanted in (
        ("", []),
        ('\n"a b",c\n', ["a b", "c"]),
        ('"a\tb\n', ['"a', "b"]),
        ("\ufeffid,text\r\n", ["id", "text"]),
    ):
        path.write_text(text, "utf-8", newline="")
        assert read_heading(path) == wanted


def test_very_many_columns(tmp_path):
    """Comparing each with each would take minutes."""
    path = tmp_path / "train.tsv"
    path.write_text("\t".join(map(str, range(500_000))) + "\n")
    with at_most(30):
        assert list(read_table(path, BadLines())) == []


def read_answers(folder, name, cell):
    """The answers of a table's one question."""
    (folder / "passages.jsonl").write_text('{"id": 1, "text": "a"}')
    with open(folder / "test.csv", "w", newline="") as file:
        csv.writer(file).writerows([["question", name], ["When?", cell]])
    ((question,),) = read_collection(DataConfig(str(folder)), WorldConfig()).questions.values()
    return question.answers


@pytest.mark.parametrize("name", ["answer", "answers"])
@pytest.mark.parametrize(
    ("cell", "answers"),
    [
        ("['14 December 1972 UTC', \"December '72\"]", ("14 December 1972 UTC", "December '72")),
        ('["a b", "c"]', ("a b", "c")),
        (" [ 'a b' ] ", ("a b",)),
        (r'["1\/2", "\ud83d\ude00"]', ("1/2", "\N{GRINNING FACE}")),  # JSON's escapes
        (r"['a\tb']", ("a\tb",)),
        ("[]", ()),
    ],
)
def test_a_list_of_answers_in_a_table(tmp_path, name, cell, answers):
    assert read_answers(tmp_path, name, cell) == answers


@pytest.mark.parametrize("name", ["answer", "answers"])
@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        ("['a b' 'c']", "a comma is missing between two answers"),
        ("['a b'\n 'c']", "a comma is missing between two answers"),
        ("['a b', 'c", "the answers must be a list of strings"),
        ("['a b', 3]", "answers must be a list of strings"),
    ],
)
def test_a_damaged_list_of_answers_in_a_table(tmp_path, name, cell, problem):
    with pytest.raises(RagJaxError, match=f"test.csv:2: {problem}"):
        read_answers(tmp_path, name, cell)


@pytest.mark.parametrize("name", ["context", "passage"])
@pytest.mark.parametrize(("column", "cell"), [("answers", "['x']"), ("answer", "x")])
def test_a_passage_beside_the_answers_of_a_table(tmp_path, name, column, cell):
    (tmp_path / "test.csv").write_text(f"question,{column},{name}\nWhen?,{cell},A text.\n")
    found = read_collection(DataConfig(str(tmp_path)), WorldConfig())
    ((passage,), (question,)) = found.passages, found.questions["test"]
    assert (passage.text, question.answers) == ("A text.", ("x",))
    assert question.relevant == {passage.id: 1}


def test_an_article_beside_the_answers_of_a_table_is_not_left_out(tmp_path):
    (tmp_path / "passages.jsonl").write_text('{"id": 1, "text": "a"}')
    (tmp_path / "test.csv").write_text("question,answers,article\nWhen?,['x'],A text.\n")
    with pytest.raises(RagJaxError, match="test.csv: has an unknown format"):
        read_collection(DataConfig(str(tmp_path)), WorldConfig())


@pytest.mark.parametrize("cell", ["[Ne]3s1", "[1, 2]", "Bob", "[sic] he's"])
def test_an_answer_in_brackets_is_no_list(tmp_path, cell):
    assert read_answers(tmp_path, "answer", cell) == (cell,)
