"""What a run survives, and what it costs: faults injected into runs of real models, one at a time.

    pip install -e '.[demo]' && python benchmarks/faults.py [--only SYSTEM ...] [--seed=0]
        [--workdir=DIR] [--out=FILE]

A small run of SR-RAG, Parametric RAG and Self-Retrieval each is left alone first. Then runs of the
same command are stopped at random moments, by SIGKILL, SIGTERM and Ctrl-C, killed while they write
a checkpoint, and finished ones have a file cut short or a bit of it flipped; the command is given
again until it ends. What it made must then be what the run that was left alone made: every log of a
training, every label, key and ranking, every answer, to the last digit, the seconds alone left out.
The work lost by a stop is the time since something was last added to the work folder; by a damaged
file, the seconds that stages took again; by a damaged checkpoint, those since the one before. Takes
about an hour on two CPU cores; with `--only` other systems' results stay as they are in the file.
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

from tqdm import tqdm

from rag_jax.runtime.files import read_json, read_jsonl, write_json, write_jsonl

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
# Towns that are not, so that there is something to look up, and cities that any model knows.
TOWNS = {
    "Aldermoor": "Brennia", "Bexhaven": "Corland", "Cawdale": "Brennia", "Dunmarrow": "Eskeria",
    "Elverholt": "Corland", "Farrowmere": "Eskeria", "Greywick": "Brennia", "Hollinbeck": "Corland",
}  # fmt: skip
CITIES = {"Paris": "France", "Rome": "Italy", "Tokyo": "Japan", "Madrid": "Spain"}
# One file of every kind that a stage makes, by the stage that makes it.
DAMAGED = {
    "srrag": [
        "corpus/passages.jsonl", "index/embeddings.npy", "index/Wiki/dataset.npy",
        "contexts/contexts.jsonl", "labels/labels.jsonl", "stage1/params",
        "reference/reference.jsonl", "datastore/datastore.jsonl", "evaluate/passes.jsonl",
    ],
    "prag": ["augment/augmented.jsonl", "warm_up/params", "encode/adapters"],
    "self_retrieval": ["trie/trie", "dense_tuned/encoder", "train/params"],
}  # fmt: skip
KILLS, STOPS, SAVES = 20, 4, 4


@dataclass
class Fault:
    """A kind of fault, how often it was injected and survived, and what each time cost."""

    name: str
    injected: int = 0
    survived: int = 0
    lost: list[float] = field(default_factory=list)


class System:
    """A system's small run, and what it makes when it is left alone."""

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.data = write_data(folder / "data")
        self.straight = folder / "straight"
        self.run_whole(self.straight)  # compiles, which later runs need not
        for file in DAMAGED[name]:
            if not (self.straight / "stages" / file).exists():
                raise SystemExit(f"the run of {name} has not made {file}")
        self.wanted = read_results(self.straight)
        self.seconds = self.run_whole(folder / "again")

    def run_whole(self, workdir: Path) -> float:
        """Runs the command to its end in a new folder; the seconds that took."""
        start = time.monotonic()
        code, said = self.run(workdir)
        if code:
            raise SystemExit(f"a run that was left alone failed:\n{said}")
        return time.monotonic() - start

    def start(self, workdir: Path, *more: str) -> subprocess.Popen:
        """Starts the command; its standard error can be read from the process."""
        config = f"--config=configs/{self.name}.py"
        flags = [config, f"--config.data.path={self.data}", *SETTINGS[self.name], *more]
        return subprocess.Popen(
            [sys.executable, "launch/train.py", *flags, f"--workdir={workdir}"],
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, workdir: Path, *more: str) -> tuple[int, str]:
        """Runs the command to its end: its exit status and what it said."""
        with self.start(workdir, *more) as process:
            said = process.communicate()[1]
        return process.returncode, said

    def check(self, workdir: Path) -> bool:
        """Whether a finished run made what the one that was left alone made."""
        return read_results(workdir) == self.wanted


