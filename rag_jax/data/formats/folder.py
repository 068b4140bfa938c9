"""Folder reader: detects which files contain passages or questions, and joins their content."""

import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
_DEV = ("dev", "valid", "validation", "val")
_SPLITS = {"train": "train", **dict.fromkeys(_DEV, "dev"), "test": "test"}
_PASSAGES = "passages"  # the format of files without questions


# In the order of detection: formats with distinctive fields first, the most general format last.
# `matches(record)` tells whether a record has the fields of a format. `parse(record, place)` gives
# an `Item`, or None for a record that the format leaves out.
_RECORDS = {
    "kilt": kilt,
    "flashrag": flashrag,
    "pubhealth": pubhealth,
    "popqa": popqa,
    "arc": arc,
    "multihop": multihop,
    "dpr": dpr,
    "jsonl": jsonl,
}
# Formats of whole documents, detected by how the document begins.
_DOCUMENTS = {
    "squad": (re.compile(r'\{\s*"(data|version)"\s*:'), squad.read),
    "triviaqa": (re.compile(r'\{\s*"Data"\s*:'), triviaqa.read),
}


def list_files(folder: Path) -> list[Path]:
    """Returns the data files of a folder, its `qrels` and prepared datasets: sorted, not hidden.

    Raises:
        RagJaxError: if the folder does not exist.
    """
    if not folder.is_dir():
        raise RagJaxError(f"config.data.path={folder}: no such folder")
    direct = [path for path in folder.iterdir() if _plain_name(path).endswith(_SUFFIXES)]
    prepared = [path for dataset in tfds.list_datasets(folder) for path in dataset.iterdir()]
    paths = {*direct, *folder.glob("qrels/*"), *prepared}
    return sorted(path for path in paths if path.is_file() and not path.name.startswith("."))


def read_folder(folder: Path, format: str, bad: BadLines, keep: Keep) -> Collection:
    """Reads the passages and questions of a folder; `format` "auto" detects the questions' format.

    Raises:
        RagJaxError: if data is missing or violates the format, naming the file and the line.
    """
    files = list_files(folder)
    if format == "beir" or (format == "auto" and "queries" in map(_stem, files)):
        return _read_beir(folder, files, bad, keep)
    if format == "tfds" or (format == "auto" and tfds.list_datasets(folder)):
        return _read_prepared(folder, bad, keep)
    passage_files, question_files = _sort_files(folder, files, format)
    ids: set[str] = set()
    corpus = Corpus(keep(stream_passages(passage_files, bad, ids)), ids)
    items = (
        (_find_split(path), item)
        for path, name in question_files.items()
        for item in _read_items(path, name, bad)
    )
    return _collect(folder, corpus, items, bad, keep)


def _collect(
    folder: Path, corpus: Corpus, items: Iterable[tuple[str, Item]], bad: BadLines, keep: Keep
) -> Collection:
    """Joins questions with a corpus, or with the passages that come with the questions."""
    source = corpus if corpus.passages else GatheredCorpus()
    questions: dict[str, dict[str, Question]] = defaultdict(dict)
    for split, item in items:
        with bad:
            id = item.question.id
            if id in questions[split]:
                raise BadLineError(f"{item.place}: another {split} question has the id {id!r}")
            relevant = source.find_relevant(item)
            questions[split][id] = replace(item.question, relevant=relevant)
    passages = source.passages
    if isinstance(source, GatheredCorpus):
        passages = keep(source.passages.values())
    if not passages:
        raise RagJaxError(f"{folder}: holds no passages, neither in passage files nor in questions")
    splits = {split: list(by_id.values()) for split, by_id in questions.items() if by_id}
    if not splits:
        raise RagJaxError(f"{folder}: holds no questions")
    return Collection(passages, splits)


