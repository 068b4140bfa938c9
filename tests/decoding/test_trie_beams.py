"""Beams along a trie against a slow search in NumPy, full passes and lists, and everything.

Against transformers: tests/parity/test_live_trie.py.
"""

from functools import cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_decoder, make_rows, read_row

from rag_jax.data.batches import pad_rows
from rag_jax.decoding import (
    BeamConfig,
    Trie,
    append,
    fork,
    generate,
    read_prompts,
    search_trie,
    trie_search,
)
from rag_jax.decoding.prompts import last_hidden
from rag_jax.models import load
from rag_jax.runtime.clock import compile_seconds
from rag_jax.runtime.errors import RagJaxError

MODEL, PARAMS = make_decoder(num_layers=1, vocab_size=7)
BART = load(Path(__file__).parents[1] / "golden" / "bart")
END = 6
PROMPTS = [[1, 5, 2, 6], [4, 4], [6, 0, 2, 1, 5, 5, 4], [2]]
# Prefixes of others, duplicates, a passage alone under its first token, many under one.
CORPUS = [
    *([0, 1, 2], [0, 1, 2, 3], [0, 1], [0, 2, 2, 2], [0, 1, 2], [3, 3, 3], [0, 4, 1, 1]),
    *([0, 4, 1, 2], [5, 1], [5, 1, 0], [5, 0, 3, 0], [5, 0, 3, 4, 1], [4, 0], [4, 1], [4, 2]),
    *([4, 3, 1], [4, 3, 2], [1, 2, 3, 4], [1, 2, 3, 5]),
]


@cache
def next_logprobs(text):
    """The next token's log-probabilities, over the whole vocabulary, by a full pass."""
    logits = read_row(MODEL, PARAMS, text)[2][-1]
    return logits - np.logaddexp.reduce(logits)


def score(prompt, path):
    """The log-probability of a path after a prompt."""
    return sum(next_logprobs((*prompt, *path[:n]))[token] for n, token in enumerate(path))


def list_paths(trie):
    """What is decoded of every distinct sequence, the end token included where it takes it."""
    paths = []
    for node in np.flatnonzero(trie.leaves >= 0).tolist():
        at_end = int(node > 0 and trie.tokens[node] == END)
        paths.append((*trie.path(node), *[END] * at_end))
    return paths


def slow_search(trie, prompt, search, *, greedy=False, start=0, stops=(), max_tokens=99):
    """One row's finished beams: `(node, path, log-probability, score)`, best first."""
    children = lambda node: range(trie.first_child[node], trie.first_child[node + 1])  # noqa: E731
    if not children(start):
        return [(start, (), 0.0, 0.0)]
    live, finished = [(start, (), 0.0)], []
    for i in range(max_tokens):
        candidates = []
        for node, path, logprob in live:
            more = next_logprobs((*prompt, *path))
            steps = [
                (child, (*path, int(trie.tokens[child])), logprob + more[trie.tokens[child]])
                for child in children(node)
            ]
            steps.sort(key=lambda step: -step[2])
            candidates += steps[:1] if greedy and i else steps
        candidates.sort(key=lambda step: -step[2])
        ends = lambda step: not children(step[0]) or step[0] in stops  # noqa: E731
        length = (i + 1) ** search.length_penalty
        best = candidates[: search.num_beams]
        finished += [(*step, step[2] / length) for step in best if ends(step)]
        finished = sorted(finished, key=lambda step: -step[3])[: search.num_beams]
        live = [step for step in (best if greedy else candidates) if not ends(step)]
        live = live[: search.num_beams]
        if not live:
            break
        if len(finished) == search.num_beams:
            if search.early_stopping == "never" and search.length_penalty > 0:
                length = max_tokens**search.length_penalty
            if search.early_stopping is True or live[0][2] / length <= finished[-1][3]:
                break
    return finished


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=3e-5)


def check(found, wanted, trie):
    """What `trie_search` gives for one prompt is what the slow search finds."""
    assert [f.tokens for f in found] == [trie.sequence(node) for node, *_ in wanted]
    assert [f.rows for f in found] == [trie.rows_at(node) for node, *_ in wanted]
    assert [f.length for f in found] == [len(path) for _, path, *_ in wanted]
    close([f.logprob for f in found], [logprob for *_, logprob, _ in wanted])
    close([f.score for f in found], [score for *_, score in wanted])


