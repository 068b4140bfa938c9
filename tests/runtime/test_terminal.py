"""What others wrote is shown on a terminal, and never obeyed by it."""

import ast
import io
import sys
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

import rag_jax
from rag_jax.pipeline import ask, command
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.progress import log, show_progress
from rag_jax.runtime.terminal import show_controls, write_text

EVIL = "\x1b]0;x\x07\x1b[2J\x9b1m\rgone\u202eback\u2066\udcff\u2028"
SHOWN = r"\x1b]0;x\x07\x1b[2J\x9b1m\rgone\u202eback\u2066\udcff\u2028"
# Where `print` does not write to a terminal, and where each text is cleaned before.
OTHERS = {"terminal.py", "loop.py", "workdir.py", "ask.py"}


@settings(max_examples=50, deadline=None)
@given(st.text(st.characters(), max_size=20))
def test_only_characters_that_are_obeyed_change(text):
    shown = show_controls(text, one_line=True)
    assert shown.encode("utf-8").decode("utf-8") == shown
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in shown)
    assert show_controls(shown) == shown
    harmless = "".join(c for c in text if c.isalnum() or c == " ")
    assert show_controls(harmless) == harmless


def test_letters_of_all_scripts_tabs_and_lines_stay():
    text = "東京\té\n\u05e2\u05d1 \u0627\u0644 👩\u200d🚀"
    assert show_controls(text) == text
    assert show_controls(text, one_line=True) == text.replace("\t", r"\t").replace("\n", r"\n")


def test_logs_errors_bars_and_output_show_controls(capsys, monkeypatch):
    log(EVIL)
    with show_progress(EVIL, 1, unit="things"):
        pass
    write_text(EVIL)
    monkeypatch.setattr(sys, "argv", ["x"])

    def fail(_):
        raise RagJaxError(f"{EVIL}: cannot be read\nerror: or so")

    assert command.run(fail, "") == 1
    out, err = capsys.readouterr()
    assert out == SHOWN + "\n"
    lines = err.splitlines()
    assert lines[0] == SHOWN and lines[1] == f"{SHOWN}: 1 things" and len(lines) == 4
    # An error's own message is on one line, with spaces for whatever breaks lines.
    shown = SHOWN.replace(r"\r", " ").replace(r"\u2028", " ")
    assert lines[3] == f"error: {shown}: cannot be read error: or so"


def test_answers_show_controls():
    out = io.StringIO()
    items = [ask.Facts(EVIL, [[EVIL, EVIL]]), ask.Piece("answer", EVIL), ask.Note(EVIL)]
    ask.show(iter(items), out)
    assert not set("\x1b\x07\x9b\r\u202e\u2066\udcff\u2028") & set(out.getvalue())


def test_nothing_else_prints():
    for path in Path(rag_jax.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "print":
                assert path.name in OTHERS, f"{path}:{node.lineno}: write_text, please"
