"""Which files of a folder hold passages and which hold questions, and what they say together."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rag_jax.data.formats import (
    arc,
    beir,
    dpr,
    flashrag,
    jsonl,
    kilt,
    multihop,
    popqa,
    pubhealth,
    squad,
    tfds,
    triviaqa,
)
from rag_jax.data.formats.corpus import Corpus, GatheredCorpus
from rag_jax.data.formats.fields import Item
from rag_jax.data.formats.lines import (
    BadLineError,
    BadLines,
    Place,
    is_table,
    peek_text,
    read_records,
    read_rows,
)
from rag_jax.data.formats.passages import holds_passages, parse_records, stream_passages
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Keep, Question
from rag_jax.runtime.errors import RagJaxError

_SUFFIXES = (".jsonl", ".json", ".tsv", ".csv")
_SPLITS = {
    "train": "train",
    "dev": "dev",
    "valid": "dev",
    "validation": "dev",
    "val": "dev",
    "test": "test",
}
_PASSAGES = "passages"  # the format of a file that holds no questions


@dataclass(frozen=True)
class Format:
    """How questions are told by their fields, and read."""

    matches: Callable[[Mapping[str, Any]], bool]
    parse: Callable[[Mapping[str, Any], Place], Item | None]


# In the order in which they are tried: the first ones have fields of their own, the last has few.
_RECORDS = {
    name: Format(module.matches, module.parse)
    for name, module in {
        "kilt": kilt,
        "flashrag": flashrag,
        "pubhealth": pubhealth,
        "popqa": popqa,
        "arc": arc,
        "multihop": multihop,
        "dpr": dpr,
        "jsonl": jsonl,
    }.items()
}
# Documents, by how they begin.
_DOCUMENTS = {
    "squad": (re.compile(r'\{\s*"(data|version)"\s*:'), squad.read),
    "triviaqa": (re.compile(r'\{\s*"Data"\s*:'), triviaqa.read),
}


def list_files(folder: Path) -> list[Path]:
    """The files of a folder, of `qrels` in it and of prepared datasets, that may hold data.

    Raises:
        RagJaxError: there is no such folder.
    """
    if not folder.is_dir():
        raise RagJaxError(f"config.data.path={folder}: no such folder")
    inside = [path for path in folder.iterdir() if _plain_name(path).endswith(_SUFFIXES)]
    prepared = [path for dataset in tfds.list_datasets(folder) for path in dataset.iterdir()]
    found = {*inside, *folder.glob("qrels/*"), *prepared}
    return sorted(path for path in found if path.is_file() and not path.name.startswith("."))


def read_folder(folder: Path, format: str, bad: BadLines, keep: Keep) -> Collection:
    """The passages and questions of a folder.

    Args:
        format: of the questions, or "auto" to find it out.
        keep: as for `read_collection`.

    Raises:
        RagJaxError: naming the file, and line, of what is missing or not as the format has it.
    """
    files = list_files(folder)
    if format == "beir" or (format == "auto" and "queries" in map(_stem, files)):
        return _read_beir(folder, files, bad, keep)
    if format == "tfds" or (format == "auto" and tfds.list_datasets(folder)):
        return _read_prepared(folder, bad, keep)
    files, asked = _sort_files(folder, files, format)
    ids: set[str] = set()
    corpus = Corpus(keep(stream_passages(files, bad, ids)), ids)
    items = (
        (_find_split(path), item)
        for path, name in asked.items()
        for item in _read_items(path, name, bad)
    )
    return _collect(folder, corpus, items, bad, keep)


def _collect(
    folder: Path,
    corpus: Corpus,
    items: Iterable[tuple[str, Item]],
    bad: BadLines,
    keep: Keep,
) -> Collection:
    """The collection of a corpus, or else the questions' passages, and questions by split."""
    found = corpus if corpus.passages else GatheredCorpus()
    questions: dict[str, dict[str, Question]] = defaultdict(dict)
    for split, item in items:
        try:
            id = item.question.id
            if id in questions[split]:
                raise BadLineError(f"{item.place}: another {split} question has the id {id!r}")
            relevant = found.find_relevant(item)
        except BadLineError as error:
            bad.skip(error)
            continue
        questions[split][id] = replace(item.question, relevant=relevant)
    passages = found.passages
    if isinstance(found, GatheredCorpus):
        passages = keep(found.passages.values())
    if not passages:
        raise RagJaxError(f"{folder}: holds no passages, in files of their own or with questions")
    splits = {split: list(asked.values()) for split, asked in questions.items() if asked}
    if not splits:
        raise RagJaxError(f"{folder}: holds no questions")
    return Collection(passages, splits)


