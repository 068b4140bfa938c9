"""RAG's compiled steps: answers united over documents, scored once, and transformers' output."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.decoding import BeamConfig, Beams
from rag_jax.models import load
from rag_jax.models.nn.layers import MASKED
from rag_jax.systems.rag import steps

GOLDEN = Path(__file__).parents[2] / "golden"
BART = load(GOLDEN / "bart")


def test_answers_that_several_documents_give_are_one():
    tokens = jnp.asarray([[[5, 0], [5, 6]], [[5, 6], [7, 0]], [[0, 0], [5, 0]]])
    lengths, ends = (
        jnp.asarray([[1, 2], [2, 0], [0, 2]]),
        jnp.asarray([[3, -1], [-1, -1], [3, -1]]),
    )
    scores = jnp.asarray([[-1.0, -2.0], [-3.0, MASKED], [-4.0, -5.0]])
    found = steps.unite(Beams(tokens, lengths, ends, scores, scores), docs=3)
    # `5 3`, `5 6`, `3` and `5 0`, which is no padded `5`; the second has two documents.
    assert found.lengths.tolist() == [[2, 2, 1, 2, 0, 0]]
    assert found.tokens[0, :4].tolist() == [[5, 3, 0], [5, 6, 0], [3, 0, 0], [5, 0, 0]]
    m = MASKED
    wanted = [[-1, -2, m, m, m, m], [m, -3, m, m, m, m], [m, m, -4, -5, m, m]]
    np.testing.assert_array_equal(found.logprobs[0], np.float32(wanted))


def test_what_is_known_is_not_scored_again():
    golden = dict(np.load(GOLDEN / "rag" / "golden.npz"))
    given = BART.model, BART.params
    given += steps.read(*given, golden["tokens"], golden["mask"].astype(bool))
    settings = {"max_tokens": 5, "stop_ids": (2,), "config": BeamConfig(4)}
    found = steps.propose(*given, golden["scores"], **settings)
    whole = steps.score(*given, found.tokens, found.lengths, chunk=4)
    rest = steps.score(*given, *found, chunk=4)
    np.testing.assert_allclose(rest, whole, atol=1e-5)
    known = found.logprobs > MASKED / 2
    assert known.any() and not known.all()
    np.testing.assert_array_equal(rest[known], found.logprobs[known])


@pytest.mark.parametrize("name", ["token", "sequence"])
def test_golden(name):
    """What transformers writes around the same BART: four beams, BOS and EOS forced."""
    golden = dict(np.load(GOLDEN / "rag" / "golden.npz"))
    settings = {"max_tokens": 5, "stop_ids": (2,), "config": BeamConfig(4)}
    model, params = BART.model, BART.params
    cache, hidden = steps.read(model, params, golden["tokens"], golden["mask"].astype(bool))
    given = (model, params, cache, hidden)
    rows = [row[2:].tolist() for row in golden[f"written_{name}"]]
    rows = [row[: row.index(2) + 1] for row in rows]
    if name == "token":
        found = steps.write_token(*given, golden["scores"], **settings)
        np.testing.assert_allclose(found.scores.reshape(-1), golden["scores_token"], atol=1e-5)
        found = steps.unite(found, docs=1)
        order = np.tile(np.arange(4), (2, 1))
    else:
        found = steps.propose(*given, golden["scores"], **settings)
        logprobs = steps.score(*given, *found, chunk=4)
        order = np.argsort(-steps.mix(golden["scores"], logprobs), axis=1)[:, :4]
    texts = [found.tokens[b, c, : found.lengths[b, c]].tolist() for b in range(2) for c in order[b]]
    assert texts == rows
