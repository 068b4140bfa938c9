"""The command `rag-jax`: its commands, its help, and config files by name."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rag_jax.commands import main
from rag_jax.commands.describe import describe_config, describe_type, read_purposes
from rag_jax.config import TrainConfig, to_config_dict
from rag_jax.pipeline import command
from rag_jax.runtime.settings import CountOrZero, Fraction, Positive
from rag_jax.systems.srrag.config import RouteConfig, SRRAGConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture
def call(monkeypatch, capsys):
    """Runs `rag-jax` with some arguments; gives the status and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["rag-jax", *arguments])
        status = main.run()
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_command(call, arguments):
    status, out, _ = call(*arguments)
    assert status == 0
    assert all(f"    {name} " in out for name in main.COMMANDS)


def test_version_and_list(call):
    status, out, _ = call("--version")
    assert (status, out.count(".")) == (0, 2)
    status, out, _ = call("list")
    assert status == 0
    assert "presets: two-indexes, llama2-7b" in out and "self_retrieval" in out
    assert call("list", "x")[0] == 1


def test_an_unknown_command(call):
    status, out, err = call("trian", "--config=x")
    assert (status, out) == (1, "")
    assert err.startswith("error: trian: no such command; there are train, ask, serve")


@pytest.mark.parametrize("name", [name for name in main.COMMANDS])
def test_every_command_has_help(call, name):
    status, out, err = call(name, "-h")
    assert (status, err) == (0, "")
    assert out.splitlines()[0].endswith(".")


def test_help_lists_every_setting_with_type_and_range(call):
    status, out, _ = call("train", "--config=srrag:two-indexes", "--config.seed=3", "--help")
    assert status == 0
    assert "--config.seed=3\n    a whole number from 0 to 4294967295\n" in out
    assert "--config.route.tau=None\n    a number from 0 to 1, or None\n    the threshold" in out
    assert "--config.sources[2].kind=search\n    one of verbalise, search" in out

    def list_paths(value, path):
        if dataclasses.is_dataclass(value):
            for field in dataclasses.fields(value):
                yield from list_paths(getattr(value, field.name), f"{path}.{field.name}")
        elif not (isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0])):
            yield path

    described = describe_config(to_config_dict(SRRAGConfig()))
    assert all(f"--{path}=" in described for path in list_paths(SRRAGConfig(), "config"))


def test_types_and_purposes():
    assert describe_type(CountOrZero) == "a whole number at least 0"
    assert describe_type(Positive) == "a number above 0"
    assert describe_type(Fraction | None) == "a number from 0 to 1, or None"
    assert describe_type(tuple[int, ...]) == "a list, each a whole number"
    assert describe_type(bool) == "True or False"
    purposes = read_purposes(TrainConfig)
    assert set(purposes) == {field.name for field in dataclasses.fields(TrainConfig)}
    assert purposes["batch_size"] == "maximum number of examples per step."
    assert "most accurate one" in read_purposes(RouteConfig)["rate"]


def test_config_files_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command.find_config_file(["--config=prag:llama3-8b"]).parts[-2:] == (
        "configs",
        "prag.py",
    )
    (tmp_path / "configs").mkdir()
    own = tmp_path / "configs" / "prag.py"
    own.write_text((ROOT / "configs" / "prag.py").read_text())
    assert command.find_config_file(["--config=prag"]).resolve() == own
    config, _ = command.read_command(["--config=prag:llama3-8b", "--config.seed=2"], {})
    assert (config.model.name, config.seed) == ("meta-llama/Meta-Llama-3-8B-Instruct", 2)
    assert command.find_workdir(["--config=prag:llama3-8b"], {"workdir": None}) == Path("runs/prag")


def test_config_and_its_file_may_be_two_arguments(call):
    one, two = call("train", "--config=dpr", "-h"), call("train", "--config", "dpr", "-h")
    assert one == two and "--config.negatives.depth=" in one[1]
    assert call("train", "--config", "--help")[0] == 0


LIST = "import sys; from rag_jax.commands import main; sys.argv = ['rag-jax', 'list']; "
ASK = LIST.replace("'list'", "'ask', '--config=configs/rag.py', '--workdir=/nowhere'")
TRAIN = LIST.replace("'list'", "'train', '--config=configs/rag.py'")


def run_in_shell(program, redirection, **variables):
    """The status, output and errors of a command whose streams a shell redirects."""
    command = f"exec '{sys.executable}' -c \"{program} sys.exit(main.run())\" {redirection}"
    options = {"cwd": ROOT, "env": os.environ | variables, "capture_output": True, "text": True}
    done = subprocess.run(["sh", "-c", command], **options, timeout=120)
    return done.returncode, done.stdout, done.stderr


def test_streams_that_are_closed():
    """A service or a cron job may start a command without them."""
    assert run_in_shell(LIST, ">&-") == (0, "", "")
    _, out, error = run_in_shell(ASK, "<&-")
    assert (out, error.count("\n")) == ("", 1)
    assert error.endswith("/nowhere: there is no finished run; run launch/train.py with the same "
                          "--config and --workdir first\n")  # fmt: skip
    assert run_in_shell(LIST, "2>&-")[0] == 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_output_to_a_full_disk_takes_one_line():
    message = "error: the output cannot be written: No space left on device\n"
    assert run_in_shell(LIST, ">/dev/full") == (1, "", message)


def test_a_platform_that_is_not_there_takes_one_line(tmp_path):
    program = TRAIN.replace("rag.py'", f"rag.py', '--workdir={tmp_path}/run'")
    status, out, error = run_in_shell(program, "", JAX_PLATFORMS="vax")
    assert (status, out, error.count("\n")) == (1, "", 1)
    assert error.startswith("error: JAX_PLATFORMS=vax: Unable to initialize backend 'vax'")


def test_a_reader_that_leaves_ends_it_quietly():
    program = "import sys; from rag_jax.commands import main; sys.argv = ['rag-jax', 'list']; "
    program += "sys.stdin.read(); sys.exit(main.run())"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, **pipes) as process:
        process.stdout.close()
        process.stdin.close()
        said = process.stderr.read()
    assert (process.returncode, said) == (141, b"")
