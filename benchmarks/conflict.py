"""Whom the model believes: a document's adapter, or another revision of the document in its prompt.

    pip install -e '.[demo]'
    python benchmarks/conflict.py [--runs=runs] [--run=prag_translator_300] [--out=FILE]

Takes the translator of a finished run of `systems.py` on the built-in encyclopedia. Asks at most
100 questions that the encyclopedia's two revisions answer differently, about documents that the
translator was not trained on, each with its document: `launch/evaluate.py` trains and makes
adapters of the documents of revision 0 and answers from these; then the same questions are answered
with the documents of revision 1 in the prompt, without adapters and with those of revision 0.
Results go to FILE, work to the folder `conflict` in --runs, where the same command continues.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from systems import RUNS, find_command, write

from rag_jax.config import build
from rag_jax.data.batches import round_up
from rag_jax.data.gazetteer import build_world, list_changes
from rag_jax.data.gazetteer.scene import Passage, Question
from rag_jax.evaluation.answers import compute_accuracy, match
from rag_jax.evaluation.compare import Record
from rag_jax.evaluation.pairs import compare_pairs
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.files import read_json, read_jsonl, write_json
from rag_jax.runtime.paths import expand_path
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.evaluate import answer_batch
from rag_jax.systems.prag.session import Session
from rag_jax.systems.stages import answer_timed

OLD, NEW = "adapter's answer", "prompt's answer"
# For each way whose adapters of revision 0 are applied; the prompt has the document of revision 1.
WAYS = {
    "in_context": None,
    "both": "own",
    "random_both": "random",
    "translated_both": "translated",
    "translated_random_both": "random_translated",
}
# The same ways where the prompt has the document of revision 0.
AGREEING = ("in_context", "parametric", "both", "translated", "translated_both")


def choose_changes(
    workdir: Path, world: Mapping[str, Any], count: int
) -> list[tuple[Question, Question]]:
    """Questions that the revisions answer differently, on documents that were not trained on."""
    found = read_jsonl(workdir / "stages" / "translator_documents" / "found.jsonl")
    taught = {id for record in found for id in record["passages"]}
    sizes = {name: world[name] for name in ("cities", "countries", "seed")}
    pairs = [pair for pair in list_changes(**sizes) if pair[0].passage_id not in taught]
    order = np.random.default_rng(0).permutation(len(pairs))
    return [pairs[i] for i in order[:count]]


def write_data(
    folder: Path, passages: Sequence[Passage], changes: Sequence[tuple[Question, Question]]
) -> None:
    """Writes the documents of revision 0 with the questions as that revision answers them."""
    write(folder / "passages.jsonl", [vars(passage) for passage in passages])
    records = [
        {
            "id": old.id,
            "question": old.question,
            "answers": old.answers,
            "passage_id": old.passage_id,
        }
        for old, _ in changes
    ]
    write(folder / "test_questions.jsonl", records)


def answer_all(
    config: PRAGConfig,
    run: Path,
    folder: Path,
    revised: Mapping[str, Passage],
    changes: Sequence[tuple[Question, Question]],
) -> dict[str, list[Record]]:
    """The answers of every way to the questions whose document is found, as `run` found it."""
    session = Session(config, trains=False)
    stages, variant = run / "stages", session.variants["encode"]
    stores = {"own": session.open_store(stages / "encode" / "adapters", variant)}
    stores["translated"] = session.open_translated(stages / "translate")
    stores |= {"random": stores["own"], "random_translated": stores["translated"]}
    context = StageContext(Stage("conflict", lambda context: None), folder / "stages")
    context.folder.mkdir(parents=True, exist_ok=True)
    ids = [old.passage_id for old, _ in changes]
    # The document of the question that comes half the list later, on another country.
    others = np.roll(ids, -(len(ids) // 2)).tolist()
    if any(id.split("/")[1] == other.split("/")[1] for id, other in zip(ids, others, strict=True)):
        raise ValueError("another question's document is on the same country")
    prompts = [
        session.format.encode_prompt(old.question, [revised[old.passage_id]]) for old, _ in changes
    ]
    engine = session.make_engine(round_up(max(map(len, prompts)), 32))
    merged = {"own": ids, "translated": ids, "random": others, "random_translated": others}
    answers = {}
    for name, kind in WAYS.items():
        given = [[id] for id in merged[kind]] if kind else [[]] * len(ids)
        facts = [{"adapters": own} for own in given]
        answer = partial(answer_batch, engine, prompts, facts, kind and stores[kind])
        places, size = range(len(ids)), config.answer.batch_size
        answers[name] = answer_timed(context, name, places, answer, batch_size=size)
        assert not any(record["lost"] for record in answers[name])
    return answers


def grade(
    answers: Sequence[str], changes: Sequence[tuple[Question, Question]]
) -> dict[str, list[float]]:
    """Whether each answer holds revision 0's, which adapters are made of, and revision 1's.

    Not whether it is equal: without an adapter the model answers in sentences.
    """
    pairs = [*zip(answers, changes, strict=True)]
    return {
        OLD: [match(answer, old.answers) for answer, (old, _) in pairs],
        NEW: [match(answer, new.answers) for answer, (_, new) in pairs],
    }


def summarise(graded: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Shares of both answers, and what adapters change of what the prompt alone gives."""
    found: dict[str, Any] = {}
    for name, scores in graded.items():
        found[name] = {}
        for which, values in scores.items():
            share, interval = compute_accuracy(values)
            found[name][which] = {"share": share, "ci95": interval}
            if name != "in_context":
                pair = np.asarray(values), np.asarray(graded["in_context"][which])
                found[name][which]["against_in_context"] = compare_pairs(*pair)
    return found


def main() -> None:
    """Runs the comparison and writes it down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=expand_path, default=Path("runs"))
    parser.add_argument("--run", default="prag_translator_300")
    parser.add_argument("--out", type=expand_path)
    arguments = parser.parse_args()
    workdir, folder = arguments.runs / arguments.run, arguments.runs / "conflict" / arguments.run
    settings = read_json(workdir / "config.json")
    config = build(PRAGConfig, settings)
    worlds = [build_world(**settings["world"] | {"revision": revision}) for revision in (0, 1)]
    changes = choose_changes(workdir, settings["world"], config.questions)
    write_data(folder / "data", worlds[0].passages, changes)
    run = folder / "run"
    _, *flags = find_command(arguments.run, RUNS[arguments.run], Path(), arguments.runs, Path())
    flags += [f"--data={folder / 'data'}", f"--out={run}"]
    subprocess.run([sys.executable, "launch/evaluate.py", *flags], check=True)
    retrieved = {r["id"]: r["passages"] for r in read_jsonl(run / "stages/retrieve/found.jsonl")}
    asked = [pair for pair in changes if retrieved[pair[0].id] == [pair[0].passage_id]]
    revised = {passage.id: passage for passage in worlds[1].passages}
    answers = answer_all(config, run, folder, revised, asked)
    graded = {n: grade([r["prediction"] for r in own], asked) for n, own in answers.items()}
    agreeing = {}
    for name in AGREEING:
        rows = {r["id"]: r["prediction"] for r in read_jsonl(run / f"predictions/{name}.jsonl")}
        agreeing[name] = grade([rows[old.id] for old, _ in asked], asked)
    results = {"n": len(asked), "asked": len(changes), "conflict": summarise(graded)}
    results["agreement"] = summarise(agreeing)
    print(json.dumps(results, indent=1))
    if arguments.out:
        write_json(arguments.out, {"results": results})


if __name__ == "__main__":
    main()
