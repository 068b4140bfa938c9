"""Passages and questions about them, from the built-in world or a folder in a common format.

- `beir` (Thakur et al. 2021, arXiv 2104.08663): `corpus.jsonl` with `_id`, `title` and `text`,
  `queries.jsonl` with `_id` and `text`, and `qrels/<split>.tsv`: a heading, then query, passage and
  grade of relevance a line.
- `squad`: `passages.jsonl` with `id`, `title` and `text`, and `questions.jsonl` with `id`,
  `question`, `answers` and, where it is known, `passage_id`. Both names may begin with a split and
  an underscore, as in `train_questions.jsonl`; the split is "test" where they don't. The passages
  of all files make one corpus.
- `multihop` (2WikiMultihopQA, Ho et al. 2020; HotpotQA, Yang et al. 2018): `<split>.jsonl`, or
  `<split>_<anything>.jsonl`, with `id`, `question`, `answer`, `type` and `paragraphs`, each with
  `title`, `text` and `is_supporting`. The paragraphs of all files make one corpus, their titles the
  ids.
"""

import dataclasses
import hashlib
import json
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.gazetteer import build_world
from rag_jax.errors import RagJaxError
from rag_jax.files import read_jsonl, write_json, write_jsonl
from rag_jax.ranking import has_answer

_IDS = ("id", "_id", "passage_id")
_PARAGRAPH = ("title", "text")


@dataclass(frozen=True)
class Passage:
    """A passage; its title is empty where there is none."""

    id: str
    title: str
    text: str


@dataclass(frozen=True)
class Question:
    """A question, its acceptable answers if any are known, relevant passages' grades by id, and
    its type where the data tells of types."""

    id: str
    question: str
    answers: tuple[str, ...]
    relevant: Mapping[str, int]
    type: str = ""


@dataclass(frozen=True)
class Collection:
    """A corpus, and questions about it by split."""

    passages: list[Passage]
    questions: dict[str, list[Question]]


def read_collection(data: DataConfig, world: WorldConfig, *, seed: int) -> Collection:
    """The passages and questions that the settings name.

    Args:
        data: the folder and its format, or neither for the built-in world.
        world: the settings of that world.
        seed: decides which training questions are held out.

    Raises:
        RagJaxError: naming the file, and line, of what is missing or not as the format has it.
    """
    if data.path is None:
        return _build_world(world)
    folder = Path(data.path)
    readers = {"beir": _read_beir, "squad": _read_squad, "multihop": _read_multihop}
    collection = readers[_find_format(folder) if data.format == "auto" else data.format](folder)
    return _hold_out(collection, data.held_out, seed=seed)


