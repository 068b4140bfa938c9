"""The notebooks: their form, and the one that needs no model; `systems/srrag` runs the others."""

import json
import re

import jax
import pytest
from notebooks import FOLDER, run_notebook

BOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_a_notebook_is_of_the_format(book):
    content = json.loads(book.read_text("utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    cells = content["cells"]
    assert len({cell["id"] for cell in cells}) == len(cells)
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in codes)


def test_lora_in_your_project(capsys):
    with jax.numpy_rank_promotion("allow"):  # as a user has it
        run_notebook("lora_in_your_project")
    lines = capsys.readouterr().out.splitlines()
    before, after = (re.findall(r"\d\.\d+", line) for line in lines[1:3])
    assert len(before) == len(after) == 4
    assert max(map(float, after)) < 0.1 * min(map(float, before))
    assert lines[3] == "True True"
