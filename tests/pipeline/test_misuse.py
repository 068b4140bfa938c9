"""A finished run, misused and stopped in many ways: every byte of it stays, and one line says why.

One tiny run of dense retrieval is made, over a data folder. Commands are those of a user, with
their exit statuses.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from misused import ROOT, Place, read_bytes, write_data

from rag_jax.commands import ask, evaluate, train
from rag_jax.pipeline import records
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.systems import stages as steps

pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

# Runs the command for each signal in a child of its own, which is sent the signal while it is in
# the middle of its first stage; prints the child's status. One process imports everything.
STOPPED = textwrap.dedent("""
    import os, signal, sys, time
    from rag_jax.commands import train
    from rag_jax.systems import open_room, stages

    def hang(folder, *_, **__):
        (folder / "half").write_text("half")
        os.write(ready[1], b"1")
        time.sleep(20)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    open_room("dpr", "pipeline")
    stages.copy_collection = hang
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        ready = os.pipe()
        child = os.fork()
        if not child:
            os._exit(train.run())
        os.close(ready[1])
        os.read(ready[0], 1)
        os.kill(child, number)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
""")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A finished run; its report is of the second call, which kept every stage."""
    place = Place(tmp_path_factory.mktemp("misuse"))
    write_data(place.data)
    place.write_config()
    assert [place.call(train), place.call(train)] == [0, 0]
    assert all(stage["reused"] for stage in read_json(place.run / "report.json")["stages"])
    write_data(place.folder / "other")
    with open(place.folder / "other" / "passages.jsonl", "a") as file:
        file.write('{"id": "more", "title": "", "text": "One more."}\n')
    (place.folder / "file").write_text("x")
    (place.folder / "own" / "stages" / "corpus").mkdir(parents=True)
    (place.folder / "own" / "stages" / "corpus" / "x").write_text("mine")
    (place.folder / "broken").mkdir()
    (place.folder / "broken" / "passages.jsonl").write_text('{"id": "1", "text": "A."}\n')
    (place.folder / "broken" / "test_questions.jsonl").write_text('{"id": "1", "question": \n')
    return place


FREE = "give the new run a folder of its own, --workdir={run}-2, or overwrite the finished run with"
DIFFERS = "{run}: holds a finished run that this command would overwrite "
MISUSES = {
    "other data": (["data.path={folder}/other"], DIFFERS + "(stage corpus: settings changed"),
    "data that is not there": (["data.path=none"], "none"),
    "data that is a file": (["data.path=file"], "file"),
    "data that is blank": (["data.path= "], "config.data.path=' ': is blank"),
    "the built-in world": (["data.path="], "config.data.path=''"),
    "held-out questions": (["data.held_out=1"], DIFFERS + "(stage corpus: settings changed"),
    "another model": (
        ["encoder.name={root}/tests/golden/dpr_question"],
        DIFFERS + "(stage untrained: settings changed (encoder.name: ",
    ),
    "a model that is not there": (["encoder.name=./none"], "./none"),
    "a model of an unknown name": (["encoder.name=none"], "none is neither a folder nor a known"),
    "another rate": (
        ["train.learning_rate=0.5"],
        DIFFERS + "(stage train: settings changed (train.learning_rate: 5e-05 -> 0.5)",
    ),
    "other epochs": (["train.epochs=2"], "(train.epochs: 1 -> 2)"),
    "another seed": (["seed=3"], "stage train: settings changed (seed: 0 -> 3)"),
    "other negatives": (["negatives.kept=1"], "stage negatives: settings changed"),
    "two changes": (["seed=3", "negatives.kept=1"], ", and 1 more"),
    "other lengths": (["encoder.max_length=8"], "stage untrained: settings changed"),
    "another index": (["index.backend=scann"], '(index.backend: "exact" -> "scann")'),
    "a wrong type": (["train.epochs=many"], "--config.train.epochs=many: invalid literal"),
    "another wrong type": (["encoder.shared=maybe"], "--config.encoder.shared=maybe"),
    "out of range": (["train.epochs=-1"], "config.train.epochs=-1: must be"),
    "no number": (["train.learning_rate=nan"], "config.train.learning_rate=nan: must be"),
    "nothing to tell apart": (["train.batch_size=1", "train.negatives=0"], "no passage to tell"),
    "settings at odds": (["train.negatives=9"], "config.train.negatives=9 is above"),
    "an unknown setting": (["train.epoch=1"], "config.train.epoch: no such field; did you mean"),
    "an unknown split": (["evaluate_on=train"], "config.evaluate_on='train': must be one of"),
    "no such questions": (["evaluate_on=dev"], "the data has no such questions, but"),
}


@pytest.mark.parametrize("name", MISUSES)
def test_settings(place, capsys, name):
    changes, wanted = MISUSES[name]
    where = {"run": place.run, "folder": place.folder, "root": ROOT}
    check_refused(
        place,
        capsys,
        train,
        [f"--config.{change.format(**where)}" for change in changes],
        wanted.format(**where),
        *([FREE.format(**where)] if "holds a finished run" in wanted else []),
    )


