"""Progress without a terminal: lines with what is done, the rate, the loss and the time left."""

import re
import time

import pytest

from rag_jax.runtime import progress


def read_lines(capsys):
    return capsys.readouterr().err.splitlines()


def test_a_short_piece_of_work_is_two_lines(capsys):
    with progress.show_progress("stage one", 3, unit="items") as bar:
        for _ in range(3):
            bar.update(1)
    first, last = read_lines(capsys)
    assert first == "stage one: 3 items"
    assert re.fullmatch(r"stage one: 3 items in \d+\.\d s", last)


def test_long_work_is_seen(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_EVERY", 0.05)
    with progress.show_progress("stage train", 12, unit="steps", initial=2) as bar:
        for step in range(10):
            time.sleep(0.02)
            bar.set_postfix_str(f"loss {step}.5000", refresh=False)
            bar.update(1)
    first, *lines, last = read_lines(capsys)
    assert first == "stage train: 12 steps, 2 done before"
    assert last.startswith("stage train: 12 steps in ")
    assert 2 <= len(lines) <= 5
    pattern = r"stage train: \d+ of 12 steps, +[\d.?]+ steps/s, loss \d\.5000, \d\d:\d\d left"
    assert all(re.fullmatch(pattern, line) for line in lines), lines


def test_an_error_ends_it_without_a_last_line(capsys):
    with pytest.raises(KeyboardInterrupt), progress.show_progress("stage one", 3, unit="items"):
        raise KeyboardInterrupt
    assert read_lines(capsys) == ["stage one: 3 items"]
