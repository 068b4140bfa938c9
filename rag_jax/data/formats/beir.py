"""BEIR's folders (Thakur et al. 2021, arXiv 2104.08663), and TREC's relevance judgements.

`corpus.jsonl` has `_id`, `title` and `text`, `queries.jsonl` has `_id` and `text`, and
`qrels/<split>.tsv` has a heading and then one line per judgement: query, passage and grade,
separated by tabs, or in the order that the heading names. TREC's format, `query 0 passage grade`
without a heading, is accepted too, and so is `qrels/<split>.jsonl`, with `query-id`, `corpus-id`
and `score`, as MTEB's datasets have it.
"""

import re
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from rag_jax.data.formats.fields import Item, get_filled, get_id
from rag_jax.data.formats.files import find_suffix
from rag_jax.data.formats.lines import BadLineError, BadLines, Place, read_lines
from rag_jax.data.formats.records import read_records
from rag_jax.data.questions import Question
from rag_jax.runtime.errors import RagJaxError

# Names of the columns of judgements.
_COLUMNS = (
    {"query-id", "qid", "query", "topic"},
    {"corpus-id", "docid", "doc-id", "docno", "document-id", "passage-id", "pid"},
    {"score", "grade", "relevance", "rel", "label"},
)


def read_queries(path: Path, bad: BadLines) -> dict[str, str]:
    """Reads the texts of queries by id.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    queries: dict[str, str] = {}
    for place, record in read_records(path, bad):
        with bad:
            id = get_id(record, ["_id", "id"], place)
            text = get_filled(record, "text", place)
            if id in queries:
                raise BadLineError(f"{place}: another query has the id {id!r}")
            queries[id] = text
    return queries


def read_questions(
    path: Path, queries: Mapping[str, str], passages: Set[str], bad: BadLines
) -> list[Item]:
    """Reads the judged queries of a split as questions without answers, in the file's order.

    The place of a question is that of its first judgement.

    Passages, given as the ids of the corpus, are relevant with a grade above 0. A passage with two
    grades is a bad line.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    judged: dict[str, dict[str, int]] = {}
    places: dict[str, Place] = {}
    for place, (query, passage, grade) in read_qrels(path, bad):
        if query not in queries:
            bad.skip(BadLineError(f"{place}: query {query!r} is not among the queries"))
        elif passage not in passages:
            bad.skip(BadLineError(f"{place}: passage {passage!r} is not in the corpus"))
        else:
            places.setdefault(query, place)
            grades = judged.setdefault(query, {})
            if grades.setdefault(passage, grade) != grade:
                both = f"has grade {grade} here and {grades[passage]} before"
                bad.skip(BadLineError(f"{place}: passage {passage!r} of query {query!r} {both}"))
    items = []
    for query, grades in judged.items():
        relevant = {id: grade for id, grade in grades.items() if grade > 0}
        items.append(Item(places[query], Question(query, queries[query], (), relevant)))
    return items


def read_qrels(path: Path, bad: BadLines) -> Iterator[tuple[Place, tuple[str, str, int]]]:
    """Yields the place, and query id, passage id and grade, of each judgement of a file.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    if find_suffix(path) in (".jsonl", ".ndjson", ".json"):
        for place, record in read_records(path, bad):
            with bad:
                names = get_id(record, ["query-id"], place), get_id(record, ["corpus-id"], place)
                yield place, (*names, _get_grade(record, place))
        return
    order = range(3)
    for place, line in read_lines(path, bad):
        fields = line.split("\t")
        if len(fields) not in (3, 4):
            fields = line.split()
            fields = fields if len(fields) == 4 else []
        if len(fields) == 4:  # TREC's, with a number that says nothing
            fields = [*fields[:1], *fields[2:]]
        query, passage, grade = (fields[i] for i in order) if fields else ("", "", "")
        if re.fullmatch(r"-?[0-9]{1,9}(\.0+)?\s*", grade):
            yield place, (query, passage, int(grade.partition(".")[0]))
        elif place.line == 1 and not re.search(r"(?:^|\s)-?\d", line):
            order = _find_order(fields, place) or order
        else:
            error = f"{place}: must be query, passage and grade, separated by tabs"
            bad.skip(BadLineError(error))


def _find_order(heading: Sequence[str], place: Place) -> list[int]:
    """Returns the places of query, passage and grade by a heading; none if it names no places.

    Raises:
        RagJaxError: it names some of them, in another order than the usual one.
    """
    names = [name.strip().lower().replace("_", "-") for name in heading]
    places = [[i for i, name in enumerate(names) if name in column] for column in _COLUMNS]
    if all(len(found) == 1 for found in places):
        return [found[0] for found in places]
    if any(found and found != [usual] for usual, found in enumerate(places)):
        raise RagJaxError(f"{place}: name the columns query-id, corpus-id and score: {heading}")
    return []


def _get_grade(record: Mapping[str, Any], place: Place) -> int:
    """Returns the grade of a judgement, a whole number, which may be written as 1.0."""
    grade = record.get("score")
    if type(grade) not in (int, float) or not abs(grade) < 1e9 or grade != int(grade):
        raise BadLineError(f"{place}: score={grade!r:.40} must be a whole number")
    return int(grade)
