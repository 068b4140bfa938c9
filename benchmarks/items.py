"""What one passage takes, where the other benchmarks don't say: the figures behind `scale.py`.

    python benchmarks/items.py [--corpus=FILE ...] [--out=FILE]

Adapters of the size that Parametric RAG's have with an 8B model; the first hundred words of the
passages of files in any format (`--corpus`; SQuAD's 20,963 in the committed results): in memory, as
tokens, in Self-Retrieval's trie and BM25, and as what is trained of them; and ScaNN over made-up
embeddings of DPR's width and of enough rows that it partitions them, as it does with a large
corpus. CPU seconds count, so that other programs may run. Takes five minutes on two cores.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rag_jax.data.formats import BadLines, stream_passages
from rag_jax.data.passages import Passage, write_passages
from rag_jax.decoding import Trie
from rag_jax.lora.store import AdapterStore
from rag_jax.models import load
from rag_jax.retrieval import BM25, Index
from rag_jax.retrieval.encode import tokenize_texts
from rag_jax.systems.prag import data as prag
from rag_jax.systems.prag.augment import ask_by_rules, rewrite_by_rules
from rag_jax.systems.self_retrieval.config import ExamplesConfig
from rag_jax.systems.self_retrieval.data import Format, make_index_rows

ROWS, WIDTH, K = 100_000, 768, 10  # of the index, and how many are searched for
CALLS, TURNS = (1, 64), 7  # questions together, and searches of which the median counts
WORDS = 100  # of a passage, as DPR cuts Wikipedia
SAMPLE = 2000  # passages of which is made what is trained
ADAPTER, ADAPTERS = 3_538_944, 8  # numbers in one (`scale.py` counts them), and how many


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", nargs="*", default=[], help="files of passages")
    parser.add_argument("--out", type=Path, help="results file, JSON")
    arguments = parser.parse_args()
    machine = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count()}
    report = {"environment": machine | {"python": platform.python_version()}, "results": {}}
    # First what takes memory that is not Python's, which would go unseen in what others freed.
    parts = {"index": measure_index, "adapters": measure_adapters}
    if arguments.corpus:
        parts["corpus"] = lambda: measure_corpus(arguments.corpus)
    for name, measure in parts.items():
        report["results"][name] = measure()
        print(name, json.dumps(report["results"][name], indent=2), flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def measure_index() -> dict[str, Any]:
    """ScaNN: bytes in memory and on disk, CPU seconds to build and to search."""
    rng = np.random.default_rng(0)
    embeddings = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    queries = embeddings[:: ROWS // max(CALLS)][: max(CALLS)]
    before, start = read_memory(), time.process_time()
    index = Index.build(embeddings, backend="scann", encoder="")
    cpu, more = time.process_time() - start, read_memory() - before
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        on_disk = count_bytes(Path(folder))
    return {
        "passages": ROWS,
        "width": WIDTH,
        "bytes_a_passage": on_disk / ROWS,
        "memory_beside_embeddings_a_passage": more / ROWS,
        "build_cpu_seconds": cpu,
        "search_cpu_seconds": {
            str(n): time_median(lambda n=n: index.search(queries[:n], K)) for n in CALLS
        },
    }


def measure_adapters() -> dict[str, Any]:
    """A store of large adapters: bytes and files of each, CPU seconds to write and to read one."""
    bank = {"a": np.random.default_rng(0).normal(size=(ADAPTERS, ADAPTER)).astype(np.float32)}
    names = [str(i) for i in range(ADAPTERS)]
    with tempfile.TemporaryDirectory() as folder:
        one = jax.ShapeDtypeStruct((ADAPTER,), np.float32)
        store = AdapterStore(Path(folder) / "store", {"a": one}, base="", settings={})
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
    """What passages take in memory, and once they are cut to `WORDS` words."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "passages.jsonl"
        copy, to_copy, _ = build(lambda: write_passages(path, stream_passages(files, BadLines())))
        passages, in_memory, _ = build(lambda: list(copy))
    count = len(passages)
    passages = [Passage(p.id, p.title, " ".join(p.text.split()[:WORDS])) for p in passages]
    texts = [(p.title, p.text) for p in passages]
    encoder = load("all-minilm-l6-v2").tokenizer
    lm = load("smollm2-135m-instruct").tokenizer
    form = Format(lm, titled=True, assessment="phrase", max_text=512)
    sequences = [np.asarray(form.encode_sequence(p), np.int32) for p in passages]
    trie, trie_peak, _ = build(lambda: Trie.from_sequences(sequences, end_id=lm.eos_id))
    bm25, bm25_peak, bm25_seconds = build(lambda: BM25.build(texts))
    asked = [p.title for p in passages[:: count // 64]][:64]
    with tempfile.TemporaryDirectory() as folder:
        bm25.save(Path(folder) / "index")
        on_disk = count_bytes(Path(folder))
    examples = ExamplesConfig(target="passage", sentences=3)
    rows = list(make_index_rows(form, passages[:SAMPLE], examples, seed=0))
    spans = [row.spans["retrieval"] for row in rows]
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
        "encoder_tokens": sum(map(len, tokenize_texts(encoder, texts, 512))) / count,
        "trie": {
            "tokens": sum(map(len, sequences)) / count,
            "nodes": trie.size / count,
            "bytes": trie.nbytes / count,
            "bytes_on_device": (trie.first_child.nbytes + trie.tokens.nbytes) / count,
            "peak_bytes_to_build": trie_peak / count,
        },
        "bm25": {
            "bytes": on_disk / count,
            "peak_bytes_to_build": bm25_peak / count,
            "cpu_seconds_to_build": bm25_seconds / count,
            "cpu_seconds_to_search": time_median(lambda: bm25.search(asked, K)) / 64 / count,
        },
        "indexing": {
            "rows": len(rows) / SAMPLE,
            "tokens": sum(len(row.tokens) for row in rows) / SAMPLE,
            "targets": sum(stop - start for start, stop in spans) / SAMPLE,
        },
        "document_tokens": sum(documents) / SAMPLE,
    }


def augment(passage: Passage) -> prag.Augmented:
    pairs = ask_by_rules(passage, count=3)
    return prag.Augmented((rewrite_by_rules(passage),), tuple(pairs))


def build(make: Callable[[], Any]) -> tuple[Any, int, float]:
    """What is made, the most bytes that making it took at once, and CPU seconds."""
    tracemalloc.start()
    start = time.process_time()
    made = make()
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return made, peak, seconds


def time_median(run: Callable[[], Any]) -> float:
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
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
