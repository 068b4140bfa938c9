"""The runs of the documentation: all systems, on the built-in encyclopedia and on real data.

    python benchmarks/systems.py [--data=FOLDER] [--runs=runs] [--models=FOLDER] [NAME ...]

Needs the extra `demo`. Runs the named ones, or all, through their scripts in `launch/`, each in a
work folder, and writes `benchmarks/results/systems/NAME.json`: the command, every method's numbers,
the seconds; of a comparison also `NAME_SYSTEM.json`. The same command again continues. Real data is
read from FOLDER (default `data`), which has, as their authors publish them: `squad` (dev and train,
passages and questions as JSON lines), `popqa` (`questions.jsonl`, `passages.jsonl`), `triviaqa`,
`arc_challenge`, `pubhealth`, `2wikimultihopqa`, `scifact` (BEIR), and `factbook`, what
`launch/write_questions.py` has made of the World Factbook (`docs/guides/questions.md`). The model
of `compare_popqa` and `self_retrieval_popqa`, which no hub has by name, is read from a folder of
that name in FOLDER of `--models` (default `models`).
"""

import argparse
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rag_jax.evaluation.answers import match
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.paths import expand_path

RESULTS = Path(__file__).parent / "results" / "systems"
QWEN = "qwen2.5-coder-0.5b"  # a folder of `--models`
ROUTING = ("popqa", "triviaqa", "arc_challenge", "pubhealth")


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


def split_popqa(source: Path, folder: Path) -> None:
    """PopQA's questions on subjects with a passage and a known popularity, split by subject.

    No subject is both trained on and asked about.
    """
    passages = read_jsonl(source / "passages.jsonl")
    questions = read_jsonl(source / "questions.jsonl")
    titles = {passage["title"] for passage in passages}
    asked = [q for q in questions if q["s_pop"] is not None and q["s_wiki_title"] in titles]
    subjects = sorted({q["s_wiki_title"] for q in asked})
    random.Random(0).shuffle(subjects)
    parts = {"train": subjects[:400], "dev": subjects[400:600], "test": subjects[600:]}
    write(folder / "passages.jsonl", passages)
    for name, part in parts.items():
        chosen = [q for q in asked if q["s_wiki_title"] in part]
        write(folder / f"{name}_questions.jsonl", chosen)


def cut_squad(source: Path, folder: Path) -> None:
    """Ten articles of SQuAD's development set, with 160, 60 and 80 of their questions."""
    passages = read_jsonl(source / "dev_passages.jsonl")
    questions = read_jsonl(source / "dev_questions.jsonl")
    titles = list(dict.fromkeys(passage["title"] for passage in passages))[:10]
    asked = random.Random(0).sample([q for q in questions if q["title"] in titles], 300)
    write(folder / "passages.jsonl", [p for p in passages if p["title"] in titles])
    write(folder / "train_questions.jsonl", asked[:160])
    write(folder / "dev_questions.jsonl", asked[160:220])
    write(folder / "test_questions.jsonl", asked[220:])


def open_squad(source: Path, folder: Path) -> None:
    """All of SQuAD's passages, with 400, 500 and 2,000 questions, no article in two parts.

    To train on and for choices those of its training articles, to ask those of its development set.
    """
    files = ("dev", "train")  # as the whole folder is read, so that embeddings are of the same
    passages = [p for name in files for p in read_jsonl(source / f"{name}_passages.jsonl")]
    other, asked = (read_jsonl(source / f"{name}_questions.jsonl") for name in files)
    titles = sorted({question["title"] for question in asked})
    chosen = set(random.Random(0).sample(titles, 40))
    parts = {
        "train": ([q for q in asked if q["title"] not in chosen], 400),
        "dev": ([q for q in asked if q["title"] in chosen], 500),
        "test": (other, 2000),
    }
    write(folder / "passages.jsonl", passages)
    for name, (questions, size) in parts.items():
        write(folder / f"{name}_questions.jsonl", random.Random(0).sample(questions, size))


def thin(path: Path, size: int) -> None:
    """Keeps so many of a file's records at most, drawn and in random order."""
    records = read_jsonl(path)
    write(path, random.Random(0).sample(records, min(size, len(records))))


def keep_squad(source: Path, folder: Path) -> None:
    """SQuAD's development passages, with 300 of their questions to ask and 60 for choices."""
    asked = random.Random(0).sample(read_jsonl(source / "dev_questions.jsonl"), 360)
    write(folder / "passages.jsonl", read_jsonl(source / "dev_passages.jsonl"))
    write(folder / "test_questions.jsonl", asked[:300])
    write(folder / "dev_questions.jsonl", asked[300:])


