"""Serving a finished run of SR-RAG, from Python and by launch/serve.py."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from rag_jax.runtime.files import read_jsonl
from rag_jax.systems.srrag import serve
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.infer import Answers
from systems.asked import take_stock
from systems.served import check_answers, check_embeddings

ROOT = Path(__file__).parents[3]


def test_served_answers_are_those_of_the_evaluation(session, finished):
    workdir = finished[0]
    before = take_stock(workdir)
    served = serve.open_run(session, workdir, None)
    records = read_jsonl(workdir / "predictions" / "srrag.jsonl")
    answers = check_answers(served, session, records)
    for answer, record in zip(answers, records, strict=True):
        costs = record["prompt_tokens"], record["generated_tokens"]
        assert (answer.prompt_tokens, answer.written_tokens) == costs
        read = [(passage.title, passage.text) for passage, _ in answer.citations]
        assert (join_passages(read) == record["knowledge"]) == bool(record["retrieved"])
        assert answer.cut_off  # the tiny model never stops
    texts = [record["question"] for record in records[:3]]
    check_embeddings(served, session, "document", session.encoder, texts)
    assert served.score is None
    assert take_stock(workdir) == before


@pytest.mark.parametrize("ended", [True, False])
def test_a_served_answer_tells_whether_the_limit_cut_it_off(session, finished, monkeypatch, ended):
    limit = session.config.answer.max_tokens

    def write(engine, knowledge):
        count = len(knowledge.texts)
        return Answers(["short", "long"][:count], [limit - ended, limit][:count], [0.0] * count)

    monkeypatch.setattr(serve.Engine, "write_answers", write)
    records = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    asked = [record["question"] for record in records if record["source"] == "Wiki"][:2]
    answers = serve.open_run(session, finished[0], None).answer(asked)
    assert {answer.text: answer.cut_off for answer in answers} == {"short": not ended, "long": True}


def test_the_command_serves_until_a_signal(config_file, finished):
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra serve)")
    before = take_stock(finished[0])
    flags = [f"--config={config_file}", f"--workdir={finished[0]}", "--port=0", "--tokens=32"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "RAG_JAX_TOKEN": "secret"}
    (record, *_) = read_jsonl(finished[0] / "predictions" / "srrag.jsonl")
    started = {"cwd": ROOT, "env": environment, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "launch/serve.py", *flags], **started) as process:
        said = []
        while not said or not said[-1].startswith("serving on "):
            said.append(process.stderr.readline())
            assert said[-1], said
        messages = [{"role": "user", "content": record["question"]}]
        request = urllib.request.Request(
            f"{said[-1].split()[-1]}/chat/completions",
            json.dumps({"model": "srrag", "messages": messages}).encode(),
            {"Content-Type": "application/json", "Authorization": "Bearer secret"},
        )
        with urllib.request.urlopen(request) as response:
            (choice,) = json.load(response)["choices"]
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=30)
    assert choice["message"]["content"] == record["prediction"]
    assert (process.returncode, rest) == (0, "stopped\n")
    assert take_stock(finished[0]) == before