def main() -> None:
    """Injects every fault and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workdir", type=Path, default=Path("runs/faults"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/faults_cpu.json")
    settings = parser.parse_args()
    # What runs in the background is often told to ignore Ctrl-C, and then so is what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    shutil.rmtree(settings.workdir, ignore_errors=True)
    record = read_json(settings.out) if settings.out.exists() else {}
    for name in settings.only:
        rng = random.Random(settings.seed)
        system = System(name, settings.workdir.absolute() / name)
        faults: list[dict[str, Any]] = []
        record[name] = {"seconds_left_alone": system.seconds, "faults": faults}
        print(f"{name}: {system.seconds:.0f} s when it is left alone", flush=True)
        for fault in inject(system, rng):
            faults.append(vars(fault))
            write_json(settings.out, record)
            lost = [f"{x:.1f}" for x in (statistics.median(fault.lost), max(fault.lost))]
            print(
                f"| {name} | {fault.name} | {fault.injected} | {fault.survived} | "
                f"{lost[0]} / {lost[1]} |",
                flush=True,
            )


def inject(system: System, rng: random.Random) -> Iterator[Fault]:
    """Every fault of a system, as it has been injected."""
    again = system.check(system.folder / "again")
    yield Fault("none: the same command in another folder", 1, int(again), [0.0])
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
    """Stops runs `count` times in all, each time somewhere in what is left of them."""
    fault, workdir = Fault(name), system.folder / "stopped"
    with tqdm(total=count, desc=name, disable=not sys.stderr.isatty()) as bar:
        while fault.injected < count:
            shutil.rmtree(workdir, ignore_errors=True)
            good, ended, here = True, False, 0
            while not ended:
                with system.start(workdir) as process:
                    more = fault.injected < count
                    wait = rng.uniform(0.0, system.seconds / 2) if more else None
                    ended = wait_for(process, wait)
                    if not ended:
                        process.send_signal(number)
                        fault.injected, here = fault.injected + 1, here + 1
                        bar.update(1)
                    said = process.communicate()[1]
                if not ended:
                    fault.lost.append(max(0.0, time.time() - find_last_change(workdir)))
                good &= process.returncode == (0 if ended else status)
                if not good:
                    print(said, file=sys.stderr)
                    break
            fault.survived += here if good and system.check(workdir) else 0
    return fault


def kill_saves(system: System, rng: random.Random) -> Fault:
    """Kills runs while they write a checkpoint."""
    fault, workdir = Fault("SIGKILL while a checkpoint is written"), system.folder / "stopped"
    shutil.rmtree(workdir, ignore_errors=True)
    for _ in range(SAVES):
        with system.start(workdir) as process:
            killed = wait_until(process, lambda: any(workdir.glob("stages/*/*/.*.partial")))
            if killed:
                time.sleep(rng.uniform(0, 0.2))
                fault.injected += 1
                fault.lost.append(time.time() - find_last_change(workdir))
                process.kill()
            process.communicate()
    if finish(system, workdir):
        fault.survived = fault.injected
    return fault


def damage_checkpoint(system: System, rng: random.Random) -> Fault:
    """Flips a bit of the newest checkpoint of a training that was killed."""
    fault, workdir = Fault("a bit of the newest checkpoint flipped"), system.folder / "stopped"
    shutil.rmtree(workdir, ignore_errors=True)
    with system.start(workdir) as process:
        found = wait_until(process, lambda: len(list_checkpoints(workdir)) >= 2)
        process.kill()
        process.communicate()
    if found:
        before, newest = sorted(list_checkpoints(workdir), key=lambda path: int(path.name))[-2:]
        fault.injected = 1
        fault.lost.append(newest.stat().st_mtime - before.stat().st_mtime)
        flip_bit(find_largest(newest), rng)
        code, said = system.run(workdir)
        named = f"checkpoint {newest}: missing, cut short or altered; going back" in said
        fault.survived = int(code == 0 and named and system.check(workdir))
    return fault


def spoil_loss(system: System) -> Fault:
    """Lets the training diverge: the run has to stop, and name the examples."""
    fault, workdir = Fault("a loss that is not finite"), system.folder / "stopped"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(system.straight, workdir)
    code, said = system.run(workdir, "--config.stage1.learning_rate=1e30")
    saved = workdir / "stages" / "stage1" / "nonfinite.json"
    ids = read_json(saved)["ids"] if saved.exists() else []
    fault.injected = 1
    fault.survived = int(code == 1 and bool(ids) and said.splitlines()[-1].startswith("error: "))
    fault.lost.append(0.0)
    return fault


def damage_file(system: System, rng: random.Random, file: str, how: Callable[..., str]) -> Fault:
    """Damages a file of a finished run, and runs the command again."""
    workdir = system.folder / "damaged"
    shutil.rmtree(workdir, ignore_errors=True)
    shutil.copytree(system.straight, workdir)
    path = workdir / "stages" / file
    path = find_largest(path) if path.is_dir() else path
    fault = Fault(f"{file}: {how(path, rng)}", injected=1)
    before = read_seconds(workdir)
    code, said = system.run(workdir)
    # A stage that was mended goes on counting.
    after = read_seconds(workdir)
    fault.lost.append(sum(after[run] - before.get(run, 0.0) for run in after))
    stage, *below = path.relative_to(workdir / "stages").parts
    named = f"stage {stage}: {'/'.join(below)} removed, cut short or altered" in said
    fault.survived = int(code == 0 and named and system.check(workdir))
    return fault


def write_data(folder: Path) -> Path:
    """A passage on every town and city, and questions on all of them in every split.

    What is asked is in the towns' passages alone: cities are better answered without.
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


