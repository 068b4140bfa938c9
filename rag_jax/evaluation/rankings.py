"""Metrics of rankings of passages, and TREC run files."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import regex

from rag_jax.data.matching import has_answer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import open_atomic

# Characters that would end a name in a TREC run, and percent signs that would be unescaped.
_UNSAFE = regex.compile(r"\s|[\x1c-\x1f]|%(?=[0-9A-Fa-f]{2})")
_NUMBER = regex.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


def answer_hits(
    texts: Sequence[str], answers: Sequence[str], depths: Sequence[int]
) -> dict[str, float]:
    """DPR's top-k accuracy: whether one of the first k passages contains an answer.

    The result is `{"answer@k": 0.0 or 1.0}` for every k of `depths`.
    """
    hits = [has_answer(text, answers) for text in texts[: max(depths)]]
    return {f"answer@{k}": float(any(hits[:k])) for k in depths}


def reciprocal_rank(ranked: Sequence[str], relevant: Mapping[str, int]) -> float:
    """Reciprocal rank of the first relevant passage, or 0 if no relevant passage is ranked.

    In all metrics `ranked` are ids, best first, and `relevant` grades above 0 by id.
    """
    return next((1 / rank for rank, id in enumerate(ranked, 1) if id in relevant), 0.0)


def recall(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Share of the relevant passages (at least one) that are among the first `k`."""
    return sum(id in relevant for id in ranked[:k]) / len(relevant)


def ndcg(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Normalised discounted cumulative gain at `k` (Järvelin and Kekäläinen 2002).

    The gain of a passage at rank r is `grade / log2(r + 1)`, as in trec_eval. The sum of the gains
    is divided by the sum for an ideal ranking. At least one passage is relevant.
    """

    def sum_gains(grades: Sequence[int]) -> float:
        return sum(grade / math.log2(rank + 1) for rank, grade in enumerate(grades[:k], 1))

    ideal = sum_gains(sorted(relevant.values(), reverse=True))
    return sum_gains([relevant.get(id, 0) for id in ranked]) / ideal


def write_run(
    path: Path, name: str, questions: Sequence[str], ranked: Sequence[Sequence[tuple[str, float]]]
) -> None:
    """Writes rankings as a TREC run, with `question Q0 passage rank score name` on each line.

    White space in ids is percent-encoded as in URLs, because white space separates the fields.
    `questions` are ids, and `ranked` the ids and float32 scores of their passages, best first.
    """
    with open_atomic(path) as file:
        for question, ranking in zip(questions, ranked, strict=True):
            for rank, (passage, score) in enumerate(ranking, 1):
                names = _escape(question), _escape(passage), _escape(name)
                file.write(f"{names[0]} Q0 {names[1]} {rank} {score:.9g} {names[2]}\n")


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Reads a TREC run: ids and scores of the passages by id of the question, in the file's order.

    Raises:
        RagJaxError: the file cannot be read, is not UTF-8 or has a malformed line, which is named.
    """
    rankings: dict[str, list[tuple[str, float]]] = {}
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if len(fields) != 6 or not _NUMBER.fullmatch(fields[4]):
                    raise RagJaxError(
                        f"{path}:{number}: must be question, Q0, passage, rank, score and name"
                    )
                passage = unquote(fields[2]), float(fields[4])
                rankings.setdefault(unquote(fields[0]), []).append(passage)
    except UnicodeDecodeError as error:
        raise RagJaxError(f"{path}: is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise RagJaxError(f"{path}: cannot be read ({error.strerror})") from None
    return rankings


def _escape(name: str) -> str:
    """Percent-encodes white space; the inverse of `unquote`."""
    return _UNSAFE.sub(lambda match: quote(match[0], safe=""), name)
