"""An index from files: whole, after a stop, after a change, by the command, from bad files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rag_jax.data.passages import Passage
from rag_jax.models import load
from rag_jax.models.io.hub import fingerprint
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage
from rag_jax.retrieval import Index, encode_texts, fingerprint_corpus
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_json, write_jsonl
from rag_jax.systems import embeddings
from rag_jax.systems.index import pipeline as build
from rag_jax.systems.index.pipeline import build_index

ROOT = Path(__file__).parents[3]
ENCODER = str(ROOT / "tests" / "golden" / "bert")
PASSAGES = [
    {"id": "a", "title": "One", "text": "The first of them.\u2028Still the first."},
    {"id": 7, "text": "Second, without a title."},
    {"id": "서울", "title": "Seoul", "text": "수도", "more": ["ignored"]},
]
SETTINGS = {"encoder": ENCODER, "backend": "exact", "max_length": 24}


@pytest.fixture
def files(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", PASSAGES[:2])
    write_jsonl(tmp_path / "b.jsonl", PASSAGES[2:])
    return [str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")]


def test_the_index_and_its_passages(tmp_path, files, monkeypatch, capsys):
    facts = build_index(files, tmp_path / "run", **SETTINGS)
    records = read_jsonl(tmp_path / "run/stages/passages/passages.jsonl")
    passages = [Passage(**record) for record in records]
    assert [passage.id for passage in passages] == ["a", "7", "서울"]
    assert passages[1] == Passage("7", "", "Second, without a title.")
    texts = [(p.title, p.text) if p.title else p.text for p in passages]
    index = Index.load(
        facts["folder"],
        encoder=fingerprint(Path(ENCODER)),
        corpus=fingerprint_corpus(passages),
    )
    assert index.ids == ("a", "7", "서울")
    wanted = encode_texts(load(ENCODER), texts, max_length=24)
    np.testing.assert_allclose(index.embeddings, wanted, atol=1e-6)
    assert (facts["passages"], facts["width"], "recall" in facts) == (3, index.width, False)
    assert facts["bytes"] == sum(p.stat().st_size for p in Path(facts["folder"]).iterdir())

    # Nothing is made again, and another backend keeps the embeddings.
    monkeypatch.setattr(build, "encode_texts", None)
    assert build_index(files, tmp_path / "run", **SETTINGS) == facts
    facts = build_index(files, tmp_path / "run", **SETTINGS, storage="int8")
    assert (facts["storage"], facts["recall"]) == ("int8", 1.0)
    assert Index.load(facts["folder"], encoder=index.encoder, storage="int8").backend == "exact"
    pytest.importorskip("scann")
    facts = build_index(files, tmp_path / "run", **{**SETTINGS, "backend": "scann"})
    assert (facts["backend"], facts["recall"]) == ("scann", 1.0)
    said = capsys.readouterr().err
    assert 'backend: "exact" -> "scann"' in said
    assert said.count("stage embeddings: kept") == 3


def test_a_finished_run_becomes_no_index_and_an_index_no_run(tmp_path, files):
    """Neither is replaced by a command that was given the wrong folder."""
    build_index(files, tmp_path / "index", **SETTINGS)
    kept = {p: p.read_bytes() for p in sorted((tmp_path / "index").rglob("*")) if p.is_file()}
    stages = [Stage("corpus", lambda context: None), Stage("index", lambda context: None)]
    refused = r"holds a finished index .*system: index -> rag\).*--workdir=.*index-2, or over"
    with pytest.raises(RagJaxError, match=refused):
        run_stages(stages, tmp_path / "index", config={"system": "rag"})
    assert kept == {p: p.read_bytes() for p in kept}
    run_stages(stages, tmp_path / "index", config={"system": "rag"}, overwrite=True)
    run_stages(stages, tmp_path / "run", config={"system": "rag"})
    write_json(tmp_path / "run" / "report.json", {"system": "rag"})
    kept = {p: p.read_bytes() for p in sorted((tmp_path / "run").rglob("*")) if p.is_file()}
    refused = r"run: holds a finished run .*system: rag -> index\).*--workdir=.*run-2$"
    with pytest.raises(RagJaxError, match=refused):
        build_index(files, tmp_path / "run", **SETTINGS)
    assert kept == {p: p.read_bytes() for p in kept}


def test_going_on_after_a_stop(tmp_path, files, monkeypatch):
    monkeypatch.setattr(embeddings, "PIECE", 2)
    encoded = []

    def encode(pretrained, texts, **settings):
        if len(encoded) == 1:
            encoded.append("stopped")
            raise KeyboardInterrupt
        encoded.append(len(texts))
        return encode_texts(pretrained, texts, **settings)

    monkeypatch.setattr(build, "encode_texts", encode)
    with pytest.raises(KeyboardInterrupt):
        build_index(files, tmp_path / "run", **SETTINGS)
    assert not (tmp_path / "run/stages/index").exists()
    facts = build_index(files, tmp_path / "run", **SETTINGS)
    assert encoded == [2, "stopped", 1]
    index = Index.load(facts["folder"], encoder=fingerprint(Path(ENCODER)))
    texts = [(p["title"], p["text"]) if "title" in p else p["text"] for p in PASSAGES]
    wanted = encode_texts(load(ENCODER), texts, max_length=24)
    np.testing.assert_allclose(index.embeddings, wanted, atol=1e-6)


def test_bad_lines_and_another_format(tmp_path, files):
    """Bad lines are skipped as far as allowed, and the corpus is then what is left."""
    (tmp_path / "psgs.tsv").write_text("id\ttext\ttitle\n8\tEighth.\t\na\tSecond of a name.\t\n")
    files = [*files, str(tmp_path / "psgs.tsv")]
    run = tmp_path / "run"
    with pytest.raises(
        RagJaxError, match="psgs.tsv:3: another passage has the id 'a'.*--bad_lines"
    ):
        build_index(files, run, **SETTINGS)
    facts = build_index(files, run, **SETTINGS, bad_lines=1)
    assert Index.load(facts["folder"], encoder=fingerprint(Path(ENCODER))).ids == (
        "a",
        "7",
        "서울",
        "8",
    )


def launch(*arguments):
    command = [sys.executable, "launch/build_index.py", *arguments]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def test_the_command(tmp_path, files):
    workdir = tmp_path / "run"
    done = launch(
        *files, f"--encoder={ENCODER}", "--backend=exact", "--max_length=24", f"--workdir={workdir}"
    )
    assert done.returncode == 0, done.stderr
    pattern = (
        r"\S+/stages/index/index: 3 passages by \d+ \(exact\), encoded in [\d.]+ s, \d+ a second, "
        r"indexed in [\d.]+ s, [\d.]+ MB, \d+ bytes a passage\n"
    )
    assert re.fullmatch(pattern, done.stdout)
    missing = launch(str(tmp_path / "no.jsonl"), f"--workdir={tmp_path / 'other'}")
    assert (missing.returncode, missing.stdout) == (1, "")
    assert re.fullmatch(r"error: \S+no\.jsonl: cannot be read .*\n", missing.stderr)
    assert not (tmp_path / "other").exists()
