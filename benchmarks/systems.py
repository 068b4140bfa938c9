"""The runs of the documentation: all systems, on the built-in encyclopedia and on real data.

    python benchmarks/systems.py [--data=FOLDER] [--runs=runs] [--models=FOLDER] [NAME ...]

Needs the extra `demo`. Runs the named ones, or all, through their scripts in `launch/`, each in a
work folder, and writes `benchmarks/results/systems/NAME.json`: the command, every method's numbers,
the seconds; of a comparison also `NAME_SYSTEM.json`. The same command again continues. Real data is
read from FOLDER (default `data`), which has, as their authors publish them: `squad` (dev and train,
passages and questions as JSON lines), `popqa` (`questions.jsonl`, `passages.jsonl`), `triviaqa`,
`arc_challenge`, `pubhealth`, `2wikimultihopqa`, `scifact` (BEIR), and `factbook`, what
`launch/write_questions.py` has made of the World Factbook (`docs/guides/questions.md`). Models
that no hub has by name are read from folders of that name in FOLDER of `--models` (default
`models`).
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prepare import (
    cut_popqa,
    cut_squad,
    keep_squad,
    mix_routing,
    mix_sources,
    open_squad,
    split_popqa,
)

from rag_jax.runtime.paths import expand_path

RESULTS = Path(__file__).parent / "results" / "systems"
QWEN = "qwen2.5-coder-0.5b"  # a folder of `--models`


@dataclass(frozen=True)
class Run:
    """A documented run.

    Attributes:
        config: the config file, maybe with a preset.
        flags: further flags.
        data: the folder of the dataset; the built-in encyclopedia if empty.
        prepare: writes the folder that is trained on from the dataset's folder.
        parts: the folders in it, where they are a mixture of datasets.
        folder: the work folder, if it is another run's, whose stages are kept.
        asked: the folder of the prepared data that a finished run is evaluated on.
        model: the folder of the language model, if it is not the config's.
        script: of `launch/`, that runs it.
    """

    config: str
    flags: tuple[str, ...] = ()
    data: str = ""
    prepare: Callable[[Path, Path], None] | None = None
    parts: tuple[str, ...] = ()
    folder: str = ""
    asked: str = ""
    model: str = ""
    script: str = "launch/train.py"


def name_sources(*datasets: str) -> tuple[str, ...]:
    """The settings of searched sources, each of the passages of one dataset of a mixture."""
    fields = [
        {"name": name, "token": f"<{name}>", "prefix": f"{name.lower()}/"} for name in datasets
    ]
    return tuple(
        f"--config.sources[{number}].{field}={value}"
        for number, source in enumerate(fields, start=1)
        for field, value in source.items()
    )


def teach(documents: int) -> tuple[str, ...]:
    """The settings of a translator of so many documents.

    As released, it makes one adapter for all documents: `docs/systems/prag.md`.
    """
    return (
        f"--config.translator.documents={documents}",
        "--config.translator.init=0.02",
        "--config.translator.learning_rate=1e-4",
    )


def translate(documents: int) -> Run:
    """Parametric RAG with a translator of so many documents, on a larger encyclopedia."""
    flags = (
        "--config.world.cities=1200",
        "--config.world.test=300",
        "--config.questions=100",
        *teach(documents),
    )
    return Run("configs/prag.py", flags)


# The pilot's sets that an untrained model of half a billion parameters has something to gain on,
# PopQA by reading and ARC-Challenge by its own documents. TriviaQA is asked with what is trained.
MIXTURE = Run(
    "configs/srrag.py",
    (
        "--config.train_questions=200",
        "--config.verbalise.max_tokens=48",
        "--config.route.rate=None",
        "--config.model.max_text=160",
        "--config.encoder.max_length=160",
    ),
    ".",
    mix_routing,
    ("popqa", "arc_challenge"),
    model=QWEN,
)

RUNS = {
    "srrag": Run("configs/srrag.py"),
    "srrag_seed_1": Run("configs/srrag.py", ("--config.seed=1",)),
    "srrag_seed_2": Run("configs/srrag.py", ("--config.seed=2",)),
    "srrag_ablations": Run("configs/srrag.py", ("--config.ablations=True",), folder="srrag"),
    "srrag_two_indexes": Run(
        "configs/srrag.py:two-indexes", ("--config.train_questions=150", "--config.questions=100")
    ),
    "srrag_popqa": Run(
        "configs/srrag.py",
        (
            "--config.train_questions=100",
            "--config.questions=100",
            "--config.evaluate_on=dev",
            "--config.route.tau=0.2",
            "--config.model.max_text=64",
            "--config.encoder.max_length=64",
        ),
        "popqa",
        split_popqa,
    ),
    "srrag_sources": Run(
        "configs/srrag.py:two-indexes",
        (
            *name_sources("PopQA", "SQuAD"),
            "--config.route.decision=threshold",
            "--config.route.rate=None",
            "--config.model.max_text=160",
            "--config.encoder.max_length=160",
        ),
        ".",
        mix_sources,
        ("popqa", "squad"),
    ),
    "srrag_mixture": MIXTURE,
    "srrag_shift": replace(
        MIXTURE,
        flags=(*MIXTURE.flags, "--entries=100"),
        folder="srrag_mixture",
        asked="triviaqa",
        script="launch/evaluate.py",
    ),
    "rag": Run("configs/rag.py", ("--config.ablations=True",)),
    "rag_squad": Run(
        "configs/rag.py",
        (
            "--config.evaluate_on=dev",
            "--config.train.questions=96",
            "--config.decode.questions=100",
            "--config.ranked_questions=2000",
            "--config.generator.max_length=256",
        ),
        "squad",
    ),
    "rag_squad_retriever": Run(
        "configs/rag.py",
        (
            "--config.train.generator=False",
            "--config.generator.chat=True",  # as loaded it answers in its chat template alone
            "--config.generator.max_length=256",
            "--config.passages=5",
            "--config.decode.questions=40",
            "--config.ranked_questions=2000",
        ),
        "squad",
        open_squad,
    ),
    "self_retrieval": Run("configs/self_retrieval.py", ("--config.ablations=True",)),
    "self_retrieval_squad": Run(
        "configs/self_retrieval.py",
        (
            "--config.tuning.mode=full",
            "--config.validation=60",
            "--config.indexing.epochs=3",
            "--config.indexing.learning_rate=3e-4",
            "--config.indexing.microbatch_tokens=512",
            "--config.indexing.checkpoint_every=114",
            "--config.train.learning_rate=3e-4",
            "--config.train.microbatch_tokens=512",
            "--config.train.checkpoint_every=100",
            "--config.examples.same=2",
            "--config.examples.other=0",
            "--config.search.titles=2",
            "--config.search.passages=5",
            "--config.dense.encoder.max_length=256",
        ),
        "squad",
        cut_squad,
    ),
    "self_retrieval_popqa": Run(
        "configs/self_retrieval.py",
        # Chosen on the 40 development questions.
        ("--config.ablations=True", "--config.search.lengths=mean"),
        "popqa",
        cut_popqa,
        model=QWEN,
    ),
    "prag": Run("configs/prag.py"),
    "prag_ablations": Run("configs/prag.py", ("--config.ablations=True",), folder="prag"),
    "prag_popqa": Run(
        "configs/prag.py",
        (
            "--config.ablations=True",
            # Chosen on the 40 development questions.
            "--config.encode.learning_rate=1e-3",
            "--config.augment.by=model",
            "--config.augment.max_tokens=256",
            "--config.augment.batch_size=64",
        ),
        "popqa",
        cut_popqa,
        model=QWEN,
    ),
    "prag_2wiki": Run(
        "configs/prag.py",
        (
            "--config.evaluate_on=dev",
            "--config.questions=40",
            "--config.retrieve.by=bm25",
            "--config.retrieve.passages=3",
            "--config.encode.learning_rate=1e-3",
        ),
        "2wikimultihopqa",
    ),
    "prag_translator": translate(1000),
    "prag_translator_300": translate(300),
    "prag_translator_100": translate(100),
    "prag_squad": Run("configs/prag.py", ("--config.retrieve.by=bm25",), "squad", keep_squad),
    "prag_translator_squad": Run(
        "configs/prag.py",
        ("--config.retrieve.by=bm25", *teach(1000)),
        "squad",
        keep_squad,
        folder="prag_squad",
    ),
    "dpr": Run("configs/dpr.py"),
    "dpr_scifact": Run(
        "configs/dpr.py",
        (
            "--config.encoder.max_length=256",
            "--config.train.learning_rate=2e-5",
            "--config.train.epochs=2",
        ),
        "scifact",
    ),
    "compare": Run("configs/compare.py", script="launch/compare.py"),
    "compare_factbook": Run(
        "configs/compare.py",
        ("--config.systems=('srrag', 'rag', 'prag')",),
        "factbook",
        script="launch/compare.py",
    ),
    "compare_popqa": Run(
        "configs/compare.py",
        (
            "--config.questions=0",
            # Chosen on the 40 development questions.
            "--config.self_retrieval.search.lengths=mean",
            "--config.prag.encode.learning_rate=1e-3",
            "--config.prag.augment.by=model",
            "--config.prag.augment.max_tokens=256",
        ),
        "popqa",
        cut_popqa,
        model=QWEN,
        script="launch/compare.py",
    ),
}


def find_command(name: str, run: Run, data: Path, runs: Path, models: Path) -> list[str]:
    """The script and its arguments; prepares the run's data."""
    flags, owner = [*run.flags], run.folder or name
    if run.model:
        flags.insert(0, f"--config.model.name={models / run.model}")
    if run.data:
        folder = data / run.data
        if run.prepare is not None:
            folder = runs / "data" / owner
            run.prepare(data / run.data, folder)
        parts = os.pathsep.join(str(folder / part) for part in run.parts) or folder
        flags = [f"--config.data.path={parts}", *flags]
    if run.asked:
        flags += [f"--data={folder / run.asked}", f"--out={runs / name}"]
    return [run.script, f"--config={run.config}", *flags, f"--workdir={runs / owner}"]


