"""Faults injected into runs of real models, one at a time: what a run survives, at what cost.

    pip install -e '.[demo]' && python benchmarks/faults.py [--only SYSTEM ...] [--seed=0]
        [--workdir=DIR] [--out=FILE]

A small run of SR-RAG, Parametric RAG and Self-Retrieval each is first left undisturbed. Further
runs of the same command are stopped at random moments by SIGKILL, SIGTERM and Ctrl-C, or killed
while they write a checkpoint; finished runs have a file cut short or one of its bits flipped. The
command is repeated until it ends. Its results must then equal those of the undisturbed run: every
training log, label, key, ranking and answer, to the last digit, apart from seconds.

The work lost by a stop is the time since something was last added to the work folder; by a damaged
file, the seconds of the stages that run again; by a damaged checkpoint, the time since the
checkpoint before it. Takes about an hour on two CPU cores. With `--only`, the results of other
systems stay in the file.
"""

import argparse
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from rag_jax.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from rag_jax.runtime.paths import expand_path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {
    "srrag": [
        "--config.contexts=3", "--config.verbalise.pool=4", "--config.verbalise.max_tokens=8",
        "--config.verbalise.demonstrations=1", "--config.datastore.k=4",
        "--config.answer.max_tokens=8", "--config.stage1.batch_size=4",
        "--config.stage2.batch_size=4", "--config.stage1.checkpoint_every=1",
        "--config.stage2.checkpoint_every=1",
    ],
    "prag": [
        "--config.encode.start=warm", "--config.warm_up.epochs=1", "--config.encode.epochs=1",
        "--config.retrieve.passages=1", "--config.answer.max_tokens=8",
    ],
    "self_retrieval": ["--config.train.epochs=1", "--config.train.checkpoint_every=2"],
}  # fmt: skip
# Invented towns, which a model has to look up, and cities that any model knows.
TOWNS = {
    "Aldermoor": "Brennia", "Bexhaven": "Corland", "Cawdale": "Brennia", "Dunmarrow": "Eskeria",
    "Elverholt": "Corland", "Farrowmere": "Eskeria", "Greywick": "Brennia", "Hollinbeck": "Corland",
}  # fmt: skip
CITIES = {"Paris": "France", "Rome": "Italy", "Tokyo": "Japan", "Madrid": "Spain"}
# For each stage a file of every kind that the stage writes.
DAMAGED = {
    "srrag": [
        "corpus/passages.jsonl", "index/embeddings.npy", "index/Wiki/dataset.npy",
        "contexts/contexts.jsonl", "labels/labels.jsonl", "stage1/params",
        "reference/reference.jsonl", "datastore/datastore.npz", "evaluate/passes.jsonl",
    ],
    "prag": ["augment/augmented.jsonl", "warm_up/params", "encode/adapters"],
    "self_retrieval": ["trie/trie", "dense_tuned/encoder", "train/params"],
}  # fmt: skip
KILLS, STOPS, SAVES = 20, 4, 4


@dataclass
class Fault:
    """A kind of fault: how often it was injected and survived, and the seconds lost each time."""

    name: str
    injected: int = 0
    survived: int = 0
    lost: list[float] = field(default_factory=list)


class System:
    """A system's small run, with the results and the seconds of undisturbed runs."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.data = write_data(folder / "data")
        self.finished = folder / "straight"
        self.run_whole(self.finished)  # compiles the programs of all later runs
        for file in DAMAGED[name]:
            if not (self.finished / "stages" / file).exists():
                raise SystemExit(f"the run of {name} has not made {file}")
        self.expected = read_results(self.finished)
        self.seconds = self.run_whole(folder / "again")

    def run_whole(self, workdir: Path) -> float:
        """Runs the command to its end in a new folder; gives the seconds."""
        start = time.monotonic()
        code, errors = self.run(workdir)
        if code:
            raise SystemExit(f"an undisturbed run failed:\n{errors}")
        return time.monotonic() - start

    def start(self, workdir: Path, *flags: str) -> subprocess.Popen:
        """Starts the command; its standard error can be read from the process."""
        config = [f"--config=configs/{self.name}.py", f"--config.data.path={self.data}"]
        command = ["launch/train.py", *config, *SETTINGS[self.name], *flags]
        return subprocess.Popen(
            [sys.executable, *command, f"--workdir={workdir}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir: Path, *flags: str) -> tuple[int, str]:
        """Runs the command to its end; gives its exit status and standard error."""
        with self.start(workdir, *flags) as process:
            errors = process.communicate()[1]
        return process.returncode, errors

    def check(self, workdir: Path) -> bool:
        """Whether a finished run has the results of the undisturbed run."""
        return read_results(workdir) == self.expected


def main() -> None:
    """Injects every fault and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=expand_path, default=Path("runs/faults"))
    parser.add_argument(
        "--out", type=expand_path, default=ROOT / "benchmarks/results/faults_cpu.json"
    )
    arguments = parser.parse_args()
    # A shell lets background commands ignore Ctrl-C, and their children would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shutil.rmtree(arguments.workdir, ignore_errors=True)
    report = read_json(arguments.out) if arguments.out.exists() else {}
    for name in arguments.only:
        rng = random.Random(arguments.seed)
        system = System(name, arguments.workdir.absolute() / name)
        faults: list[dict[str, Any]] = []
        report[name] = {"seconds_left_alone": system.seconds, "faults": faults}
        print(f"{name}: {system.seconds:.0f} s undisturbed", flush=True)
        for fault in inject(system, rng):
            faults.append(vars(fault))
            write_json(arguments.out, report)
            lost = " / ".join(f"{x:.1f}" for x in (statistics.median(fault.lost), max(fault.lost)))
            cells = [name, fault.name, str(fault.injected), str(fault.survived), lost]
            print(f"| {' | '.join(cells)} |", flush=True)


