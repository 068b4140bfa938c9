"""Searching real passages: this library's exact and ScaNN indices against FAISS's IndexFlatIP.

    pip install -e '.[bench]'
    python launch/build_index.py PASSAGES.jsonl... --workdir=DIR
    python benchmarks/index.py QUESTIONS.jsonl --index=DIR/stages/index/index [--runs=7]
        [--out=FILE]

Each line of QUESTIONS.jsonl is an object with `question`. The three sides search the embeddings of
that index for the ten best passages of 1, 64 and 1,024 questions. Results are compared before
anything is timed: FAISS's rows have to be those of the exact index, apart from rounding, and
ScaNN's recall is measured. The sides then take turns, and the table has the medians. A ratio above
one means that this library is faster. Takes two minutes on two CPU cores.
"""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

# FAISS's worker threads would otherwise keep spinning while it is another side's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bench
import faiss
import jax
import numpy as np

from rag_jax.models import load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.retrieval import Index, encode_texts
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.paths import expand_path

ENCODER = "all-minilm-l6-v2"
COUNTS, K = (1, 64, 1024), 10
SIDES = ("exact", "scann", "faiss")


def main() -> None:
    """Builds and searches, and writes the report."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("questions", type=expand_path, help="JSON lines with `question`")
    parser.add_argument("--index", type=expand_path, required=True, help="an index's folder")
    arguments = parser.parse_args()
    stored = Index.load(arguments.index, encoder=fingerprint(resolve(ENCODER)))
    questions = [record["question"] for record in read_jsonl(arguments.questions)]
    # Evenly spaced, because neighbouring questions of the file are on the same topic.
    rows = np.linspace(0, len(questions) - 1, max(COUNTS), dtype=int)
    queries = encode_texts(load(ENCODER), [questions[row] for row in rows])
    faiss.omp_set_num_threads(os.cpu_count())
    builders = {
        "exact": partial(build_ours, stored.embeddings, "exact"),
        "scann": partial(build_ours, stored.embeddings, "scann"),
        "faiss": partial(build_theirs, stored.embeddings),
    }
    indices = {side: build() for side, build in builders.items()}
    cases = {"build": lambda: (builders, {"bytes_a_passage": measure_bytes(indices, stored.size)})}
    for count in COUNTS:
        cases[f"search, {count} questions"] = partial(compare_searching, indices, queries[:count])
    facts = {"passages": stored.size, "width": stored.width, "k": K}
    packages = ("jax", "scann", "faiss-cpu", "numpy")
    bench.run_cases(arguments, cases, packages, describe=describe, **facts)


def build_ours(embeddings: np.ndarray, backend: str) -> Index:
    """Our index, once its arrays are on the device."""
    index = Index.build(embeddings, backend=backend, encoder="")
    jax.block_until_ready(index.searcher if backend == "exact" else ())
    return index


def build_theirs(embeddings: np.ndarray) -> Any:
    """FAISS's exact index."""
    index = faiss.IndexFlatIP(embeddings.shape[1])
    index.add(embeddings)
    return index


def measure_bytes(indices: dict[str, Any], passages: int) -> dict[str, float]:
    """Bytes of a passage in each index on disk."""
    sizes = {"faiss": faiss.serialize_index(indices["faiss"]).nbytes}
    for side in ("exact", "scann"):
        with tempfile.TemporaryDirectory() as folder:
            indices[side].save(Path(folder) / "index")
            files = (Path(folder) / "index").iterdir()
            sizes[side] = sum(path.stat().st_size for path in files)
    return {side: sizes[side] / passages for side in SIDES}


def compare_searching(indices: dict[str, Any], queries: np.ndarray) -> bench.Compared:
    """The ten best passages of every query."""
    sides = {side: partial(index.search, queries, K) for side, index in indices.items()}
    first = {side: bench.time_call(search) for side, search in sides.items()}
    found = {side: search() for side, search in sides.items()}
    exact_scores, exact_rows = found["exact"]
    difference = float(np.abs(found["faiss"][0] - exact_scores).max())
    same = float(np.mean(found["faiss"][1] == exact_rows))
    # Rounding may swap neighbours whose scores are nearly equal; more than that is an error.
    if difference > 1e-5 or same < 0.99:
        raise SystemExit(f"error: FAISS's scores differ by {difference}, its rows agree to {same}")
    return sides, {
        "questions": len(queries),
        "score_difference": difference,
        "same_rows": same,
        "recall": {side: measure_recall(found[side][1], exact_rows) for side in SIDES},
        "first_call_seconds": first,
    }


def measure_recall(rows: np.ndarray, expected: np.ndarray) -> float:
    """The share of each query's expected rows that were found."""
    pairs = zip(rows.tolist(), expected.tolist(), strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in pairs]))


def describe(result: dict[str, Any], _peak: None) -> str:
    """A line for each side."""
    wall, lines = result["wall_seconds"], []
    for side in SIDES:
        line = (
            f"{result['name']:24s} {side:6s} {1000 * wall[side]:9.2f} ms "
            f"(CPU {1000 * result['cpu_seconds'][side]:9.2f})  "
        )
        if "bytes_a_passage" in result:
            line += f"{result['bytes_a_passage'][side]:.0f} bytes a passage"
        else:
            line += (
                f"{result['questions'] / wall[side]:8.0f} questions/s  "
                f"recall@{K} {result['recall'][side]:.4f}  "
                f"FAISS/this {wall['faiss'] / wall[side]:5.2f}  "
                f"first call {result['first_call_seconds'][side]:5.2f} s"
            )
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
