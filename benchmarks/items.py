"""What one passage costs: the figures for `scale.py` that the other benchmarks do not measure.

    python benchmarks/items.py [--corpus=FILE ...] [--out=FILE]

Measured are adapters of the size that Parametric RAG's have with an 8B model; ScaNN over made-up
embeddings of DPR's width, of which there are enough that ScaNN partitions them, as it does with a
large corpus; and, with `--corpus`, the first hundred words of the passages of files in any format
(SQuAD's 20,963 in the committed results): in memory, as tokens, in Self-Retrieval's trie and BM25,
and as training rows. Seconds are CPU seconds, so that other programs may run. Takes five minutes on
two cores.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bench
import jax
import numpy as np

from rag_jax.data.formats import BadLines, stream_passages
from rag_jax.data.passages import Passage, write_passages
from rag_jax.decoding import Trie
from rag_jax.lora.store import AdapterStore
from rag_jax.models import load
from rag_jax.retrieval import BM25, Index
from rag_jax.retrieval.texts import TextReading, tokenize_with
from rag_jax.runtime.paths import expand_path
from rag_jax.systems.prag import data as prag
from rag_jax.systems.prag.rules import ask_by_rules, rewrite_by_rules
from rag_jax.systems.self_retrieval.config import ExamplesConfig
from rag_jax.systems.self_retrieval.data import Format, make_index_rows

ROWS, WIDTH, K = 100_000, 768, 10  # of the index, and the number of passages of a search
CALLS, TURNS = (1, 64), 7  # questions of a search, and searches that a median is of
WORDS = 100  # of a passage, as DPR cuts Wikipedia
SAMPLE = 2000  # passages for which training rows are made
ADAPTER, ADAPTERS = 3_538_944, 8  # numbers in an adapter (`scale.py` counts them), and adapters


def main() -> None:
    """Measures every part, and writes the report after each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", nargs="*", default=[], help="files of passages")
    parser.add_argument("--out", type=expand_path, help="results file, JSON")
    arguments = parser.parse_args()
    # The index comes first: its memory is not Python's, and would not show as growth of the process
    # if it were taken from what an earlier part freed.
    parts = {"index": measure_index, "adapters": measure_adapters}
    if arguments.corpus:
        parts["corpus"] = partial(measure_corpus, arguments.corpus)
    machine, results = bench.describe_machine(), {}
    for name, measure in parts.items():
        results[name] = measure()
        print(name, json.dumps(results[name], indent=2), flush=True)
        bench.write_report(arguments.out, environment=machine, results=results)


def measure_index() -> dict[str, Any]:
    """ScaNN: bytes in memory and on disk, and CPU seconds to build and to search."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    queries = embeddings[:: ROWS // max(CALLS)][: max(CALLS)]
    before, start = read_memory(), time.process_time()
    index = Index.build(embeddings, backend="scann", encoder="")
    seconds, memory = time.process_time() - start, read_memory() - before
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        size = count_bytes(Path(folder))
    return {
        "passages": ROWS,
        "width": WIDTH,
        "bytes_a_passage": size / ROWS,
        "memory_beside_embeddings_a_passage": memory / ROWS,
        "build_cpu_seconds": seconds,
        "search_cpu_seconds": {
            str(n): time_median(partial(index.search, queries[:n], K)) for n in CALLS
        },
    }


def measure_adapters() -> dict[str, Any]:
    """A store of large adapters: an adapter's bytes, files, and CPU seconds to write and read."""
    bank = {"a": np.random.default_rng(0).normal(size=(ADAPTERS, ADAPTER)).astype(np.float32)}
    names = [str(i) for i in range(ADAPTERS)]
    with tempfile.TemporaryDirectory() as folder:
        template = {"a": jax.ShapeDtypeStruct((ADAPTER,), np.float32)}
        store = AdapterStore(Path(folder) / "store", template, base="", settings={})
        start = time.process_time()
        store.save(names, bank)
        saved = time.process_time()
        _, lost = store.load(names)
        loaded = time.process_time()
        if lost:
            raise SystemExit(f"error: {lost}")
        files = sum(path.is_file() for path in Path(folder).rglob("*")) - 1  # without the manifest
        return {
            "numbers": ADAPTER,
            "bytes": store.count_bytes("0"),
            "files": files / ADAPTERS,
            "save_cpu_seconds": (saved - start) / ADAPTERS,
            "load_cpu_seconds": (loaded - saved) / ADAPTERS,
        }


