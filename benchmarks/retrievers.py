"""Retrievers on judged questions: BM25, a dense encoder, their fusions, and a reranker.

    pip install -e '.[bench]'
    python launch/build_index.py FILE... --backend=exact --workdir=DIR
    python benchmarks/retrievers.py FOLDER [--index=DIR/stages/index/index] [--split=test]
        [--questions=N] [--sparse=MODEL] [--tokens=MODEL] [--reranker=MODEL]
        [--encoder NAME MODEL [INDEX]] [--timed=64] [--runs=7] [--out=FILE]

MODEL is the folder of a sparse or a late-interaction encoder or of a reranker, which then are rows
too; `train_reranker.py` makes one. --encoder adds a further dense encoder, with an index that
`build_index.py --encoder=MODEL` made. Without an index the passages are encoded first. FOLDER is a
dataset in a format of `docs/guides/data.md`, and the FILEs are its passages. In the committed
results it is SciFact; the development questions of SQuAD over the passages of both of its parts;
and a thousand questions of PopQA over their paragraphs. --questions=N takes every k-th, N at most.
Rankings are graded in trec_eval's order and compared with BM25's question by question. All
retrievers then take turns at the first --timed questions, whose encoding is included. A further
retriever is a line of `RETRIEVERS`, or of `OPTIONAL` if it needs a folder.
"""

import argparse
import tempfile
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import bench
import numpy as np

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats import copy_collection
from rag_jax.data.questions import load_collection
from rag_jax.evaluation.pairs import compare_pairs
from rag_jax.evaluation.rankings import ndcg, rank_hits, recall, reciprocal_rank
from rag_jax.models import load, load_multi_vector, load_reranker, load_sparse
from rag_jax.retrieval import (
    BM25,
    Dense,
    Fused,
    Index,
    LateInteraction,
    Reranked,
    Searcher,
    Sparse,
    SparseIndex,
    TokenIndex,
    encode_sparse,
    encode_texts,
    encode_tokens,
    make_text,
)
from rag_jax.runtime.paths import expand_path
from rag_jax.search_config import FusionConfig
from rag_jax.systems.stages import list_ranked

ENCODER, DEPTH, REFERENCE = "all-minilm-l6-v2", 100, "BM25"
LENGTH = 256  # tokens of a text that an encoder reads
RERANKED = 20  # passages of a question that are reranked


