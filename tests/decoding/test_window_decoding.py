"""Decoding of a model whose layers slide, against full passes in NumPy."""

from functools import partial

import jax
import numpy as np
import pytest
from tiny import continue_row, make_decoder, make_rows, read_row

from rag_jax.data.batches import pad_rows
from rag_jax.decoding import BeamConfig, Sampling, Trie, beam_search, generate, trie_search
from rag_jax.decoding.cache import append, grow, init_cache, write_branches
from rag_jax.decoding.packing import pack_texts
from rag_jax.decoding.prompts import read_prompts
from rag_jax.decoding.sample import decode
from rag_jax.decoding.vocabulary_beams import search_beams
from rag_jax.models.nn import windows
from rag_jax.models.nn.window_slots import find_slots

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


GEMMA = {
    "window": 4,
    "sliding_layers": (0,),
    "query_key_norm": True,
    "output_norms": True,
    "offset_norms": True,
    "scale_embedding": True,
    "local_rope_theta": 10.0,
    "query_scalar": 5,
}
MISTRAL = {"window": 6, "sliding_layers": (0, 1)}


@pytest.mark.parametrize(("kinds", "length"), [(GEMMA, 70), (MISTRAL, 0)])
def test_slices_change_nothing(kinds, length, monkeypatch):
    """Greedy, sampled, by beams and packed: as with all slots, after prompts of other lengths."""
    model, params = make_decoder(**kinds)
    tokens, mask = pad_rows(make_rows([9, 3, 40]), 48, pad_id=0, batch=4)
    packed = pack_texts([[[1, 2, 3, 4, 5], [1, 2, 6, 7], [8, 9]]] * 4, limit=32)
    settings = {"max_tokens": 12, "stop_ids": (END,)}

    def write(params):
        prefix = None
        if length:
            (row,) = make_rows([length], seed=1)
            cache = init_cache(model, 1)
            prefix = append(model, params, cache, *pad_rows([row], 80, pad_id=0))[1]
        cache, hidden = read_prompts(model, params, tokens, mask, prefix=prefix)
        inputs, active = (model, params, cache, hidden), mask.any(axis=1)
        keys, sampling = jax.random.split(jax.random.key(0), 4), Sampling(1.0)
        beams = search_beams(*inputs, config=BeamConfig(3), active=active, **settings)
        read = score_packed(model, params, cache, packed)
        written = [
            decode(*inputs, active=active, **settings),
            decode(*inputs, active=active, keys=keys, sampling=sampling, **settings),
        ]
        return [(x.tokens, x.lengths) for x in (*written, beams)], (beams.scores, read)

    taken = []

    def find(*arguments):
        taken.append(find_slots(*arguments))
        return taken[-1]

    monkeypatch.setattr(windows, "find_slots", find)
    found, found_scores = jax.jit(write)(params)
    assert any(taken)
    monkeypatch.setattr(windows, "find_slots", lambda *arguments: None)
    wanted, wanted_scores = jax.jit(lambda params: write(params))(params)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    close = partial(np.testing.assert_allclose, atol=1e-4)
    jax.tree.map(close, found_scores, wanted_scores)


def score_packed(model, params, cache, packed):
    """Hidden states of packed texts after a cache, without those of padding."""
    tokens, own, depth, texts = packed
    slot, width = cache.num_slots, tokens.shape[1]
    attention_mask = np.pad(own, ((0, 0), (0, 0), (slot, 0)))
    at = {"slot": slot, "depth": depth, "length": slot + width}
    cache = grow(cache, width)
    output, _ = write_branches(model, params, cache, tokens, attention_mask, **at)
    columns = sorted({column for _, text in texts[0] for column in text})
    return output.hidden[:, columns]