def check_refused(place, capsys, module, arguments, *wanted):
    """The command ends with status 1 and one line with what is wanted; the folder stays."""
    before = read_bytes(place.folder)
    status = place.call(module, *arguments)
    said = capsys.readouterr().err.splitlines()
    shutil.rmtree(f"{place.run}-broken", ignore_errors=True)  # where its evaluation goes
    assert read_bytes(place.folder) == before
    assert status == 1 and said[-1].startswith("error: ")
    assert sum("error" in line for line in said) == 1 and "Traceback" not in "".join(said)
    for part in wanted:
        assert part in said[-1]


RAY = "--executor=ray"


@pytest.mark.parametrize(
    ("module", "arguments", "wanted"),
    [
        (train, ["--config={config}:prag"], "would overwrite (system: dpr -> prag)"),
        (train, ["--config={config}:none"], "config preset 'none': must be one of prag"),
        (train, ["--config=none.py"], "config file none.py: not found"),
        (train, ["--workdir="], "--workdir=: is blank"),
        (train, ["--workdir=file"], "cannot write file: file exists; choose a folder with"),
        (train, ["--workdir=file/x"], "cannot write file/x: not a directory; choose a folder"),
        (train, ["--workdir=data"], "data: has the data, which a run must not change; choose anot"),
        (train, ["--workdir=own"], "own: the folder was made by another version of rag_jax"),
        (train, ["--seeds=0"], "--seeds=0: must be at least 1"),
        (train, ["--seeds=2", "--config.seed=3"], "stage train: settings changed (seed: 0 -> 3)"),
        (train, ["--executor=slurm"], "--executor=slurm: must be local or ray"),
        (train, ["--workers=2"], "--workers=2: needs --executor=ray"),
        (train, ["--ray_address=auto"], "--ray_address=auto: needs --executor=ray"),
        (train, ["--executor=ray"], "--executor=ray: needs a number of workers by --workers=N, or"),
        (train, [RAY, "--workers=0"], "--workers=0: must be a whole number of at least 1"),
        (train, [RAY, "--workers=x"], "--workers=x: must be a whole number of at least 1"),
        (train, [RAY, "--worker_resources=TPU"], "--worker_resources=TPU: must be JSON with an"),
        (train, [RAY, '--worker_resources={{"GPU": 0}}'], "must be JSON with an amount above 0"),
        (
            train,
            [RAY, "--workers=2", "--coordinator=auto"],
            "--executor=ray: needs no --coordinator; leave",
        ),
        (train, ["--config..seed=1"], "config..seed: is no field; write fields as in a.b or"),
        (train, ["--config.seed]=1"], "config.seed]: is no field"),
        (train, ["--config.data[0]path=x"], "config.data[0]path: is no field"),
        (train, ["--coordinator=localhost"], "--coordinator=localhost: must be HOST:PORT, with"),
        (train, ["--overwrite", "--config.data.path=none"], "none"),
        (train, ["--overwrite", "--config.encoder.name=none"], "none is neither a folder nor"),
        (train, ["run"], "run: not a flag"),
        (evaluate, ["--data=none"], "none"),
        (evaluate, ["--data=broken"], "test_questions.jsonl"),
        (evaluate, ["--data=broken", "--out={run}"], "--out={run}: is in the work folder"),
        (evaluate, ["--data=broken", "--out={run}/x"], "--out={run}/x: is in the work folder"),
        (evaluate, ["--data=other", "--out=other"], "folder with --out"),
        (evaluate, ["--data=other", "--config.seed=3"], "stage train: settings changed"),
        (evaluate, ["--data=other", "--untrained", "--out={run}"], "has a run that was"),
        (evaluate, ["--data=other", "--untrained", "--workdir={run}"], "takes no work folder"),
        (ask, ["--config.depth=0", "Who?"], "config.depth=0: must be"),
        (ask, ["--config.train.epochs=2", "Who?"], "stage train: settings changed"),
        (ask, ["--corpus=none", "Who?"], "none"),
        (ask, ["--workdir=own", "Who?"], "own: the folder was made by another version of rag_jax"),
        (ask, ["--workdir=other", "Who?"], "other: there is no finished run"),
    ],
)
def test_commands(place, capsys, module, arguments, wanted):
    where = {"run": place.run, "config": place.config}
    arguments = [argument.format(**where) for argument in arguments]
    check_refused(place, capsys, module, arguments, wanted.format(**where))


# Changes that are wanted, and fail or are stopped. The first stage that changes is made beside the
# old one, so all that the run had is in its place.

OTHER = ["--overwrite", "--config.data.path=other"]


@pytest.fixture
def copied(place, tmp_path):
    return place.copy(tmp_path / "run")


def check_kept(place, copied):
    """The run has each of its files, and the original command makes nothing anew."""
    before, after = read_bytes(place.run), read_bytes(copied.run)
    assert {name: after.get(name) for name in before} == before
    assert copied.call(train) == 0
    assert read_bytes(copied.run) == before


