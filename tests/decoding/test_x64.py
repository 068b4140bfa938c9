"""Decoding and search where JAX counts in 64 bits, as in projects that need float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import make_decoder, make_rows

from rag_jax import lora
from rag_jax.decoding import BeamConfig, Sampling, Trie, beam_search, generate, trie_search
from rag_jax.retrieval import Index

MODEL, PARAMS = make_decoder(num_layers=1)
ROWS, TRIE = make_rows([5, 3]), Trie.from_sequences([[3, 4, 5], [3, 4], [7], [3, 9, 9]], end_id=2)


def write(**options):
    return generate(MODEL, PARAMS, ROWS, max_tokens=4, stop_ids=[1], **options)


def write_with_adapters():
    bank = lora.init_bank(jax.random.key(0), PARAMS, targets=".*ffn/.*", rank=2, size=5)
    return write(adapters=lora.merge(lora.select(bank, np.asarray([[0, -1], [2, 3]])), scale=2.0))


def search_trie(*, greedy):
    beams = {"config": BeamConfig(2), "greedy": greedy}
    return [[f.rows for f in row] for row in trie_search(MODEL, PARAMS, ROWS, TRIE, **beams)]


def search_beams():
    found = beam_search(MODEL, PARAMS, ROWS, max_tokens=4, stop_ids=[1], config=BeamConfig(2))
    return [[tokens for tokens, _ in row] for row in found]


def search_index():
    vectors = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)
    index = Index.build(vectors, backend="exact", storage="int8", encoder="e")
    return index.search(jnp.asarray(vectors[:3]), k=4)[1].tolist()


@pytest.mark.parametrize(
    "run",
    [
        write,
        lambda: write(drafted=3),
        lambda: write(prefix=[3, 4]),
        lambda: [len(row) for row in write(sampling=Sampling(1.0, top_k=5, top_p=0.9))],
        write_with_adapters,
        lambda: search_trie(greedy=False),
        lambda: search_trie(greedy=True),
        search_beams,
        search_index,
    ],
)
def test_the_results_are_those_in_32_bits(run):
    wanted = run()
    with jax.enable_x64(True):
        assert run() == wanted
