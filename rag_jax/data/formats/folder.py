"""Folder reader: detects which files contain passages or questions, and joins their content."""

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rag_jax.data.formats import beir, dpr, hugging_face, jsonl, tfds
from rag_jax.data.formats.corpus import Corpus, GatheredCorpus, find_negatives
from rag_jax.data.formats.detect import DOCUMENTS, NONE, PASSAGES, RECORDS, sort_files
from rag_jax.data.formats.documents import is_about_data, list_documents, stream_documents
from rag_jax.data.formats.fields import Item
from rag_jax.data.formats.files import SUFFIXES, check_parts, find_stem, find_suffix
from rag_jax.data.formats.ledger import Ledger
from rag_jax.data.formats.lines import BadLineError, BadLines, Place
from rag_jax.data.formats.others import check_others
from rag_jax.data.formats.passages import holds_passages, parse_records, stream_passages
from rag_jax.data.formats.records import read_records
from rag_jax.data.formats.splits import check_splits, find_split, name_split
from rag_jax.data.formats.tables import is_table, read_rows
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Keep, Question
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import check_names

PLAIN = "jsonl"  # the format of questions without passages of their own

_logger = logging.getLogger(__name__)


def list_files(folder: Path) -> list[Path]:
    """Returns the data files of a folder, its `qrels` and its datasets: sorted, not hidden.

    Raises:
        RagJaxError: if the folder does not exist, a data file is a link to a missing file or has a
            name that is not UTF-8, or parts of a file are missing.
    """
    if not os.path.isdir(folder):  # nor is a name that is too long
        problem = "is a file: give its folder" if os.path.isfile(folder) else "no such folder"
        raise RagJaxError(f"config.data.path={folder}: {problem}")
    direct = [
        path
        for path in folder.iterdir()
        if find_suffix(path) in SUFFIXES and not tfds.is_of_hugging_face(path)
    ]
    prepared = [path for dataset in tfds.list_datasets(folder) for path in dataset.iterdir()]
    saved = hugging_face.list_files(folder)
    paths = {*direct, *folder.glob("qrels/*"), *prepared, *saved}
    visible = sorted(path for path in paths if not path.name.startswith("."))
    for path in visible:
        if not path.exists():
            raise RagJaxError(
                f"{path}: is a link to {path.readlink()}, which is missing: fetch the file, or "
                "remove the link"
            )
    check_names(visible)
    check_parts(path for path in visible if path in direct)
    return [path for path in visible if path.is_file()]


def find_documents(folder: Path, files: Sequence[Path], format: str) -> list[Path]:
    """The documents of a folder if they are its corpus, else none.

    They are if no data file holds passages and the questions are plain ones, which come without.
    What lies beside the data files and is about them, such as README.md, is none.

    Args:
        files: the data files of the folder, by `list_files`.
        format: of the questions, or "auto".

    Raises:
        RagJaxError: as `sort_files`.
    """
    stems = [find_stem(path).lower() for path in files]
    if format not in ("auto", PLAIN) or "queries" in stems or tfds.list_datasets(folder):
        return []
    listed = list_documents(folder)
    found = [path for path in listed if path.parent != folder or not is_about_data(path)]
    if not found:
        return []
    direct = hugging_face.list_sources(folder, files)
    passage_files, question_files, _ = sort_files(folder, direct, format)
    return found if not passage_files and {*question_files.values()} == {PLAIN} else []


def read_folder(folder: Path, format: str, bad: BadLines, keep: Keep, *, words: int) -> Collection:
    """Reads the passages and questions of a folder; `format` "auto" detects the questions' format.

    There may be no passages. What was read of each file is logged, and a warning or an error names
    a file that is not read.

    Args:
        words: the most words of a passage of a document.

    Raises:
        RagJaxError: if data is missing or violates the format, naming the file and the line.
    """
    files, ledger = list_files(folder), Ledger()
    documents = find_documents(folder, files, format)
    check_others(folder, [*files, *documents], ledger)
    stems = [find_stem(path).lower() for path in files if path.parent == folder]
    if format == "beir" or (format == "auto" and "queries" in stems):
        collection = _read_beir(folder, files, bad, keep, ledger)
    elif format == "tfds" or (format == "auto" and tfds.list_datasets(folder)):
        collection = _read_prepared(folder, files, bad, keep, ledger)
    else:
        stream = partial(stream_documents, folder, documents, words=words)
        collection = _read_files(
            folder, files, format, bad, keep, ledger, stream if documents else None
        )
    ledger.close()
    return collection


