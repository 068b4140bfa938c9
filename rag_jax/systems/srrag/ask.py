"""Asks a finished run of SR-RAG: the choice of a source, its reasons, the knowledge, the answer."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from rag_jax.data.batches import pad_rows
from rag_jax.data.questions import Question
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.sample import Decoded
from rag_jax.decoding.stream import spell, stream
from rag_jax.pipeline.ask import PASSAGES, Ask, Facts, Item, Note, Outcome, Piece, Threshold
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.files import read_json
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import count_data_rows, shard_batch
from rag_jax.systems.likelihood import open_threshold
from rag_jax.systems.srrag.config import GroundedAnswerConfig
from rag_jax.systems.srrag.data import join_passages
from rag_jax.systems.srrag.infer import Engine, cite
from rag_jax.systems.srrag.passes import choose, list_kinds, route
from rag_jax.systems.srrag.pipeline import list_stages
from rag_jax.systems.srrag.policy import Datastore, find_nearest, weigh
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.steps import Routed
from rag_jax.systems.srrag.thresholds import read_thresholds

_NEAREST = 5  # questions of the datastore that are shown


class Written(NamedTuple):
    """What was written in the first row of a batch."""

    decoded: Decoded
    text: str


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run for questions one by one; see `open_parts`."""
    engine, *policy = open_parts(session, workdir, corpus)
    engine = replace(engine, batch_size=count_data_rows())
    threshold = open_threshold(list_stages(session), workdir)
    return partial(_answer, session, engine, *policy, threshold, session.train_questions)


def open_parts(
    session: Session, workdir: Path, corpus: Path | None
) -> tuple[Engine, Datastore, float]:
    """Opens a run's model and indices, its datastore, and the threshold that it chose.

    Args:
        corpus: passages that the searched sources have in place of the run's.

    Raises:
        RagJaxError: as `open_stages`, or the corpus cannot be read.
    """
    tuned = ("thresholds",) if session.config.route.is_tuned else ()
    needs = ("corpus", "index", "lengths", "stage2", "datastore", *tuned)
    context = open_stages(list_stages(_restore(session, workdir)), workdir, needs)
    session.open_corpus(context.path("corpus", ""))
    engine = session.open_engine(context, context.path("stage2", "params"))
    if corpus is not None:
        passages, embeddings = session.read_corpus(corpus, session.encoder)
        measured = session.measure_corpus(passages)
        if measured["cut"]:
            limit = session.format.max_text
            log(f"{measured['cut']} passages are cut to {limit} tokens (config.model.max_text)")
        longest = measured["longest"]
        engine = session.replace_corpus(engine, passages, embeddings, longest=longest)
    tau = read_thresholds(context, session.config)["srrag"]
    return engine, session.open_datastore(context), tau


def _restore(session: Session, workdir: Path) -> Session:
    """The session by whose settings the run was made: it can be asked with other `answer`.

    The datastore was filled with the run's own ones.
    """
    path = workdir / "config.json"
    if not path.exists():
        return session
    with parsing(path):
        answer = GroundedAnswerConfig(**read_json(path)["answer"])
    return Session(replace(session.config, answer=answer))


