"""What the untrained model makes of datasets: can retrieval hurt there, so that routing can show?

    pip install -e '.[demo]'
    python benchmarks/pilot.py [--data=data] [--model=NAME] [--questions=300] [--split=train]
        [--runs=runs] [--out=FILE] [DATASET ...]

The datasets are those of `prepare.ROUTING`, all or the named ones, from the folder of all data as
for `systems.py`; NAME is a model that `load` knows, or its folder. Questions of each, at most
--questions, are answered at once, from a document that the model writes first, and from the first
passage that all-MiniLM-L6-v2 finds among those of all. Reading hurts where it alone is wrong,
against either of the others, and helps where it alone is right. The same command continues. Each
dataset's results are added to FILE's. 300 questions of each took 67 minutes with SmolLM2-135M on
two CPU cores that others used.
"""

import argparse
import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from prepare import ROUTING, mix_routing

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection
from rag_jax.data.questions import Question, choose_questions
from rag_jax.evaluation.answers import compute_accuracy
from rag_jax.evaluation.choices import pick_choice
from rag_jax.models import Pretrained, load
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import Dense, Index, encode_texts, make_text
from rag_jax.runtime.files import read_json, write_json
from rag_jax.runtime.paths import expand_path
from rag_jax.systems.srrag.baselines import (
    answer_directly,
    answer_from_documents,
    answer_from_passages,
)
from rag_jax.systems.srrag.config import GroundedAnswerConfig, SRRAGConfig, VerbaliseConfig
from rag_jax.systems.srrag.data import Format
from rag_jax.systems.srrag.evaluate import grade
from rag_jax.systems.stages import answer_timed

LENGTH = 256  # tokens of a text that the encoder reads
READ = "read"


def pilot(
    base: Pretrained,
    folders: Sequence[Path],
    workdir: Path,
    *,
    split: str,
    count: int,
    asked: Sequence[str],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each asked dataset's rows, and how often reading hurts and helps there."""
    context = open_context(workdir)
    data = DataConfig(path=os.pathsep.join(map(str, folders)))
    collection = read_collection(data, WorldConfig())
    questions: dict[str, list[Question]] = defaultdict(list)
    for question in choose_questions(collection, split, count=0, seed=0):
        questions[question.dataset].append(question)
    passages = [*collection.passages]
    encoder = load("all-minilm-l6-v2")
    embed = lambda texts: encode_texts(encoder, texts, max_length=LENGTH)  # noqa: E731
    vectors = context.map(
        "embeddings.npy",
        passages,
        lambda part: embed(list(map(make_text, part))),
        batch_size=512,
        unit="passages",
    )
    searcher = Dense(Index.build(vectors, backend="exact", encoder=encoder.fingerprint), embed)
    format = Format(base.tokenizer, SRRAGConfig().sources, max_text=192)

    def search(texts: Sequence[str]) -> list[list[tuple[str, str]]]:
        _, rows = searcher.search(texts, 1)
        return [[format.cut(passages[row]) for row in own] for own in rows]

    answer = GroundedAnswerConfig(max_tokens=16)
    settings = {"base": base, "answer": answer, "seed": 0}
    verbalise = VerbaliseConfig(max_tokens=64)
    ways = {
        "direct": answer_directly,
        "verbalise": partial(answer_from_documents, verbalise=verbalise),
        READ: partial(answer_from_passages, search=search),
    }
    for dataset in asked:
        own, right, picked = questions[dataset][:count], {}, {}
        # Answers to other questions must not be continued.
        context = open_context(workdir / dataset)
        for name, way in ways.items():
            answering = context, name, own, partial(way, **settings)
            records = answer_timed(*answering, batch_size=answer.batch_size)
            pairs = list(zip(own, records, strict=True))
            right[name] = [bool(grade(question, record)["correct"]) for question, record in pairs]
            labels = [pick_choice(r["prediction"], q.choices) for q, r in pairs if q.choices]
            if labels:
                picked[name] = Counter(labels)
        yield dataset, count_effects(right, picked)


def open_context(workdir: Path) -> StageContext:
    """What keeps the answers of a work folder, so that they are continued."""
    context = StageContext(Stage("pilot", lambda context: None), workdir)
    context.folder.mkdir(parents=True, exist_ok=True)
    return context


def count_effects(
    right: Mapping[str, Sequence[bool]], picked: Mapping[str, Counter[str]]
) -> dict[str, Any]:
    """Accuracies, labels that were picked, and how many questions reading hurts and helps."""
    found: dict[str, Any] = {"n": len(right[READ])}
    for name, values in right.items():
        accuracy, interval = compute_accuracy(list(map(float, values)))
        found[name] = {"accuracy": accuracy, "ci95": interval}
        if name in picked:
            found[name]["picked"] = dict(picked[name].most_common())
        if name != READ:
            pairs = list(zip(values, right[READ], strict=True))
            found[name] |= {"hurts": sum(own and not read for own, read in pairs)}
            found[name] |= {"helps": sum(read and not own for own, read in pairs)}
    return found


def main() -> None:
    """Runs the pilot and writes what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=expand_path, default=Path("data"))
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--split", default="train")
    parser.add_argument("--runs", type=expand_path, default=Path("runs"))
    parser.add_argument("--out", type=expand_path)
    parser.add_argument("datasets", nargs="*", metavar="DATASET", help=", ".join(ROUTING))
    arguments = parser.parse_args()
    if unknown := set(arguments.datasets) - {*ROUTING}:
        parser.error(f"DATASET is none of {', '.join(ROUTING)}: {', '.join(sorted(unknown))}")
    model, split, count = Path(arguments.model).name, arguments.split, arguments.questions
    folder = arguments.runs / "data" / "routing"
    mix_routing(arguments.data, folder)
    folders = [folder / name for name in ROUTING]
    workdir = arguments.runs / "pilot" / f"{model}-{split}-{count}"
    how = {"split": split, "count": count, "asked": arguments.datasets or ROUTING}
    for dataset, found in pilot(load(arguments.model), folders, workdir, **how):
        print(json.dumps({dataset: found}, indent=1), flush=True)
        if arguments.out:
            known = read_json(arguments.out) if arguments.out.exists() else {}
            last = known.get(model, {})
            before = last["datasets"] if last.get("split") == split else {}
            known[model] = {"split": split, "datasets": before | {dataset: found}}
            write_json(arguments.out, known)


if __name__ == "__main__":
    main()