def inject(system: System, rng: random.Random) -> Iterator[Fault]:
    """Injects every fault of a system; yields the faults."""
    same = system.check(system.folder / "again")
    yield Fault("none: the same command in another folder", 1, int(same), [0.0])
    if system.name == "srrag":
        yield stop_often(system, rng, "SIGKILL at a random moment", KILLS, signal.SIGKILL, -9)
        yield stop_often(system, rng, "SIGTERM at a random moment", STOPS, signal.SIGTERM, 0)
        yield stop_often(system, rng, "Ctrl-C at a random moment", STOPS, signal.SIGINT, 130)
        yield kill_saves(system, rng)
        yield damage_checkpoint(system, rng)
        yield spoil_loss(system)
    for number, file in enumerate(DAMAGED[system.name]):
        yield damage_file(system, rng, file, (cut_short, flip_bit)[number % 2])


def stop_often(
    system: System, rng: random.Random, name: str, count: int, number: int, status: int
) -> Fault:
    """Stops runs `count` times in all by a signal, each time somewhere in the rest of the run.

    Args:
        status: the exit status that a stopped run should have.
    """
    fault, workdir = Fault(name), system.folder / "stopped"
    with tqdm(total=count, desc=name, disable=not sys.stderr.isatty()) as bar:
        while fault.injected < count:
            shutil.rmtree(workdir, ignore_errors=True)
            as_promised, ended, stops = True, False, 0
            while as_promised and not ended:
                with system.start(workdir) as process:
                    stops_again = fault.injected < count
                    wait = rng.uniform(0, system.seconds / 2) if stops_again else None
                    ended = wait_for(process, wait)
                    if not ended:
                        process.send_signal(number)
                        fault.injected, stops = fault.injected + 1, stops + 1
                        bar.update(1)
                    errors = process.communicate()[1]
                if not ended:
                    fault.lost.append(max(0.0, time.time() - find_last_change(workdir)))
                as_promised = process.returncode == (0 if ended else status)
                if not as_promised:
                    print(errors, file=sys.stderr)
            fault.survived += stops if as_promised and system.check(workdir) else 0
    return fault


def kill_saves(system: System, rng: random.Random) -> Fault:
    """Kills runs while they write a checkpoint."""
    fault, workdir = Fault("SIGKILL while a checkpoint is written"), system.folder / "stopped"
    shutil.rmtree(workdir, ignore_errors=True)
    for _ in range(SAVES):
        with system.start(workdir) as process:
            if wait_until(process, lambda: any(workdir.glob("stages/*/*/.*.partial"))):
                time.sleep(rng.uniform(0, 0.2))
                fault.injected += 1
                fault.lost.append(time.time() - find_last_change(workdir))
                process.kill()
            process.communicate()
    code, errors = system.run(workdir)
    if code:
        print(errors, file=sys.stderr)
    elif system.check(workdir):
        fault.survived = fault.injected
    return fault


def damage_checkpoint(system: System, rng: random.Random) -> Fault:
    """Flips a bit of the newest checkpoint of a training that was killed."""
    fault, workdir = Fault("a bit of the newest checkpoint flipped"), system.folder / "stopped"
    shutil.rmtree(workdir, ignore_errors=True)
    with system.start(workdir) as process:
        has_two = wait_until(process, lambda: len(list_checkpoints(workdir)) >= 2)
        process.kill()
        process.communicate()
    if has_two:
        previous, newest = sorted(list_checkpoints(workdir), key=lambda path: int(path.name))[-2:]
        fault.injected = 1
        fault.lost.append(newest.stat().st_mtime - previous.stat().st_mtime)
        flip_bit(find_largest(newest), rng)
        code, errors = system.run(workdir)
        named = f"checkpoint {newest}: missing, cut short or altered; going back" in errors
        fault.survived = int(code == 0 and named and system.check(workdir))
    return fault