def summarise(
    report: dict[str, Any], command: Sequence[str], shorten: Callable[[str], str]
) -> dict[str, Any]:
    """What the documentation has of a run's report; `shorten` takes the folders out of a text."""
    stages, environment = report["stages"], report["environment"]
    shown = [shorten(flag) for flag in command if not flag.startswith(("--workdir", "--out"))]
    hits = report["analysis"].get("hits")
    return {
        "command": " ".join(["python", *shown]),
        "dataset": shorten(report["dataset"]),
        "methods": report["methods"],
        "paired": report["paired"],
        **({"hits": hits} if hits else {}),
        "tables": report["tables"],
        "seconds": {stage["name"]: stage["seconds"] for stage in stages},
        "compile_seconds": sum(stage["compile_seconds"] for stage in stages),
        "peak_memory_bytes": environment["peak_memory_bytes"],
        "environment": {key: environment[key] for key in ("device", "cpus", "python", "jax")},
    }


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=expand_path, default=Path("data"))
    parser.add_argument("--runs", type=expand_path, default=Path("runs"))
    parser.add_argument("--models", type=expand_path, default=Path("models"))
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(RUNS))
    arguments = parser.parse_args()

    def shorten(text: str) -> str:
        for folder in (arguments.runs / "data", arguments.runs, arguments.data, arguments.models):
            text = text.replace(f"{folder}/", "")
        return text

    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or RUNS:
        run = RUNS[name]
        command = find_command(name, run, arguments.data, arguments.runs, arguments.models)
        subprocess.run([sys.executable, *command], check=True)
        folder = arguments.runs / (name if run.asked else run.folder or name)
        reports = {name: folder / "report.json"}
        reports |= {f"{name}_{file.parent.name}": file for file in folder.glob("*/report.json")}
        for result, file in reports.items():
            report = json.loads(file.read_text()) if file.exists() else None
            if report is None or "under_change" in report:  # SIGTERM ends a command with status 0
                sys.exit(f"{name} was stopped; the same command continues")
            text = json.dumps(summarise(report, command, shorten), indent=1, ensure_ascii=False)
            (RESULTS / f"{result}.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
