"""The passages and the questions of a comparison: read and chosen once, for all systems."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rag_jax.comparison.config import CompareConfig
from rag_jax.data.formats import describe_source, jsonl, read_collection
from rag_jax.data.formats.flashrag import parse, write_questions
from rag_jax.data.formats.lines import Place
from rag_jax.data.passages import write_passages
from rag_jax.data.questions import Collection, Question, choose_questions
from rag_jax.pipeline.protect import MADE_FROM, check_made
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl, replace_folder, write_json
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.progress import log

_SCRATCH = ".passages.jsonl"  # hidden from the readers of folders


def describe_data(config: CompareConfig) -> dict[str, Any]:
    """Everything that the passages and the chosen questions depend on.

    Raises:
        RagJaxError: as `describe_source`.
    """
    counts = {"questions": config.questions, "train_questions": config.train_questions}
    chosen = {**counts, "on": config.evaluate_on, "seed": config.data.seed}
    # Self-Retrieval is asked, and trained on, no question without a relevant passage.
    chosen["relevant"] = "self_retrieval" in config.systems
    return {"source": describe_source(config.data, config.world), **chosen}


def prepare_data(config: CompareConfig, folder: Path, described: dict[str, Any]) -> bool:
    """Writes passages and chosen questions into a folder, unless they are there.

    The files are those of a folder that every system reads: `passages.jsonl`, and the questions of
    each split in FlashRAG's format. The folder appears whole, or not at all.

    Args:
        described: what `describe_data` gives.

    Returns:
        Whether they were there.

    Raises:
        RagJaxError: the folder is somebody's own, the data cannot be read, or there is no question
            to ask.
    """
    if is_prepared(folder, described):
        log(f"data: kept ({folder})")
        return True
    check_made(folder)
    with replace_folder(folder) as new:
        keep = partial(write_passages, new / _SCRATCH)
        collection = _leave_out_missing(read_collection(config.data, config.world, keep=keep))
        questions, alike = choose_all(collection, config)
        jsonl.write_passages(new / "passages.jsonl", collection.passages)
        for split, listed in questions.items():
            write_questions(new / f"{split}_questions.jsonl", listed)
        counts = {split: len(listed) for split, listed in questions.items()}
        counts["passages"] = len(collection.passages)
        for path in new.glob(".passages.*"):
            path.unlink()
        write_json(new / MADE_FROM, {"made_from": described, "counts": counts, "alike": alike})
    log("data: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    return False


def _leave_out_missing(collection: Collection) -> Collection:
    """The collection without relevant passages that are not in the corpus.

    HotpotQA's open setting and others alike name some. A system's own report counts them as not
    found; the comparison grades answers.
    """
    listed = [question for listed in collection.questions.values() for question in listed]
    wanted = {id for question in listed for id in question.relevant}
    known = {passage.id for passage in collection.passages if passage.id in wanted}
    if known == wanted:
        return collection
    log(f"data: {len(wanted - known)} relevant passages are not in the corpus and are left out")

    def leave_out(question: Question) -> Question:
        relevant = {id: grade for id, grade in question.relevant.items() if id in known}
        return replace(question, relevant=relevant)

    questions = {split: [*map(leave_out, own)] for split, own in collection.questions.items()}
    return Collection(collection.passages, questions)


def is_prepared(folder: Path, described: dict[str, Any]) -> bool:
    """Whether a folder has the data that is described so."""
    record = folder / MADE_FROM
    if not record.exists():
        return False
    with parsing(record):
        made = read_json(record)
        ignored = {"relevant": None} if made["alike"] else {}
        return made["made_from"] | ignored == described | ignored


def count_passages(folder: Path) -> int:
    """The number of passages of prepared data."""
    with parsing(folder / MADE_FROM):
        return int(read_json(folder / MADE_FROM)["counts"]["passages"])


def choose_all(
    collection: Collection, config: CompareConfig
) -> tuple[dict[str, list[Question]], bool]:
    """The questions of each split that systems get: drawn at random, in the order of the data.

    With Self-Retrieval among the systems only questions with a relevant passage are drawn from, if
    the split has any: it is asked no others.

    Returns:
        The questions by split, and whether they are the same with any systems.

    Raises:
        RagJaxError: there is no question with an answer to ask.
    """
    counts = {config.evaluate_on: config.questions, "train": config.train_questions}
    chosen: dict[str, list[Question]] = {}
    alike = True
    for split in dict.fromkeys(("train", "dev", config.evaluate_on)):
        own = [q for q in collection.questions.get(split, []) if q.answers]
        relevant = [q for q in own if q.relevant]
        if 0 < len(relevant) < len(own):
            alike = False
            if "self_retrieval" in config.systems:
                log(f"data: {len(relevant)} of {len(own)} {split} questions name a passage")
                own = relevant
        part = Collection(collection.passages, {split: own})
        if own:
            count = counts.get(split, 0)
            chosen[split] = choose_questions(part, split, count=count, seed=config.data.seed)
    if config.evaluate_on not in chosen:
        has = ", ".join(chosen) or "none"
        raise RagJaxError(
            f"config.evaluate_on={config.evaluate_on!r}: the data has no such questions with "
            f"answers, but {has}"
        )
    return chosen, alike


def read_questions(folder: Path, split: str) -> list[Question]:
    """The chosen questions of a split of prepared data, in their order."""
    path = folder / f"{split}_questions.jsonl"
    with parsing(path):
        lines = enumerate(read_jsonl(path), start=1)
        return [parse(record, Place(path, number, number)).question for number, record in lines]
