"""Metrics of rankings of passages, in trec_eval's order and by its definitions, and TREC run files.

The metrics take the ids of a ranking, best first, and the grades of the relevant passages by id. A
passage that a ranking names twice counts once, at its first rank, and grades up to 0 do not count.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, unquote

import numpy as np
import regex

from rag_jax.data.matching import has_answer
from rag_jax.data.questions import Question
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import list_lines, open_atomic
from rag_jax.runtime.outside import is_there, require_file

Item = TypeVar("Item")
Ranked = list[tuple[int, float]]  # rows of the corpus and their scores, best first

# Characters that would end a name in a TREC run, and percent signs that would be unescaped.
_UNSAFE = regex.compile(r"\s|[\x1c-\x1f]|%(?=[0-9A-Fa-f]{2})")
_NUMBER = regex.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_TOLERANCE = 1e-6


def rank_hits(
    question: Question,
    hits: Sequence[tuple[Item, float]],
    get_id: Callable[[Item], str],
    *,
    depth: int | None = None,
) -> list[tuple[Item, float]]:
    """The passages that a search found for a question, in the order in which trec_eval ranks them.

    Scores fall; passages with equal scores come by their ids in a TREC run, from the last in the
    order of bytes to the first. As in BEIR, a passage that is the question itself is left out; of a
    passage that was found twice, the first remains.

    Args:
        hits: passages and scores, best first.
        get_id: gives a passage's id.
        depth: the largest number of passages; None for all. A search for one more than `depth`
            allows for the question itself.
    """
    found: dict[str, tuple[Item, float]] = {}
    for item, score in hits:
        if not question.is_passage(get_id(item)):
            found.setdefault(get_id(item), (item, score))
    kept = list(found.values())[:depth]
    kept.sort(key=lambda hit: _escape(get_id(hit[0])).encode(errors="surrogatepass"), reverse=True)
    return sorted(kept, key=lambda hit: -hit[1])


def answer_hits(
    texts: Sequence[str], answers: Sequence[str], depths: Sequence[int]
) -> dict[str, float]:
    """DPR's top-k accuracy: whether one of the first k passages contains an answer.

    The result is `{"answer@k": 0.0 or 1.0}` for every k of `depths`.
    """
    hits = [has_answer(text, answers) for text in texts[: max(depths)]]
    return {f"answer@{k}": float(any(hits[:k])) for k in depths}


def reciprocal_rank(ranked: Sequence[str], relevant: Mapping[str, int]) -> float:
    """Reciprocal rank of the first relevant passage, or 0 if no relevant passage is ranked."""
    hits = (rank for rank, id in enumerate(dict.fromkeys(ranked), 1) if relevant.get(id, 0) > 0)
    return next((1 / rank for rank in hits), 0.0)


def recall(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Share of the relevant passages (at least one) that are among the first `k`."""
    first = list(dict.fromkeys(ranked))[:k]
    return sum(relevant.get(id, 0) > 0 for id in first) / sum(g > 0 for g in relevant.values())


def ndcg(ranked: Sequence[str], relevant: Mapping[str, int], k: int) -> float:
    """Normalised discounted cumulative gain at `k` (Järvelin and Kekäläinen 2002).

    The gain of a passage at rank r is `grade / log2(r + 1)`, as in trec_eval. The sum of the gains
    is divided by the sum for an ideal ranking. At least one passage is relevant.
    """

    def sum_gains(grades: Sequence[int]) -> float:
        return sum(max(grade, 0) / math.log2(rank + 1) for rank, grade in enumerate(grades[:k], 1))

    ideal = sum_gains(sorted(relevant.values(), reverse=True))
    return sum_gains([relevant.get(id, 0) for id in dict.fromkeys(ranked)]) / ideal


def write_run(
    path: Path, name: str, questions: Sequence[str], ranked: Sequence[Sequence[tuple[str, float]]]
) -> None:
    """Writes rankings as a TREC run, with `question Q0 passage rank score name` on each line.

    White space in ids is percent-encoded as in URLs, because white space separates the fields.
    Scores are written as float32. Tools rank by the scores alone and differ in how they order equal
    ones, so of equal scores the later ones are lowered by the smallest step that float32 has: every
    tool reads the ranking as it is here.

    Args:
        questions: ids.
        ranked: for each question the ids and scores of its passages, best first.

    Raises:
        RagJaxError: a question or, within a ranking, a passage is there twice.
        ValueError: a ranking is not best first.
    """
    _check_distinct(questions, f"{path.name}: question")
    with open_atomic(path) as file:
        for question, ranking in zip(questions, ranked, strict=True):
            ids = [id for id, _ in ranking]
            _check_distinct(ids, f"{path.name}: question {question!r}: passage")
            scores = _separate([score for _, score in ranking])
            for rank, (passage, score) in enumerate(zip(ids, scores, strict=True), 1):
                names = _escape(question), _escape(passage), _escape(name)
                file.write(f"{names[0]} Q0 {names[1]} {rank} {score:.9g} {names[2]}\n")


