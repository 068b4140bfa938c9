"""RAG's reading of BM25's hits, which may be fewer than the places for passages."""

from pathlib import Path

import numpy as np

from rag_jax.data.passages import Passage
from rag_jax.decoding import BeamConfig
from rag_jax.models import load
from rag_jax.models.nn.layers import MASKED
from rag_jax.systems.rag.data import make_format, pick_passages
from rag_jax.systems.rag.infer import Engine
from rag_jax.systems.rag.rankings import pad_hits

LLAMA = load(Path(__file__).parents[2] / "golden" / "llama_tied")
PASSAGES = [Passage("0", "Paris", "It is in France."), Passage("1", "Bern", "A capital.")]
HITS = [np.asarray([2.5, 0.5], np.float32), np.asarray([1.5], np.float32), np.zeros(0, np.float32)]
ROWS = [np.asarray([1, 0]), np.asarray([0]), np.zeros(0, int)]


def test_places_without_a_hit():
    ranking = pad_hits(HITS, ROWS, 3)
    assert ranking.rows.tolist() == [[1, 0, -1], [0, -1, -1], [-1, -1, -1]]
    assert ranking.scores.tolist() == [
        [2.5, 0.5, MASKED],
        [1.5, MASKED, MASKED],
        [0, *[MASKED] * 2],
    ]
    bern, paris = ("Bern", "A capital."), ("Paris", "It is in France.")
    assert pick_passages(PASSAGES, ranking.rows) == [
        [bern, paris, None],
        [paris, None, None],
        [None] * 3,
    ]


def test_only_hits_are_read():
    """Places without a hit change no answer, and without any hit the book is closed."""
    ways = ("thorough",)
    settings = {"max_tokens": 3, "beams": BeamConfig(2), "batch_size": 1}
    engine = Engine(LLAMA.model, LLAMA.params, make_format(LLAMA, max_length=48), **settings)
    ranking = pad_hits(HITS, ROWS, 2)
    asked = ["Where is Bern?", "Paris?", "Lyon?"]
    read = pick_passages(PASSAGES, ranking.rows)
    found = engine.answer(asked, read, ranking.scores, ways=ways)
    one = np.zeros((1, 1), np.float32)
    for i, passage in ((1, ("Paris", "It is in France.")), (2, None)):
        alone = engine.answer([asked[i]], [[passage]], one, ways=ways)
        for way in ways:
            ours, theirs = found[way][i][0], alone[way][0][0]
            assert (ours.text, ours.cut_off) == (theirs.text, theirs.cut_off)
            np.testing.assert_allclose(ours.logprob, theirs.logprob, rtol=1e-4)
