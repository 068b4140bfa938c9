"""Beam search against a slow one in NumPy, full passes and lists, and against every text there is.

Against transformers: tests/parity/test_live_rag.py, and the golden file it made.
"""

from functools import partial
from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import make_decoder, make_rows, read_row

from rag_jax.decoding import BeamConfig, beam_search, generate, read_prompts, search_beams
from rag_jax.models import load
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.errors import RagJaxError

MODEL, PARAMS = make_decoder(num_layers=1, vocab_size=7)
BART = load(Path(__file__).parents[1] / "golden" / "bart")
SEARCH = partial(beam_search, MODEL, PARAMS, stop_ids=(3,))
PROMPTS = [[1, 5, 2, 6], [4, 4], [6, 0, 2, 1, 5, 5, 4], [2]]


def next_logprobs(prompts, weights, text):
    """The next token's log-probabilities after a text, mixed over prompts, by full passes."""
    rows = [read_row(MODEL, PARAMS, [*prompt, *text])[2][-1] for prompt in prompts]
    logprobs = np.asarray([row - np.logaddexp.reduce(row) for row in rows])
    return np.logaddexp.reduce(logprobs + np.log(weights)[:, None], axis=0)


def slow_search(prompts, weights, *, max_tokens, stop, config):
    """One row's beams, as transformers defines them: `(tokens, score)`, best first."""
    live, finished = [([], 0.0)], []
    for i in range(max_tokens):
        candidates = []
        for text, logprob in live:
            for token, more in enumerate(next_logprobs(prompts, weights, text)):
                if token != stop or i >= config.min_tokens:
                    candidates.append(([*text, token], logprob + more))
        candidates.sort(key=lambda candidate: -candidate[1])
        length = (i + 1) ** config.length_penalty
        for text, logprob in candidates[: config.num_beams]:
            if text[-1] == stop or i == max_tokens - 1:
                finished.append((text[:-1] if text[-1] == stop else text, logprob / length))
        finished = sorted(finished, key=lambda text: -text[1])[: config.num_beams]
        live = [c for c in candidates if c[0][-1] != stop][: config.num_beams]
        if len(finished) == config.num_beams:
            if config.early_stopping == "never" and config.length_penalty > 0:
                length = max_tokens**config.length_penalty
            if config.early_stopping is True or live[0][1] / length <= finished[-1][1]:
                break
    return finished


def check(found, wanted):
    assert [text for text, _ in found] == [text for text, _ in wanted]
    np.testing.assert_allclose([s for _, s in found], [s for _, s in wanted], atol=2e-5)


@pytest.mark.parametrize(
    "config",
    [
        BeamConfig(1),
        BeamConfig(3),
        BeamConfig(4, length_penalty=0.0, early_stopping=True),
        BeamConfig(2, length_penalty=2.0, early_stopping="never"),
        BeamConfig(3, length_penalty=-1.0, min_tokens=2),
    ],
)
def test_a_slow_search_finds_the_same(config):
    found = SEARCH(PROMPTS, max_tokens=5, config=config)
    for prompt, texts in zip(PROMPTS, found, strict=True):
        check(texts, slow_search([prompt], [1.0], max_tokens=5, stop=3, config=config))


def test_one_beam_that_stops_early_is_greedy():
    config = BeamConfig(1, early_stopping=True)
    found = SEARCH(PROMPTS, max_tokens=6, config=config)
    greedy = generate(MODEL, PARAMS, PROMPTS, max_tokens=6, stop_ids=(3,))
    assert [texts[0][0] for texts in found] == greedy


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_as_wide_as_everything_find_the_likeliest_text(length_penalty):
    """All texts up to three tokens: 6 * 6 * 6 that were cut off, and 1 + 6 + 36 that ended."""
    config = BeamConfig(7**3, length_penalty, "never")
    for prompt, texts in zip(
        PROMPTS[:2], SEARCH(PROMPTS[:2], max_tokens=3, config=config), strict=True
    ):
        known = {(): next_logprobs([prompt], [1.0], [])}
        every = []
        for text in (t for n in range(3) for t in product([0, 1, 2, 4, 5, 6], repeat=n)):
            known[text] = next_logprobs([prompt], [1.0], text)
            before = sum(known[text[:n]][text[n]] for n in range(len(text)))
            ends = [3] if len(text) < 2 else range(7)
            for token in ends:
                score = (before + known[text][token]) / (len(text) + 1) ** length_penalty
                every.append((list(text) + [token] * (token != 3), score))
        assert len(every) == 216 + 43
        # No beam is made up to fill the places that are left.
        check(texts, sorted(every, key=lambda text: -text[1]))