class Data:
    """A dataset and the searchers over it that several retrievers share."""

    def __init__(self, arguments: argparse.Namespace, encoders: Mapping[str, Path]):
        with tempfile.TemporaryDirectory() as copied:
            data = DataConfig(path=str(arguments.folder))
            copy_collection(Path(copied), data, WorldConfig(), check=lambda collection: None)
            collection = load_collection(Path(copied))
            self.passages = [*collection.passages]
        questions = collection.questions[arguments.split]
        step = max(1, len(questions) // (arguments.questions or len(questions)))
        self.questions = questions[::step][: arguments.questions]
        self._index, self._further, self.encoders = arguments.index, arguments.encoder, encoders

    @cached_property
    def words(self) -> BM25:
        """BM25 with its defaults."""
        return BM25.build(map(make_text, self.passages))

    @cached_property
    def dense(self) -> Dense:
        """The encoder with the index that was built of the same passages."""
        return self._open(ENCODER, self._index)

    @cached_property
    def further(self) -> Dense:
        """The dense encoder of the command line, with its index."""
        _, model, *index = self._further
        return self._open(model, *index)

    def _open(self, model: str, folder: Path | None = None) -> Dense:
        encoder, ids = load(model), [passage.id for passage in self.passages]
        encode = partial(encode_texts, encoder, max_length=LENGTH)
        if folder is None:
            embeddings = encode(map(make_text, self.passages), role="document")
            options = {"backend": "exact", "encoder": encoder.fingerprint, "ids": ids}
            index = Index.build(embeddings, **options)
        else:
            index = Index.load(folder, encoder=encoder.fingerprint)
            found = list(index.ids or ())
            bench.require(found == ids, f"{folder} has other passages than the dataset")
        return Dense(index, partial(encode, role="query"))

    @cached_property
    def sparse(self) -> Sparse:
        """A sparse encoder with the index of up to 256 tokens a passage."""
        encoder, texts = load_sparse(self.encoders["sparse"]), map(make_text, self.passages)
        weights = encode_sparse(encoder, texts, role="document", max_length=LENGTH)
        index = SparseIndex.build(weights, encoder=encoder.fingerprint)
        return Sparse(index, partial(encode_sparse, encoder, role="query", max_length=LENGTH))

    @cached_property
    def tokens(self) -> LateInteraction:
        """A late-interaction encoder over the best passages of BM25."""
        encoder, texts = load_multi_vector(self.encoders["tokens"]), map(make_text, self.passages)
        vectors = encode_tokens(encoder, texts, role="document")
        index = TokenIndex.build(vectors, encoder=encoder.fingerprint)
        encode = partial(encode_tokens, encoder, role="query")
        return LateInteraction(index, encode, self.words, DEPTH)

    @cached_property
    def reranked(self) -> Reranked:
        """A reranker over the best passages of the fusion by scores."""
        fused = Fused([self.words, self.dense], FusionConfig("scores"))
        reranker = load_reranker(self.encoders["reranker"])
        return Reranked(reranker, fused, self.passages, RERANKED, max_length=192)


# By name: what makes the searcher, and of which stored parts it is made.
RETRIEVERS: Mapping[str, tuple[Callable[[Data], Searcher], tuple[str, ...]]] = {
    "BM25": (lambda data: data.words, ("words",)),
    "MiniLM": (lambda data: data.dense, ("dense",)),
    "fused by ranks": (
        lambda data: Fused([data.words, data.dense], FusionConfig("ranks")),
        ("words", "dense"),
    ),
    "fused by scores": (
        lambda data: Fused([data.words, data.dense], FusionConfig("scores")),
        ("words", "dense"),
    ),
}
# By the option with the encoder's folder: the name, and as above.
OPTIONAL: Mapping[str, tuple[str, tuple[Callable[[Data], Searcher], tuple[str, ...]]]] = {
    "sparse": ("sparse", (lambda data: data.sparse, ("sparse",))),
    "tokens": ("BM25, then tokens", (lambda data: data.tokens, ("words", "tokens"))),
    "reranker": ("fused, then reranked", (lambda data: data.reranked, ("words", "dense"))),
}


def main() -> None:
    """Grades and times every retriever, and writes the report."""
    parser = bench.make_parser(__doc__)
    parser.add_argument("folder", type=expand_path, help="a dataset")
    parser.add_argument("--split", default="test", help="of the questions that are asked")
    parser.add_argument("--questions", type=int, help="the most of them")
    parser.add_argument("--index", type=expand_path, help="an index's folder")
    parser.add_argument("--timed", type=int, default=64, help="questions that are timed")
    names = {"nargs": "+", "metavar": ("NAME", "MODEL [INDEX]")}
    parser.add_argument("--encoder", **names, help="a further dense encoder and its index")
    for option in OPTIONAL:
        parser.add_argument(f"--{option}", type=expand_path, help="a model's folder")
    arguments = parser.parse_args()
    given = {option: getattr(arguments, option) for option in OPTIONAL}
    encoders = {option: folder for option, folder in given.items() if folder is not None}
    data = Data(arguments, encoders)
    facts = {"passages": len(data.passages), "questions": len(data.questions), "depth": DEPTH}
    facts["bm25"] = vars(data.words.settings)
    packages = ("jax", "bm25s", "PyStemmer", "numpy")
    options = {"describe": describe, "dataset": arguments.folder.name}
    further = arguments.encoder and arguments.encoder[0]
    cases = {arguments.split: partial(compare, data, further, arguments.timed)}
    bench.run_cases(arguments, cases, packages, **options, **facts)


def compare(data: Data, further: str | None, timed: int) -> bench.Compared:
    """The grades of every retriever; the sides that take turns at the first `timed` questions."""
    asked = [question.question for question in data.questions]
    stored = {"words": count_bytes(data.words), "dense": count_bytes(data.dense.index)}
    indexed = [option for option in data.encoders if option != "reranker"]
    stored |= {option: count_bytes(getattr(data, option).index) for option in indexed}
    retrievers = dict(RETRIEVERS) | dict(OPTIONAL[option] for option in data.encoders)
    if further is not None:
        stored["further"] = count_bytes(data.further.index)
        fuse = lambda data: Fused([data.words, data.further], FusionConfig("scores"))  # noqa: E731
        retrievers[further] = lambda data: data.further, ("further",)
        retrievers[f"fused with {further}"] = fuse, ("words", "further")
    sides, grades, sizes = {}, {}, {}
    for name, (make, parts) in retrievers.items():
        searcher = make(data)
        sides[name] = partial(searcher.search, asked[:timed], DEPTH)
        grades[name] = grade(data, *searcher.search(asked, DEPTH))
        sizes[name] = sum(stored[part] for part in parts) / len(data.passages)
    means = {name: {k: float(v.mean()) for k, v in own.items()} for name, own in grades.items()}
    paired = {
        name: {k: compare_pairs(own[k], grades[REFERENCE][k]) for k in own}
        for name, own in grades.items()
        if name != REFERENCE
    }
    facts = {
        "questions": len(asked),
        "timed": min(timed, len(asked)),
        "bytes_a_passage": sizes,
        "means": means,
        "paired": paired,
    }
    return sides, facts


def grade(data: Data, scores: Any, rows: Any) -> dict[str, np.ndarray]:
    """Each metric of every question."""
    graded = []
    for question, hits in zip(data.questions, list_ranked(scores, rows), strict=True):
        found = rank_hits(question, hits, lambda row: data.passages[row].id)
        ids, relevant = [data.passages[row].id for row, _ in found], question.relevant
        graded.append(
            {
                "ndcg@10": ndcg(ids, relevant, 10),
                "mrr": reciprocal_rank(ids, relevant),
                "recall@100": recall(ids, relevant, 100),
            }
        )
    return {name: np.asarray([own[name] for own in graded]) for name in graded[0]}


def count_bytes(index: BM25 | Index | SparseIndex | TokenIndex) -> int:
    """Bytes of an index on disk."""
    with tempfile.TemporaryDirectory() as folder:
        index.save(Path(folder) / "index")
        return sum(path.stat().st_size for path in (Path(folder) / "index").iterdir())


def describe(result: dict[str, Any], _peak: None) -> str:
    """A line for each retriever."""
    lines = []
    for name, means in result["means"].items():
        milliseconds = 1000 * result["wall_seconds"][name] / result["timed"]
        numbers = "  ".join(f"{metric} {value:.4f}" for metric, value in means.items())
        size = result["bytes_a_passage"][name]
        lines.append(f"{name:16s} {numbers}  {milliseconds:.2f} ms  {size:.0f} bytes a passage")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
