"""Runs side by side: which of their questions are the same."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

_OWN = ("relevant",)  # of a question, what each run has for itself: places among its passages


def join_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The data of one page over several runs, of `collect_run` each.

    A question is the same in two runs if its text and its id are. Of the others, questions with the
    same text are the same. An id alone says nothing: many datasets count their questions.

    Returns:
        `questions`: the columns of all questions, each once, in the order of the first run that
        asks it. `runs`: the runs, each with a `label` of its own, with `rows`, the place of each of
        its questions in these columns, and with its own `relevant` in place of `questions`.
        `matching`: sentences that say how far the runs' questions are the same; none for one run.
    """
    columns: dict[str, list[Any]] = {}
    joined, labels = [], _label(runs)
    for run, label in zip(runs, labels, strict=True):
        asked = run["questions"]
        columns = columns or {name: [] for name in asked if name not in _OWN}
        rows = _match(columns, asked)
        for row, place in enumerate(rows):
            if place is None:
                rows[row] = len(columns["id"])
                for name, column in columns.items():
                    column.append(asked[name][row])
        rest = {name: value for name, value in run.items() if name != "questions"}
        own = {name: asked[name] for name in _OWN}
        joined.append({**rest, **own, "label": label, "rows": rows})
    return {"questions": columns, "runs": joined, "matching": _describe(joined)}


def _match(known: Mapping[str, Sequence[Any]], asked: Mapping[str, Sequence[Any]]) -> list[Any]:
    """The place of each question among those that are known; None for a new one."""
    keys = (("id", "question"), ("question",))
    places: list[int | None] = [None] * len(asked["id"])
    taken: set[int] = set()
    for names in keys:
        free: dict[Any, list[int]] = {}
        for place in range(len(known["id"])):
            if place not in taken:
                free.setdefault(_read(known, names, place), []).append(place)
        for row, found in enumerate(places):
            if found is None and (same := free.get(_read(asked, names, row))):
                places[row] = same.pop(0)
                taken.add(places[row])
    return places


def _read(columns: Mapping[str, Sequence[Any]], names: Sequence[str], row: int) -> tuple[Any, ...]:
    return tuple(columns[name][row] for name in names)


def _label(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each run, none of them twice."""
    names = [run["name"] for run in runs]
    labels: list[str] = []
    for name in names:
        numbered = (f"{name} ({n})" for n in itertools.count(1))
        free = (label for label in numbered if label not in (*names, *labels))
        labels.append(next(free) if names.count(name) > 1 else name)
    return labels


def _describe(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    if len(runs) < 2:
        return []
    sets = [{*run["rows"]} for run in runs]
    shared, every = set.intersection(*sets), set.union(*sets)
    if shared == every:
        return [f"All runs ask the same {len(every):,} questions."]
    said = [f"The runs ask different questions: {len(shared):,} of {len(every):,} are in all."]
    for run, own in zip(runs, sets, strict=True):
        others = set.union(*(other for other in sets if other is not own), set())
        if alone := own - others:
            said.append(f"{len(alone):,} are in {run['label']} alone.")
    return said
