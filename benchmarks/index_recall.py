"""Approximate search at equal recall: this library's backends against FAISS's own search.

    pip install -e '.[bench]'
    python launch/build_index.py PASSAGES.jsonl... --workdir=DIR
    python benchmarks/index_recall.py QUESTIONS.jsonl --index=DIR/stages/index/index [--runs=7]
        [--jittered=1000000] [--out=FILE]

The corpora are the embeddings of that index, and `--jittered` vectors that are these with noise: a
vector and its original have a cosine of 0.8. Each side searches with the least effort (partitions
or rows of a graph that are looked at) that finds 0.95 and 0.99 of the exact ten best passages of
1,024 questions; then the sides take turns with 1, 64 and all questions. `FAISS HNSW` and
`FAISS IVF-RaBitQ` are FAISS's search, with FAISS's rescoring, in the same graph and partitions that
this library's backends have built. A process of its own loads each saved index and says how much
memory that takes, beside the file of embeddings, which is mapped.
"""

import argparse
import functools
import gc
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# FAISS's worker threads would otherwise keep spinning while it is another side's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import bench
import faiss
import jax
import numpy as np
from index import COUNTS, ENCODER, K, measure_recall

from rag_jax.models import load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.retrieval import Index, encode_texts
from rag_jax.retrieval.backends import BACKENDS
from rag_jax.retrieval.matrices import score_rows
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.paths import expand_path

RECALLS = 0.95, 0.99
EFFORTS = [effort for step in range(1, 14) for effort in (2**step, 3 * 2 ** (step - 1))]
NOISE = 0.75  # the length of the noise beside a vector of length 1
BLOCK = 1 << 16  # rows of noise that are made together
# The backend, and the storage.
MEASURED = [("exact", kind) for kind in ("float32", "float16", "int8")]
MEASURED += [(name, "float32") for name in BACKENDS if name not in ("exact", "faiss_flat")]
Search = Callable[[np.ndarray, int], np.ndarray]


def main() -> None:
    """Measures both corpora, and writes the report."""
    if sys.argv[1:2] == ["--memory-of"]:
        print(measure_memory(Path(sys.argv[2])))
        return
    parser = bench.make_parser(__doc__)
    parser.add_argument("questions", type=expand_path, help="JSON lines with `question`")
    parser.add_argument("--index", type=expand_path, required=True, help="an index's folder")
    parser.add_argument("--jittered", type=int, default=1_000_000, help="vectors; 0 for none")
    arguments = parser.parse_args()
    stored = Index.load(arguments.index, encoder=fingerprint(resolve(ENCODER)))
    questions = [record["question"] for record in read_jsonl(arguments.questions)]
    rows = np.linspace(0, len(questions) - 1, max(COUNTS), dtype=int)
    queries = encode_texts(load(ENCODER), [questions[row] for row in rows])
    with tempfile.TemporaryDirectory() as folder:
        run(arguments, stored.embeddings, queries, Path(folder))


def run(
    arguments: argparse.Namespace, embeddings: np.ndarray, queries: np.ndarray, folder: Path
) -> None:
    """Runs the cases of both corpora."""
    corpora = {"real": functools.cache(lambda: Corpus(embeddings, queries, folder))}
    if arguments.jittered:
        jitter_all = functools.partial(jitter, embeddings, arguments.jittered, folder / "noisy.npy")
        corpora["jittered"] = functools.cache(lambda: Corpus(jitter_all(), queries, folder))
    cases = {}
    for name, corpus in corpora.items():
        cases[f"{name}, building"] = lambda c=corpus: ({}, c().facts)
        for recall in RECALLS:
            for count in COUNTS:
                case = f"{name}, recall {recall}, {count} questions"
                cases[case] = lambda c=corpus, r=recall, n=count: c().compare(r, n)
    packages = ("jax", "scann", "faiss-cpu", "numpy")
    bench.run_cases(arguments, cases, packages, describe=describe, k=K)


def jitter(embeddings: np.ndarray, count: int, path: Path) -> np.ndarray:
    """Writes `count` vectors of length 1, each one of the embeddings with noise, and maps them."""
    width = embeddings.shape[1]
    vectors = np.lib.format.open_memmap(path, "w+", np.float32, (count, width))
    rng = np.random.default_rng(0)
    for start in range(0, count, BLOCK):
        rows = np.arange(start, min(start + BLOCK, count)) % len(embeddings)
        noise = rng.standard_normal((len(rows), width), np.float32) * (NOISE / width**0.5)
        block = embeddings[rows] + noise
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        vectors[start : start + len(rows)] = block
    vectors.flush()
    return np.load(path, mmap_mode="r")


