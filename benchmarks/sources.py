"""What decides between several indexes and the model itself: mass, the largest, or thresholds each.

    pip install -e '.[demo]'
    python benchmarks/sources.py [--runs=runs] [--run=srrag_sources] [--out=FILE]

Takes the passes of a finished run of `systems.py` that chooses the most accurate threshold on its
development questions, `--config.route.rate=None`: of the searched sources' mass together, as its
own router decides, with the datastore and without. Two further rules are tuned so: one threshold of
the largest source's product, and one for each source's product. Each then answers the test
questions, without a model: what every source answers is in the passes. Beside them stands one index
of all sources' passages, which has no source to choose: its first passage is the one that the
retriever scores highest among the sources' own first ones, the only ones that are read. Takes
seconds.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from rag_jax.config import build
from rag_jax.evaluation.answers import compute_accuracy
from rag_jax.evaluation.pairs import compare_pairs
from rag_jax.runtime.files import read_json, read_jsonl, write_json
from rag_jax.runtime.paths import expand_path
from rag_jax.systems.srrag import passes as passed
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.thresholds import ROUTERS, list_thresholds, take_taus

MASS, MERGED = "mass", "always one index of all"


class Asked(NamedTuple):
    """Some questions: what speaks for their sources, and which of these answer them rightly.

    `by_mass` is the source of each question by the run's own decision; `scores` are the retriever's
    of what every source found first, of the model itself -inf.
    """

    products: Float[np.ndarray, "N S"]
    by_mass: Int[np.ndarray, "N"]
    scores: Float[np.ndarray, "N S"]
    correct: Float[np.ndarray, "N S"]
    datasets: Sequence[str]


def choose(asked: Asked, external: Sequence[int], taus: Sequence[float]) -> Int[np.ndarray, "N"]:
    """The source of each question, of those in `external` or else the model itself.

    Of several sources whose product is above their threshold, the one with the largest is asked.
    """
    (internal,) = set(range(asked.products.shape[1])) - {*external}
    searched = asked.products[:, external]
    above = searched > np.asarray(taus)
    best = np.where(above, searched, -1).argmax(axis=1)
    return np.where(above.any(axis=1), np.asarray(external)[best], internal)


def tune(asked: Asked, external: Sequence[int], *, each: bool) -> tuple[float, ...]:
    """The most accurate thresholds, of several those that search least.

    Args:
        each: whether every source has its own; else all have the same.
    """
    searched = asked.products[:, external]
    same = [(tau,) * len(external) for tau in list_thresholds(searched.max(axis=1))]
    candidates = product(*map(list_thresholds, searched.T)) if each else same

    def rank(taus: tuple[float, ...]) -> tuple[float, float]:
        chosen = choose(asked, external, taus)
        return take(asked.correct, chosen).sum(), -np.isin(chosen, external).sum()

    return max(candidates, key=rank)


def take(values: Float[np.ndarray, "N S"], chosen: Int[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """The values of the chosen sources."""
    return np.take_along_axis(values, chosen[:, None], axis=1)[:, 0]


def compare_rules(
    dev: Asked, test: Asked, names: Sequence[str], *, internal: int, tau: float
) -> dict[str, Any]:
    """Every rule and every single source on the test questions, against mass and one index.

    Args:
        internal: the number of the model itself among the sources, which have these names.
        tau: the threshold of the mass.
    """
    external = [number for number in range(len(names)) if number != internal]
    chosen = {f"always {name}": np.full(len(test.datasets), n) for n, name in enumerate(names)}
    likeliest = test.products[:, external].argmax(axis=1)
    chosen["always the likeliest index"] = np.asarray(external)[likeliest]
    chosen[MERGED] = test.scores.argmax(axis=1)
    taus = {name: tune(dev, external, each=name == "each") for name in ("largest", "each")}
    chosen[MASS] = test.by_mass
    chosen |= {name: choose(test, external, own) for name, own in taus.items()}
    taus[MASS] = (tau,)
    scores = {name: take(test.correct, own) for name, own in chosen.items()}
    chosen["an oracle"], scores["an oracle"] = test.correct.argmax(axis=1), test.correct.max(axis=1)
    found: dict[str, Any] = {}
    for name, own in chosen.items():
        accuracy, interval = compute_accuracy(scores[name])
        found[name] = {
            "accuracy": accuracy,
            "ci95": interval,
            "retrieval_rate": float(np.isin(own, external).mean()),
            "taus": taus.get(name),
            "asked": {
                dataset: {
                    source: int((own[np.asarray(test.datasets) == dataset] == number).sum())
                    for number, source in enumerate(names)
                }
                for dataset in sorted({*test.datasets})
            },
            "against": {
                other: compare_pairs(scores[name], scores[other])
                for other in (MERGED, MASS)
                if other != name
            },
        }
    return found


def read_scores(passes: Sequence[Mapping[str, Any]]) -> Float[np.ndarray, "N S"]:
    """The retriever's score of what every source found first; -inf where nothing is searched."""
    found = [[answer.get("passages") for answer in one["answers"]] for one in passes]
    return np.asarray([[p[0]["score"] if p else -np.inf for p in one] for one in found])


def main() -> None:
    """Compares the rules and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=expand_path, default=Path("runs"))
    parser.add_argument("--run", default="srrag_sources")
    parser.add_argument("--out", type=expand_path)
    arguments = parser.parse_args()
    workdir = arguments.runs / arguments.run
    stages = workdir / "stages"
    config = build(SRRAGConfig, read_json(workdir / "config.json"))
    session = Session(config, trains=False)
    session.open_corpus(stages / "corpus")
    sets = {"thresholds": session.dev_questions, "evaluate": session.questions}

    taus = take_taus(read_json(stages / "thresholds" / "thresholds.json"))

    def read(stage: str, router: str, *, knn: bool) -> Asked:
        questions, passes = sets[stage], [*read_jsonl(stages / stage / "passes.jsonl")]
        by_mass = passed.choose(config, *passed.stack_beliefs(passes, knn=knn), taus[router])
        products = passed.weigh_passes(config, passes, knn=knn).products
        correct = passed.judge_sources(questions, passes)
        datasets = [question.dataset for question in questions]
        return Asked(products, by_mass, read_scores(passes), correct, datasets)

    names = [source.name for source in config.sources]
    internal, results = passed.list_kinds(config).index("verbalise"), {}
    for router, knn in ROUTERS.items():
        splits = (read(stage, router, knn=knn) for stage in sets)
        own = {"internal": internal, "tau": taus[router]}
        results[router] = compare_rules(*splits, names, **own)
    print(json.dumps(results, indent=1))
    if arguments.out:
        write_json(arguments.out, {"results": results})


if __name__ == "__main__":
    main()
