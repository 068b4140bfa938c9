"""Asks a finished run of SR-RAG: the choice of a source, its reasons, the knowledge, the answer."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from rag_jax.data.questions import Question
from rag_jax.decoding.cache import Cache, grow
from rag_jax.decoding.sample import Decoded
from rag_jax.decoding.stream import spell, stream
from rag_jax.pipeline.ask import PASSAGES, Ask, Facts, Note, Piece, read_corpus
from rag_jax.pipeline.runner import open_stages
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import count_data_rows, shard_batch
from rag_jax.systems.srrag.infer import Engine
from rag_jax.systems.srrag.passes import choose, list_kinds
from rag_jax.systems.srrag.pipeline import list_stages
from rag_jax.systems.srrag.policy import Datastore, find_nearest, vote, weigh
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.steps import Routed, pick_rows
from rag_jax.systems.srrag.thresholds import read_thresholds
from rag_jax.systems.stages import list_ranked

_NEAREST = 5  # questions of the datastore that are shown

_widen = jax.jit(grow, static_argnames="slots")


def open_run(session: Session, workdir: Path, corpus: Path | None) -> Ask:
    """Opens a run's model, datastore and indices.

    Args:
        corpus: passages that the searched sources have in place of the run's.

    Raises:
        RagJaxError: as `open_stages`, or the corpus cannot be read.
    """
    tuned = ("thresholds",) if session.config.route.is_tuned else ()
    needs = ("corpus", "index", "lengths", "stage2", "datastore", *tuned)
    context = open_stages(list_stages(session), workdir, needs)
    session.open_corpus(context.path("corpus", ""))
    engine = session.open_engine(context, context.path("stage2", "params"))
    engine = replace(engine, batch_size=count_data_rows())
    if corpus is not None:
        passages, embeddings = read_corpus(corpus, session.embed)
        cut = sum(session.format.shorten(passage.text) != passage.text for passage in passages)
        if cut:
            limit = session.format.max_text
            log(f"{cut} passages are cut to {limit} tokens (config.model.max_text)")
        engine = session.replace_corpus(engine, passages, embeddings)
    policy = session.open_datastore(context), read_thresholds(context, session.config)["srrag"]
    return partial(_answer, session, engine, *policy, session.train_questions)


def _answer(
    session: Session,
    engine: Engine,
    datastore: Datastore,
    tau: float,
    neighbours: Sequence[Question],
    question: str,
) -> Iterator[Facts | Piece | Note]:
    c, k = session.config, min(session.config.datastore.k, len(neighbours))
    routed = engine.route([question])
    nobody = jnp.full(engine.batch_size, -1)
    votes = fetch(vote(datastore, routed.key, nobody, k=k, num_sources=len(c.sources)))[:1]
    probabilities = fetch(routed.probabilities)[:1]
    number = int(choose(c, probabilities, votes, tau)[0])
    yield Facts("sources", _tabulate(session, probabilities[0], votes[0], number, tau, k))
    found = fetch(find_nearest(datastore, routed.key, nobody, k=min(k, _NEAREST)))
    labels = fetch(datastore.labels)
    nearest = [
        (f"{similarity:.3f}", c.sources[labels[row]].name, neighbours[row].question)
        for row, similarity in list_ranked(*found)[0]
    ]
    yield Facts("nearest questions, and the source that was better for each", nearest)
    cache = None
    if number != engine.format.internal:
        knowledge = engine.gather_knowledge(routed, [0], number, [question])
        if knowledge.found[0]:
            yield Facts(PASSAGES, [(knowledge.texts[0],)])
            cache = knowledge.cache
        else:
            yield Note(f"{c.sources[number].name} has nothing: the model goes on by itself")
    if cache is None:
        cache = yield from _verbalise(engine, routed)
    cue = engine.format.encode_answer_cue()
    decoded = yield from _write(engine, cache, cue, engine.max_answer, "answer")
    if not fetch(decoded.finished)[0]:
        yield Note(f"cut off at {engine.max_answer} tokens, config.answer.max_tokens")


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
    """The model writes knowledge; the cache gets as many slots as after retrieved knowledge."""
    cache = pick_rows(routed.cache, np.zeros(engine.batch_size, np.int32))
    token = engine.format.source_ids[engine.format.internal]
    limit = engine.max_knowledge
    decoded = yield from _write(engine, cache, [token], limit, "verbalised")
    if not fetch(decoded.finished)[0]:
        yield Note(f"cut off at {limit} tokens, config.verbalise.max_tokens")
    return _widen(decoded.cache, slots=engine.knowledge_width)


def _write(
    engine: Engine, cache: Cache, tokens: Sequence[int], limit: int, title: str
) -> Generator[Piece, None, Decoded]:
    """Reads tokens after the first row of a cache, and writes greedily."""
    rows, decoded = engine.batch_size, None
    arrays = (np.tile(np.asarray(tokens, np.int32), (rows, 1)), np.arange(rows) < 1)
    inputs = engine.model, engine.params, cache, *shard_batch(arrays)

    def list_tokens() -> Iterator[list[int]]:
        nonlocal decoded
        for decoded in stream(*inputs, max_tokens=limit, stop_ids=engine.format.stop_ids):
            ids, lengths = fetch((decoded.tokens, decoded.lengths))
            yield ids[0, : lengths[0]].tolist()

    yield Piece(title, "")
    for text in spell(engine.format.tokenizer, list_tokens()):
        yield Piece(title, text)
    return decoded