class Corpus:
    """Embeddings with their indices, and what each side needs for a recall.

    Attributes:
        facts: size, seconds to build, bytes of a passage in each index on disk and in memory, and
            recall with the settings of that size.
    """

    def __init__(self, embeddings: np.ndarray, queries: np.ndarray, folder: Path):
        self.embeddings, self.queries = np.asarray(embeddings), queries
        self.best = faiss.knn(queries, self.embeddings, K, faiss.METRIC_INNER_PRODUCT)[1]
        self.facts: dict[str, Any] = {"passages": len(embeddings), "width": embeddings.shape[1]}
        kinds = ("build_seconds", "bytes_on_disk", "bytes_in_memory", "recall")
        self.facts |= {kind: {} for kind in kinds}
        built = {}
        for backend, storage in MEASURED:
            index = self._build(backend, storage, folder)
            if backend in ("scann", "faiss_hnsw", "faiss_ivfrabitq"):
                built[backend] = index
        self.sides: dict[str, Search] = {
            name: functools.partial(search_ours, index) for name, index in built.items()
        }
        self.sides |= list_theirs(built)
        most = {side: len(embeddings) // 4 for side in self.sides}
        partitions = built["faiss_ivfrabitq"].searcher.parts[0].index.nlist
        most |= {"faiss_ivfrabitq": partitions, "FAISS IVF-RaBitQ": partitions}
        self.efforts = {
            side: [*(effort for effort in EFFORTS if effort < end), end]
            for side, end in most.items()
        }
        self.tuned: dict[float, dict[str, tuple[int, float]]] = {}

    def _build(self, backend: str, storage: str, folder: Path) -> Index:
        name = backend if storage == "float32" else f"{backend}, {storage}"
        seconds = time.perf_counter()
        index = Index.build(self.embeddings, backend=backend, encoder="", storage=storage)
        self.facts["build_seconds"][name] = time.perf_counter() - seconds
        with tempfile.TemporaryDirectory(dir=folder) as inner:
            index.save(Path(inner) / "index")
            files = (Path(inner) / "index").iterdir()
            size = sum(path.stat().st_size for path in files)
            command = [sys.executable, __file__, "--memory-of", f"{inner}/index"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = index.search(self.queries, K)[1]
        self.facts["recall"][name] = measure_recall(found, self.best)
        self.facts["bytes_on_disk"][name] = size / index.size
        self.facts["bytes_in_memory"][name] = int(done.stdout) / index.size
        return index

    def tune(self, side: str, recall: float) -> tuple[int, float]:
        """The least effort of a side that has the recall, and the recall; else the most effort."""
        for effort in self.efforts[side]:
            found = measure_recall(self.sides[side](self.queries, effort), self.best)
            if found >= recall:
                break
        return effort, found

    def compare(self, recall: float, count: int) -> bench.Compared:
        """The sides with the least effort for a recall, for some of the questions."""
        if recall not in self.tuned:
            self.tuned[recall] = {side: self.tune(side, recall) for side in self.sides}
        tuned = self.tuned[recall]
        queries = np.ascontiguousarray(self.queries[:count])
        sides = {
            side: functools.partial(search, queries, tuned[side][0])
            for side, search in self.sides.items()
        }
        for search in sides.values():
            search()
        efforts, recalls = ({side: pair[i] for side, pair in tuned.items()} for i in (0, 1))
        return sides, {"questions": count, "efforts": efforts, "recalls": recalls}


def search_ours(index: Index, queries: np.ndarray, effort: int) -> np.ndarray:
    """As `Index.search`, with an effort."""
    search = BACKENDS[index.backend].search
    rows = search(index.searcher, queries, K, index.size, effort=effort)
    return score_rows(index.stored, queries, rows)[1]


def list_theirs(built: dict[str, Index]) -> dict[str, Search]:
    """FAISS's own search in the graph and in the partitions, for corpora of one length."""
    (part,) = built["faiss_hnsw"].searcher.parts
    graph = part.index
    codes = built["faiss_ivfrabitq"].searcher
    rotated = faiss.IndexPreTransform(codes.rotation, codes.parts[0].index)
    refined = faiss.IndexRefine(rotated, graph.storage)

    def search_graph(queries: np.ndarray, effort: int) -> np.ndarray:
        options = faiss.SearchParametersHNSW(efSearch=effort)
        return graph.search(queries, K, params=options)[1]

    def search_codes(queries: np.ndarray, effort: int) -> np.ndarray:
        probed = faiss.IVFRaBitQSearchParameters(nprobe=effort, qb=8)
        within = faiss.SearchParametersPreTransform(index_params=probed)
        factor = max(20, effort / K)  # as many candidates as this library's search rescores
        options = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=within)
        return refined.search(queries, K, params=options)[1]

    return {"FAISS HNSW": search_graph, "FAISS IVF-RaBitQ": search_codes}


def measure_memory(folder: Path) -> int:
    """Bytes that a saved index takes of this process once it is loaded, without mapped files."""
    jax.block_until_ready(Index.build(np.eye(4), backend="exact", encoder="").searcher)
    before = read_memory()
    index = Index.load(folder, encoder="")
    if index.backend == "exact":
        jax.block_until_ready(index.searcher)
    gc.collect()  # JAX leaves what an array was made of in reference cycles
    return read_memory() - before


def read_memory() -> int:
    """Bytes of this process in memory that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("RssAnon")))


def describe(result: dict[str, Any], _peak: None) -> str:
    """A line for each side, or for each index."""
    lines = [result["name"]]
    for name, seconds in result.get("build_seconds", {}).items():
        lines.append(
            f"  {name:18s} built in {seconds:7.1f} s, "
            f"{result['bytes_on_disk'][name]:6.0f} bytes a passage on disk, "
            f"{result['bytes_in_memory'][name]:6.0f} in memory, "
            f"recall {result['recall'][name]:.4f}"
        )
    for side, seconds in result.get("wall_seconds", {}).items():
        lines.append(
            f"  {side:18s} {1000 * seconds:9.2f} ms "
            f"(CPU {1000 * result['cpu_seconds'][side]:9.2f})  "
            f"effort {result['efforts'][side]:5d}  recall {result['recalls'][side]:.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