SEARCHES = [
    BeamConfig(1),
    BeamConfig(3),
    BeamConfig(4, length_penalty=0.0, early_stopping=True),
    BeamConfig(2, length_penalty=2.0, early_stopping="never"),
    BeamConfig(30),
]


@pytest.mark.parametrize("greedy", [False, True])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_slow_search_finds_the_same(search, greedy):
    trie = Trie.from_sequences(CORPUS, end_id=END)
    found = trie_search(MODEL, PARAMS, PROMPTS, trie, config=search, greedy=greedy)
    settings = {"greedy": greedy, "max_tokens": 16}
    for prompt, paths in zip(PROMPTS, found, strict=True):
        check(paths, slow_search(trie, prompt, search, **settings), trie)
    count = 5 if greedy else len(list_paths(trie))  # first tokens, sequences
    assert all(len(paths) == min(search.num_beams, count) for paths in found)


TOKENS = st.integers(0, 5)


@settings(max_examples=25)
@given(
    st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=1, max_size=14),
    st.lists(st.integers(0, 6), min_size=1, max_size=9),
    st.sampled_from([1, 2, 5]),
    st.booleans(),
)
def test_only_sequences_of_the_corpus_are_found(sequences, prompt, beams, greedy):
    trie = Trie.from_sequences(sequences, end_id=END)
    (found,) = trie_search(MODEL, PARAMS, [prompt], trie, config=BeamConfig(beams), greedy=greedy)
    distinct = {tuple(text) for text in sequences}
    every = len({text[0] for text in distinct} if greedy and len(distinct) > 1 else distinct)
    assert len(found) == min(beams, every)
    assert len({tuple(f.tokens) for f in found}) == len(found)
    for f in found:
        assert f.rows == [row for row, text in enumerate(sequences) if text == f.tokens]
        close(f.logprob, score(prompt, (*f.tokens, END)[: f.length]))
        close(f.score, f.logprob / max(f.length, 1))
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)


@settings(max_examples=10)
@given(st.lists(st.lists(TOKENS, min_size=1, max_size=6), min_size=2, max_size=14))
def test_beams_as_wide_as_the_corpus_find_all_of_it(sequences):
    trie = Trie.from_sequences(sequences, end_id=END)
    found = trie_search(MODEL, PARAMS, PROMPTS[:2], trie, config=BeamConfig(14))
    for prompt, paths in zip(PROMPTS, found, strict=False):
        every = [score(prompt, path) / max(len(path), 1) for path in list_paths(trie)]
        close([f.score for f in paths], sorted(every, reverse=True))
        assert {tuple(f.tokens) for f in paths} == {tuple(text) for text in sequences}
        for f in paths:
            close(f.logprob, score(prompt, (*f.tokens, END)[: f.length]))


def test_a_thousand_children_and_fifteen_hundred_shared_tokens():
    """The widest gather, for the root alone, and a path with no choice but at its end."""
    model, params = make_decoder(num_layers=1, vocab_size=600)
    rows = [[token, 1, 2] for token in range(599)]
    trie = Trie.from_sequences([*rows, [3, 1, 4], [3, 2]], end_id=599)
    assert trie.place().widths == (8, 64, 512, 1024)
    logits = read_row(model, params, [5, 6])[2][-1]
    best = np.argsort(-np.where(np.arange(600) == 3, -np.inf, logits)[:599])[:2]
    (found,) = trie_search(model, params, [[5, 6]], trie, config=BeamConfig(3, 0.0))
    assert [f.tokens for f in found if f.tokens[0] != 3][:2] == [[t, 1, 2] for t in best.tolist()]

    shared = make_rows([1500], seed=3)[0]
    shared = [token % 7 for token in shared]
    trie = Trie.from_sequences([[*shared, 9], [*shared, 8], shared], end_id=10)
    model, params = make_decoder(num_layers=1, vocab_size=11)
    (found,) = trie_search(model, params, [[1, 2]], trie, config=BeamConfig(3))
    logits = np.asarray(
        jax.jit(lambda p, t: model.apply({"params": p}, t))(params, jnp.asarray([[1, 2, *shared]]))
    )[0, 1:]
    logprobs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    before = logprobs[np.arange(1500), shared].sum(dtype=np.float64)
    wanted = {9: [0], 8: [1], 10: [2]}
    order = sorted(wanted, key=lambda token: -logprobs[-1, token])
    assert [f.rows for f in found] == [wanted[token] for token in order]
    np.testing.assert_allclose([f.logprob for f in found], before + logprobs[-1, order], rtol=1e-5)
    assert [f.length for f in found] == [1501] * 3