def _read_files(
    folder: Path,
    files: Sequence[Path],
    format: str,
    bad: BadLines,
    keep: Keep,
    ledger: Ledger,
    stream: Callable[..., Iterator[Passage]] | None,
) -> Collection:
    """Reads a folder in which every file holds passages or questions.

    Args:
        stream: gives the passages of the documents, if they are the corpus.
    """
    direct = hugging_face.list_sources(folder, files)
    for path in sorted({*files} - {*direct, *hugging_face.list_files(folder)}):
        ledger.leave_out(path, "judgements need a file queries.jsonl")
    passage_files, question_files, left_out = sort_files(folder, direct, format)
    for path, reason in left_out.items():
        ledger.leave_out(path, reason)
    check_splits(question_files)
    ids: set[str] = set()
    if stream is None:
        passages = _stream_corpus(passage_files, ids, bad, ledger)
    else:
        passages = stream(bad=bad, seen=ids, ledger=ledger)
    corpus = Corpus(keep(passages), ids)
    items = (
        item
        for path, name in question_files.items()
        for item in _read_items(path, name, bad, ledger, is_detected=format == "auto")
    )
    return _collect(folder, corpus, items, bad, keep, ledger)


def _stream_corpus(
    paths: Iterable[Path], ids: set[str], bad: BadLines, ledger: Ledger
) -> Iterator[Passage]:
    for path in paths:
        with ledger.read(path, PASSAGES, bad) as account:
            before = len(ids)
            yield from stream_passages([path], bad, ids)
            account.read = len(ids) - before


def _read_items(
    path: Path, name: str, bad: BadLines, ledger: Ledger, *, is_detected: bool
) -> Iterator[tuple[str, Item]]:
    """Yields the splits and the questions of a file in a format."""
    split = hugging_face.find_dataset_split(path) if path.is_dir() else find_split(path)
    with ledger.read(path, name, bad) as account:
        if name in DOCUMENTS and (name not in RECORDS or DOCUMENTS[name].holds(path)):
            for item in DOCUMENTS[name].read(path, bad):
                yield item.split or split, item
            return
        has_rows = name == "dpr" and is_table(path)
        module = RECORDS[name]
        parse: Callable[[Any, Place], Item | None] = dpr.parse_row if has_rows else module.parse
        for place, record in (read_rows if has_rows else read_records)(path, bad):
            with bad:
                if module is jsonl:
                    account.unread |= jsonl.list_unread(record)
                    if is_detected:
                        jsonl.check_plain(record, place)
                item = parse(record, place)
                if item is None:
                    account.left_out[module.LEFT_OUT] += 1
                else:
                    yield item.split or split, item


def _collect(
    folder: Path,
    corpus: Corpus,
    items: Iterable[tuple[str, Item]],
    bad: BadLines,
    keep: Keep,
    ledger: Ledger,
) -> Collection:
    """Joins questions with a corpus, or with the passages that come with the questions."""
    source = corpus if corpus.passages else GatheredCorpus()
    questions: dict[str, dict[str, Question]] = defaultdict(dict)
    for split, item in items:
        with bad:
            id = item.question.id or _make_id(item.question.question, questions[split])
            relevant = source.find_relevant(item)
            negatives, missing = find_negatives(item, relevant, source)
            # A blank answer would make an empty prediction a right one.
            answers = tuple(answer for answer in item.question.answers if answer.strip())
            item = replace(item, question=replace(item.question, answers=answers))
            found = {"relevant": relevant, "negatives": negatives}
            question = replace(item.question, id=id, **found)
            first = questions[split].setdefault(id, question)
            if first is question:
                ledger.add_question(split, item, missing=missing)
            elif first == question:
                ledger.accounts[item.place.path].left_out["the same question again"] += 1
            else:
                raise BadLineError(f"{item.place}: another {split} question has the id {id!r}")
    passages = source.passages
    if isinstance(source, GatheredCorpus):
        _warn_of_missing(folder, questions, source.passages)
        passages = keep(source.passages.values())
    splits = {split: list(by_id.values()) for split, by_id in questions.items() if by_id}
    if not splits:
        raise RagJaxError(f"{folder}: {NONE}")
    return Collection(passages, splits)


