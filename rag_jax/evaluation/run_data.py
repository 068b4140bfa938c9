"""The data of one run's page, as a plain value: each question with what every method made of it.

Columns of equal length, not a record a question, keep a page of thousands of questions small.
"""

import json
import math
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

from rag_jax.data.questions import PASSAGES, QUESTIONS, Collection, Question, load_collection
from rag_jax.evaluation.answers import popularity_thirds
from rag_jax.evaluation.curves import name_stage, read_curves
from rag_jax.evaluation.run_passages import ROOM, PassageShelf, list_items
from rag_jax.evaluation.tables import list_tables
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl, to_json
from rag_jax.runtime.outside import parsing, show

Rows = Sequence[Mapping[str, Any]]
REPORT, PREDICTIONS = "report.json", "predictions"
# The most characters of a text on the page, by what it is.
_LONGEST = {"question": 2000, "answer": 200, "prediction": 1000, "knowledge": 1200}
_ANSWERS = 20  # of a question that are listed
_CORPORA = ("stages/corpus", "[!.]*/stages/corpus")  # of a run, and of a comparison's systems
# Numbers of a prediction that there is one of for each source.
_BY_SOURCE = ("probabilities", "votes", "correct_by_source")
# What a field of a prediction holds, of the fields that the page reads.
_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("id", "question", "dataset", "type"), (str,)),
    **dict.fromkeys(("prediction", "source", "knowledge"), (str, type(None))),
    **dict.fromkeys(("answers", "passages", "adapters"), (list,)),
    **dict.fromkeys(_BY_SOURCE, (list, type(None))),
}
_NEEDED = ("scores", "columns", "figures")  # of a report, which older ones do not have


def read_run(folder: Path, *, room: int = ROOM) -> dict[str, Any]:
    """The data of the run whose report is in a work folder; see `collect_run`.

    Raises:
        RagJaxError: the report is damaged, was written by an earlier version, or is one over
            several seeds; a file of predictions is missing, or has a line that is no prediction,
            which is named.
    """
    path = folder / REPORT
    report = read_json(path)
    if isinstance(report, dict) and "seeds" in report:
        raise RagJaxError(
            f"{path}: is of several seeds, and {folder / 'report.html'} shows it; name the work "
            "folders of single seeds to put them beside other runs"
        )
    if not isinstance(report, dict) or any(name not in report for name in ("methods", *_NEEDED)):
        raise RagJaxError(
            f"{path}: has not what a page shows, as one of an earlier version; run the command "
            "that wrote it again, which keeps what is made and writes the report anew"
        )
    with parsing(path):
        names = [name for name, row in report["methods"].items() if "error" not in row]
    predictions = {name: read_predictions(folder / PREDICTIONS / f"{name}.jsonl") for name in names}
    return collect_run(report, predictions, folder, room=room)


def read_predictions(path: Path) -> list[dict[str, Any]]:
    """A method's predictions.

    Raises:
        RagJaxError: the file is missing, or has a line that is no prediction, which is named.
    """
    records = read_jsonl(path)
    for number, record in enumerate(records, 1):
        if problem := _find_problem(record):
            raise RagJaxError(f"{path}:{number}: is no prediction: {problem}")
    return records


def _find_problem(record: Any) -> str:
    """What is wrong with a prediction; empty if nothing is."""
    if not isinstance(record, dict) or "id" not in record:
        return "must be an object with an id"
    for name, value in record.items():
        if name in _TYPES and not isinstance(value, _TYPES[name]):
            return f"{name}={show(value)}: must be {'text' if str in _TYPES[name] else 'a list'}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name}={value}: must be finite"
    if not all(isinstance(answer, str) for answer in record.get("answers", [])):
        return f"answers={show(record['answers'])}: must be texts"
    if not (record.get("popularity") is None or _is_number(record["popularity"])):
        return f"popularity={show(record['popularity'])}: must be a number"
    for name in _BY_SOURCE:
        if not all(map(_is_number, record.get(name) or ())):
            return f"{name}={show(record[name])}: must be numbers"
    for name in ("passages", "adapters", "retrieved"):
        for item in list_items(record, name):
            named = item if isinstance(item, dict) else {"id": item}
            numbers = (named.get(key) for key in ("score", "rank_before"))
            if not isinstance(named.get("id"), str):
                return f"{name}: {show(item)}: must be an id, or have one"
            if not all(value is None or _is_number(value) for value in numbers):
                return f"{name}: {show(item)}: score and rank must be numbers"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def collect_run(
    report: Mapping[str, Any],
    predictions: Mapping[str, Rows],
    folder: Path,
    *,
    room: int = ROOM,
) -> dict[str, Any]:
    """Everything that a page shows of a run, as a value that JSON can hold.

    Args:
        report: the content of `report.json`.
        predictions: every method's records, a question each.
        folder: the work folder, for the corpus and the training curves, as far as it has them.
        room: number of characters of passages' texts; the first ranks' come first.

    Returns:
        - `name`, `system`, `model`, `dataset`, `note`, `tables`, `figures`, `environment`,
          `curves`: of the run. `scores`: of a method's numbers the fields that rate an answer, by
          name. `sources`: names, in the order of probabilities.
        - `questions`: columns `id`, `question`, `answers`, `dataset`, `type`, `popularity`,
          `third` and `relevant`.
        - `methods`: for each its columns, with None for a question that it does not answer:
          `prediction`; `numbers` by name; and of those that there are, `source`,
          `probabilities`, `votes`, `correct_by_source`, `knowledge` (a place in `texts`),
          `passages` (each a place in `passages`, its score and its rank before reranking) and
          `adapters`.
        - `texts`; `passages`: id, title and text of each, the text None if the page has none.
        - `cuts`: what was left out or shortened, a sentence each.
    """
    report = json.loads(to_json(report))
    folder = Path(folder)
    stages = {stage["name"] for stage in report["stages"]}
    collection = _open_collection(folder, stages)
    asked = _list_questions(predictions, collection)
    shelf, texts = PassageShelf(), _Texts()
    methods = {
        name: _list_columns({row["id"]: row for row in rows}, list(asked), shelf, texts)
        for name, rows in predictions.items()
    }
    questions = _tabulate_questions(asked, shelf, texts)
    passages, cuts = shelf.fill(collection and collection.passages, room)
    if texts.shortened:
        cuts.append(f"{texts.shortened:,} long texts are cut where an ellipsis says so.")
    about = {name: report[name] for name in ("system", "model", "dataset", "scores", "figures")}
    settings = report["config"] if isinstance(report["config"], dict) else {}
    settings = {**settings.get("srrag", {}), **settings}  # of a comparison, those of the system
    return {
        "name": folder.resolve().name,
        **about,
        "note": report.get("under_change", ""),
        "tables": list_tables(report),
        "environment": report["environment"],
        "curves": read_curves(folder, stages),
        "sources": [source["name"] for source in settings.get("sources", ())],
        "questions": questions,
        "methods": methods,
        "texts": list(texts.places),
        "passages": passages,
        "cuts": cuts,
    }