def measure_corpus(files: list[str]) -> dict[str, Any]:
    """Passages on disk and in memory, and what is made of them once they are cut to `WORDS`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "passages.jsonl"
        copy, to_copy, _ = build(lambda: write_passages(path, stream_passages(files, BadLines())))
        passages, in_memory, _ = build(lambda: list(copy))
    count = len(passages)
    passages = [Passage(p.id, p.title, " ".join(p.text.split()[:WORDS])) for p in passages]
    texts = [(p.title, p.text) for p in passages]
    encoder = load("all-minilm-l6-v2").tokenizer
    lm = load("smollm2-135m-instruct").tokenizer
    format = Format(lm, titled=True, assessment="phrase", max_text=512)
    sequences = [np.asarray(format.encode_sequence(p), np.int32) for p in passages]
    trie, trie_peak, _ = build(lambda: Trie.from_sequences(sequences, end_id=lm.eos_id))
    bm25, bm25_peak, bm25_seconds = build(lambda: BM25.build(texts))
    queries = [p.title for p in passages[:: count // 64]][:64]
    with tempfile.TemporaryDirectory() as folder:
        bm25.save(Path(folder) / "index")
        bm25_size = count_bytes(Path(folder))
    examples = ExamplesConfig(target="passage", sentences=3)
    rows = list(make_index_rows(format, passages[:SAMPLE], examples, seed=0))
    chat = prag.Format(lm, chat=True, max_text=512)
    documents = [
        sum(map(len, prag.make_examples(chat, p, augment(p), questions=3)))
        for p in passages[:SAMPLE]
    ]
    return {
        "passages": count,
        "bytes_to_copy": to_copy / count,
        "bytes_in_memory": in_memory / count,
        "text_bytes": sum(len(text.encode()) for pair in texts for text in pair) / count,
        "words": sum(len(p.text.split()) for p in passages) / count,
        "encoder_tokens": sum(map(len, tokenize_with(TextReading(encoder), texts, 512))) / count,
        "trie": {
            "tokens": sum(map(len, sequences)) / count,
            "nodes": trie.size / count,
            "bytes": trie.nbytes / count,
            "bytes_on_device": (trie.first_child.nbytes + trie.tokens.nbytes) / count,
            "peak_bytes_to_build": trie_peak / count,
        },
        "bm25": {
            "bytes": bm25_size / count,
            "peak_bytes_to_build": bm25_peak / count,
            "cpu_seconds_to_build": bm25_seconds / count,
            "cpu_seconds_to_search": time_median(lambda: bm25.search(queries, K)) / 64 / count,
        },
        "indexing": {
            "rows": len(rows) / SAMPLE,
            "tokens": sum(len(row.tokens) for row in rows) / SAMPLE,
            "targets": sum(row.num_targets for row in rows) / SAMPLE,
        },
        "document_tokens": sum(documents) / SAMPLE,
    }


def augment(passage: Passage) -> prag.Augmented:
    """A rewrite and three questions, by rules."""
    return prag.Augmented((rewrite_by_rules(passage),), tuple(ask_by_rules(passage, count=3)))


def build(make: Callable[[], Any]) -> tuple[Any, int, float]:
    """The result of a call, the peak of Python's memory in bytes, and CPU seconds."""
    tracemalloc.start()
    start = time.process_time()
    result = make()
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return result, peak, seconds


def time_median(run: Callable[[], Any]) -> float:
    """Median CPU seconds of a call."""
    times = []
    for _ in range(TURNS):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def read_memory() -> int:
    """Bytes of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def count_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
