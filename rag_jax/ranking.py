"""How good a ranking of passages is: whether the relevant ones, or an answer, are at its top."""

import functools
import math
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import regex

from rag_jax.files import open_atomic

# DPR's tokens: runs of letters, digits and marks; any other visible character by itself.
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")


@functools.lru_cache(maxsize=65_536)
def split_tokens(text: str) -> str:
    """DPR's tokens of a text, a space before, between and after them.

    They are of the text's canonical decomposition (NFD), in lower case.
    """
    tokens = _TOKEN.findall(unicodedata.normalize("NFD", text))
    return f" {' '.join(tokens).lower()} "


def has_answer(text: str, answers: Sequence[str]) -> bool:
    """Whether an answer's tokens occur in the text one after the other.

    The criterion of DPR's retrieval accuracy (Karpukhin et al. 2020, section 5) and of its hard
    negatives, after Chen et al. (2017, "Reading Wikipedia to answer open-domain questions"). An
    answer without tokens occurs nowhere.
    """
    tokens = split_tokens(text)
    return any(answer.strip() and answer in tokens for answer in map(split_tokens, answers))


def answer_hits(
    texts: Sequence[str], answers: Sequence[str], depths: Sequence[int]
) -> dict[str, float]:
    """DPR's accuracy at each depth: whether one of the first texts has an answer.

    Args:
        texts: of the passages, best first.

    Returns:
        `{"answer@k": 0.0 or 1.0}` for every depth k.
    """
    hits = [has_answer(text, answers) for text in texts[: max(depths)]]
    return {f"answer@{k}": float(any(hits[:k])) for k in depths}


def reciprocal_rank(ranked: Sequence[str], relevant: Mapping[str, int]) -> float:
    """1 over the rank of the first relevant passage, 0 where none is found.

    Args:
        ranked: ids of passages, best first.
        relevant: grades of the relevant ones, above 0.
    """
    return next((1 / rank for rank, id in enumerate(ranked, 1) if id in relevant), 0.0)


def recall(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Share of the relevant passages, of which there must be one, among the first `k`."""
    return sum(id in relevant for id in ranked[:k]) / len(relevant)


def ndcg(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Normalised discounted cumulative gain of the first `k` (Järvelin and Kekäläinen 2002).

    A passage at rank r gains `grade / log2(r + 1)`, as trec_eval has it, and the sum is divided by
    that of the best ranking possible.
    """

    def add_up(grades: Sequence[int]) -> float:
        return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades[:k], 1))

    best = add_up(sorted(relevant.values(), reverse=True))
    return add_up([relevant.get(id, 0) for id in ranked]) / best


def write_run(
    path: Path,
    name: str,
    questions: Sequence[str],
    ranked: Sequence[Sequence[tuple[str, float]]],
) -> None:
    """Writes rankings in TREC's format, `question Q0 passage rank score name` a line.

    Args:
        questions: ids.
        ranked: for each the passages' ids and scores, best first.
    """
    with open_atomic(path) as file:
        for question, found in zip(questions, ranked, strict=True):
            for rank, (passage, score) in enumerate(found, 1):
                file.write(f"{question} Q0 {passage} {rank} {score:.9g} {name}\n")
