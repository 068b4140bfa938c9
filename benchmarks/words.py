"""Search by words among many passages: BM25 here, with and without numba, against bm25s's own.

    pip install -e '.[bench,numba]'
    python benchmarks/words.py PASSAGES.jsonl... --questions=FILE [--passages=1000000] [--runs=7]
        [--out=FILE]

The corpus has as many passages of about a hundred words as are asked for, each of sentences drawn
from all those of the passages of PASSAGES (in the committed results SQuAD's), so that words are as
frequent as there. One index is built and every side searches it, 64 evenly spaced questions for the
hundred best passages; `bm25s` is its own search with numba, on all cores. Results are compared
before anything is timed: the same scores. The first call compiles our search, unless an earlier
process has. Takes three minutes at a million passages, nearly all of it to build the index.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import bench
import numpy as np

from rag_jax.retrieval import BM25, postings
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.paths import expand_path

WORDS, ASKED, K = 100, 64, 100
PACKAGES = ("bm25s", "numba")


def main() -> None:
    """Builds the index, and compares the searches."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=expand_path)
    parser.add_argument("--questions", type=expand_path, required=True)
    parser.add_argument("--passages", type=int, default=1_000_000)
    arguments = parser.parse_args()
    asked = [record["question"] for record in read_jsonl(arguments.questions)]
    questions = [asked[i] for i in np.linspace(0, len(asked) - 1, ASKED, dtype=int)]
    index = BM25.build(draw_texts(read_sentences(arguments.files), arguments.passages))
    cases = {f"{arguments.passages:,} passages": partial(compare, index, questions)}
    bench.run_cases(arguments, cases, PACKAGES, questions=ASKED, best=K)


def read_sentences(files: Sequence[Path]) -> list[str]:
    """The sentences of all passages."""
    records = (record for file in files for record in read_jsonl(file))
    return [s for record in records for s in record["text"].split(". ") if s]


def draw_texts(sentences: Sequence[str], count: int) -> Iterator[str]:
    """Passages of at least `WORDS` words, of sentences that are drawn."""
    random, lengths = np.random.default_rng(0), [len(s.split()) for s in sentences]
    for _ in range(count):
        drawn, words = [], 0
        while words < WORDS:
            number = int(random.integers(len(sentences)))
            drawn.append(sentences[number])
            words += max(1, lengths[number])
        yield ". ".join(drawn)


def compare(index: BM25, questions: Sequence[str]) -> bench.Compared:
    """The sides, and how many of the passages have a word of a question."""
    ours = partial(index.search, questions, K)
    facts: dict[str, Any] = {"compile_seconds": bench.time_call(ours)}
    searcher = index.searcher
    terms = [searcher.get_tokens_ids(index.analysis.split(question)) for question in questions]
    starts = searcher.scores["indptr"]
    counts = [sum(int(starts[t + 1] - starts[t]) for t in own) for own in terms]
    facts["scores added up for a question"] = float(np.mean(counts))
    searcher.backend = "numba"
    options = {"k": K, "n_threads": os.cpu_count(), "show_progress": False}
    theirs = partial(searcher.retrieve, terms, backend_selection="numba", **options)
    sides: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "ours, NumPy": partial(search_plainly, ours),
        "bm25s": theirs,
    }
    wanted, _ = ours()
    for side in ("ours, NumPy", "bm25s"):
        found = sides[side]()[side == "bm25s"]
        for one, other in zip(wanted, found, strict=True):
            bench.require(np.array_equal(one, other[: len(one)]), f"{side} has other scores")
    return sides, facts


def search_plainly(search: Callable[[], Any]) -> Any:
    """A search as it is where numba is not installed."""
    with mock.patch.object(postings, "_choose_search", lambda: postings._search):
        return search()


if __name__ == "__main__":
    main()