def _answer(
    session: Session,
    engine: Engine,
    datastore: Datastore,
    tau: float,
    threshold: Threshold | None,
    neighbours: Sequence[Question],
    question: str,
) -> Iterator[Item]:
    c, k = session.config, min(session.config.datastore.k, len(neighbours))
    routed, probabilities, votes = route(engine, datastore, c, [question])
    number = int(choose(c, probabilities, votes, tau)[0])
    yield Facts("sources", _tabulate(session, probabilities[0], votes[0], number, tau, k))
    nobody, labels = np.full(engine.batch_size, -1), fetch(datastore.labels)
    similarities, entries = fetch(find_nearest(datastore, routed.key, nobody, k=k))
    nearest = [
        (f"{similarity:.3f}", c.sources[labels[row]].name, neighbours[row].question)
        for similarity, row in zip(similarities[0, :_NEAREST], entries[0], strict=False)
    ]
    yield Facts("nearest questions, and the source that was better for each", nearest)
    texts = []
    if number != engine.format.internal:
        texts = engine.find_passages(number, [question])[0]
        if not texts:
            yield Note(f"{c.sources[number].name} has nothing: the model goes on by itself")
    if texts:
        knowledge = join_passages(texts)
        yield Facts(PASSAGES, [(knowledge,)])
        # The source, the passages and the cue are read at once, by a program of one width.
        tokens = [engine.format.source_ids[number], *engine.format.encode_knowledge(knowledge)]
        cache, width = routed.cache, 1 + engine.knowledge_width
    else:
        cache, tokens, width = (yield from _verbalise(engine, routed)), [], 0
    cue = engine.format.encode_answer_cue()
    reading = [*tokens, *cue], width + len(cue)
    written = yield from _write(engine, cache, *reading, engine.max_answer, "answer")
    if not fetch(written.decoded.finished)[0]:
        yield Note(f"cut off at {engine.max_answer} tokens, config.answer.max_tokens")
    source, verdict = c.sources[number if texts else engine.format.internal].name, {}
    if texts:
        likelihood = float(fetch(written.decoded.likelihoods)[0])
        verdict = {"likelihood": likelihood, "threshold": threshold}
    yield Outcome(written.text, cite(texts), source, **verdict)


def _tabulate(
    session: Session,
    probabilities: np.ndarray,
    votes: np.ndarray,
    chosen: int,
    tau: float,
    k: int,
) -> list[tuple[str, ...]]:
    """A line a source: `p_M`, the vote, their product, and the rule by which it was chosen."""
    c = session.config
    mass = float(weigh(probabilities[None], votes[None], list_kinds(c)).mass[0])
    searches = c.sources[chosen].kind == "search"
    if c.route.decision == "argmax_product":
        rule = f"searching has {mass:.3f}, {'above' if searches else 'not above'} the model itself"
    else:
        rule = f"searching has {mass:.3f}, {'above' if searches else 'not above'} tau={tau:.3g}"
    rows = [("", "model", "votes", "product", "")]
    for number, source in enumerate(c.sources):
        p, v = float(probabilities[number]), float(votes[number])
        mark = f"chosen: {rule}" if number == chosen else ""
        rows.append((source.name, f"{p:.3f}", f"{v * k:.0f}/{k}", f"{p * v:.3f}", mark))
    return rows


def _verbalise(engine: Engine, routed: Routed) -> Generator[Piece | Note, None, Cache]:
    """The model writes knowledge; returns the cache after it."""
    token, limit = engine.format.source_ids[engine.format.internal], engine.max_knowledge
    decoded, _ = yield from _write(engine, routed.cache, [token], 1, limit, "verbalised")
    if not fetch(decoded.finished)[0]:
        yield Note(f"cut off at {limit} tokens, config.verbalise.max_tokens")
    return decoded.cache


def _write(
    engine: Engine, cache: Cache, tokens: Sequence[int], width: int, limit: int, title: str
) -> Generator[Piece, None, Written]:
    """Reads tokens, padded to a width, after the first row of a cache, and writes greedily."""
    decoded = None
    arrays = pad_rows([tokens], width, pad_id=0, batch=engine.batch_size)
    inputs = engine.model, engine.params, cache, *shard_batch(arrays)

    def list_tokens() -> Iterator[list[int]]:
        nonlocal decoded
        for decoded in stream(*inputs, max_tokens=limit, stop_ids=engine.format.stop_ids):
            ids, lengths = fetch((decoded.tokens, decoded.lengths))
            yield ids[0, : lengths[0]].tolist()

    yield Piece(title, "")
    pieces = []
    for text in spell(engine.format.tokenizer, list_tokens()):
        pieces.append(text)
        yield Piece(title, text)
    return Written(decoded, "".join(pieces))
