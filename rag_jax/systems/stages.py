"""What several systems have: the run of a list of stages, and stages and parts of stages."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict

from rag_jax.config import (
    ContrastiveConfig,
    DataConfig,
    EncoderConfig,
    WorldConfig,
    build,
)
from rag_jax.data.formats import copy_collection
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.decoding import generate
from rag_jax.decoding.prompts import split_prefix
from rag_jax.evaluation.compare import Record, timed
from rag_jax.evaluation.rankings import Ranked, rank_hits
from rag_jax.models import Pretrained, save
from rag_jax.pipeline.runner import ReportSpec, run_session
from rag_jax.pipeline.seeds import run_seeds
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.pipeline.workers import Executor, Opener
from rag_jax.retrieval import Index
from rag_jax.retrieval.contrastive import (
    Encoders,
    KeepingHook,
    fit_encoders,
    make_batches,
)
from rag_jax.retrieval.negatives import make_miner
from rag_jax.retrieval.pairs import Pair
from rag_jax.runtime.files import to_json
from rag_jax.runtime.hosts import fetch, is_first
from rag_jax.runtime.seeds import derive_seed
from rag_jax.runtime.track import check_tracker
from rag_jax.search_config import BM25Config
from rag_jax.systems import open_room
from rag_jax.systems.embeddings import embed_corpus
from rag_jax.systems.likelihood import STAGE, Reader, run_likelihood
from rag_jax.systems.session import Session, bind, make_stage


def make_run(
    settings: type,
    session_type: Callable[..., Session],
    list_stages: Callable[[Any], list[Stage]],
    describe_report: Callable[[Any], ReportSpec],
) -> Callable[..., dict[str, Any]]:
    """The function that runs a system's stages, from an empty folder to the report."""

    def run_one(
        config: ConfigDict,
        workdir: Path,
        *,
        executor: Executor | None,
        verdicts: bool,
        **options: Any,
    ) -> dict[str, Any]:
        built = build(settings, config)
        check_tracker(built)
        session = session_type(built)
        report = describe_report(session.config)
        if executor is not None:
            options["divide"] = partial(executor.divide, _make_opener(session))
        stages = [stage for stage in list_stages(session) if verdicts or stage.name != STAGE]
        return run_session(session, stages, workdir, report, **options)

    def run(
        config: ConfigDict,
        workdir: Path,
        *,
        executor: Executor | None = None,
        seeds: int = 1,
        verdicts: bool = True,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Runs every stage that is not made yet, and writes the report.

        See `run_session`, and `run_seeds` for more than one seed. Workers of the executor, if there
        is one, make the pieces of divisible maps.

        Args:
            verdicts: whether asking the run is to tell answers that are not in the documents, which
                takes the stage "likelihood".
        """
        options = {"executor": executor, "verdicts": verdicts, "overwrite": overwrite}
        if seeds == 1:
            return run_one(config, workdir, **options)
        describe = lambda config: describe_report(build(settings, config))  # noqa: E731
        return run_seeds(partial(run_one, **options), describe, config, workdir, seeds)

    return run


def _make_opener(session: Session) -> Opener:
    """How a worker opens the run of a session."""
    config = json.loads(to_json(session.config))
    return Opener(open_run, {"system": config["system"], "config": config})


def open_run(system: str, config: Mapping[str, Any]) -> tuple[Mesh, list[Stage]]:
    """Opens a run from its settings as JSON: its mesh, and its stages."""
    room = open_room(system, "pipeline")
    session = room.Session(build(room.CONFIG, config))
    return session.mesh, room.list_stages(session)


def corpus_stage(session: Session) -> Stage:
    """The stage that copies passages and questions, whatever their format, into one."""
    make = bind(session, run_corpus)
    return Stage("corpus", make, session.source, version=2, check=session.check_stage)


def run_corpus(
    context: StageContext,
    *,
    data: DataConfig,
    world: WorldConfig,
    check_corpus: Callable[[Collection], Any],
) -> None:
    """Copies passages and questions; leaves nothing if the system cannot work with them."""
    copy_collection(context.folder, data, world, check=check_corpus)


def likelihood_stages(
    session: Session,
    open_reader: Callable[..., Reader],
    settings: Mapping[str, Any],
    *needs: str,
) -> list[Stage]:
    """The stage that chooses the threshold of likelihood; none in a run that does not train.

    Args:
        open_reader: called with the stage's context and the session.
    """
    if not session.trains:
        return []
    reading = partial(open_reader, session=session)
    return [make_stage(session, STAGE, run_likelihood, settings, *needs, open_reader=reading)]


def run_negatives(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    train_questions: Sequence[Question],
    bm25: BM25Config,
    depth: int,
    count: int,
) -> None:
    """Takes the training questions' hard negatives from the data, or else mines them by BM25.

    Writes `negatives.jsonl`, lines `{"id", "rows"}` with at most `count` rows of `passages` among
    the first `depth`.
    """
    mine = make_miner(passages, train_questions, bm25, depth=depth, count=count)
    context.map("negatives.jsonl", train_questions, mine, batch_size=1024, unit="questions")


def run_index(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    load: Callable[[StageContext], Pretrained],
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    encoding: EncoderConfig,
    build_index: Callable[..., Index],
    ids: bool = False,
) -> None:
    """Embeds the passages and indexes them, as `index` in the stage's folder.

    Args:
        ids: whether the index keeps the passages' ids.
    """
    encoder = load(context)
    embeddings = embed_corpus(context, passages, encoder, encode_passages, encoding)
    if is_first():
        build_index(encoder, embeddings, passages, ids=ids).save(context.folder / "index")


def train_encoders(
    context: StageContext,
    encoders: Encoders,
    list_pairs: Callable[[], Sequence[Pair]],
    train_questions: Sequence[Question],
    passages: Sequence[Passage],
    settings: ContrastiveConfig,
    *,
    sides: Mapping[str, str],
    max_length: int,
    mesh: Mesh,
    seed: int,
    make_hook: Callable[..., KeepingHook] | None = None,
) -> None:
    """Trains encoders by the contrastive loss and saves them as models; without epochs as they are.

    Args:
        list_pairs: gives the examples; called only if there are epochs.
        sides: for each folder of the stage the side that is saved there, "question" or "passage".
        make_hook: as for `fit_encoders`.
    """

    def save_sides(encoders: Encoders) -> None:
        for name, side in sides.items():
            encoder = getattr(encoders, side)
            whole = replace(encoder, params=fetch(encoder.params))
            if is_first():
                save(whole, context.folder / name)

    if not settings.epochs:
        save_sides(encoders)
        return
    options = {"max_length": max_length, "seed": seed}
    batches = make_batches(encoders, list_pairs(), train_questions, passages, settings, **options)
    files = context.folder, context.progress
    fit_encoders(encoders, batches, mesh, *files, save=save_sides, make_hook=make_hook)


def continue_prompts(
    base: Pretrained, prompts: Sequence[Sequence[int]], **options: Any
) -> list[list[int]]:
    """The tokens that a language model writes after each prompt.

    What all prompts begin with, such as an instruction with its examples, is read once. A seed is
    mixed with the first prompt, so that the batches of a stage do not repeat each other's draws.

    Args:
        options: of `generate`.
    """
    if not prompts:
        return []
    prefix, rests = split_prefix(prompts)
    options = {"stop_ids": base.tokenizer.stop_ids, "prefix": prefix, **options}
    if "seed" in options:
        options["seed"] = derive_seed(options["seed"], [*map(int, prompts[0])])
    return generate(base.model, base.params, rests, **options)


def list_ranked(
    scores: Sequence[Float[np.ndarray, "k"]], rows: Sequence[Int[np.ndarray, "k"]]
) -> list[Ranked]:
    """The rows and scores that a search found, as one list a question."""
    pairs = zip(rows, scores, strict=True)
    return [list(zip(r.tolist(), s.tolist(), strict=True)) for r, s in pairs]


def order_found(
    questions: Sequence[Question],
    rankings: Sequence[Ranked],
    passages: Sequence[Passage],
    *,
    depth: int | None = None,
) -> list[Ranked]:
    """The rankings in trec_eval's order, without passages that are the question itself.

    Args:
        rankings: rows of `passages` for each question.
        depth: as for `rank_hits`.
    """
    get_id = cache(lambda row: passages[row].id)  # a passage is read from disk once
    pairs = zip(questions, rankings, strict=True)
    return [rank_hits(question, hits, get_id, depth=depth) for question, hits in pairs]


def answer_timed(
    context: StageContext,
    name: str,
    questions: Sequence[Any],
    answer: Callable[[Sequence[Any]], Sequence[Record]],
    *,
    batch_size: int,
    file: str = "answers",
) -> list[Record]:
    """A method's record of each question, with its share of a batch's seconds, kept on disk.

    Args:
        name: of the method; `<file>_<name>.jsonl` keeps the records.
        answer: a batch of questions to their records.
    """
    options = {"batch_size": batch_size, "unit": f"questions ({name})"}
    return context.map(f"{file}_{name}.jsonl", questions, timed(answer), **options)