def _separate(scores: Sequence[float]) -> Iterator[np.float32]:
    """Yields float32 scores that fall strictly, each as near to its own score as that allows."""
    last, below = np.float32(np.inf), np.float32(-np.inf)
    for number, own in enumerate(scores):
        if not abs(own) <= np.finfo(np.float32).max:
            raise RagJaxError(f"a score is {own}: no finite number of float32")
        score = np.float32(own)
        if number and score > np.float32(scores[number - 1]):
            raise ValueError(f"scores must fall: {score} follows {scores[number - 1]}")
        last = min(score, np.nextafter(last, below))
        yield last


def _check_distinct(ids: Sequence[str], what: str) -> None:
    known: set[str] = set()
    for id in ids:
        if not id:
            raise RagJaxError(f"{what} is empty: a TREC run has no empty ids")
        if id in known:
            raise RagJaxError(f"{what} {id!r} is there twice: ids must be unique")
        known.add(id)


def check_run(
    path: Path,
    questions: Sequence[Question],
    records: Sequence[Mapping[str, Any]],
    measures: Mapping[str, str],
) -> None:
    """Compares a report's numbers with those that ir_measures reads from the TREC run.

    Args:
        records: one for each question, with the numbers by name where the question has them.
        measures: ir_measures' name for each of the numbers, such as `{"mrr": "RR"}`.

    Raises:
        RagJaxError: a number differs by more than a millionth; the question is named.
    """
    if not measures or not any(question.relevant for question in questions):
        return
    import ir_measures  # imported here: slow, and only judged rankings need it

    parsed = {}
    for ours, theirs in measures.items():
        # Not by its parser, which needs classes that Python 3.14 has no more.
        name, _, cutoff = theirs.partition("@")
        measure = getattr(ir_measures, name)
        parsed[measure @ int(cutoff) if cutoff else measure] = ours
    judged = {
        _escape(question.id): record
        for question, record in zip(questions, records, strict=True)
        if question.relevant
    }
    qrels = [
        ir_measures.Qrel(_escape(question.id), _escape(id), grade)
        for question in questions
        for id, grade in question.relevant.items()
    ]
    run = list(ir_measures.read_trec_run(str(path)))
    for found in ir_measures.iter_calc(list(parsed), qrels, run):
        name = parsed[found.measure]
        ours = judged[found.query_id][name]
        if not abs(ours - found.value) <= _TOLERANCE:
            raise RagJaxError(
                f"{path.name}: question {_unescape(found.query_id)!r}: {name} is {ours:.9g}, but "
                f"ir_measures reads {found.measure} = {found.value:.9g} from the run: a fault of "
                "rag_jax; do not use these numbers"
            )


def read_run(path: Path) -> dict[str, list[tuple[str, float]]]:
    """Reads a TREC run: ids and scores of the passages by id of the question, in the file's order.

    Raises:
        RagJaxError: the file cannot be read, is not UTF-8 or has a malformed line, which is named.
    """
    rankings: dict[str, list[tuple[str, float]]] = {}
    if is_there(path):
        require_file(path)
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(list_lines(file), 1):
                fields = line.split()
                is_number = len(fields) == 6 and _NUMBER.fullmatch(fields[4])
                if not is_number or math.isinf(float(fields[4])):
                    raise RagJaxError(
                        f"{path}:{number}: must be question, Q0, passage, rank, score and name"
                    )
                passage = _unescape(fields[2]), float(fields[4])
                rankings.setdefault(_unescape(fields[0]), []).append(passage)
    except UnicodeDecodeError as error:
        raise RagJaxError(f"{path}: is not UTF-8 ({error.reason})") from None
    except ValueError as error:
        raise RagJaxError(f"{path}: {error}") from None
    except OSError as error:
        raise RagJaxError(f"{path}: cannot be read ({error.strerror})") from None
    return rankings


def _escape(name: str) -> str:
    """A name as it is in a TREC run, with white space percent-encoded."""
    return _UNSAFE.sub(lambda match: quote(match[0], safe=""), name)


def _unescape(name: str) -> str:
    """The name that `_escape` made into another one; others, as of Wikidata's pages, stay."""
    plain = unquote(name)
    return plain if _escape(plain) == name else name
