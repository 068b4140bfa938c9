"""Plans of tiny runs: what is drawn of them, and the names of their programs."""

from dataclasses import replace

import jax
from tiny_encoders import lengthen, write_reranker

from rag_jax.planning.batches import Corpus
from rag_jax.planning.drawing import draw_run
from rag_jax.planning.lengths import read_lengths
from rag_jax.planning.planner import Planner
from rag_jax.planning.slices import read_slice
from rag_jax.runtime import chips
from rag_jax.search_config import RerankConfig
from rag_jax.systems import open_room

RERANKING = "rerank pairs 64 x 48"
CHIP = chips.Chip(flops=1e12, bandwidth=1e11, memory=1e12, links=1e11)


def draw(system, config, *, questions=20, passages=40):
    """What one CPU would run."""
    corpus = Corpus(questions, questions, passages, read_lengths())
    sizes = open_room(system, "session").Session.batch_sizes
    return draw_run(open_room(system, "batches"), config, sizes, read_slice(None), corpus)


def plan(system, config, drawn=None, **options):
    """A plan for a CPU that stands in for a slice."""
    drawn = drawn or draw(system, config)
    return open_room(system, "plan").plan(config, jax.devices()[:1], drawn, **options)


def add_reranker(config, folder):
    """The config with a tiny reranker of four passages, whose program is `RERANKING`."""
    path = str(lengthen(write_reranker(folder / "reranker"), 48))
    retrieve = replace(config.retrieve, rerank=RerankConfig(name=path, depth=4))
    return replace(config, retrieve=retrieve)


def list_programs(system, config, monkeypatch, **corpus):
    """The names and runs of all programs, none of which is compiled."""
    found, compile = {}, Planner.compile

    def note(self, name, *args, runs=None, **kwargs):
        assert name not in found
        found[name] = dict(runs or {})
        return compile(self, name, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Planner, "compile", note)
        plan(system, config, draw(system, config, **corpus), only="none of them")
    return found