def _warn_of_missing(
    folder: Path, questions: Mapping[str, Mapping[str, Question]], ids: Container[str]
) -> None:
    listed = [question for by_id in questions.values() for question in by_id.values()]
    missing = [id for question in listed for id in question.relevant if id not in ids]
    if missing:
        _logger.warning(
            "%s: %d relevant passages come with no question, such as %r, and count as not found: "
            "put a file of passages into the folder",
            *(folder, len(missing), missing[0]),
        )


def _make_id(question: str, taken: dict[str, Question]) -> str:
    """Returns an id made of the text, so the place of a question in a file makes no difference."""
    id = hashlib.blake2b(question.encode(), digest_size=8).hexdigest()
    number = 1
    while (numbered := id if number == 1 else f"{id}-{number}") in taken:
        number += 1
    return numbered


def _read_beir(
    folder: Path, files: Sequence[Path], bad: BadLines, keep: Keep, ledger: Ledger
) -> Collection:
    paths: dict[str, Path] = {}
    for dataset in hugging_face.list_datasets(folder):
        raise RagJaxError(f"{dataset}: lies beside BEIR's queries.jsonl: move one of them away")
    for path in (path for path in files if path.parent == folder):
        name = find_stem(path).lower()
        if name in paths or name not in ("corpus", "queries"):
            raise RagJaxError(
                f"{path}: BEIR's folder has one corpus.jsonl and one queries.jsonl: move the file "
                "away, or join it with them, or move it to qrels if it has judgements"
            )
        paths[name] = path
    for name in ("corpus", "queries"):
        if name not in paths:
            raise RagJaxError(f"{folder}: holds no {name}.jsonl")
    judged: dict[str, Path] = {}
    for path in (path for path in files if path.parent != folder):
        split = name_split(find_stem(path))
        if split in judged:
            raise RagJaxError(
                f"{path}: means the split {split!r}, as {judged[split].name} does: move one of the "
                "files away"
            )
        judged[split] = path
    if not judged:
        raise RagJaxError(f"{folder / 'qrels'}: holds no .tsv file")
    ids: set[str] = set()
    passages = keep(_stream_corpus([paths["corpus"]], ids, bad, ledger))
    with ledger.read(paths["queries"], "beir", bad) as account:
        queries = beir.read_queries(paths["queries"], bad)
        account.read = len(queries)
    questions: dict[str, list[Question]] = {}
    for split, path in judged.items():
        with ledger.read(path, "qrels", bad):
            items = beir.read_questions(path, queries, ids, bad)
            questions[split] = [item.question for item in items]
            for item in items:
                ledger.add_question(split, item, missing=0)
    used = {question.id for asked in questions.values() for question in asked}
    if unused := len(queries.keys() - used):
        ledger.accounts[paths["queries"]].left_out["no judgements"] = unused
    return Collection(passages, questions)


def _read_prepared(
    folder: Path, files: Sequence[Path], bad: BadLines, keep: Keep, ledger: Ledger
) -> Collection:
    datasets = tfds.list_datasets(folder)
    for path in files:
        if path.parent not in datasets:
            raise RagJaxError(f"{path}: lies beside prepared datasets: move one of them away")
    items: list[tuple[str, Item]] = []
    ids: set[str] = set()

    # One pass over the datasets: passages are streamed, questions are collected on the way.
    def stream() -> Iterator[Passage]:
        for dataset in datasets:
            for split, place, example in tfds.read_examples(dataset, bad):
                account = ledger.open(place.path, "tfds")
                with ledger.counted(account, bad), bad:
                    if tfds.is_question(example):
                        items.append((name_split(split), tfds.parse(example, place)))
                    elif holds_passages(example):
                        for passage in parse_records([(place, example)], ids, bad):
                            account.read += 1
                            yield passage
                    else:
                        raise BadLineError(f"{place}: is neither a question nor a passage")

    return _collect(folder, Corpus(keep(stream()), ids), items, bad, keep, ledger)
