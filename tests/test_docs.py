"""README and documentation: their code runs, their tables are their results', their links lead on.

Blocks that load real weights or need the database run in the parity suite.
"""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from serving.shouter import Shouter, serving
from tiny_encoders import lengthen, write_colbert, write_reranker, write_splade

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
# Of real weights, or of a library that is no requirement.
PARITY = re.compile(r'(?<!\.)\bload\("|import lancedb|import mteb')
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def find_blocks():
    for page in PAGES:
        text = page.read_text("utf-8")
        for found in BLOCK.finditer(text):
            line = text.count("\n", 0, found.start()) + 2
            name = f"{page.relative_to(ROOT)}:{line}"
            marks = [pytest.mark.parity] if PARITY.search(found[1]) else []
            yield pytest.param(found[1], page, line, id=name, marks=marks)


# The folders that blocks load, of tiny encoders.
FOLDERS = {
    "my_splade": write_splade,
    "my_colbert": write_colbert,
    "my_reranker": write_reranker,
}


@pytest.mark.parametrize(("code", "page", "line"), list(find_blocks()))
def test_a_block_of_code_runs(code, page, line, tmp_path, monkeypatch):
    """As a program of its own, in an empty folder, or one with the encoder that it loads."""
    monkeypatch.chdir(tmp_path)
    if "faiss_" in code:
        pytest.importorskip("faiss", reason="FAISS is not installed (the extra faiss)")
    for name, write in FOLDERS.items():
        if f'("{name}")' in code:
            lengthen(write(tmp_path / name), 128)
    if "from openai import" in code:
        pytest.importorskip("openai", reason="openai is not installed (the extra test)")
        server = serving(Shouter().serve(), name="srrag")
    else:
        server = contextlib.nullcontext(None)
    with server as address:
        if address is not None:
            code = code.replace("http://127.0.0.1:8000", address)
        run_block(code, page, line)


def run_block(code, page, line):
    program = compile("\n" * (line - 1) + code, str(page), "exec")
    with jax.numpy_rank_promotion("allow"):  # as a user has it
        exec(program, {"__name__": "__main__"})


def test_tables_are_what_the_results_say():
    command = [sys.executable, "benchmarks/tables.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_readme_is_one_screen():
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 120
    assert len(text.encode()) <= 6 * 1024


@pytest.mark.parametrize("page", [*PAGES, *BOOKS], ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_lead_somewhere(page):
    text = page.read_text("utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    paths = re.findall(r"\b(?:rag_jax|configs|launch|tests|benchmarks)/[a-z_\d/]+\.(?:py|sh)", text)
    missing = [link for link in links if not (page.parent / link).exists()]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]]
    assert [page for page in pages if f": {page}\n" not in navigation] == []
