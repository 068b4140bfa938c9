"""What a run offers to a server beside its answers."""

import asyncio

import numpy as np
import pytest
from serving.shouter import Shouter
from tiny_encoders import lengthen, write_reranker

from rag_jax.config import MeshConfig
from rag_jax.data.batches import double_up, list_widths
from rag_jax.models import load_reranker
from rag_jax.retrieval import score_pairs
from rag_jax.runtime.clock import xla_seconds
from rag_jax.runtime.sharding import make_mesh
from rag_jax.serving.worker import Worker
from rag_jax.systems.reranking import Reranking
from rag_jax.systems.served import Served, make_scoring


@pytest.mark.parametrize(
    ("limit", "widths"), [(16, [16]), (32, [32]), (33, [32, 33]), (256, [32, 64, 128, 256])]
)
def test_widths(limit, widths):
    assert list_widths(limit) == widths


def test_pairs_of_several_requests_are_scored_as_by_the_reranker(tmp_path):
    """After the warm-up nothing is compiled, whatever the numbers and lengths of documents."""
    reranker = load_reranker(lengthen(write_reranker(tmp_path / "reranker"), 64))
    served = Served(score=make_scoring(Reranking(reranker, 4, 64)))
    worker = Worker(served, make_mesh(MeshConfig()), tokens=16)
    asyncio.run(worker.warm_up())
    before = xla_seconds()
    texts = ["a", "the capital " * 30, "Riga [SEP] is", "b"]
    requests = [[("where?", texts[0])], [("what is the capital?", text) for text in texts]]
    one, four = asyncio.run(worker.score(requests))
    assert xla_seconds() == before
    worker.close()
    expected = score_pairs(reranker, [*requests[0], *requests[1]], max_length=64)
    np.testing.assert_allclose(np.concatenate([one, four]), expected, atol=1e-5)


def test_the_warm_up_meets_every_width_of_questions(capsys):
    shouter = Shouter()
    worker = Worker(shouter.serve(), make_mesh(MeshConfig()), tokens=100)
    asyncio.run(worker.warm_up())
    worker.close()
    met = [(len(batch), double_up(len(batch[0].split()), 32)) for batch in shouter.batches]
    assert met == [(count, width) for width in (32, 64, 128) for count in (1, 4)]
    assert "compiling: 54 batches in" in capsys.readouterr().err  # and 48 of texts
