"""What is written down of an answer, for a person and for a file, and the prompt for many."""

import errno
import io
import json
import os
import re
import sys
from functools import partial

import pytest

from rag_jax.commands import ask as command
from rag_jax.data.passages import Passage
from rag_jax.pipeline.ask import (
    Facts,
    Note,
    Outcome,
    Piece,
    Threshold,
    answer_in_json,
    answer_question,
    clean,
    name_passage,
    show,
)
from rag_jax.pipeline.citations import Citation
from rag_jax.runtime import signals
from rag_jax.runtime.errors import OutputError, RagJaxError

SHOWN = [
    Facts("sources", [("", "model", ""), ("Self", "0.25", "chosen"), ("Wikipedia", "1", "")]),
    Piece("verbalised", ""),
    Piece("verbalised", "Riga lies"),
    Piece("verbalised", " in\nLatvia."),
    Note("cut off at 8 tokens"),
    Piece("answer", ""),
]
WRITTEN = """sources
             model
  Self       0.25   chosen
  Wikipedia  1
verbalised: Riga lies in Latvia.
(cut off at 8 tokens)
answer: (nothing)
"""


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_what_is_written_down():
    out = io.StringIO()
    show(iter(SHOWN), out)
    assert out.getvalue() == WRITTEN
    person = Terminal()
    show(iter(SHOWN), person)
    assert person.getvalue().count("\x1b[1m") == person.getvalue().count("\x1b[0m") == 3
    assert re.sub("\x1b\\[[01]m", "", person.getvalue()) == WRITTEN


def test_a_text_is_seen_while_it_is_written():
    out, seen = io.StringIO(), []

    def write():
        for word in ("Riga", " is", " it"):
            yield Piece("answer", word)
            seen.append(out.getvalue())

    show(write(), out)
    assert seen == ["answer: Riga", "answer: Riga is", "answer: Riga is it"]
    assert out.getvalue() == "answer: Riga is it\n"


def test_what_a_terminal_would_obey_is_no_text():
    assert clean("a\nb\tc") == "a b c"
    assert clean("\x1b[2J\x07 \udcff \x9b 東京") == "\ufffd[2J\ufffd \ufffd \ufffd 東京"
    assert name_passage(Passage("a", "", "Text.")) == "Text."
    out = io.StringIO()
    show(iter([Note("\x1b"), Facts("t", [("\x1b", "a")]), Piece("p", "\r")]), out)
    assert out.getvalue() == "(\ufffd)\nt\n  \ufffd  a\np:  \n"


def test_a_question_and_its_seconds(capsys):
    asked = []

    def ask(question):
        asked.append(question)
        yield Piece("answer", "Riga")

    answer_question(ask, "Where\udcff?\n")
    said = capsys.readouterr().out
    assert asked == ["Where\ufffd? "]
    assert re.fullmatch(r"answer: Riga\n0\.\d\d s\n", said)
    for blank in ("", " \n", "\t"):
        with pytest.raises(RagJaxError, match="the question is blank: write one"):
            answer_question(ask, blank)
    assert len(asked) == 1


# What an answer rests on.

CITED = [
    Citation(Passage("docs/pump.pdf#12.2", "Pumps: \x1b]0;owned\x07", "Oil it."), 0.75),
    Citation(Passage("1", "", "No title."), None),
]
THRESHOLD = Threshold(-0.5, under=5, wrong_under=1, above=4, right_above=3)


def show_outcome(outcome):
    out = io.StringIO()
    show(iter([outcome]), out)
    return out.getvalue()


def test_passages_are_cited_beneath_the_answer():
    assert show_outcome(Outcome("Oil", CITED)) == (
        "citations\n"
        "  [1]  Pumps: \ufffd]0;owned\ufffd  docs/pump.pdf, page 12\n"
        "  [2]                     1\n"
    )
    own = "(no passage was read: the answer is the model's own)\n"
    assert show_outcome(Outcome("Oil", [])) == own


@pytest.mark.parametrize(
    ("likelihood", "threshold", "held", "precision"),
    [
        (-0.5, THRESHOLD, True, 0.75),
        (-0.51, THRESHOLD, False, 0.2),
        (-0.5, None, None, None),
        (None, THRESHOLD, None, None),
    ],
)
def test_whether_an_answer_is_in_the_documents(likelihood, threshold, held, precision):
    outcome = Outcome("Oil", CITED[1:], likelihood=likelihood, threshold=threshold)
    assert (outcome.in_documents, outcome.verdict_precision) == (held, precision)
    said = show_outcome(outcome)
    assert ("in the documents" in said) == (held is not None)
    if held is False:
        line = (
            "(perhaps not in the documents: the answer's likelihood is -0.510, under -0.500, "
            "as it was for 4 right and 1 wrong development answers)"
        )
        assert said.splitlines()[-1] == line
    if held:
        line = (
            "(in the documents: the answer's likelihood is -0.500, not under -0.500, "
            "as it was for 3 right and 1 wrong development answers)"
        )
        assert said.splitlines()[-1] == line