def _sort_files(
    folder: Path, files: Sequence[Path], format: str
) -> tuple[list[Path], dict[Path, str]]:
    """Returns the files of passages, and the files of questions with their formats."""
    formats = {path: _find_format(path) for path in files}
    for path in files:
        if _stem(path).endswith(("passages", "corpus")):
            formats[path] = _PASSAGES
        elif formats[path] is None and _stem(path).endswith("questions"):
            formats[path] = "jsonl"
    corpus = [path for path, name in formats.items() if name == _PASSAGES]
    others = {path: name for path, name in formats.items() if name != _PASSAGES}
    named = {path: name for path, name in others.items() if _stem(path).endswith("questions")}
    questions = named or others
    if format != "auto":
        matching = {path: format for path, name in questions.items() if name in (format, None)}
        if not matching:
            raise RagJaxError(f"{folder}: holds no questions in the format {format!r}")
        return corpus, matching
    if unknown := [path for path, name in questions.items() if name is None]:
        raise RagJaxError(
            f"{unknown[0]}: has an unknown format: move the file away, or set config.data.format "
            f"to one of {', '.join([*_RECORDS, *_DOCUMENTS])}"
        )
    if len({*questions.values()}) > 1:
        listed = ", ".join(f"{path.name}: {name}" for path, name in questions.items())
        raise RagJaxError(
            f"{folder}: holds questions in several formats ({listed}): set config.data.format to "
            "one of them"
        )
    if not questions:
        raise RagJaxError(f"{folder}: holds no questions")
    return corpus, questions


def _find_format(path: Path) -> str | None:
    """Returns the format of a file's first valid record; None if the format is unknown."""
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
    for name, module in _RECORDS.items():
        if module.matches(record):
            return name
    return _PASSAGES if holds_passages(record) else None


def _read_items(path: Path, name: str, bad: BadLines) -> Iterator[Item]:
    if name in _DOCUMENTS:
        yield from _DOCUMENTS[name][1](path, bad)
        return
    has_rows = name == "dpr" and is_table(path)
    parse: Callable[[Any, Place], Item | None] = dpr.parse_row if has_rows else _RECORDS[name].parse
    for place, record in (read_rows if has_rows else read_records)(path, bad):
        with bad:
            item = parse(record, place)
            if item is not None:
                yield item


def _read_beir(folder: Path, files: Sequence[Path], bad: BadLines, keep: Keep) -> Collection:
    paths = {_stem(path): path for path in files if path.parent == folder}
    for name in ("corpus", "queries"):
        if name not in paths:
            raise RagJaxError(f"{folder}: holds no {name}.jsonl")
    ids: set[str] = set()
    passages = keep(stream_passages([paths["corpus"]], bad, ids))
    queries = beir.read_queries(paths["queries"], bad)
    judged = [path for path in files if path.parent != folder]
    questions = {_stem(path): beir.read_questions(path, queries, ids, bad) for path in judged}
    if not questions:
        raise RagJaxError(f"{folder / 'qrels'}: holds no .tsv file")
    return Collection(passages, questions)


def _read_prepared(folder: Path, bad: BadLines, keep: Keep) -> Collection:
    items: list[tuple[str, Item]] = []
    ids: set[str] = set()

    # One pass over the datasets: passages are streamed, questions are collected on the way.
    def stream() -> Iterator[Passage]:
        for dataset in tfds.list_datasets(folder):
            for split, place, example in tfds.read_examples(dataset, bad):
                with bad:
                    if tfds.is_question(example):
                        items.append((_SPLITS.get(split, split), tfds.parse(example, place)))
                    elif holds_passages(example):
                        yield from parse_records([(place, example)], ids, bad)
                    else:
                        raise BadLineError(f"{place}: is neither a question nor a passage")

    return _collect(folder, Corpus(keep(stream()), ids), items, bad, keep)


def _find_split(path: Path) -> str:
    """Returns the split named by a word of a file's name; "test" if no word names a split."""
    words = re.split(r"[^a-z]+", _stem(path).lower())
    return next((_SPLITS[word] for word in words if word in _SPLITS), "test")


def _stem(path: Path) -> str:
    return Path(_plain_name(path)).stem


def _plain_name(path: Path) -> str:
    return path.name.removesuffix(".gz")
