"""What the untrained model makes of datasets: can retrieval hurt there, so that routing can show?

    pip install -e '.[demo]'
    python benchmarks/pilot.py [--data=data] [--model=NAME] [--questions=300] [--split=train]
        [--runs=runs] [--out=FILE]

The datasets are those of `prepare.ROUTING`, from the folder of all data as for `systems.py`;
NAME is a model that `load` knows, or its folder. Questions of each, at most --questions, are
answered at once, from a document that the model writes first, and from the first passage that
all-MiniLM-L6-v2 finds among those of all. Reading hurts where it alone is wrong, against either of
the others, and helps where it alone is right. The same command continues. The results are added to
FILE's. 300 questions of each took 67 minutes with SmolLM2-135M on two CPU cores that others used.
"""

import argparse
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
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
    base: Pretrained, folders: Sequence[Path], workdir: Path, *, split: str, count: int
) -> dict[str, dict[str, Any]]:
    """For each dataset its rows, and how often reading hurts and helps."""
    context = StageContext(Stage("pilot", lambda context: None), workdir)
    context.folder.mkdir(parents=True, exist_ok=True)
    data = DataConfig(path=os.pathsep.join(map(str, folders)))
    collection = read_collection(data, WorldConfig())
    by_dataset: dict[str, list[Question]] = defaultdict(list)
    for question in choose_questions(collection, split, count=0, seed=0):
        by_dataset[question.dataset].append(question)
    questions = [question for asked in by_dataset.values() for question in asked[:count]]
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
    right: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    picked: dict[str, dict[str, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    for name, way in ways.items():
        asked = context, name, questions, partial(way, **settings)
        pairs = zip(questions, answer_timed(*asked, batch_size=answer.batch_size), strict=True)
        for question, record in pairs:
            right[question.dataset][name].append(bool(grade(question, record)["correct"]))
            if question.choices:
                label = pick_choice(record["prediction"], question.choices)
                picked[question.dataset][name][label] += 1
    return {dataset: count_effects(right[dataset], picked[dataset]) for dataset in right}


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
    arguments = parser.parse_args()
    model, split, count = Path(arguments.model).name, arguments.split, arguments.questions
    folder = arguments.runs / "data" / "routing"
    mix_routing(arguments.data, folder)
    folders = [folder / name for name in ROUTING]
    # Answers to other questions must not be continued.
    workdir = arguments.runs / "pilot" / f"{model}-{split}-{count}"
    found = pilot(load(arguments.model), folders, workdir, split=split, count=count)
    print(json.dumps(found, indent=1))
    if arguments.out:
        known = read_json(arguments.out) if arguments.out.exists() else {}
        write_json(arguments.out, known | {model: {"split": split, "datasets": found}})


if __name__ == "__main__":
    main()