def test_json_is_one_object_a_question_and_nothing_else(capsys):
    """Another script, an empty answer and what a terminal would obey, all in one line of ASCII."""

    def ask(question):
        yield Facts("passages read", [("Oil it.",)])
        yield Piece("answer", "")
        yield Note("cut off\x1b")
        yield Outcome("", CITED, "Wiki", -0.25, THRESHOLD)

    answer_in_json(ask, "Что это\x1b\x7f?\n")
    said = capsys.readouterr()
    assert said.err == "(cut off\ufffd)\n"
    (line,) = said.out.splitlines()
    assert line.isascii() and line.isprintable() and "\x7f" not in line
    assert json.loads(line) == {
        "question": "Что это\ufffd\ufffd? ",
        "answer": "",
        "citations": [
            {
                "rank": 1,
                "id": "docs/pump.pdf#12.2",
                "title": "Pumps: \x1b]0;owned\x07",
                "file": "docs/pump.pdf",
                "place": "page 12",
                "score": 0.75,
            },
            {"rank": 2, "id": "1", "title": "", "file": None, "place": None, "score": None},
        ],
        "source": "Wiki",
        "likelihood": -0.25,
        "threshold": -0.5,
        "in_documents": True,
        "verdict_precision": 0.75,
        "error": None,
    }
    with pytest.raises(RagJaxError, match="the question is blank: write one"):
        answer_in_json(ask, " ")


# The prompt.


@pytest.fixture
def prompt(monkeypatch):
    """Lines that a person types; gives the prompts that they saw."""

    def type_in(*lines):
        for file in (sys.stdin, sys.stdout):
            monkeypatch.setattr(file, "isatty", lambda: True)
        typed, prompts = iter(lines), []

        def read(text):
            prompts.append(text)
            line = next(typed, EOFError)
            if isinstance(line, type):
                raise line
            return line

        monkeypatch.setattr("builtins.input", read)
        return prompts

    return type_in


def test_lines_of_a_file(monkeypatch, capsys):
    """Blank lines are skipped, and each question is printed before its answer."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where?\n\n \t\nWhy\x1b?\n\n"))
    command.converse(lambda line: print(f"answer: {len(line)}"))
    said = capsys.readouterr()
    assert said.out == "question: Where?\nanswer: 6\nquestion: Why\ufffd?\nanswer: 5\n"
    assert said.err == "3 blank lines skipped\n"


def test_marks_of_an_encoding_at_the_head_of_a_file(monkeypatch):
    answered = []
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeffWhere?\nWhy?\n"))
    command.converse(answered.append)
    assert answered == ["Where?", "Why?"]
    text = "Where?\n".encode("utf-16").decode("utf-8", errors="replace")
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    with pytest.raises(RagJaxError, match="standard input is UTF-16 or no text"):
        command.converse(answered.append)
    assert len(answered) == 2


@pytest.mark.parametrize("terminal", [False, True])
def test_lines_in_json(monkeypatch, capsys, terminal):
    """No prompt and no question is printed, and a refused line has an object too."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where?\n\nlong\x9b\nWhy?\n"))
    for file in (sys.stdin, sys.stdout):
        monkeypatch.setattr(file, "isatty", lambda: terminal)

    def ask(question):
        if question.startswith("long"):
            raise RagJaxError("the question is too long\x7f")
        yield Outcome(question.upper(), [])

    command.converse(lambda line: answer_in_json(ask, line), is_json=True)
    said = capsys.readouterr()
    found = [json.loads(line) for line in said.out.splitlines()]
    assert [own["answer"] for own in found] == ["WHERE?", None, "WHY?"]
    assert [own["question"] for own in found] == ["Where?", "long\ufffd", "Why?"]
    assert [own["error"] for own in found] == [None, "the question is too long\x7f", None]
    assert "\x7f" not in said.out
    assert all(list(own) == list(found[0]) for own in found)
    assert said.err == "error: the question is too long\\x7f\n1 blank line skipped\n"


class Full(io.StringIO):
    """Standard output on a disk that is full after so many characters."""

    def __init__(self, room):
        super().__init__()
        self._room = room

    def write(self, text):
        self._room -= len(text)
        if self._room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(text)


@pytest.mark.parametrize("is_json", [True, False])
@pytest.mark.parametrize("room", [0, 5, 300])
def test_answers_that_cannot_be_written_end_the_command(monkeypatch, is_json, room):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Where?\n" * 9))
    monkeypatch.setattr(sys, "stdout", Full(room))
    monkeypatch.setattr("rag_jax.runtime.terminal.discard_output", lambda: None)
    asked = []

    def ask(question):
        asked.append(question)
        yield Facts("read", [["1", "a"]])
        yield Piece("answer", "There")
        yield Outcome("There", [])

    answer = partial(answer_in_json if is_json else answer_question, ask)
    with pytest.raises(OutputError, match="the output cannot be written: No space left"):
        command.converse(answer, is_json=is_json)
    assert len(asked) < 5


@pytest.mark.parametrize("end", ["", EOFError])
def test_a_prompt_until_the_end(prompt, end):
    prompts, answered = prompt("Where?", "Why?", end, "never"), []
    command.converse(answered.append)
    assert answered == ["Where?", "Why?"]
    assert prompts == ["question: "] * 3


def test_an_answer_that_is_interrupted_or_refused(prompt, capsys):
    prompts, answered = prompt("slow", "bad", "good", ""), []

    def answer(line):
        if line == "slow":
            raise KeyboardInterrupt
        if line == "bad":
            raise RagJaxError("the question is blank: write one")
        answered.append(line)

    command.converse(answer)
    assert answered == ["good"] and len(prompts) == 4
    assert capsys.readouterr().err == "\ninterrupted\nerror: the question is blank: write one\n"


def test_ctrl_c_at_the_prompt_or_without_a_person(prompt, monkeypatch, capsys):
    prompt("Where?", KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        command.converse(lambda line: None)
    # Where nobody sits the whole command ends, in one line.
    monkeypatch.setattr(sys, "argv", ["ask.py"])
    # The end of a command has signals ignored, also by the tests after this one.
    monkeypatch.setattr(signals, "_install", lambda handler: None)

    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "main", interrupt)
    assert command.run() == 130
    assert capsys.readouterr().err == "interrupted\n"
