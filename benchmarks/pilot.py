"""What the untrained model makes of datasets: can retrieval hurt there, so that routing can show?

    pip install -e '.[demo]'
    python benchmarks/pilot.py FOLDER [FOLDER ...] [--model=NAME] [--questions=300] [--split=dev]
        [--runs=runs/pilot] [--out=FILE]

FOLDER is a dataset in a format of `docs/guides/data.md`; NAME a model that `load` knows, or its
folder. Each question is answered at once, from a document that the model writes first, and from the
first passage that all-MiniLM-L6-v2 finds among the dataset's. Reading hurts where it alone is
wrong, against either of the others, and helps where it alone is right. The same command continues.
"""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import read_collection
from rag_jax.data.questions import Question, choose_questions
from rag_jax.evaluation.answers import compute_accuracy
from rag_jax.models import Pretrained, load
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import Dense, Index, encode_texts, make_text
from rag_jax.runtime.files import write_json
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
    base: Pretrained, folder: Path, workdir: Path, *, split: str, count: int
) -> dict[str, Any]:
    """The rows of a dataset, and how often reading hurts and helps."""
    context = StageContext(Stage("pilot", lambda context: None), workdir)
    context.folder.mkdir(parents=True, exist_ok=True)
    collection = read_collection(DataConfig(path=str(folder)), WorldConfig())
    questions = choose_questions(collection, split, count=count, seed=0)
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
    right: dict[str, list[bool]] = {}
    for name, way in ways.items():
        asked = context, name, questions, partial(way, **settings)
        pairs = zip(questions, answer_timed(*asked, batch_size=answer.batch_size), strict=True)
        right[name] = [bool(grade(question, record)["correct"]) for question, record in pairs]
    return {"passages": len(passages), **count_effects(questions, right)}


def count_effects(questions: Sequence[Question], right: dict[str, list[bool]]) -> dict[str, Any]:
    """Accuracies, and the numbers of questions that reading hurts and helps."""
    found: dict[str, Any] = {"n": len(questions)}
    for name, values in right.items():
        accuracy, interval = compute_accuracy(list(map(float, values)))
        found[name] = {"accuracy": accuracy, "ci95": interval}
        if name != READ:
            pairs = list(zip(values, right[READ], strict=True))
            found[name] |= {"hurts": sum(own and not read for own, read in pairs)}
            found[name] |= {"helps": sum(read and not own for own, read in pairs)}
    return found


def main() -> None:
    """Runs the pilots and writes what they found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=expand_path)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--runs", type=expand_path, default=Path("runs/pilot"))
    parser.add_argument("--out", type=expand_path)
    arguments = parser.parse_args()
    base, model = load(arguments.model), Path(arguments.model).name
    found = (
        json.loads(arguments.out.read_text()) if arguments.out and arguments.out.exists() else {}
    )
    for folder in arguments.folders:
        workdir = arguments.runs / f"{model}-{folder.name}-{arguments.split}"
        result = pilot(base, folder, workdir, split=arguments.split, count=arguments.questions)
        found[f"{folder.name}, {model}"] = {"split": arguments.split, **result}
        print(f"{folder.name}, {model}: {json.dumps(result)}")
        if arguments.out:
            write_json(arguments.out, found)


if __name__ == "__main__":
    main()