# What runs leave behind.


def read_results(workdir: Path) -> dict[str, Any]:
    """Everything that a finished run's stages wrote as JSON lines, without seconds."""
    results = {}
    for path in sorted((workdir / "stages").rglob("*.jsonl")):
        if path.name != "speed.jsonl":
            results[str(path.relative_to(workdir))] = drop_seconds(read_jsonl(path))
    return results


def drop_seconds(value: Any) -> Any:
    """A JSON value without the fields that tell of time."""
    if isinstance(value, dict):
        timed = re.compile("seconds|load_ms")
        return {key: drop_seconds(x) for key, x in value.items() if not timed.search(key)}
    return [drop_seconds(x) for x in value] if isinstance(value, list) else value


def find_last_change(workdir: Path) -> float:
    """When something was last added that a run goes on from; now, where nothing was begun."""
    passing = {"log.jsonl", "speed.jsonl", "started.json"}
    times = [
        path.stat().st_mtime
        for path in workdir.glob("stages/**/*")
        if path.is_file() and path.name not in passing and ".partial" not in str(path)
    ]
    return max(times, default=time.time())


def read_seconds(workdir: Path) -> dict[str, float]:
    """The seconds that each finished stage took, by what tells one making of it from another."""
    records = map(read_json, workdir.glob("stages/*/stage.json"))
    return {record["run"]: record["seconds"] for record in records}


def list_checkpoints(workdir: Path) -> list[Path]:
    return [path for path in workdir.glob("stages/*/checkpoints/*") if path.name.isdigit()]


def find_largest(folder: Path) -> Path:
    """The largest file in a folder and below."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return max(files, key=lambda path: (path.stat().st_size, str(path)))


def cut_short(path: Path, rng: random.Random) -> str:
    os.truncate(path, rng.randrange(path.stat().st_size))
    return "cut short"


def flip_bit(path: Path, rng: random.Random) -> str:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return "a bit flipped"


# Processes.


def wait_for(process: subprocess.Popen, seconds: float | None) -> bool:
    """Waits so long at most; whether the process has ended."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def wait_until(process: subprocess.Popen, happened: Callable[[], bool]) -> bool:
    """Waits until something happens or the process ends; whether it happened."""
    while process.poll() is None:
        if happened():
            return True
        time.sleep(0.002)
    return False


def finish(system: System, workdir: Path) -> bool:
    """Runs the command to its end; whether it made what it should."""
    code, said = system.run(workdir)
    if code:
        print(said, file=sys.stderr)
    return code == 0 and system.check(workdir)


if __name__ == "__main__":
    main()