def mixed(*arrays, **settings):
    return jax.device_get(_mixed(PARAMS, *arrays, **settings))


@partial(jax.jit, static_argnames=("max_tokens", "config"))
def _mixed(params, tokens, mask, doc_scores, active, *, max_tokens, config):
    cache, hidden = read_prompts(MODEL, params, tokens, mask)
    return search_beams(
        MODEL,
        params,
        cache,
        hidden,
        max_tokens=max_tokens,
        stop_ids=(3,),
        config=config,
        doc_scores=doc_scores,
        active=active,
    )


def pad(rows, width):
    tokens = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.arange(width) < np.asarray([len(row) for row in rows])[:, None]


@pytest.mark.parametrize("config", [BeamConfig(1, early_stopping=True), BeamConfig(3)])
def test_documents_are_mixed_token_by_token(config):
    docs = [[PROMPTS[0], PROMPTS[1], PROMPTS[2]], [PROMPTS[3], PROMPTS[2], PROMPTS[1]]]
    tokens, mask = pad([row for rows in docs for row in rows], 8)
    scores = np.asarray([[0.3, -0.2, 1.0], [2.0, 0.1, -1e9]], np.float32)  # the last has no part
    active = np.ones(2, bool)
    compiled = compile_seconds()
    found = mixed(tokens, mask, scores, active, max_tokens=4, config=config)
    assert compile_seconds() > compiled
    compiled = compile_seconds()
    for b in range(2):
        weights = np.exp(scores[b] - np.logaddexp.reduce(scores[b]))[: 3 - b]
        wanted = slow_search(docs[b][: 3 - b], weights, max_tokens=4, stop=3, config=config)
        texts = [found.tokens[b, w, :n].tolist() for w, n in enumerate(found.lengths[b])]
        check(list(zip(texts, found.scores[b].tolist(), strict=True)), wanted)
        length = found.lengths[b] + (found.ends[b] == 3)
        np.testing.assert_allclose(found.logprobs[b], found.scores[b] * length, rtol=1e-5)
    # A text does not depend on the others', nor does a row that takes no part find any.
    alone = mixed(tokens[::-1], mask[::-1], scores[::-1, ::-1], active, max_tokens=4,
                  config=config)  # fmt: skip
    for ours, theirs in zip(alone, found, strict=True):
        np.testing.assert_allclose(ours[::-1], theirs, atol=2e-5)
    other = np.where(np.arange(6)[:, None] < 3, tokens, 5)
    active = np.asarray([True, False])
    half = mixed(other, mask, scores, active, max_tokens=4, config=config)
    np.testing.assert_array_equal(half.tokens[0], found.tokens[0])
    assert half.exists.tolist() == [found.exists[0].tolist(), [False] * config.num_beams]
    assert not half.tokens[1].any() and (half.ends[1] == -1).all()
    assert compile_seconds() == compiled


def test_same_document_twice_is_one():
    tokens, mask = pad([PROMPTS[0]] * 2, 8)
    config, active = BeamConfig(3), np.ones(1, bool)
    found = mixed(tokens, mask, np.asarray([[0.3, -0.7]], np.float32), active,
                  max_tokens=4, config=config)  # fmt: skip
    (wanted,) = SEARCH(PROMPTS[:1], max_tokens=4, config=config)
    texts = [found.tokens[0, w, :n].tolist() for w, n in enumerate(found.lengths[0])]
    check(list(zip(texts, found.scores[0].tolist(), strict=True)), wanted)


def test_a_second_batch_compiles_nothing_and_no_row_depends_on_its_batch():
    prompts = make_rows([3, 24, 11, 20, 7], seed=4)
    prompts = [[token % BART.config.vocab_size for token in row] for row in prompts]
    for model, params in ((MODEL, PARAMS), (BART.model, BART.params)):
        rows = [[token % model.config.vocab_size for token in row] for row in prompts]
        settings = {"max_tokens": 4, "stop_ids": (2,), "config": BeamConfig(3)}
        beam_search(model, params, rows[::-1], batch_size=4, **settings)
        compiled = compile_seconds()
        found = beam_search(model, params, rows, batch_size=4, **settings)
        assert compile_seconds() == compiled
        for row, texts in zip(rows, found, strict=True):
            check(beam_search(model, params, [row], **settings)[0], texts)


def test_what_is_refused():
    with pytest.raises(RagJaxError, match="^num_beams=0: must be at least 1$"):
        SEARCH([[1]], max_tokens=2, config=BeamConfig(0))
    with pytest.raises(RagJaxError, match="^max_tokens=0: must be at least 1$"):
        SEARCH([[1]], max_tokens=0)
    assert SEARCH([], max_tokens=2) == []