def test_a_single_sequence_needs_no_decoding():
    trie = Trie.from_sequences([[1, 2, 3]] * 2, end_id=END)
    for greedy in (False, True):
        found = trie_search(MODEL, PARAMS, PROMPTS, trie, config=BeamConfig(3), greedy=greedy)
        assert found == [[([0, 1], [1, 2, 3], 0.0, 0.0, 0)]] * len(PROMPTS)


# Titles, and under each its passages: "0 1 : ..." and so on.
COLON = 5
TITLED = {
    (0, 1): [[2, 2], [2, 3, 1], [3], [1, 4]],
    (0,): [[4, 4], [1, 0, 0], [1, 0, 1]],
    (0, 1, 1): [[1, 2]],  # a passage alone: the path ends within its title
    (2, 2): [[3, 3, 3], [3, 3, 4]],
    (4,): [[0, 1, 2]],
}
JOINT = [[*title, COLON, *text] for title, texts in TITLED.items() for text in texts]


@partial(jax.jit, static_argnames=("titles", "passages", "greedy"))
def find_passages(params, tokens, mask, trie, stops, *, titles, passages, greedy):
    """Titles under each prompt, then passages under each title; the colon is decoded."""
    cache, hidden = read_prompts(MODEL, params, tokens, mask)
    active = mask.any(axis=1)
    root = jnp.zeros(len(tokens), jnp.int32)
    outer = search_trie(
        MODEL, params, cache, hidden, trie, root,
        max_tokens=8, config=BeamConfig(titles), stops=stops, active=active,
    )  # fmt: skip
    rows = len(tokens) * titles
    path, lengths = outer.tokens.reshape(rows, -1), outer.lengths.reshape(rows)
    mask = jnp.arange(path.shape[1])[None] < lengths[:, None]
    output, cache = append(MODEL, params, fork(MODEL, cache, titles), path, mask)
    inner = search_trie(
        MODEL, params, cache, last_hidden(output.hidden, mask), trie, outer.nodes.reshape(rows),
        max_tokens=8, config=BeamConfig(passages), greedy=greedy, active=outer.exists.reshape(rows),
    )  # fmt: skip
    return outer, inner


@pytest.mark.parametrize("greedy", [False, True])
def test_titles_and_the_passages_under_them(greedy):
    trie = Trie.from_sequences(JOINT, end_id=END)
    ends = trie.find([[*title, COLON] for title in TITLED])
    arrays, stops, compiled = trie.place(), trie.mark(ends), None
    for prompts in (PROMPTS, PROMPTS[::-1], PROMPTS[1:]):
        arguments = (PARAMS, *pad_rows(prompts, 8, pad_id=0, batch=4), arrays, stops)
        found = find_passages(*arguments, titles=3, passages=2, greedy=greedy)
        compiled = compiled or compile_seconds()
        assert compile_seconds() == compiled
        outer, inner = jax.device_get(found)
        assert outer.exists[: len(prompts)].all() and not outer.exists[len(prompts) :].any()
        for b, prompt in enumerate(prompts):
            titles = slow_search(
                trie, prompt, BeamConfig(3), stops=set(ends.tolist()), max_tokens=8
            )
            assert outer.nodes[b].tolist() == [node for node, *_ in titles]
            close(outer.logprobs[b], [logprob for *_, logprob, _ in titles])
            close(outer.scores[b], [score for *_, score in titles])
            for w, (node, path, *_) in enumerate(titles):
                wanted = slow_search(
                    trie, [*prompt, *path], BeamConfig(2), greedy=greedy, start=node, max_tokens=8
                )
                r = b * 3 + w
                count = len(wanted)
                assert inner.exists[r].tolist() == [n < count for n in range(2)]
                assert inner.nodes[r].tolist() == [n for n, *_ in wanted] + [-1] * (2 - count)
                for n, (_, path, logprob, score) in enumerate(wanted):
                    assert inner.tokens[r, n, : len(path)].tolist() == list(path)
                    assert inner.lengths[r, n] == len(path)
                    assert not inner.tokens[r, n, len(path) :].any()
                    close(inner.logprobs[r, n], logprob)
                    close(inner.scores[r, n], score)
    assert not inner.exists[9:].any() and (inner.nodes[9:] == -1).all()


