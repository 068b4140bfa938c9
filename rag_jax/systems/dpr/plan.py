"""Every compiled program of a run, for a slice of TPUs that need not be there."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax

from rag_jax.data.batches import round_up
from rag_jax.planning.abstract import AbstractModels, change, halve
from rag_jax.planning.batches import Drawn
from rag_jax.planning.contrastive import compile_pairs
from rag_jax.planning.planner import Planner
from rag_jax.planning.reranking import compile_reranking
from rag_jax.planning.training import compile_encoding
from rag_jax.retrieval.encode import embed_batch
from rag_jax.systems.dpr import session
from rag_jax.systems.dpr.config import DPRConfig

CONFIG = DPRConfig


class PlannedSession(AbstractModels, session.Session):
    """A session whose models are descriptions of arrays."""


def plan(config: DPRConfig, devices: Sequence[jax.Device], drawn: Drawn, **options: Any) -> Planner:
    """Compiles the run's programs: of the training and of the index all, of questions one."""
    session = PlannedSession(config, devices)
    planner = Planner(session.mesh, **options)
    encoders = session.untrained
    planner.hold(encoders.params())
    compile_pairs(planner, drawn.stages["train"], encoders, config.train, encoders.params())
    planner.hold(encoders.params())
    compile_encoding(planner, drawn.stages["index"], encoders.passage)
    width = min(round_up(int(drawn.corpus.lengths.query[-1]), 8), config.encoder.max_length)
    rows = round_up(config.encoder.batch_size * 16 // width, session.mesh.shape["data"])
    side, sizes = encoders.question, {"B": rows, "T": width}
    runs = {"evaluate": -(-drawn.corpus.asked // rows)}
    inputs, name = (side.model, side.params), f"evaluate, embed questions {rows} x {width}"
    planner.compile(name, embed_batch, *inputs, sizes=sizes, runs=runs)
    compile_reranking(planner, config.retrieve.rerank, {"evaluate": drawn.corpus.asked})
    return planner


def list_remedies(config: DPRConfig, name: str) -> Iterator[tuple[str, DPRConfig]]:
    """Settings, one change each, with which a program needs less memory; and the flag for each."""
    if name.startswith("train, gradients"):
        yield halve(config, "train.microbatch_tokens")
        yield halve(config, "train.batch_size")
    elif "embed" in name:
        yield halve(config, "encoder.batch_size")
    yield change(config, "mesh.model", 2 * max(config.mesh.model, 1))
