"""Questions about a corpus, in stages: copy, write, check, split; and the folder that they fill."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from rag_jax.data.formats import BadLines, jsonl, stream_passages
from rag_jax.data.passages import PassageFile, write_passages
from rag_jax.data.questions import PASSAGES, Collection, store_questions
from rag_jax.pipeline.protect import MADE_FROM, check_made
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.pipeline.workdir import check_apart, hold_lock
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import (
    read_json,
    read_jsonl,
    replace_folder,
    to_json,
    write_json,
    write_jsonl,
)
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.manifest import hash_file
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.progress import log
from rag_jax.systems import session
from rag_jax.systems.questions.check import judge, run_check
from rag_jax.systems.questions.config import CorpusConfig, QuestionsConfig
from rag_jax.systems.questions.write import run_writing
from rag_jax.systems.session import make_stage

DATA = "data"  # the folder for the reader, in the work folder
SPLITS = "test", "dev", "train"


class Session(session.Session):
    """The model and the corpus of a run."""

    config: QuestionsConfig
    batch_sizes = ("write.batch_size", "check_by.batch_size")

    @cached_property
    def source(self) -> dict[str, Any]:
        """What the corpus depends on: the files, and how they are read."""
        data = self.config.data
        _, files = data.list_sources()
        folder = os.path.commonpath([path.parent for path in files])
        sums = {path.relative_to(folder).as_posix(): hash_file(path) for path in files}
        return {"files": sums, "bad_lines": data.bad_lines, "words": data.passage_words}

    @property
    def max_text(self) -> int:
        """The most tokens that are read of a passage."""
        return self.config.model.max_text

    def check_corpus(self, corpus: Collection) -> None:
        """Finds nothing wrong: a corpus without questions is what the run is for."""


def list_stages(session: Session) -> list[Stage]:
    """Every stage with its settings and the stages that it needs."""
    c = session.config
    model = {"weights": session.fingerprint("model.name"), "model": c.model}
    stage = partial(make_stage, session)
    return [
        stage("corpus", run_corpus, session.source),
        stage("write", run_writing, {**model, "write": c.write, "seed": c.seed}, "corpus"),
        stage("check", run_check, {**model, "check": c.check_by}, "corpus", "write"),
        stage("split", run_split, {"test": c.test, "dev": c.dev, "seed": c.seed}, "write", "check"),
    ]


def run_corpus(context: StageContext, *, data: CorpusConfig) -> None:
    """Copies the passages."""
    if not is_first():
        return
    sources, _ = data.list_sources()
    for path in data.list_unread(sources):
        log(f"{path}: is not read: passages are read from the files named `...passages`")
    bad = BadLines(data.bad_lines, "config.data.bad_lines")
    passages = stream_passages(sources, bad, words=data.passage_words)
    write_passages(context.folder / PASSAGES, passages)
    store_questions(context.folder, {})


def run_split(
    context: StageContext,
    *,
    test: float,
    dev: float,
    seed: int,
) -> None:
    """Splits the kept questions by document.

    Writes `questions.jsonl`, lines with a `split`, and `left_out.jsonl`, lines with a `reason`.
    """
    written = read_jsonl(context.path("write", "drafts.jsonl"))
    document_of = {record["passage"]: record["document"] for record in written}
    out, kept = read_jsonl(context.path("check", "left_out.jsonl")), []
    for record in read_jsonl(context.path("check", "answered.jsonl")):
        reason = judge(record)
        (out if reason else kept).append(record | ({"reason": reason} if reason else {}))
    documents = [document_of[record["passage"]] for record in kept]
    splits = split_documents(documents, test=test, dev=dev, seed=seed)
    questions = [
        {
            "id": f"q{number}",
            "split": splits[document],
            "question": record["question"],
            "answers": [record["answer"]],
            "passage_id": record["passage"],
        }
        for number, (record, document) in enumerate(zip(kept, documents, strict=True), start=1)
    ]
    write_jsonl(context.folder / "questions.jsonl", questions)
    write_jsonl(context.folder / "left_out.jsonl", out)


def split_documents(
    documents: Sequence[str], *, test: float, dev: float, seed: int
) -> dict[str, str]:
    """The split of every document: in a random order, until each split has its share of questions.

    Args:
        documents: the document of each question.
        test, dev: shares of the questions.
    """
    counts = Counter(documents)
    names = sorted(counts)
    ends = {"test": test * len(documents), "dev": (test + dev) * len(documents)}
    before, splits = 0, {}
    for n in np.random.default_rng(seed).permutation(len(names)).tolist():
        splits[names[n]] = next((split for split, end in ends.items() if before < end), "train")
        before += counts[names[n]]
    return splits


def write_questions(config: QuestionsConfig, workdir: Path) -> dict[str, int]:
    """Makes what is not made yet, and the folder `data` in the work folder.

    `data` has the passages and a file of questions for each split, for a person to read and correct
    and for every system to train on. Questions that somebody has changed are left as they are.

    Returns:
        The numbers of questions by split.

    Raises:
        RagJaxError: the work folder is that of the data; the settings are others, and the questions
            of the earlier ones were changed by hand; the data cannot be read; or no question is
            left.
    """
    check_apart(workdir, config.data.path, "--workdir")
    session = Session(config)
    stages, folder = list_stages(session), workdir / DATA
    made_from = {"stages": [to_json({"name": s.name, "settings": s.settings}) for s in stages]}
    is_kept = _is_kept(folder, made_from)
    with jax.set_mesh(session.mesh):
        run_stages(stages, workdir, config=config)
    if is_first() and not is_kept:
        with hold_lock(workdir / ".lock", "--workdir"):
            _fill(folder, workdir / "stages", made_from)
    return count_questions(folder)


def _is_kept(folder: Path, made_from: Mapping[str, Any]) -> bool:
    """Whether the folder holds the questions of these settings, changed by hand or not."""
    check_made(folder)
    if not folder.exists():
        return False
    record = folder / MADE_FROM
    with parsing(record):
        made = read_json(record)
        changed = [n for n, digest in made["sums"].items() if not _has_sum(folder / n, digest)]
        same = made["made_from"] == made_from
    if same:
        log(f"{folder}: kept" + (f", {', '.join(changed)} as changed by hand" if changed else ""))
    elif changed:
        raise RagJaxError(
            f"{folder / changed[0]}: was changed by hand, and these settings make other questions: "
            f"move {folder} away, or give the new run a folder of its own with --workdir"
        )
    return same


def _has_sum(path: Path, digest: str) -> bool:
    return path.is_file() and hash_file(path) == digest


def _fill(folder: Path, stages: Path, made_from: Mapping[str, Any]) -> None:
    """Writes passages and questions by split; says how many questions were left out, and why."""
    questions = read_jsonl(stages / "split" / "questions.jsonl")
    left = stages / "split" / "left_out.jsonl"
    reasons = Counter(record["reason"] for record in read_jsonl(left))
    for reason, count in reasons.most_common():
        log(f"{count} of {len(questions) + reasons.total()} questions are left out: {reason}")
    if not questions:
        raise RagJaxError(
            f"no question is left: {left} says why; take a larger model (config.model.name), or "
            "more passages (config.write.passages)"
        )
    with replace_folder(folder) as new:
        jsonl.write_passages(new / PASSAGES, PassageFile(stages / "corpus" / PASSAGES))
        for split in SPLITS:
            own = [dict(question) for question in questions if question["split"] == split]
            for question in own:
                del question["split"]
            if own:
                write_jsonl(new / _name_file(split), own)
        sums = {path.name: hash_file(path) for path in sorted(new.glob("*_questions.jsonl"))}
        write_json(new / MADE_FROM, {"made_from": made_from, "sums": sums})


def _name_file(split: str) -> str:
    return f"{split}_questions.jsonl"


def count_questions(folder: Path) -> dict[str, int]:
    """The number of lines of each split's questions."""
    counts = {}
    for split in SPLITS:
        path = folder / _name_file(split)
        if path.exists():
            with open(path, "rb") as file:
                counts[split] = sum(bool(line.strip()) for line in file)
    return counts