def test_what_is_too_long_is_not_found():
    trie = Trie.from_sequences([[0, 1, 2, 3], [0, 1, 2, 4], [0, 2]], end_id=END)
    tokens, mask = pad_rows(PROMPTS, 8, pad_id=0)

    @jax.jit
    def search(params, tokens, mask, trie):
        state = read_prompts(MODEL, params, tokens, mask)
        starts = jnp.zeros(4, jnp.int32)
        return search_trie(MODEL, params, *state, trie, starts, max_tokens=3, config=BeamConfig(2))

    found = search(PARAMS, tokens, mask, trie.place())
    assert found.exists.tolist() == [[True, False]] * 4
    assert found.nodes.tolist() == [[trie.find([[0, 2]])[0], -1]] * 4
    assert found.lengths.tolist() == [[2, 0]] * 4


def test_a_second_batch_compiles_nothing_and_no_row_depends_on_its_batch():
    prompts = make_rows([3, 24, 11, 20, 7], seed=4)
    for model, params in ((MODEL, PARAMS), (BART.model, BART.params)):
        rows = [[token % model.config.vocab_size for token in row] for row in prompts]
        trie = Trie.from_sequences(CORPUS, end_id=END)
        search = partial(trie_search, model, params, trie=trie, config=BeamConfig(3))
        search(rows[::-1], batch_size=4)
        compiled = compile_seconds()
        found = search(rows, batch_size=4)
        assert compile_seconds() == compiled
        for row, paths in zip(rows, found, strict=True):
            (alone,) = search([row])
            assert [f.rows for f in alone] == [f.rows for f in paths]
            close([f.score for f in alone], [f.score for f in paths])


def test_an_encoder_decoder_writes_what_it_would_write_freely():
    """A corpus with the text it writes unbidden, and others that begin like it."""
    prompt = [token % BART.config.vocab_size for token in make_rows([9], seed=1)[0]]
    (text,) = generate(BART.model, BART.params, [prompt], max_tokens=6, stop_ids=())
    others = [[*text[:n], (text[n] + 1) % BART.config.vocab_size] for n in range(6)]
    used = {token for path in (text, *others) for token in path}
    end = next(token for token in range(BART.config.vocab_size) if token not in used)
    trie = Trie.from_sequences([*others, text], end_id=end)
    (found,) = trie_search(BART.model, BART.params, [prompt], trie, config=BeamConfig(1))
    assert [f.rows for f in found] == [[6]]


def test_what_is_refused():
    trie = Trie.from_sequences(CORPUS, end_id=END)
    search = partial(trie_search, MODEL, PARAMS, [[1]])
    for changes, message in [
        ({"config": BeamConfig(0)}, "num_beams=0: must be at least 1"),
        (
            {"config": BeamConfig(2, min_tokens=1)},
            "min_tokens=1: a path ends at its leaf; leave it 0",
        ),
        ({"batch_size": 0}, "batch_size=0: must be a multiple of the mesh's 1 rows"),
    ]:
        with pytest.raises(RagJaxError, match=f"^{message}$"):
            search(trie, **changes)
    other = Trie.from_sequences([[1, 7], [2]], end_id=END)
    with pytest.raises(RagJaxError, match="^trie: it has tokens beyond the model's 7; build it"):
        search(other)
    with pytest.raises(RagJaxError, match="^prompts: prompt 0 is empty"):
        trie_search(MODEL, PARAMS, [[]], trie)
    assert trie_search(MODEL, PARAMS, [], trie) == []