def cut_popqa(source: Path, folder: Path) -> None:
    """A hundred and sixty questions of PopQA, of as many subjects, and a corpus of 300 passages.

    40 questions to train on, 40 for choices and 80 to ask, each with a passage of its subject that
    holds an answer. The corpus has all passages of these subjects and others, drawn at random, all
    of them cut to their first 64 words.
    """
    passages = read_jsonl(source / "passages.jsonl")
    for passage in passages:
        passage["text"] = " ".join(passage["text"].split()[:64])
    by_title: dict[str, list[dict[str, Any]]] = {}
    for passage in passages:
        by_title.setdefault(passage["title"], []).append(passage)
    asked = {}
    for question in read_jsonl(source / "questions.jsonl"):
        if question["s_pop"] is None:
            continue
        title = question["s_wiki_title"]
        relevant = {
            str(passage["id"]): 1
            for passage in by_title.get(title, ())
            if match(passage["text"], question["answers"])
        }
        if relevant:
            about = {"type": question["prop"], "popularity": question["s_pop"]}
            asked.setdefault(title, []).append(
                {
                    "id": f"popqa-{question['idx']}",
                    "question": question["question"],
                    "golden_answers": question["answers"],
                    "metadata": {**about, "relevant": relevant},
                }
            )
    drawn = random.Random(0)
    titles = drawn.sample(sorted(asked), 160)
    chosen = [drawn.choice(asked[title]) for title in titles]
    own = [passage for title in titles for passage in by_title.pop(title)]
    others = [passage for passage in passages if passage["title"] in by_title]
    own += drawn.sample(others, 300 - len(own))
    write(folder / "passages.jsonl", drawn.sample(own, len(own)))
    parts = {"train": chosen[:40], "dev": chosen[40:80], "test": chosen[80:]}
    for name, part in parts.items():
        write(folder / f"{name}_questions.jsonl", part)


def mix_routing(source: Path, folder: Path) -> None:
    """The datasets of `ROUTING`: at most 300 questions, 60 and 530 of each.

    To train on, for choices and to ask, in random order. Of PopQA's subjects each is in one part;
    of ARC's and PubHealth's questions those that come with a passage are taken.
    """
    sizes = {"train": 300, "dev": 60, "test": 530}
    split_popqa(source / "popqa", folder / "popqa")
    for part, size in sizes.items():
        thin(folder / "popqa" / f"{part}_questions.jsonl", size)
    files = {
        "triviaqa": "questions_with_passages_1000.jsonl",
        "arc_challenge": "test.jsonl",
        "pubhealth": "test_part1.jsonl",
    }
    for name, file in files.items():
        all_records = read_jsonl(source / name / file)
        records = [r for r in all_records if r.get("ctxs") or r.get("ctx_text")]
        left = iter(random.Random(0).sample(records, len(records)))
        for part, size in sizes.items():
            write(folder / name / f"{part}_questions.jsonl", [*islice(left, size)])
    passages = read_jsonl(source / "triviaqa" / "passages.jsonl")
    write(folder / "triviaqa" / "passages.jsonl", passages)


def mix_sources(source: Path, folder: Path) -> None:
    """PopQA and SQuAD's development articles, with 80, 50 and 150 questions of each.

    Of PopQA's subjects and of the articles each is in one part.
    """
    split_popqa(source / "popqa", folder / "popqa")
    asked = read_jsonl(source / "squad" / "dev_questions.jsonl")
    titles = sorted({question["title"] for question in asked})
    random.Random(0).shuffle(titles)
    parts = {"train": titles[:16], "dev": titles[16:24], "test": titles[24:]}
    for name, part in parts.items():
        chosen = [question for question in asked if question["title"] in part]
        write(folder / "squad" / f"{name}_questions.jsonl", chosen)
    write(folder / "squad" / "passages.jsonl", read_jsonl(source / "squad" / "dev_passages.jsonl"))
    for name, size in {"train": 80, "dev": 50, "test": 150}.items():
        for dataset in ("popqa", "squad"):
            thin(folder / dataset / f"{name}_questions.jsonl", size)


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
    "srrag_mixture_ablations": replace(
        MIXTURE, flags=(*MIXTURE.flags, "--config.ablations=True"), folder="srrag_mixture"
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
        # Chosen on the 60 development questions.
        ("--config.dense.train.epochs=3", "--config.dense.train.learning_rate=1e-4"),
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


def write(path: Path, records: Sequence[Any]) -> None:
    """Writes JSON lines, and the folder that they are in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(record) + "\n" for record in records)


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
