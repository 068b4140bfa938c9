"""Reading in chunks through the cache against one full pass in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tiny import make_decoder, make_rows, read_row

from rag_jax.decoding.cache import append, grow, init_cache, write
from rag_jax.decoding.score import score_continuation
from rag_jax.losses import token_logprobs

MODEL, PARAMS = make_decoder()
APPEND = jax.jit(partial(append, MODEL), static_argnames="return_layer")
WRITE = jax.jit(partial(write, MODEL))
SLOTS = 8


def close(ours, theirs, atol=2e-5):
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-5)


def fill_cache(cache, chunks, filler=0):
    """Appends chunks, each a list of token rows and a list of masks; gives all hidden states."""
    hidden = []
    for tokens, mask in chunks:
        mask = np.asarray(mask, bool)
        tokens = np.where(mask, np.asarray(tokens, np.int32), filler)
        output, cache = APPEND(PARAMS, cache, tokens, mask)
        hidden.append(output.hidden)
    return np.concatenate(hidden, axis=1), cache


def check_rows(hidden, tokens, mask, before=()):
    """Compares the real positions of every row with a full pass over its real tokens alone."""
    for b in range(len(tokens)):
        ahead = list(before[b]) if len(before) else []
        real = np.asarray(mask[b], bool)
        row = ahead + np.asarray(tokens[b])[real].tolist()
        if row:
            close(np.asarray(hidden[b])[real], read_row(MODEL, PARAMS, row)[1][len(ahead) :])


def split(tokens, mask, widths):
    ends = np.cumsum(widths)
    return [
        (np.asarray(tokens)[:, e - w : e], np.asarray(mask)[:, e - w : e])
        for w, e in zip(widths, ends, strict=True)
    ]


@pytest.mark.parametrize("widths", [(6,), (4, 2)])
def test_chunks_are_the_full_pass(widths):
    tokens = make_rows([6] * 4)
    mask = np.ones((4, 6), bool)
    hidden, cache = fill_cache(init_cache(MODEL, 4), split(tokens, mask, widths))
    check_rows(hidden, tokens, mask)
    assert cache.position.tolist() == [6] * 4
    assert cache.token_mask.all() and cache.token_mask.shape == (4, 6)
    assert [(k.shape, v.shape) for k, v in cache.layers] == [((4, 2, 4, 6), (4, 2, 6, 4))] * 2


def test_rows_of_different_lengths_go_on_after_their_padding():
    # Padded right, left, in the middle, and a row that comes in at the second chunk.
    mask = [[1, 1, 0, 0, 1, 0], [0, 0, 1, 1, 0, 1], [1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 1]]
    mask = np.asarray(mask, bool)
    tokens = np.asarray(make_rows([6] * 4))
    for filler in (0, 17):
        hidden, cache = fill_cache(init_cache(MODEL, 4), split(tokens, mask, (4, 2)), filler)
        check_rows(hidden, tokens, mask)
        assert np.isfinite(hidden).all()
        assert cache.position.tolist() == mask.sum(1).tolist() == [3, 3, 2, 2]
        np.testing.assert_array_equal(cache.token_mask, mask)


def test_rows_do_not_see_each_other():
    tokens = np.asarray(make_rows([6] * 4))
    other = tokens.copy()
    other[1] = make_rows([6], seed=1)[0]
    mask = np.ones((4, 6), bool)
    ours, _ = fill_cache(init_cache(MODEL, 4), split(tokens, mask, (4, 2)))
    theirs, _ = fill_cache(init_cache(MODEL, 4), split(other, mask, (4, 2)))
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert np.abs(ours[1] - theirs[1]).max() > 1e-2


@settings(max_examples=25)
@given(
    st.lists(st.sampled_from([1, 2, 4]), max_size=8).map(
        lambda widths: [w for i, w in enumerate(widths) if sum(widths[: i + 1]) <= SLOTS]
    ),
    st.integers(0, 2**16 - 1),
    st.integers(0, 99),
)
@example([1] * SLOTS, 2**16 - 1, 0)
def test_any_split_and_any_padding(widths, bits, seed):
    mask = (bits >> np.arange(2 * SLOTS) & 1).astype(bool).reshape(2, SLOTS)
    tokens = np.asarray(make_rows([SLOTS] * 2, seed=seed), np.int32)
    cache, slot, hidden = grow(init_cache(MODEL, 2), SLOTS), 0, [np.zeros((2, 0, 16))]
    for width in widths:
        part = np.s_[:, slot : slot + width]
        output, cache = WRITE(PARAMS, cache, tokens[part], mask[part], slot=slot)
        hidden.append(output.hidden)
        slot += width
    check_rows(np.concatenate(hidden, axis=1), tokens[:, :slot], mask[:, :slot])
    assert cache.position.tolist() == mask[:, :slot].sum(1).tolist()
    np.testing.assert_array_equal(cache.token_mask[:, :slot], mask[:, :slot])
    assert not cache.token_mask[:, slot:].any()


@pytest.mark.parametrize(("prefixes", "widths"), [(1, (4,)), (2, (3, 1))])
def test_a_shared_prefix_is_read_before_every_row(prefixes, widths):
    before = np.asarray(make_rows([5] * prefixes, seed=1))
    before_mask = np.ones((prefixes, 5), bool)
    before_mask[0, 3:] = False  # one prefix is shorter, one has padding in its middle
    before_mask[-1, 1] = False
    _, prefix = fill_cache(init_cache(MODEL, prefixes), [(before, before_mask)])

    mask = np.asarray([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1], [0, 1, 1, 0]], bool)
    tokens = np.asarray(make_rows([4] * 4))
    cache = init_cache(MODEL, 4, prefix=prefix)
    hidden, cache = fill_cache(cache, split(tokens, mask, widths))
    own = [before[b][before_mask[b]].tolist() for b in range(prefixes)]
    own = [row for row in own for _ in range(4 // prefixes)]
    check_rows(hidden, tokens, mask, own)
    lengths = [len(row) for row in own] + mask.sum(1)
    assert cache.position.tolist() == lengths.tolist()
    assert cache.token_mask.shape == (4, 4)


def test_empty_slots_and_rows_picked_again_change_nothing():
    tokens = np.asarray(make_rows([6] * 4))
    mask = np.ones((4, 6), bool)
    _, cache = fill_cache(init_cache(MODEL, 4), split(tokens, mask, (4, 2))[:1])
    picked = [2, 0, 2, 3]
    grown = jax.tree.map(lambda leaf: leaf[jnp.asarray(picked)], grow(cache, 3))
    output, after = APPEND(PARAMS, grown, tokens[picked][:, 4:], mask[:, 4:])
    for place, b in enumerate(picked):
        close(output.hidden[place], read_row(MODEL, PARAMS, tokens[b])[1][4:])
    assert after.token_mask[0].tolist() == [True] * 4 + [False] * 3 + [True] * 2


def test_tap_through_the_cache():
    tokens = np.asarray(make_rows([6] * 4))
    first, second = split(tokens, np.ones((4, 6), bool), (4, 2))
    output, cache = APPEND(PARAMS, init_cache(MODEL, 4), *first)
    assert output.layer_output is None
    output, _ = APPEND(PARAMS, cache, *second, return_layer=1)
    close(output.layer_output, [read_row(MODEL, PARAMS, row)[0][1][4:] for row in tokens])


def test_bfloat16_cache():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    tokens = np.asarray(make_rows([6]))
    cache = init_cache(MODEL, 1, dtype=jnp.bfloat16)
    output, cache = APPEND(params, cache, tokens, np.ones((1, 6), bool))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(cache.layers)} == {"bfloat16"}
    expected = read_row(MODEL, params, tokens[0])[1]
    assert output.hidden.dtype == jnp.bfloat16
    assert np.abs(np.asarray(output.hidden[0], np.float32) - expected).mean() < 0.05


def test_a_text_is_scored_after_an_empty_cache():
    tokens = jnp.asarray(make_rows([5, 5]), jnp.int32)
    mask = jnp.asarray([[True] * 5, [True] * 4 + [False]])
    logits = MODEL.apply({"params": PARAMS}, tokens, mask=mask)
    logprobs = token_logprobs(logits[:, :-1], tokens[:, 1:]) * mask[:, 1:]
    score = partial(score_continuation, MODEL, PARAMS, init_cache(MODEL, 2), tokens, mask)
    close(score(), logprobs.sum(axis=1))
    close(score(given=3), logprobs[:, 2:].sum(axis=1))
    for wrong in (0, -1, 5, 6):
        with pytest.raises(ValueError, match=f"given is {wrong}: it must be from 1 to 4"):
            score(given=wrong)