def _sort_files(
    folder: Path, files: Sequence[Path], format: str
) -> tuple[list[Path], dict[Path, str]]:
    """The files of passages, and those of questions with their formats."""
    formats = {path: _find_format(path) for path in files}
    for path in files:
        if _stem(path).endswith(("passages", "corpus")):
            formats[path] = _PASSAGES
        elif formats[path] is None and _stem(path).endswith("questions"):
            formats[path] = "jsonl"
    corpus = [path for path, found in formats.items() if found == _PASSAGES]
    asked = {path: found for path, found in formats.items() if found != _PASSAGES}
    asked = {p: found for p, found in asked.items() if _stem(p).endswith("questions")} or asked
    if format != "auto":
        asked = {path: format for path, found in asked.items() if found in (format, None)}
        if not asked:
            raise RagJaxError(f"{folder}: holds no questions in the format {format!r}")
        return corpus, asked
    unknown = [path for path, found in asked.items() if found is None]
    if unknown:
        known = ", ".join([*_RECORDS, *_DOCUMENTS])
        raise RagJaxError(
            f"{unknown[0]}: is in no format known here: move it away, or set config.data.format to "
            f"one of {known}"
        )
    if len({*asked.values()}) > 1:
        raise RagJaxError(
            f"{folder}: holds questions in several formats ("
            f"{', '.join(f'{path.name}: {found}' for path, found in asked.items())}): set "
            "config.data.format to one of them"
        )
    if not asked:
        raise RagJaxError(f"{folder}: holds no questions")
    return corpus, asked


def _find_format(path: Path) -> str | None:
    """The format of a file's first good record."""
    bad = BadLines(sys.maxsize, quiet=True)
    if is_table(path):
        _, heading = next(read_rows(path, bad), (None, []))
        if dpr.matches_row(heading):
            return "dpr"
        record: Mapping[str, Any] | None = dict.fromkeys(heading, "")
    else:
        for name, (beginning, _) in _DOCUMENTS.items():
            if beginning.match(peek_text(path)):
                return name
        record = next((record for _, record in read_records(path, bad)), None)
    if record is None:
        return None
    for name, known in _RECORDS.items():
        if known.matches(record):
            return name
    return _PASSAGES if holds_passages(record) else None


def _read_items(path: Path, name: str, bad: BadLines) -> Iterator[Item]:
    if name in _DOCUMENTS:
        yield from _DOCUMENTS[name][1](path, bad)
        return
    has_rows = name == "dpr" and is_table(path)
    parse: Callable[[Any, Place], Item | None] = dpr.parse_row if has_rows else _RECORDS[name].parse
    for place, record in (read_rows if has_rows else read_records)(path, bad):
        try:
            item = parse(record, place)
        except BadLineError as error:
            bad.skip(error)
            continue
        if item is not None:
            yield item


def _read_beir(folder: Path, files: Sequence[Path], bad: BadLines, keep: Keep) -> Collection:
    found = {_stem(path): path for path in files if path.parent == folder}
    for name in ("corpus", "queries"):
        if name not in found:
            raise RagJaxError(f"{folder}: holds no {name}.jsonl")
    ids: set[str] = set()
    passages = keep(stream_passages([found["corpus"]], bad, ids))
    queries = beir.read_queries(found["queries"], bad)
    questions = {
        _stem(path): beir.read_questions(path, queries, ids, bad)
        for path in files
        if path.parent != folder
    }
    if not questions:
        raise RagJaxError(f"{folder / 'qrels'}: holds no .tsv file")
    return Collection(passages, questions)


def _read_prepared(folder: Path, bad: BadLines, keep: Keep) -> Collection:
    items: list[tuple[str, Item]] = []
    ids: set[str] = set()

    def stream() -> Iterator[Passage]:
        for dataset in tfds.list_datasets(folder):
            for split, place, example in tfds.read_examples(dataset, bad):
                try:
                    if tfds.is_question(example):
                        items.append((_SPLITS.get(split, split), tfds.parse(example, place)))
                        continue
                    if not holds_passages(example):
                        raise BadLineError(f"{place}: is neither a question nor a passage")
                except BadLineError as error:
                    bad.skip(error)
                    continue
                yield from parse_records([(place, example)], ids, bad)

    return _collect(folder, Corpus(keep(stream()), ids), items, bad, keep)


def _find_split(path: Path) -> str:
    """The split that a file's name tells of, in any of its words; "test" where none does."""
    words = re.split(r"[^a-z]+", _stem(path).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "test")


def _stem(path: Path) -> str:
    return Path(_plain_name(path)).stem


def _plain_name(path: Path) -> str:
    return path.name.removesuffix(".gz")
