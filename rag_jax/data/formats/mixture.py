"""Mixtures: several folders as one collection, whose questions keep the name of their dataset.

SR-RAG, for one, is trained on six datasets together. `config.data.path=popqa:arc:triviaqa` names
three folders, each in a format of its own:

- The passages of all folders form one corpus. Ids are `<folder>/<id>`; a passage that another
  folder holds too, letter for letter, is in the corpus once.
- A question's id is `<folder>/<id>` as well. The splits of the folders are joined, so a folder
  with test questions alone is asked and never trained on.
- A folder may be without passages, if its questions name none as relevant.
"""

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from rag_jax.data.formats import hub
from rag_jax.data.formats.corpus import digest_passage
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Keep, Question
from rag_jax.runtime.errors import RagJaxError


def list_folders(path: str) -> list[Path]:
    """The folders that `config.data.path` names: one, or several with a colon between them.

    A name that is no folder may be that of a dataset on the hub, which is fetched; see `hub`.

    Raises:
        RagJaxError: if a name is blank, two folders have the same name, or a dataset cannot be
            fetched.
    """
    if os.path.isdir(path):  # a folder with a colon in its name
        return [Path(path)]
    if "://" in path:
        raise RagJaxError(f"config.data.path={path}: is an address: copy the data into a folder")
    names = path.split(os.pathsep)
    if not all(name.strip() for name in names):
        raise RagJaxError(f"config.data.path={path}: a folder's name is blank; remove a colon")
    folders: dict[str, Path] = {}
    for folder in map(Path, names):
        if (name := name_folder(folder)) in folders:
            raise RagJaxError(
                f"config.data.path={path}: {folders[name]} and {folder} have the same name, "
                "which tells their questions apart; rename one of them"
            )
        folders[name] = folder
    return list(map(_find_folder, names))


def name_folder(folder: Path) -> str:
    """The name of a folder, whose path may end in `.` or `..`."""
    return Path(os.path.abspath(folder)).name


def _find_folder(name: str) -> Path:
    is_remote = not os.path.isdir(name) and hub.is_hub_name(name)
    return hub.fetch_dataset(name) if is_remote else Path(name)


def mix_collections(parts: Mapping[str, Collection], keep: Keep) -> Collection:
    """Joins collections, by the name of each, into one.

    Args:
        keep: stores the stream of all passages and returns them.
    """
    ids: dict[str, dict[str, str]] = {name: {} for name in parts}
    passages = keep(_join_passages(parts, ids))
    questions: dict[str, list[Question]] = defaultdict(list)
    for name, part in parts.items():
        for split, listed in part.questions.items():
            questions[split] += [_join_question(q, name, ids[name]) for q in listed]
    return Collection(passages, dict(questions))


def _join_passages(
    parts: Mapping[str, Collection], ids: Mapping[str, dict[str, str]]
) -> Iterator[Passage]:
    """Yields every passage once, and fills `ids` with the new ids by each part's own."""
    first: dict[bytes, str] = {}
    for name, part in parts.items():
        for passage in part.passages:
            digest = digest_passage(passage)
            new = f"{name}/{passage.id}"
            if digest not in first or first[digest].startswith(f"{name}/"):
                first.setdefault(digest, new)
                ids[name][passage.id] = new
                yield replace(passage, id=new)
            else:
                ids[name][passage.id] = first[digest]


def _join_question(question: Question, name: str, ids: Mapping[str, str]) -> Question:
    """The question of a part, with the mixture's ids."""
    return replace(
        question,
        id=f"{name}/{question.id}",
        relevant={ids.get(id, f"{name}/{id}"): grade for id, grade in question.relevant.items()},
        negatives=tuple(dict.fromkeys(ids[id] for id in question.negatives)),
        dataset=name,
    )
