"""What a run offers to a server beside its answers."""

import asyncio
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving.shouter import Shouter
from tiny_encoders import lengthen, write_reranker

from rag_jax.config import MeshConfig
from rag_jax.data.batches import double_up, list_widths
from rag_jax.models import load_reranker
from rag_jax.retrieval import score_pairs
from rag_jax.runtime.clock import xla_seconds
from rag_jax.runtime.sharding import make_mesh
from rag_jax.serving.compute_thread import ComputeThread, list_sizes
from rag_jax.systems.reranking import Reranking
from rag_jax.systems.served import Served, make_scoring


@pytest.mark.parametrize(
    ("limit", "widths"), [(16, [16]), (32, [32]), (33, [32, 33]), (256, [32, 64, 128, 256])]
)
def test_widths(limit, widths):
    assert list_widths(limit) == widths


@given(st.integers(1, 8), st.integers(1, 100), st.integers(2, 4))
def test_sizes_are_parts_of_a_batch(rows, count, parts):
    sizes = list_sizes(rows * count, rows=rows, parts=parts)
    assert sizes[0] == rows and sizes[-1] == rows * count
    for small, large in pairwise(sizes):
        assert small % rows == 0 and large / parts <= small < large
        assert small - large / parts < rows


def test_pairs_of_several_requests_are_scored_as_by_the_reranker(tmp_path, monkeypatch):
    """After the warm-up nothing is compiled, whatever the numbers and lengths of documents."""
    monkeypatch.setattr("rag_jax.serving.compute_thread.find_platform", lambda: "tpu")
    reranker = load_reranker(lengthen(write_reranker(tmp_path / "reranker"), 64))
    served = Served(score=make_scoring(Reranking(reranker, 4, 64)))
    thread = ComputeThread(served, make_mesh(MeshConfig()), tokens=16)
    asyncio.run(thread.warm_up())
    before = xla_seconds()
    texts = ["a", "the capital " * 30, "Riga [SEP] is", "b"]
    requests = [[("where?", texts[0])], [("what is the capital?", text) for text in texts]]
    one, four = asyncio.run(thread.score(requests))
    assert xla_seconds() == before
    thread.close()
    expected = score_pairs(reranker, [*requests[0], *requests[1]], max_length=64)
    np.testing.assert_allclose(np.concatenate([one, four]), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "counts", "batches"), [("cpu", (1,), "27"), ("tpu", (1, 4), "54")]
)
def test_the_warm_up_meets_every_width_of_questions(monkeypatch, capsys, platform, counts, batches):
    monkeypatch.setattr("rag_jax.serving.compute_thread.find_platform", lambda: platform)
    shouter = Shouter()
    thread = ComputeThread(shouter.serve(), make_mesh(MeshConfig()), tokens=100)
    asyncio.run(thread.warm_up())
    thread.close()
    met = [(len(batch), double_up(len(batch[0].split()), 32)) for batch in shouter.batches]
    assert met == [(count, width) for width in (32, 64, 128) for count in counts]
    said = capsys.readouterr().err  # three or six of questions, the others of texts and pairs
    assert f"compiling: {batches} batches in" in said


@pytest.mark.parametrize(
    ("platform", "full", "asked", "padded"),
    [
        *[("cpu", 20, 1, 1), ("cpu", 20, 2, 2), ("cpu", 20, 4, 5), ("cpu", 20, 11, 20)],
        *[("cpu", 16, 5, 8), ("cpu", 16, 16, 16)],
        *[("tpu", 20, 1, 1), ("tpu", 20, 2, 2), ("tpu", 20, 3, 5), ("tpu", 20, 6, 20)],
        *[("tpu", 16, 5, 16), ("tpu", 16, 16, 16), ("tpu", 2, 2, 2)],
    ],
)
def test_questions_are_padded_to_the_least_batch_that_holds_them(
    monkeypatch, platform, full, asked, padded
):
    monkeypatch.setattr("rag_jax.serving.compute_thread.find_platform", lambda: platform)
    shouter = Shouter()
    served = replace(shouter.serve(), batch_size=full)
    thread = ComputeThread(served, make_mesh(MeshConfig()), tokens=9)
    questions = [f"what is {number}?" for number in range(asked)]
    answers = asyncio.run(thread.answer(questions))
    thread.close()
    assert [answer.text for answer in answers] == [question.upper() for question in questions]
    assert [len(batch) for batch in shouter.batches] == [padded]
