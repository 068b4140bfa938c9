"""Searching real passages: this library's exact and ScaNN indices against FAISS's IndexFlatIP.

    pip install -e '.[bench]'
    python launch/build_index.py PASSAGES.jsonl... --workdir=DIR
    python benchmarks/index.py QUESTIONS.jsonl --index=DIR/stages/index/index [--runs=7]
        [--out=FILE]

Each line of QUESTIONS.jsonl is an object with `question`. The three sides search the embeddings of
that index for the ten best passages of 1, 64 and 1,024 questions. What they find is compared
before anything is timed: FAISS's rows against the exact index's, which must be the same but for
rounding, and ScaNN's recall. Then they take turns, and the table has the medians. A ratio above
one means that this library is faster. Takes two minutes on two CPU cores.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

# FAISS's worker threads would otherwise keep spinning while it is another side's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import faiss
import jax
import numpy as np
from tqdm import tqdm
from turns import take_turns, time_call

from rag_jax.models import load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.retrieval import Index, encode_texts
from rag_jax.runtime.files import read_jsonl

ENCODER = "all-minilm-l6-v2"
COUNTS, K = (1, 64, 1024), 10
SIDES = ("exact", "scann", "faiss")

BeamConfig = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("questions", type=Path, help="JSON lines with `question`")
    parser.add_argument("--index", type=Path, required=True, help="an index's folder")
    parser.add_argument("--runs", type=int, default=7, help="timed turns of each side, at least 7")
    parser.add_argument("--out", type=Path, help="results file, JSON")
    arguments = parser.parse_args()
    if arguments.runs < 7:
        parser.error(f"--runs={arguments.runs}: must be at least 7")

    built = Index.load(arguments.index, encoder=fingerprint(resolve(ENCODER)))
    questions = [record["question"] for record in read_jsonl(arguments.questions)]
    # Evenly from the file, whose questions on one topic stand together.
    picked = np.linspace(0, len(questions) - 1, max(COUNTS), dtype=int)
    queries = encode_texts(load(ENCODER), [questions[i] for i in picked])
    faiss.omp_set_num_threads(os.cpu_count())
    results = [compare_building(built.embeddings, arguments.runs)]
    print(describe_building(results[0]))
    searches = make_searches(built.embeddings)
    for count in tqdm(COUNTS, desc="benchmark", unit=" cases"):
        results.append(compare_searching(searches, queries[:count], arguments.runs))
        tqdm.write(describe_searching(results[-1]))
    report = {
        "environment": describe_machine(),
        "passages": built.size,
        "width": built.width,
        "k": K,
        "results": results,
    }
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def build_ours(embeddings: np.ndarray, backend: str) -> Index:
    index = Index.build(embeddings, backend=backend, encoder="")
    jax.block_until_ready(index.searcher if backend == "exact" else ())
    return index


def build_faiss(embeddings: np.ndarray) -> Any:
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    return index


def make_builders(embeddings: np.ndarray) -> dict[str, Callable[[], Any]]:
    return {
        "exact": lambda: build_ours(embeddings, "exact"),
        "scann": lambda: build_ours(embeddings, "scann"),
        "faiss": lambda: build_faiss(embeddings),
    }


def make_searches(embeddings: np.ndarray) -> dict[str, BeamConfig]:
    indices = {side: build() for side, build in make_builders(embeddings).items()}
    return {
        "exact": lambda queries: indices["exact"].search(queries, K),
        "scann": lambda queries: indices["scann"].search(queries, K),
        "faiss": lambda queries: indices["faiss"].search(queries, K),
    }


def compare_building(embeddings: np.ndarray, runs: int) -> dict[str, Any]:
    builders = make_builders(embeddings)
    return {
        "name": "build",
        "bytes_a_passage": {s: count_bytes(b()) / len(embeddings) for s, b in builders.items()},
        **take_turns(builders, runs),
    }


def count_bytes(index: Any) -> int:
    """What the index takes on disk."""
    if not isinstance(index, Index):
        return faiss.serialize_index(index).nbytes
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        return sum(path.stat().st_size for path in (Path(folder) / "index").iterdir())


def compare_searching(
    searches: dict[str, BeamConfig], queries: np.ndarray, runs: int
) -> dict[str, Any]:
    first = {side: time_call(lambda s=search: s(queries)) for side, search in searches.items()}
    found = {side: search(queries) for side, search in searches.items()}
    exact_scores, exact_rows = found["exact"]
    difference = float(np.abs(found["faiss"][0] - exact_scores).max())
    same = float(np.mean(found["faiss"][1] == exact_rows))
    # Rounding may swap neighbours whose scores are nearly equal; more than that is an error.
    if difference > 1e-5 or same < 0.99:
        raise SystemExit(f"error: FAISS's scores differ by {difference}, its rows agree to {same}")
    return {
        "name": f"search, {len(queries)} questions",
        "questions": len(queries),
        "score_difference": difference,
        "same_rows": same,
        "recall": {side: measure_recall(found[side][1], exact_rows) for side in SIDES},
        "first_call_seconds": first,
        **take_turns({s: lambda f=f: f(queries) for s, f in searches.items()}, runs),
    }


def measure_recall(rows: np.ndarray, wanted: np.ndarray) -> float:
    pairs = zip(rows.tolist(), wanted.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def describe_building(result: dict[str, Any]) -> str:
    times = "  ".join(
        f"{side} {result['wall_seconds'][side]:.3f} s (CPU {result['cpu_seconds'][side]:.3f}), "
        f"{result['bytes_a_passage'][side]:.0f} bytes a passage"
        for side in SIDES
    )
    return f"{result['name']:24s} {times}"


def describe_searching(result: dict[str, Any]) -> str:
    wall, lines = result["wall_seconds"], []
    for side in SIDES:
        lines.append(
            f"{result['name']:24s} {side:6s} {1000 * wall[side]:9.2f} ms "
            f"(CPU {1000 * result['cpu_seconds'][side]:9.2f})  "
            f"{result['questions'] / wall[side]:8.0f} questions/s  "
            f"recall@{K} {result['recall'][side]:.4f}  FAISS/this {wall['faiss'] / wall[side]:5.2f}"
            f"  first call {result['first_call_seconds'][side]:5.2f} s"
        )
    return "\n".join(lines)


def describe_machine() -> dict[str, Any]:
    packages = ("jax", "scann", "faiss-cpu", "numpy")
    return {
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
