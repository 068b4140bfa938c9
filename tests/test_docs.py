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

from rag_jax.commands import compare, write_questions
from rag_jax.commands.describe import describe_config
from rag_jax.pipeline.command import read_command
from rag_jax.runtime.errors import RagJaxError

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


SETTING = re.compile(r"--config\.([\w.\[\]]+)=(\"[^\"]*\"|\([^()]*\)|[^\s`\"'\\)\]]*)")
DESCRIBED = {"compare": compare.describe, "questions": write_questions.describe}


def find_settings():
    """The settings on the command lines that pages, configs and benchmarks show, each once."""
    sources = [*PAGES, *(ROOT / "configs").glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    found = {}
    for source in sources:
        text = source.read_text("utf-8")
        for field, value in SETTING.findall(text):
            if "{" not in field + value:
                found.setdefault((field, value.strip('"')), source.relative_to(ROOT))
    return [pytest.param(*flag, id=f"{page}:{flag[0]}={flag[1]}") for flag, page in found.items()]


def test_the_settings_that_are_shown_are_found():
    flags = [setting.values for setting in find_settings()]
    assert ("route.rate", "None") in flags and ("decode.curve", "(1,5,10)") in flags
    assert len(flags) > 60


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize(("field", "value"), find_settings())
def test_a_config_takes_a_setting_that_is_shown(field, value):
    refused = []
    for file in sorted((ROOT / "configs").glob("[!_]*.py")):
        number = "3" if value in ("K", "N") else value
        try:
            flags = ["--config.data.path=my_folder", f"--config.{field}={number}"]
            config, _ = read_command([f"--config={file}", *flags], {})
            DESCRIBED.get(file.stem, describe_config)(config)
        except RagJaxError as error:
            refused.append(str(error))
        else:
            return
    raise AssertionError("\n".join(refused))


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
