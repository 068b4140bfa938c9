"""launch/train.py as a user runs it: messages, exit statuses, Ctrl-C and going on."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from rag_jax.commands import evaluate, plan
from rag_jax.config import DataConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import SYSTEMS
from rag_jax.systems.dpr import pipeline

ROOT = Path(__file__).parent.parent
CONFIG = "--config=configs/srrag.py"


def launch(*arguments, workdir):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "launch/train.py", *arguments, f"--workdir={workdir}"]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config=FILE is missing; there are configs/"),
        (["--config=configs/srag.py"], "config file configs/srag.py: not found; there are configs"),
        (
            [CONFIG + ":huge"],
            "config preset 'huge': must be one of two-indexes, llama2-7b, phi3.5-mini, qwen2.5-7b",
        ),
        (
            [CONFIG, "--config.stage1.lrr=1"],
            "config.stage1.lrr: no such field; did you mean config.stage1.learning_rate?",
        ),
        (
            [CONFIG, "--config.sources[0].nme=x"],
            "config.sources[0].nme: no such field; did you mean config.sources[0].name?",
        ),
        ([CONFIG, "--config.sources[9].name=x"], "config.sources[9]: no such entry"),
        ([CONFIG, "--config.sources[-1].name=x"], "config.sources[-1]: no such entry"),
        ([CONFIG, "--noconfig.ablations=true"], "--noconfig.ablations=true: takes no value; leave"),
        ([CONFIG, "--nooverwrite=1"], "--nooverwrite=1: takes no value; leave it out"),
        ([CONFIG, "--config.stage1=1"], "config.stage1: a group of fields (batch_size, "),
        ([CONFIG, "--config.seed"], "config.seed: has no value"),
        ([CONFIG, "--config.seed=1.5"], "--config.seed=1.5: invalid literal for int()"),
        ([CONFIG, "--config.system=x"], "config.system='x': must be one of dpr, prag, rag, "),
        ([CONFIG, "--wrkdir=x"], "Unknown command line flag 'wrkdir'. Did you mean: workdir"),
        ([CONFIG, "runs/x"], "runs/x: not a flag"),
    ],
)
def test_a_mistake_on_the_command_line_takes_one_line(tmp_path, arguments, message):
    done = launch(*arguments, workdir=tmp_path / "run")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def system(tmp_path):
    """A system of one slow stage, and a command that runs launch/train.py on it."""
    (tmp_path / "slow.py").write_text(
        textwrap.dedent("""
            import os
            import time
            from rag_jax.config import build
            from rag_jax.pipeline.runner import run_stages
            from rag_jax.pipeline.stage import Stage
            from rag_jax.systems.srrag.config import SRRAGConfig

            def run(config, workdir, *, executor, seeds, overwrite):
                settings = build(SRRAGConfig, config)

                def count(context):
                    def work(batch):
                        if "HANG" in os.environ and batch[0] == 6:
                            time.sleep(30)
                        print(batch, flush=True)
                        return [{"seed": settings.seed, "item": item} for item in batch]

                    context.map("out.jsonl", range(60), work, batch_size=2, unit="items")

                run_stages([Stage("count", count, {"seed": settings.seed})], workdir)
        """)
    )
    (tmp_path / "main.py").write_text(
        textwrap.dedent("""
            import importlib
            import signal
            import sys
            from rag_jax.commands import train

            # A suite that runs in the background was told to ignore it.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            rooms = {("srrag", "pipeline"): "slow"}
            train.open_room = lambda *room: importlib.import_module(rooms[room])
            sys.exit(train.run())
        """)
    )
    path = f"{ROOT}{os.pathsep}{tmp_path}"
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}

    def start(*arguments, hang=False):
        """Runs it; `hang` in its fourth batch, until it is interrupted."""
        return subprocess.Popen(
            [sys.executable, tmp_path / "main.py", CONFIG, *arguments],
            cwd=ROOT,
            env=environment | {"HANG": "1"} if hang else environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_stopped_and_the_same_command_again(tmp_path, system, number, status):
    arguments = [f"--workdir={tmp_path / 'run'}", "--config.seed=7"]
    with system(*arguments, hang=True) as process:
        for _ in range(3):
            process.stdout.readline()
        process.send_signal(number)
        _, said = process.communicate()
    assert process.returncode == status
    assert said.endswith("interrupted; the same command continues\n")
    assert "Traceback" not in said
    out = tmp_path / "run" / "stages" / "count" / "out.jsonl"
    done = sum(piece.read_text().count("\n") for piece in out.parent.glob("out.*-*.jsonl"))
    assert done in (4, 6)  # the third batch was computed, and may not have been written
    assert not out.exists()

    with system(*arguments) as process:
        batches, said = process.communicate()
    assert process.returncode == 0
    assert f"60 items, {done} done before" in said
    assert batches.count("\n") == (60 - done) // 2
    assert out.read_text() == "".join(f'{{"seed": 7, "item": {i}}}\n' for i in range(60))

    with system(*arguments) as process:
        batches, said = process.communicate()
    assert process.returncode == 0
    assert batches == ""
    assert "stage count: kept" in said


def test_a_folder_of_another_version(tmp_path, system):
    (tmp_path / "run" / "stages").mkdir(parents=True)
    with system(f"--workdir={tmp_path / 'run'}") as process:
        _, said = process.communicate()
    assert process.returncode == 1
    assert said.startswith(f"error: {tmp_path / 'run'}: the folder was made by another version of")
    assert said.count("\n") == 1


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_is_planned_for_a_slice(monkeypatch, system):
    monkeypatch.chdir(ROOT)
    with pytest.raises(RagJaxError) as caught:
        plan.main([f"--config=configs/{system}.py"])
    assert str(caught.value).startswith("--topology is missing: write CHIP:AxB")


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--data=FOLDER is missing: the dataset to evaluate the run on"),
        (["--data=x", "--split=train"], "--split=train: must be test or dev"),
        (["--data=x", "--entries=few"], "--entries=few: must be a whole number"),
        (
            ["--config=configs/dpr.py", "--data=x", "--entries=2"],
            "--entries=2: config.system='dpr'",
        ),
        (["--data=x", "--untrained", "--entries=2"], "--entries=2: an untrained model has no data"),
        (["--data=x", "--untrained", "--workdir=y"], "--untrained: takes no work folder; leave"),
        (["--data=x", "--workdir=no"], "no: there is no finished run; run launch/train.py with"),
        (["--config=configs/prag.py", "--data=x", "--workdir=no"], "no: there is no finished run"),
        (["--data=x", "--workdir=no", "--out=no/x"], "--out=no/x: is in the work folder no, which"),
    ],
)
def test_a_mistake_in_an_evaluation(monkeypatch, arguments, message):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(evaluate.command, "keep_programs", lambda: None)
    with pytest.raises(RagJaxError) as caught:
        evaluate.main([CONFIG, *arguments])
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:the load_module")
@pytest.mark.parametrize(
    ("data", "arguments", "workdir", "out"),
    [
        ("a/x", [], "runs/dpr", "runs/dpr-x"),
        ("a/x", ["--workdir=w", "--split=dev"], "w", "w-x-dev"),
        ("a/x:b/y", ["--workdir=w"], "w", "w-x-y"),
        ("a/x", ["--workdir=."], ".", f"{ROOT}-x"),
        ("a/x", ["--untrained"], None, "runs/dpr-untrained-x"),
        ("a/x", ["--untrained", "--out=o", "--overwrite"], None, "o"),
    ],
)
def test_where_an_evaluation_goes(monkeypatch, data, arguments, workdir, out):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(evaluate.command, "keep_programs", lambda: None)
    called = []
    monkeypatch.setattr(
        pipeline, "evaluate_on", lambda *given, **more: called.append((given, more))
    )
    read = ["--format=jsonl", "--config.data.bad_lines=2", "--config.data.passage_words=50"]
    evaluate.main(["--config=configs/dpr.py", f"--data={data}", *read, *arguments])
    ((given, more),) = called
    assert given[1:] == (
        workdir and Path(workdir),
        DataConfig(path=data, format="jsonl", bad_lines=2, passage_words=50),
        "dev" if "--split=dev" in arguments else "test",
        Path(out),
    )
    assert more == {"overwrite": "--overwrite" in arguments}


def test_a_value_out_of_range(tmp_path, system):
    with system(f"--workdir={tmp_path / 'run'}", "--config.verbalise.pool=1") as process:
        _, said = process.communicate()
    assert process.returncode == 1
    wanted = "error: config.verbalise.pool=1 is below config.contexts=3"
    assert said == f"{wanted}: each context needs a cluster of its own\n"
    assert not (tmp_path / "run").exists()