def describe_source(data: DataConfig, world: WorldConfig) -> dict[str, Any]:
    """What the collection depends on: the world's settings, or the folder's files by content.

    Raises:
        RagJaxError: the folder is not there.
    """
    if data.path is None:
        return {"world": dataclasses.asdict(world)}
    folder = Path(data.path)
    if not folder.is_dir():
        raise RagJaxError(f"config.data.path={data.path}: no such folder")
    paths = sorted({*folder.glob("*.jsonl"), *folder.glob("qrels/*.tsv")})
    hashes = {}
    for path in paths:
        with open(path, "rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return {"format": data.format, "held_out": data.held_out, "files": hashes}


def read_passages(files: Sequence[str | Path]) -> list[Passage]:
    """The passages of JSON lines files: objects with `id`, `text` and, where there is one, `title`.

    An id may be a whole number.

    Raises:
        RagJaxError: naming the file, and line, of what cannot be read or is missing, blank or
            there twice.
    """
    return list(_read_passages([Path(name) for name in files], "id").values())


def save_collection(folder: Path, collection: Collection) -> None:
    """Writes a collection for `load_collection`."""
    write_jsonl(folder / "passages.jsonl", collection.passages)
    write_json(folder / "questions.json", collection.questions)


def load_collection(folder: Path) -> Collection:
    """Reads what `save_collection` wrote."""
    with open(folder / "questions.json", encoding="utf-8") as file:
        splits = json.load(file)
    return Collection(
        [Passage(**record) for record in read_jsonl(folder / "passages.jsonl")],
        {
            split: [Question(**{**r, "answers": tuple(r["answers"])}) for r in records]
            for split, records in splits.items()
        },
    )


def _build_world(settings: WorldConfig) -> Collection:
    """The encyclopedia; every passage about a question's place that has an answer is relevant."""
    world = build_world(**dataclasses.asdict(settings))
    about: dict[str, list[Passage]] = defaultdict(list)
    passages = [Passage(p.id, p.title, p.text) for p in world.passages]
    for passage in passages:
        if not passage.id.startswith("talk/"):
            about[passage.id.split("/")[1]].append(passage)
    questions = {
        split: [
            Question(
                q.id,
                q.question,
                q.answers,
                {
                    p.id: 1
                    for p in about[q.passage_id.split("/")[1]]
                    if p.id == q.passage_id or has_answer(p.text, q.answers)
                },
            )
            for q in asked
        ]
        for split, asked in world.questions.items()
    }
    return Collection(passages, questions)


def _find_format(folder: Path) -> str:
    if (folder / "corpus.jsonl").exists():
        return "beir"
    if any(folder.glob("*passages.jsonl")):
        return "squad"
    for path in sorted(folder.glob("*.jsonl")):
        if "paragraphs" in next(_read_records(path), ("", {}))[1]:
            return "multihop"
    raise RagJaxError(
        f"config.data.path={folder}: holds neither corpus.jsonl (BEIR) nor passages.jsonl (SQuAD), "
        "nor a .jsonl file with paragraphs (2WikiMultihopQA, HotpotQA)"
    )


def _read_beir(folder: Path) -> Collection:
    passages = _read_passages([folder / "corpus.jsonl"], "_id")
    queries = {
        _text(r, "_id", at): _text(r, "text", at)
        for at, r in _read_records(folder / "queries.jsonl")
    }
    questions = {}
    for path in sorted(folder.glob("qrels/*.tsv")):
        relevant: dict[str, dict[str, int]] = {}
        for at, (query, passage, grade) in _read_qrels(path):
            if query not in queries:
                raise RagJaxError(f"{at}: query {query!r} is not in queries.jsonl")
            if passage not in passages:
                raise RagJaxError(f"{at}: passage {passage!r} is not in corpus.jsonl")
            grades = relevant.setdefault(query, {})
            if grade > 0:
                grades[passage] = grade
        questions[path.stem] = [
            Question(query, queries[query], (), grades) for query, grades in relevant.items()
        ]
    if not questions:
        raise RagJaxError(f"{folder / 'qrels'}: holds no .tsv file")
    return Collection(list(passages.values()), questions)


def _read_qrels(path: Path) -> Iterator[tuple[str, tuple[str, str, int]]]:
    for at, line in _read_lines(path):
        fields = line.split("\t")
        numbered = len(fields) == 3 and fields[2].removeprefix("-").isdecimal()
        if numbered:
            yield at, (fields[0], fields[1], int(fields[2]))
        elif not at.endswith(":1"):  # which is the heading
            raise RagJaxError(f"{at}: must be query, passage and grade, with tabs between them")


def _read_squad(folder: Path) -> Collection:
    paths = sorted(folder.glob("*passages.jsonl"))
    if not paths:
        raise RagJaxError(f"{folder}: holds no passages.jsonl")
    passages = _read_passages(paths, "id")
    questions = {}
    for path in sorted(folder.glob("*questions.jsonl")):
        split = path.name.removesuffix("questions.jsonl").rstrip("_") or "test"
        questions[split] = [_read_question(r, at, passages) for at, r in _read_records(path)]
    if not questions:
        raise RagJaxError(f"{folder}: holds no questions.jsonl")
    return Collection(list(passages.values()), questions)


def _read_multihop(folder: Path) -> Collection:
    passages: dict[str, Passage] = {}
    questions: dict[str, list[Question]] = defaultdict(list)
    for path in sorted(folder.glob("*.jsonl")):
        for at, record in _read_records(path):
            paragraphs = record.get("paragraphs")
            if not isinstance(paragraphs, list) or not all(isinstance(p, dict) for p in paragraphs):
                raise RagJaxError(f"{at}: paragraphs must be a list of objects")
            relevant = {}
            for paragraph in paragraphs:
                passage = _add_paragraph(passages, *(_text(paragraph, n, at) for n in _PARAGRAPH))
                if paragraph.get("is_supporting"):
                    relevant[passage] = 1
            id, asked, answer = (_text(record, name, at) for name in ("id", "question", "answer"))
            kind = _text(record, "type", at, default="")
            question = Question(id, asked, (answer,), relevant, kind)
            questions[path.stem.split("_")[0]].append(question)
    if not passages:
        raise RagJaxError(f"{folder}: holds no .jsonl file with paragraphs")
    return Collection(list(passages.values()), dict(questions))


def _add_paragraph(passages: dict[str, Passage], title: str, text: str) -> str:
    """The id of a paragraph: its title or, where another text has that, the title with a number."""
    number, id = 1, title
    while passages.setdefault(id, Passage(id, title, text)).text != text:
        number += 1
        id = f"{title} ({number})"
    return id


def _read_question(record: Mapping[str, Any], at: str, known: Container[str]) -> Question:
    answers = record.get("answers")
    if not isinstance(answers, list) or not all(isinstance(a, str) for a in answers):
        raise RagJaxError(f"{at}: answers must be a list of texts")
    relevant = {}
    if record.get("passage_id") is not None:
        passage = _text(record, "passage_id", at)
        if passage not in known:
            raise RagJaxError(f"{at}: passage_id {passage!r} is the id of no passage")
        relevant[passage] = 1
    return Question(
        _text(record, "id", at), _text(record, "question", at), tuple(answers), relevant
    )


def _read_passages(paths: Sequence[Path], id_name: str) -> dict[str, Passage]:
    """Passages by id, in their order."""
    found: dict[str, Passage] = {}
    for path in paths:
        for at, record in _read_records(path):
            id, title, text = (
                _text(record, name, at, default=default)
                for name, default in ((id_name, None), ("title", ""), ("text", None))
            )
            if not text.strip():
                raise RagJaxError(f"{at}: the text of passage {id!r} is blank")
            if id in found:
                raise RagJaxError(f"{at}: another passage has the id {id!r}")
            found[id] = Passage(id, title, text)
    if not found:
        raise RagJaxError(f"{paths[0]}: holds no passages")
    return found


def _hold_out(collection: Collection, count: int, *, seed: int) -> Collection:
    """Makes `count` training questions the dev split, drawn at random, in their old order."""
    if not count:
        return collection
    train = collection.questions.get("train", [])
    if "dev" in collection.questions:
        raise RagJaxError(f"config.data.held_out={count}: the data has a dev split; set it to 0")
    if count >= len(train):
        raise RagJaxError(
            f"config.data.held_out={count}: there are {len(train)} training questions in all"
        )
    held = np.zeros(len(train), bool)
    held[np.random.default_rng(seed).permutation(len(train))[:count]] = True
    splits = {
        "train": [q for q, out in zip(train, held, strict=True) if not out],
        "dev": [q for q, out in zip(train, held, strict=True) if out],
    }
    return Collection(collection.passages, collection.questions | splits)


def _read_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Every line that is not blank, with its place as `file:number`."""
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield f"{path}:{number}", line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise RagJaxError(f"{path}: is not UTF-8 ({error.reason})") from None
    except OSError as error:
        raise RagJaxError(f"{path}: cannot be read ({error.strerror})") from None


def _read_records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for at, line in _read_lines(path):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise RagJaxError(f"{at}: is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise RagJaxError(f"{at}: must be an object")
        yield at, record


def _text(record: Mapping[str, Any], name: str, at: str, *, default: str | None = None) -> str:
    value = record.get(name, default)
    if value is None:
        raise RagJaxError(f"{at}: has no {name!r}")
    if name in _IDS and type(value) is int:
        value = str(value)
    if not isinstance(value, str):
        raise RagJaxError(f"{at}: {name}={value!r} must be a text")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise RagJaxError(f"{at}: {name} holds half a surrogate pair, which is no text")
    return value
