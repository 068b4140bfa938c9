"""Collections of passages and questions, read from a folder or from the built-in world."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data import gazetteer
from rag_jax.data.formats.folder import find_documents, list_files, read_folder
from rag_jax.data.formats.lines import BadLines
from rag_jax.data.formats.mixture import list_folders, mix_collections, name_folder
from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage, write_passages
from rag_jax.data.questions import PASSAGES, Collection, Keep, Question, store_questions
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.manifest import hash_file


def read_collection(
    data: DataConfig,
    world: WorldConfig,
    *,
    seed: int | None = None,
    keep: Keep = list,
    keep_part: Callable[[int], Keep] = lambda number: list,
) -> Collection:
    """Reads the passages and questions of a folder, of a mixture or of the built-in world.

    Args:
        data: folders and format; the built-in world if the path is None.
        seed: of the choice of held-out training questions; `data.seed` if None.
        keep: stores a stream of passages and returns them, by default in memory.
        keep_part: gives a `keep` for the passages of each folder of a mixture, by its number.

    Raises:
        RagJaxError: if data is missing or violates the format, naming the file and the line.
    """
    if data.path is None:
        collection = _build_world(world)
        return Collection(keep(collection.passages), collection.questions)
    data = data if seed is None else dataclasses.replace(data, seed=seed)
    folders, bad = list_folders(data.path), BadLines(data.bad_lines)

    def read(folder: Path, keep: Keep) -> Collection:
        return read_folder(folder, data.format, bad, keep, words=data.passage_words)

    if len(folders) == 1:
        collection = read(folders[0], keep)
        if data.held_out:
            collection = _hold_out(collection, data.held_out, seed=data.seed)
        collection = _select_long_tail(collection) if data.longtail else collection
    else:
        parts = {
            name_folder(folder): read(folder, keep_part(number))
            for number, folder in enumerate(folders)
        }
        collection = mix_collections(_prepare_parts(parts, data), keep)
    if not collection.passages:
        raise RagJaxError(
            f"{data.path}: holds no passages, neither in passage files nor in questions"
        )
    return collection


def copy_collection(
    folder: Path,
    data: DataConfig,
    world: WorldConfig,
    *,
    check: Callable[[Collection], Any],
) -> None:
    """Copies the collection of `read_collection` into a folder, for `load_collection`.

    Passages are streamed, so the corpus may be larger than the memory. Only the first process
    copies. If the copy fails, the passages copied so far are deleted.

    Args:
        check: raises a RagJaxError if the collection is not suitable.

    Raises:
        RagJaxError: from `read_collection` or `check`.
    """
    if not is_first():
        return

    def keep_part(number: int) -> Keep:
        return partial(write_passages, folder / f"part-{number}.jsonl")

    keep = partial(write_passages, folder / PASSAGES)
    try:
        collection = read_collection(data, world, keep=keep, keep_part=keep_part)
        check(collection)
        store_questions(folder, collection.questions)
    except BaseException:
        for path in folder.glob(f"{Path(PASSAGES).stem}.*"):
            path.unlink()
        raise
    finally:
        for path in folder.glob("part-*"):
            path.unlink()


def describe_source(data: DataConfig, world: WorldConfig) -> dict[str, Any]:
    """Returns everything that determines a collection, for detecting changes between runs.

    These are the settings of the world, or the settings of the data and a hash of every file.

    Raises:
        RagJaxError: if the folder does not exist.
    """
    if data.path is None:
        return {"world": dataclasses.asdict(world)}
    folders = list_folders(data.path)
    files = {folder: list_files(folder) for folder in folders}
    documents = {folder: find_documents(folder, files[folder], data.format) for folder in folders}
    hashes = {
        folder.name: {
            path.relative_to(folder).as_posix(): hash_file(path)
            for path in (*files[folder], *documents[folder])
        }
        for folder in folders
    }
    names = ["format", "held_out", "longtail", "bad_lines"]
    names += ["passage_words"] if any(documents.values()) else []
    # The name of a single folder makes no difference.
    own = hashes if len(folders) > 1 else hashes[folders[0].name]
    return {**{name: getattr(data, name) for name in names}, "files": own}


def _build_world(settings: WorldConfig) -> Collection:
    """Builds the encyclopedia. Relevant are all passages about a place that contain an answer."""
    world = gazetteer.build_world(**dataclasses.asdict(settings))
    by_place: dict[str, list[Passage]] = defaultdict(list)
    for passage in world.passages:
        if not passage.id.startswith("talk/"):
            by_place[passage.id.split("/")[1]].append(passage)

    def convert(q: gazetteer.Question) -> Question:
        passages = by_place[q.passage_id.split("/")[1]]
        ids = [p.id for p in passages if p.id == q.passage_id or has_answer(p.text, q.answers)]
        relevant = dict.fromkeys(ids, 1)
        return Question(q.id, q.question, q.answers, relevant, q.relation, q.popularity)

    questions = {split: list(map(convert, listed)) for split, listed in world.questions.items()}
    return Collection(world.passages, questions)


def _hold_out(collection: Collection, count: int, *, seed: int) -> Collection:
    """Moves `count` random training questions to the dev split, in their order in the data."""
    train = collection.questions.get("train", [])
    problem = ""
    if "dev" in collection.questions:
        problem = "the data has a dev split; set held_out to 0"
    elif count >= len(train):
        problem = f"there are {len(train)} training questions; hold out fewer"
    if problem:
        raise RagJaxError(f"config.data.held_out={count}: {problem}")
    held_out = set(np.random.default_rng(seed).permutation(len(train))[:count].tolist())
    splits = {
        "train": [q for i, q in enumerate(train) if i not in held_out],
        "dev": [q for i, q in enumerate(train) if i in held_out],
    }
    return Collection(collection.passages, collection.questions | splits)


def _prepare_parts(parts: Mapping[str, Collection], data: DataConfig) -> dict[str, Collection]:
    """Holds out and selects questions of the parts of a mixture where that has a meaning.

    These are the parts with training questions and no dev split, and the parts with PopQA.
    """
    prepared = dict(parts)
    trained = [n for n, part in parts.items() if {"train", "dev"} & {*part.questions} == {"train"}]
    if data.held_out and not trained:
        raise RagJaxError(
            f"config.data.held_out={data.held_out}: each folder has a dev split or no training "
            "questions; set it to 0"
        )
    for name in trained if data.held_out else ():
        prepared[name] = _hold_out(parts[name], data.held_out, seed=data.seed)
    for name, part in prepared.items():
        if data.longtail and any(q.longtail for listed in part.questions.values() for q in listed):
            prepared[name] = _select_long_tail(part)
    return prepared


def _select_long_tail(collection: Collection) -> Collection:
    """Returns the collection with only long-tail questions in all splits except train."""
    selected = {
        split: [q for q in questions if q.longtail or split == "train"]
        for split, questions in collection.questions.items()
    }
    return Collection(collection.passages, selected)
