"""BEIR's folders (Thakur et al. 2021, arXiv 2104.08663), and TREC's relevance judgements.

`corpus.jsonl` has `_id`, `title` and `text`, `queries.jsonl` has `_id` and `text`, and
`qrels/<split>.tsv` has a heading and then one line per judgement: query, passage and grade,
separated by tabs. TREC's format, `query 0 passage grade` without a heading, is accepted too.
"""

import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

from rag_jax.data.formats.fields import get_filled, get_id
from rag_jax.data.formats.lines import BadLineError, BadLines, Place, read_lines, read_records
from rag_jax.data.questions import Question


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
) -> list[Question]:
    """Reads the judged queries of a split as questions without answers, in the file's order.

    Passages, given as the ids of the corpus, are relevant with a grade above 0. A judgement may be
    given twice with the same grade, but not with two grades.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    relevant: dict[str, dict[str, int]] = {}
    judged: dict[tuple[str, str], int] = {}
    for place, (query, passage, grade) in read_qrels(path, bad):
        if query not in queries:
            bad.skip(BadLineError(f"{place}: query {query!r} is not among the queries"))
        elif passage not in passages:
            bad.skip(BadLineError(f"{place}: passage {passage!r} is not in the corpus"))
        elif judged.setdefault((query, passage), grade) != grade:
            before = f"query {query!r} and passage {passage!r} have the grade"
            known = judged[query, passage]
            bad.skip(BadLineError(f"{place}: {before} {known} in another line; delete one of them"))
        else:
            grades = relevant.setdefault(query, {})
            if grade > 0:
                grades[passage] = grade
    return [Question(query, queries[query], (), grades) for query, grades in relevant.items()]


def read_qrels(path: Path, bad: BadLines) -> Iterator[tuple[Place, tuple[str, str, int]]]:
    """Yields the place, and query id, passage id and grade, of each judgement of a file.

    Raises:
        RagJaxError: if the file cannot be read, or has too many bad lines.
    """
    for place, line in read_lines(path, bad):
        fields = line.split("\t")
        is_heading = place.line == 1 and len(fields) == 3
        if len(fields) != 3:
            fields = line.split()
            fields = [*fields[:1], *fields[2:]] if len(fields) == 4 else []
        if len(fields) == 3 and re.fullmatch("-?[0-9]{1,9}", fields[2]):
            yield place, (fields[0], fields[1], int(fields[2]))
        elif not is_heading:
            error = f"{place}: must be query, passage and grade, separated by tabs"
            bad.skip(BadLineError(error))