class _Texts:
    """Texts of a page, each once and none longer than it may be."""

    def __init__(self):
        self.places: dict[str, int] = {}
        self.shortened = 0

    def cut(self, text: str, kind: str) -> str:
        more = len(text) - _LONGEST[kind]
        if more <= 0:
            return text
        self.shortened += 1
        return f"{text[: _LONGEST[kind]]}… ({more:,} more characters)"

    def place(self, text: str, kind: str) -> int:
        return self.places.setdefault(self.cut(text, kind), len(self.places))


def _open_collection(folder: Path, stages: Set[str]) -> Collection | None:
    """The passages and questions of a run with some stages; None if the work folder has none."""
    for pattern in _CORPORA:
        for place in sorted(folder.glob(pattern)):
            if name_stage(place, folder) not in stages:  # a comparison's without this system
                continue
            if (place / PASSAGES).exists() and (place / QUESTIONS).exists():
                return load_collection(place)
    return None


def _list_questions(
    predictions: Mapping[str, Rows], collection: Collection | None
) -> dict[str, tuple[Mapping[str, Any], Question | None]]:
    """The first record of each question by its id, and the question as the corpus has it."""
    splits = collection.questions.values() if collection else ()
    known = {(q.id, q.question): q for questions in splits for q in questions}
    asked: dict[str, tuple[Mapping[str, Any], Question | None]] = {}
    for rows in predictions.values():
        for row in rows:
            if row["id"] not in asked:
                asked[row["id"]] = row, known.get((row["id"], row.get("question")))
    return asked


def _tabulate_questions(
    asked: Mapping[str, tuple[Mapping[str, Any], Question | None]],
    shelf: PassageShelf,
    texts: _Texts,
) -> dict[str, list[Any]]:
    """The columns of the questions, from their records and from the corpus."""
    columns: dict[str, list[Any]] = {"id": list(asked)}

    def add(name: str, values: list[Any]) -> None:
        columns[name] = values

    pairs = list(asked.values())
    add("question", [texts.cut(row.get("question", row["id"]), "question") for row, _ in pairs])
    listed = [list(row.get("answers", ()))[:_ANSWERS] for row, _ in pairs]
    add("answers", [[texts.cut(answer, "answer") for answer in own] for own in listed])
    for name in ("dataset", "type"):
        add(name, [row.get(name) or (q and getattr(q, name)) or "" for row, q in pairs])
    known = [row.get("popularity") for row, _ in pairs]
    pairs_known = zip(known, pairs, strict=True)
    known = [q.popularity if own is None and q else own for own, (_, q) in pairs_known]
    add("popularity", known)
    add("third", popularity_thirds(known))
    add("relevant", [shelf.list_relevant(q.relevant if q else {}) for _, q in pairs])
    return columns


def _list_columns(
    rows: Mapping[str, Mapping[str, Any]], ids: Sequence[str], shelf: PassageShelf, texts: _Texts
) -> dict[str, Any]:
    """A method's columns, without those that no record has.

    Args:
        rows: the method's records by id.
        ids: of all questions, in their order.
    """
    answered = [rows.get(id, {}) for id in ids]

    def read(name: str, convert: Any) -> list[Any]:
        return [convert(row[name]) if row.get(name) is not None else None for row in answered]

    columns: dict[str, Any] = {
        "prediction": read("prediction", lambda text: texts.cut(text, "prediction")),
        "source": read("source", str),
        **{name: read(name, lambda values: list(map(_round, values))) for name in _BY_SOURCE},
        "knowledge": read("knowledge", lambda t: texts.place(t, "knowledge") if t else None),
        "passages": [shelf.list_found(row) for row in answered],
        "adapters": [shelf.list_adapters(row) for row in answered],
    }
    given = {name: any(value not in (None, []) for value in own) for name, own in columns.items()}
    columns = {name: column for name, column in columns.items() if given[name]}
    names = dict.fromkeys(
        name
        for row in answered
        for name, value in row.items()
        if isinstance(value, int | float) and name not in ("popularity", "number")
    )
    numbers = {name: read(name, lambda value: _round(float(value))) for name in names}
    return {**columns, "numbers": numbers}


def _round(value: float) -> float:
    """A number to five digits, a whole one without a point."""
    short = float(f"{value:.5g}")
    return int(short) if short.is_integer() else short
