"""What a large corpus costs in every system: the tables of `docs/results/scale.md`.

    python benchmarks/scale.py [--passages=21000000] [--questions=50000] [--share=0.4]

Nothing is run. Bytes and seconds an item are those of `benchmarks/results` (`items_cpu.json` is by
`items.py`), and operations those that the models' `count_flops` counts at the lengths measured
there. Hours are of `--share` of a chip's peak, which is to be measured on the chip: nothing here
has run on one.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from tables_systems import read_bench

from rag_jax.models.io.sizes import describe_params, find_sizes
from rag_jax.planning.abstract import QUESTION
from rag_jax.runtime.chips import find_chip
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.translator import init_translator, list_adapted
from rag_jax.training.trainable import init_trained

CHIPS = {"v5e": "TPU v5 lite", "v5p": "TPU v5", "v6e": "TPU v6 lite"}
DPR = find_sizes("facebook/dpr-ctx_encoder-single-nq-base")
MINILM = find_sizes("all-minilm-l6-v2")
BART = find_sizes("facebook/bart-large")
LLAMA_2 = find_sizes("meta-llama/Llama-2-7b-chat-hf")
LLAMA_3 = replace(LLAMA_2, vocab_size=128_256, ffn_size=14_336, num_kv_heads=8)
STEPS = 12  # of a trie search, as in `trie_cpu.json`


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--passages", type=int, default=21_000_000)
    parser.add_argument("--questions", type=int, default=50_000)
    parser.add_argument("--share", type=float, default=0.4, help="of a chip's peak that is reached")
    arguments = parser.parse_args()
    for head, rows in list_tables(arguments.passages, arguments.questions, arguments.share):
        print(format_table(head, rows), end="\n\n")


def list_tables(
    size: int, asked: int, share: float
) -> Iterable[tuple[list[str], Iterable[Sequence[str]]]]:
    """The tables, as headings and rows, for a corpus of `size` passages and `asked` questions."""
    items = read_bench("items")
    chips = "".join(f", {chip} hours" for chip in CHIPS)
    for head, rows in (
        ("kept, bytes an item, items, total", list_bytes(items, size, asked)),
        (
            f"computed, GFLOP an item, items, EFLOP{chips}, hours on v5e:8x8",
            list_work(items, size, asked, share),
        ),
        ("on a CPU core, seconds an item, items, hours", list_cpu(items, size, asked)),
    ):
        yield head.split(", "), rows


def list_bytes(items: dict[str, Any], size: int, asked: int) -> Iterable[list[str]]:
    """What is kept on disk or in memory."""
    corpus, index, adapter = items["corpus"], items["index"], count_adapter()
    trie, found = corpus["trie"], min(size, 3 * asked)
    contexts = 10 * (corpus["text_bytes"] + 20)  # a context's text and its score's digits
    for what, each, count in (
        ("passages: ids while they are copied", corpus["bytes_to_copy"], size),
        # A list has 8 bytes for each token; the tokenizer gives one object for each id.
        ("Self-Retrieval: tokens to index passages by", 8 * corpus["indexing"]["tokens"], size),
        ("DPR: embeddings, 768 of float32", 4 * DPR.hidden_size, size),
        ("DPR: ScaNN's files, embeddings included", index["bytes_a_passage"], size),
        (
            "DPR: ScaNN's memory beside the embeddings, built",
            index["memory_beside_embeddings_a_passage"],
            size,
        ),
        ("BM25's files", corpus["bm25"]["bytes"], size),
        ("BM25: memory to build", corpus["bm25"]["peak_bytes_to_build"], size),
        ("trie in all, on the host", trie["bytes"], size),
        ("trie on each device", trie["bytes_on_device"], size),
        ("trie: memory to build, tokens not included", trie["peak_bytes_to_build"], size),
        ("PRAG: adapters of all passages", 4 * adapter, size),
        ("PRAG: adapters of what is found, 3 a question", 4 * adapter, found),
        ("PRAG: the translator", 4 * count_translator(), 1),
        ("SR-RAG: embeddings, 384 of float32", 4 * MINILM.hidden_size, size),
        ("SR-RAG: contexts and labels", contexts, asked),
        ("SR-RAG: datastore, 4,096 of float32", 4 * LLAMA_2.hidden_size, asked),
    ):
        yield [what, f"{each:,.0f}", f"{count:,}", format_bytes(each * count)]


def list_work(
    items: dict[str, Any], size: int, asked: int, share: float
) -> Iterable[Sequence[str]]:
    """Operations, and the hours they take."""
    corpus = items["corpus"]
    text, row = corpus["encoder_tokens"], corpus["indexing"]
    found, document = min(size, 3 * asked), corpus["document_tokens"]
    # Of a question: five titles, ten passages under each, all of them read.
    beams = STEPS * (5 + 5 * 10)
    query = LLAMA_2.count_flops(QUESTION + beams + 50 * corpus["trie"]["tokens"], beams)
    read = 5 * (QUESTION + text)
    translate = LLAMA_3.count_flops(text, 0) + 2 * count_translator()
    for what, each, count in (
        ("DPR: encode the corpus", DPR.count_flops(text), size),
        ("RAG: train an epoch", 3 * BART.count_flops(read, 5 * 48), asked),
        ("RAG: answer by RAG-Token", BART.count_flops(read, 5 * 4 * 48), asked),
        (
            "Self-Retrieval: train an epoch on the corpus",
            3 * LLAMA_2.count_flops(row["tokens"], row["targets"]),
            size,
        ),
        ("Self-Retrieval: answer", query, asked),
        ("PRAG: encode all passages", 2 * LLAMA_3.count_flops(document, document), size),
        ("PRAG: encode what is found", 2 * LLAMA_3.count_flops(document, document), found),
        ("PRAG: translate all passages", translate, size),
        ("SR-RAG: encode the corpus", MINILM.count_flops(text), size),
    ):
        hours = {chip: each * count / find(chip).flops / share / 3600 for chip in CHIPS}
        yield [
            what,
            f"{each / 1e9:,.1f}",
            f"{count:,}",
            *map(shorten, (each * count / 1e18, *hours.values(), hours["v5e"] / 64)),
        ]


def list_cpu(items: dict[str, Any], size: int, asked: int) -> Iterable[list[str]]:
    """What the host does, from smaller corpora."""
    index, corpus, adapters = items["index"], items["corpus"], items["adapters"]
    made_up = read_bench("trie")[-1]["sizes"]["1000000"]["cpu_seconds"] / 1e6
    # ScaNN searches a tenth of the partitions: a question's time grows with the passages.
    scann = index["search_cpu_seconds"]["64"] / 64 * size / index["passages"]
    for what, each, count in (
        ("ScaNN: build", index["build_cpu_seconds"] / index["passages"], size),
        ("ScaNN: search", scann, asked),
        ("BM25: build", corpus["bm25"]["cpu_seconds_to_build"], size),
        ("BM25: search", corpus["bm25"]["cpu_seconds_to_search"] * size, asked),
        ("trie: build", made_up, size),
        ("PRAG: write an adapter", adapters["save_cpu_seconds"], min(size, 3 * asked)),
        ("PRAG: read three", 3 * adapters["load_cpu_seconds"], asked),
    ):
        yield [what, f"{each:.2g}", f"{count:,}", f"{each * count / 3600:,.2g}"]


def describe_adapter() -> Any:
    """A document's adapter, tuned as in all presets of Parametric RAG."""
    params = describe_params(LLAMA_3, jnp.float32)
    return jax.eval_shape(partial(init_trained, PRAGConfig().tuning, seed=0), params)


def count_adapter() -> int:
    """Numbers in a document's adapter."""
    return sum(leaf.size for leaf in jax.tree.leaves(describe_adapter()))


def count_translator() -> int:
    """Parameters of the translator, each of which a document multiplies once."""
    sizes = {"state_size": LLAMA_3.hidden_size, "hidden": PRAGConfig().translator.hidden}
    init = partial(init_translator, kernels=list_adapted(describe_adapter()), **sizes)
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(init, jax.random.key(0))))


def find(chip: str) -> Any:
    return find_chip(SimpleNamespace(device_kind=CHIPS[chip]))


def format_bytes(count: float) -> str:
    unit = next((u for u in ("TB", "GB") if count >= 1000 ** (3 + (u == "TB"))), "MB")
    return f"{count / {'MB': 1e6, 'GB': 1e9, 'TB': 1e12}[unit]:,.1f} {unit}"


def shorten(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def format_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
