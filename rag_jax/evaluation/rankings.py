"""How good a ranking of passages is: whether the relevant ones, or an answer, are at its top."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import regex

from rag_jax.data.matching import has_answer
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import open_atomic

# In a TREC run what ends a name, or what already looks like something escaped.
_UNSAFE = regex.compile(r"\s|[\x1c-\x1f]|%(?=[0-9A-Fa-f]{2})")
_NUMBER = regex.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?")


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

    White space in a name would end it: it is written as in a URL, `%20` for a space.

    Args:
        questions: ids.
        ranked: for each the passages' ids and scores (float32), best first.
    """
    with open_atomic(path) as file:
        for question, found in zip(questions, ranked, strict=True):
            for rank, (passage, score) in enumerate(found, 1):
                names = _escape(question), _escape(passage), _escape(name)
                file.write(f"{names[0]} Q0 {names[1]} {rank} {score:.9g} {names[2]}\n")


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """The rankings in a TREC run: passages' ids and scores by question's id, in the file's order.

    Raises:
        RagJaxError: naming the file, and line, of what cannot be read.
    """
    found: dict[str, list[tuple[str, float]]] = {}
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if len(fields) != 6 or not _NUMBER.fullmatch(fields[4]):
                    raise RagJaxError(
                        f"{path}:{number}: must be question, Q0, passage, rank, score and name"
                    )
                scored = unquote(fields[2]), float(fields[4])
                found.setdefault(unquote(fields[0]), []).append(scored)
    except UnicodeDecodeError as error:
        raise RagJaxError(f"{path}: is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise RagJaxError(f"{path}: cannot be read ({error.strerror})") from None
    return found


def _escape(name: str) -> str:
    """A name without white space; `unquote` gives it back."""
    return _UNSAFE.sub(lambda found: quote(found[0], safe=""), name)