def test_killed_and_stopped(place, copied):
    """By SIGKILL, SIGTERM and Ctrl-C, one after the other, in the middle of the first stage."""
    command = [sys.executable, "-c", STOPPED, f"--config={place.config}", *OTHER]
    done = subprocess.run(
        [*command, f"--workdir={copied.run}"],
        cwd=place.folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.stdout.split() == ["-9", "0", "130"]
    assert done.stderr.count("interrupted; the same command continues\n") == 2
    assert "Traceback" not in done.stderr
    assert (copied.run / "stages" / ".corpus.draft" / "half").exists()
    check_kept(place, copied)


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("where", "name", "error", "said"),
    [
        (steps, "copy_collection", RagJaxError("no such luck"), "error: no such luck"),
        (steps, "copy_collection", FULL, "no space left on device; free some space, then run"),
        (
            steps,
            "copy_collection",
            PermissionError(13, "Permission denied"),
            "choose a folder that",
        ),
        (steps, "copy_collection", ZeroDivisionError(), None),
        (records, "end", FULL, "no space left on device; free some space, then run the same"),
        (records, "sum_files", OSError(30, "Read-only file system"), "choose a folder that can be"),
        (Path, "rename", FULL, "no space left on device; free some space, then run the same"),
    ],
)
def test_failures(place, copied, monkeypatch, capsys, where, name, error, said):
    """A stage that fails, and a disk that is full; a bug keeps its traceback."""
    with monkeypatch.context() as patch:
        patch.setattr(where, name, fail_with(error))
        if said is None:
            with pytest.raises(type(error)):
                copied.call(train, *OTHER)
        else:
            assert copied.call(train, *OTHER) == 1
            assert said in capsys.readouterr().err.splitlines()[-1]
    if name == "rename":  # the stage has ended, and the report says what is under way
        assert "under_change" in read_json(copied.run / "report.json")
        for file in ("report.json", "report.html", "config.json"):
            shutil.copy(place.run / file, copied.run)
    check_kept(place, copied)


def test_a_swap_that_fails_puts_the_old_stage_back(place, copied, monkeypatch, capsys):
    rename = Path.rename

    def fail(self, target):
        if self.name == ".corpus.draft":
            raise FULL
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", fail)
        assert copied.call(train, *OTHER) == 1
    assert "no space left on device" in capsys.readouterr().err.splitlines()[-1]
    before, after = read_bytes(place.run / "stages"), read_bytes(copied.run / "stages")
    assert {name: after.get(name) for name in before} == before


def test_a_folder_that_another_process_holds(place, capsys):
    with open(place.run / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        check_refused(place, capsys, train, [], "in use by another run (process ", "wait for it or")
        check_refused(place, capsys, train, OTHER, "in use by another run (process ")


def test_data_that_changed_since(place, tmp_path, capsys):
    """Other passages, a file more, and none: told as other data; the old data serve again."""
    passages, added = place.data / "passages.jsonl", place.data / "dev_questions.jsonl"
    kept = passages.read_bytes()
    try:
        passages.write_bytes(kept + b'{"id": "x", "title": "", "text": "X."}\n')
        check_refused(place, capsys, train, [], "stage corpus: settings changed (source.files.pass")
        passages.write_bytes(b"")
        check_refused(place, capsys, train, [], "stage corpus: settings changed (source.files.pass")
        passages.write_bytes(kept)
        shutil.copy(place.data / "test_questions.jsonl", added)
        check_refused(place, capsys, train, [], "stage corpus: settings changed (source.files.dev_")
        added.unlink()
        place.data.rename(tmp_path / "data")
        check_refused(place, capsys, train, [], f"{place.data}: no such folder")
        shutil.copytree(tmp_path / "data", place.data)
    finally:
        passages.write_bytes(kept)
    check_kept(place, place.copy(tmp_path / "run"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser writes everywhere")
def test_a_folder_that_cannot_be_written(place, copied, capsys):
    before = read_bytes(copied.run)
    copied.run.chmod(0o500)
    try:
        assert copied.call(train) == 1
        assert "choose a folder that can be written" in capsys.readouterr().err.splitlines()[-1]
    finally:
        copied.run.chmod(0o700)
    assert read_bytes(copied.run) == before


def test_the_original_command_again(place, copied):
    """It makes nothing anew, and writes what is missing of the report."""
    before = read_bytes(copied.run)
    for files in [(), ("report.json",), ("report.html", "trained.trec"), ("config.json",)]:
        for file in files:
            (copied.run / file).unlink()
        assert copied.call(train) == 0
        assert read_bytes(copied.run) == before
    shutil.rmtree(copied.run / "predictions")
    (copied.run / "report.json").write_text("{")
    assert copied.call(train, "--overwrite") == 0
    assert read_bytes(copied.run) == before


def test_further_seeds_are_beside_the_run(place, copied):
    before = read_bytes(copied.run)
    assert copied.call(train, "--seeds=2") == 0
    after = read_bytes(copied.run)
    assert {name: after.get(name) for name in before} == before
    assert all(name.startswith("seeds/") for name in {*after} - {*before})


def test_files_of_somebody_else_stay(place, copied):
    (copied.run / "stages").rename(copied.run / "mine")
    before = read_bytes(copied.run / "mine")
    assert copied.call(train, "--overwrite") == 0
    assert read_bytes(copied.run / "mine") == before
