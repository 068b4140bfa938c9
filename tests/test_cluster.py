"""launch/cluster: files that parse, commands that are read, scripts with a Ray that tells."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import yaml

from rag_jax.commands import build_index, train
from rag_jax.runtime.errors import RagJaxError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "launch" / "cluster"
GUIDE = ROOT / "docs" / "guides" / "multihost.md"
COMMANDS = {"launch/train.py": train.read, "launch/build_index.py": build_index.read}


def list_texts(value):
    """Every text of a file's content, a list of words as one line."""
    if isinstance(value, dict):
        return [text for inner in value.values() for text in list_texts(inner)]
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return [shlex.join(value)]
    if isinstance(value, list):
        return [text for inner in value for text in list_texts(inner)]
    return [value] if isinstance(value, str) else []


def find_commands(text):
    """The words of each command of ours in a shell's text, from its script on."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for at, word in enumerate(words):
            if word in COMMANDS:
                yield words[at:]


def list_commands():
    for path in sorted(FOLDER.glob("*.yaml")):
        for text in list_texts(yaml.safe_load(path.read_text("utf-8"))):
            yield from ((path.name, words) for words in find_commands(text))
    yield from (("ray.sh", words) for words in find_commands(find_usage(FOLDER / "ray.sh")))
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL)
    for block in blocks:
        yield from ((GUIDE.name, words) for words in find_commands(block))


def find_usage(path):
    done = subprocess.run([path, "--help"], capture_output=True, text=True, check=True)
    return done.stdout[done.stdout.index(f"  launch/cluster/{path.name}") :]


@pytest.mark.filterwarnings("ignore:the load_module")
def test_every_command_is_read(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = list(list_commands())
    files = {name for name, _ in found}
    assert files >= {*(path.name for path in FOLDER.glob("*.yaml")), "ray.sh", GUIDE.name}
    for name, (script, *arguments) in found:
        try:
            read = COMMANDS[script](arguments)
        except RagJaxError as error:
            pytest.fail(f"{name}: {shlex.join(arguments)}: {error}")
        settings = read[1] if script == "launch/train.py" else read
        if name.startswith("ray"):
            assert settings["workers"].workers and settings["workers"].resources
            assert settings["workers"].address
        if name.startswith("training"):
            assert settings["coordinator"] == "auto"
    with pytest.raises(RagJaxError, match="no such field"):
        train.read(["--config=configs/prag.py", "--config.data.pth=x"])


def test_a_jobset_has_a_process_a_host():
    job = yaml.safe_load((FOLDER / "training_jobset.yaml").read_text("utf-8"))["spec"]
    template = job["replicatedJobs"][0]["template"]["spec"]
    pod = template["template"]["spec"]
    x, y = pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"].split("x")
    chips = int(pod["containers"][0]["resources"]["limits"]["google.com/tpu"])
    assert template["parallelism"] == template["completions"] == int(x) * int(y) // chips


def test_every_path_of_the_files_is_there():
    for path in FOLDER.iterdir():
        named = re.findall(r"\b(?:launch|configs)/[\w/]+\.\w+", path.read_text("utf-8"))
        assert named and [name for name in named if not (ROOT / name).exists()] == []


# until.sh


def start_until(file, program):
    command = [FOLDER / "until.sh", file, sys.executable, "-c", textwrap.dedent(program)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | {"UNTIL_SECONDS": "1"}, **pipes)


@pytest.mark.parametrize(("status", "there", "wanted"), [(0, 1, 0), (0, 0, 75), (3, 1, 3)])
def test_a_command_that_ends(tmp_path, status, there, wanted):
    file = tmp_path / "a file"
    program = f"""
        import pathlib
        pathlib.Path({str(file)!r}).touch() if {there} else None
        raise SystemExit({status})
    """
    with start_until(file, program) as process:
        said = process.communicate()[1]
    assert process.returncode == wanted
    assert said == (
        "" if wanted != 75 else f"{file} is not there yet: the same command continues\n"
    )


def test_a_stopped_command_is_not_the_end(tmp_path):
    """It gets the signal, saves its work, and its status 0 does not count."""
    program = f"""
        import pathlib, signal, sys, time
        def stop(*_):
            time.sleep(0.3)
            pathlib.Path({str(tmp_path / "saved")!r}).touch()
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        print("ready", flush=True)
        time.sleep(60)
    """
    with start_until(tmp_path / "report.json", program) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        process.communicate()
    assert process.returncode == 75 and (tmp_path / "saved").exists()


# ray.sh

# A `ray` that notes what it is asked; `start --head` listens until it is ended, as Ray does.
FAKE = """#!{python}
import os, socket, sys, time
with open({notes!r}, "a") as file:
    print(*sys.argv[1:], sep="|", file=file)
if "--head" in sys.argv:
    port = int(sys.argv[3].split("=")[1])
    with socket.create_server(("127.0.0.1", port)):
        time.sleep(60)
"""


@pytest.fixture
def fake(tmp_path):
    notes = tmp_path / "notes"
    (tmp_path / "ray").write_text(FAKE.format(python=sys.executable, notes=str(notes)))
    (tmp_path / "ray").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}

    def launch(*arguments):
        command = [FOLDER / "ray.sh", *arguments]
        options = {"env": environment, "capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(command, **options)

    launch.read = lambda: [line.split("|") for line in notes.read_text().splitlines()]
    return launch


def test_the_first_machine_runs_the_command(fake):
    words = ["python3", "-c", "import sys; print(sys.argv[1:]); sys.exit(5)", "two words"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = f"--port={server.getsockname()[1]}"
    flags = ["--head=127.0.0.1", port, "--head-flags=--num-gpus=0 --num-cpus=1"]
    done = fake("--rank=0", *flags, *words)
    assert (done.returncode, done.stdout) == (5, "['two words']\n")
    end = time.monotonic() + 30
    while can_connect(int(port.split("=")[1])) and time.monotonic() < end:
        time.sleep(0.1)
    assert time.monotonic() < end  # Ray has been ended
    (asked,) = fake.read()
    assert asked == ["start", "--head", port, "--num-gpus=0", "--num-cpus=1", "--block"]


def can_connect(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


def test_another_machine_waits_for_the_first_and_joins(fake):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        done = fake("--rank=3", "--head=127.0.0.1", f"--port={port}", "python3", "-c", "print(1)")
    assert (done.returncode, done.stdout) == (0, "")
    assert fake.read() == [["start", f"--address=127.0.0.1:{port}", "--block"]]


@pytest.mark.parametrize("arguments", [[], ["--rank=0", "x"], ["--head=a", "x"], ["--rnk=0", "x"]])
def test_a_mistake(fake, arguments):
    done = fake(*arguments)
    assert done.returncode == 2 and done.stderr
