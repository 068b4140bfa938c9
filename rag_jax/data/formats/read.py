"""The passages and questions of a folder, or of the built-in world."""

import dataclasses
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.config import DataConfig, WorldConfig
from rag_jax.data.formats.folder import list_files, read_folder
from rag_jax.data.formats.lines import BadLines
from rag_jax.data.gazetteer import build_world
from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage, write_passages
from rag_jax.data.questions import PASSAGES, QUESTIONS, Collection, Keep, Question
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import write_json
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.manifest import hash_file


def read_collection(
    data: DataConfig, world: WorldConfig, *, seed: int, keep: Keep = list
) -> Collection:
    """The passages and questions that the settings name.

    Args:
        data: the folder and its format, or neither for the built-in world.
        world: the settings of that world.
        seed: decides which training questions are held out.
        keep: takes the passages, one at a time, and gives what the collection has of them.

    Raises:
        RagJaxError: naming the file, and line, of what is missing or not as the format has it.
    """
    if data.path is None:
        built = _build_world(world)
        return Collection(keep(built.passages), built.questions)
    collection = read_folder(Path(data.path), data.format, BadLines(data.bad_lines), keep)
    collection = _hold_out(collection, data.held_out, seed=seed)
    return _leave_long_tail(collection) if data.longtail else collection


def copy_collection(
    folder: Path,
    data: DataConfig,
    world: WorldConfig,
    *,
    seed: int,
    check: Callable[[Collection], Any],
) -> None:
    """Copies what `read_collection` reads into a folder, for `load_collection`.

    Passages are copied as they are read, and never all in memory. The first of several processes
    does it, and where it fails nothing is left.

    Args:
        check: raises a RagJaxError if it is no collection to work with.

    Raises:
        RagJaxError: as `read_collection` and `check`.
    """
    if not is_first():
        return
    try:
        keep = partial(write_passages, folder / PASSAGES)
        collection = read_collection(data, world, seed=seed, keep=keep)
        check(collection)
        write_json(folder / QUESTIONS, collection.questions)
    except BaseException:
        for left in folder.glob(f"{Path(PASSAGES).stem}.*"):
            left.unlink()
        raise


def describe_source(data: DataConfig, world: WorldConfig) -> dict[str, Any]:
    """What the collection depends on: the world's settings, or the folder's files by content.

    Raises:
        RagJaxError: the folder is not there.
    """
    if data.path is None:
        return {"world": dataclasses.asdict(world)}
    folder = Path(data.path)
    hashes = {p.relative_to(folder).as_posix(): hash_file(p) for p in list_files(folder)}
    settings = {
        name: getattr(data, name) for name in ("format", "held_out", "longtail", "bad_lines")
    }
    return settings | {"files": hashes}


def _build_world(settings: WorldConfig) -> Collection:
    """The encyclopedia; every passage about a question's place that has an answer is relevant."""
    world = build_world(**dataclasses.asdict(settings))
    about: dict[str, list[Passage]] = defaultdict(list)
    for passage in world.passages:
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
                type=q.relation,
                popularity=q.popularity,
            )
            for q in asked
        ]
        for split, asked in world.questions.items()
    }
    return Collection(world.passages, questions)


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


def _leave_long_tail(collection: Collection) -> Collection:
    """Leaves of the dev and test questions those that are marked."""
    kept = {
        split: [q for q in asked if q.longtail or split == "train"]
        for split, asked in collection.questions.items()
    }
    return Collection(collection.passages, kept)
