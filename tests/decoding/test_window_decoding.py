"""Decoding of a model whose layers slide, against full passes in NumPy."""

import numpy as np
import pytest
from tiny import continue_row, make_decoder, make_rows, read_row

from rag_jax.decoding import BeamConfig, Trie, beam_search, generate, trie_search

# Prompts are padded to 32 tokens, which is more than the window, and each text outgrows it.
MODEL, PARAMS = make_decoder(window=4, sliding_layers=(0,), unrotated_layers=(1,))
PROMPTS = make_rows([9, 3, 14])
END = 30


def score(prompt, written):
    """The log-probability of tokens after a prompt."""
    logits = read_row(MODEL, PARAMS, [*prompt, *written])[2][len(prompt) - 1 :]
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    return sum(logprobs[i, token] for i, token in enumerate(written))


@pytest.mark.parametrize("prefix", [(), (5, 6, 7, 8, 9, 10)])
def test_greedy(prefix):
    written = generate(MODEL, PARAMS, PROMPTS, prefix=prefix, max_tokens=6, stop_ids=[END])
    for prompt, tokens in zip(PROMPTS, written, strict=True):
        wanted = continue_row(MODEL, PARAMS, [*prefix, *prompt], max_tokens=6, stop_ids=[END])
        assert tokens == wanted[0]


def test_beams():
    config = BeamConfig(3, length_penalty=0.0)
    found = beam_search(MODEL, PARAMS, PROMPTS, max_tokens=6, stop_ids=[END], config=config)
    for prompt, beams in zip(PROMPTS, found, strict=True):
        assert len(beams) == 3
        for tokens, total in beams:
            ended = [*tokens, END] if len(tokens) < 6 else tokens
            np.testing.assert_allclose(total, score(prompt, ended), atol=1e-4)


def test_beams_along_a_trie():
    corpus = [[1, 2, 3, 4, 5], [1, 2, 4, 4, 6], [1, 2, 4, 4, 7, 8], [9, 2, 3]]
    trie = Trie.from_sequences(corpus, end_id=END)
    found = trie_search(MODEL, PARAMS, PROMPTS, trie, config=BeamConfig(4))
    for prompt, sequences in zip(PROMPTS, found, strict=True):
        assert len(sequences) == 4
        for sequence in sequences:
            wanted = score(prompt, sequence.tokens[: sequence.length])
            np.testing.assert_allclose(sequence.logprob, wanted, atol=1e-4)