def spoil_loss(system: System) -> Fault:
    """Lets a training diverge: the run has to stop and name the examples."""
    fault, workdir = Fault("a loss that is not finite", 1, 0, [0.0]), system.folder / "stopped"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(system.finished, workdir)
    code, errors = system.run(workdir, "--config.stage1.learning_rate=1e30")
    path = workdir / "stages" / "stage1" / "nonfinite.json"
    ids = read_json(path)["ids"] if path.exists() else []
    fault.survived = int(code == 1 and bool(ids) and errors.splitlines()[-1].startswith("error: "))
    return fault


def damage_file(system: System, rng: random.Random, file: str, how: Callable[..., str]) -> Fault:
    """Damages a file of a finished run, or a folder's largest, and runs the command again."""
    workdir = system.folder / "damaged"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(system.finished, workdir)
    path = workdir / "stages" / file
    path = find_largest(path) if path.is_dir() else path
    fault = Fault(f"{file}: {how(path, rng)}", injected=1)
    before = read_seconds(workdir)
    code, errors = system.run(workdir)
    # The seconds of a repaired stage are added to those that the stage had.
    after = read_seconds(workdir)
    fault.lost.append(sum(after[run] - before.get(run, 0.0) for run in after))
    stage, *below = path.relative_to(workdir / "stages").parts
    named = f"stage {stage}: {'/'.join(below)} removed, cut short or altered" in errors
    fault.survived = int(code == 0 and named and system.check(workdir))
    return fault


def write_data(folder: Path) -> Path:
    """Writes a passage on every town and city, and a question on each of them for every split.

    Only the towns' passages have the answer: questions on cities are better answered without.
    """
    folder.mkdir(parents=True)
    texts = {
        town: f"{town} is a town on the coast of {country}." for town, country in TOWNS.items()
    }
    texts |= {city: f"{city} has a museum of clocks, which is closed." for city in CITIES}
    passages = [{"id": name, "title": name, "text": text} for name, text in texts.items()]
    write_jsonl(folder / "passages.jsonl", passages)
    forms = {"train": "In which country is {}?", "dev": "Where is {}?", "test": "{} lies where?"}
    for split, form in forms.items():
        questions = [
            {
                "id": f"{split}-{name}",
                "question": form.format(name),
                "answers": [country],
                "passage_id": name,
            }
            for name, country in (TOWNS | CITIES).items()
        ]
        write_jsonl(folder / f"{split}_questions.jsonl", questions)
    return folder


# The work folder.


def read_results(workdir: Path) -> dict[str, Any]:
    """All JSON lines and named arrays that the stages of a finished run wrote, without seconds."""
    results = {}
    for path in sorted((workdir / "stages").rglob("*.*")):
        name = str(path.relative_to(workdir))
        if path.suffix == ".npz":
            with np.load(path) as arrays:
                results[name] = {key: array.tolist() for key, array in arrays.items()}
        elif path.suffix == ".jsonl" and path.name != "speed.jsonl":
            results[name] = drop_seconds(read_jsonl(path))
    return results


def drop_seconds(value: Any) -> Any:
    """A JSON value without the fields that hold times."""
    if isinstance(value, dict):
        timed = re.compile("seconds|load_ms")
        return {key: drop_seconds(x) for key, x in value.items() if not timed.search(key)}
    return [drop_seconds(x) for x in value] if isinstance(value, list) else value


def find_last_change(workdir: Path) -> float:
    """The time when something was last added that a run can continue from; now if nothing was."""
    ignored = {"log.jsonl", "speed.jsonl", "started.json"}
    times = [
        path.stat().st_mtime
        for path in workdir.glob("stages/**/*")
        if path.is_file() and path.name not in ignored and ".partial" not in str(path)
    ]
    return max(times, default=time.time())


def read_seconds(workdir: Path) -> dict[str, float]:
    """The seconds of each finished stage, by the identifier of this making of the stage."""
    records = map(read_json, workdir.glob("stages/*/stage.json"))
    return {record["run"]: record["seconds"] for record in records}


def list_checkpoints(workdir: Path) -> list[Path]:
    """The complete checkpoints of all stages."""
    return [path for path in workdir.glob("stages/*/checkpoints/*") if path.name.isdigit()]


def find_largest(folder: Path) -> Path:
    """The largest file in a folder and its subfolders."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: (path.stat().st_size, str(path)))


def cut_short(path: Path, rng: random.Random) -> str:
    """Cuts a file short at a random byte."""
    os.truncate(path, rng.randrange(path.stat().st_size))
    return "cut short"


def flip_bit(path: Path, rng: random.Random) -> str:
    """Flips a random bit of a file."""
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return "a bit flipped"


# Processes.


def wait_for(process: subprocess.Popen, seconds: float | None) -> bool:
    """Waits for the process, for at most `seconds`; gives whether the process has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_until(process: subprocess.Popen, happened: Callable[[], bool]) -> bool:
    """Waits until something has happened or the process ends; gives whether it has happened."""
    while process.poll() is None:
        if happened():
            return True
        time.sleep(0.002)
    return False


if __name__ == "__main__":
    main()
