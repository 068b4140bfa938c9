"""Slices of a cache for sliding layers, against attention to all slots in NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import softmax

from rag_jax.models.nn.layers import attend
from rag_jax.models.nn.window_slots import find_slots, list_sizes
from rag_jax.models.nn.windows import limit_mask

HEADS, GROUPS, DEPTH = 2, 2, 3


def attend_in_numpy(query, keys, values, mask):
    """One query `[d]` of a head, to keys `[S, d]` and values `[S, d]`."""
    return softmax(np.where(mask, keys @ query / np.sqrt(DEPTH), -np.inf)) @ values


def keep_last(mask, window):
    """The last tokens of what one token attends to, prefix first."""
    kept = np.zeros_like(mask)
    kept[np.flatnonzero(mask)[-window:]] = True
    return kept


@partial(jax.jit, static_argnames="window")
def attend_to_slices(arrays, mask, prefix_mask, slot, window):
    query, keys, values, prefix_keys, prefix_values = arrays
    prefix = None if prefix_mask is None else (prefix_keys, prefix_values)
    found = find_slots(*limit_mask(mask, window, prefix_mask), window, slot)
    query = query.reshape(len(query), HEADS, -1, DEPTH)  # [B, K, G, T, d] -> [B, K, G * T, d]
    return attend(query, keys, values, found, prefix=prefix), found.choice


# Rows, width, window, slots of the row and of two prefixes.
@pytest.mark.parametrize("shape", [(3, 1, 4, 24, 0), (4, 3, 5, 32, 40), (2, 2, 7, 9, 56)])
def test_any_mask(shape):
    """Padding anywhere, up to three texts in the row's slots, rows that have ended."""
    choices = set()

    @settings(max_examples=50)
    @given(
        st.integers(0, 999),
        st.sampled_from([0.0, 0.1, 0.3, 0.9, 1.0]),
        st.integers(1, 3),
    )
    def check(seed, density, texts):
        choices.add(check_slices(shape, np.random.default_rng(seed), density, texts))

    check()
    _, width, window, slots, length = shape
    assert choices == set(range(len(list_sizes(window, width, slots, length))))


def check_slices(shape, rng, density, texts):
    """Compares what a chunk attends to with NumPy; gives back the choice of the slice."""
    rows, width, window, slots, length = shape
    slot = int(rng.integers(slots - width + 1))
    of_slots = rng.integers(0, texts, (rows, 1, slots))
    of_queries = rng.integers(0, texts, (rows, width, 1))
    mask = (rng.random((rows, 1, slots)) < density) & ((of_slots == 0) | (of_slots == of_queries))
    distance = np.arange(slots) - slot - np.arange(width)[:, None]  # [T, S]
    is_token = rng.random((rows, width)) < 0.8
    mask = (mask & (distance < 0)) | ((distance == 0) & is_token[..., None])
    prefix_mask = rng.random((2, length)) < density if length else None

    def draw(*sizes):
        return rng.normal(size=sizes).astype(np.float32)

    query = draw(rows, HEADS, GROUPS, width, DEPTH)
    keys, values = draw(rows, HEADS, DEPTH, slots), draw(rows, HEADS, slots, DEPTH)
    prefix = draw(2, HEADS, DEPTH, length), draw(2, HEADS, length, DEPTH)
    found, choice = attend_to_slices(
        (query, keys, values, *prefix), mask, prefix_mask, slot, window
    )
    found = np.asarray(found).reshape(query.shape)
    assert np.isfinite(found).all()
    shared = np.arange(rows) * 2 // rows  # the prefix of each row
    for b, t in np.argwhere(is_token):
        before = prefix_mask[shared[b]] if length else np.zeros(0, bool)
        seen = keep_last(np.concatenate([before, mask[b, t]]), window)
        for k, g in np.ndindex(HEADS, GROUPS):
            all_keys = np.concatenate([prefix[0][shared[b], k], keys[b, k]], axis=1).T
            all_values = np.concatenate([prefix[1][shared[b], k], values[b, k]])
            wanted = attend_in_numpy(query[b, k, g, t], all_keys, all_values, seen)
            np.testing.assert_allclose(found[b, k, g, t], wanted, atol=1e-5)
    return int(choice)


def choose(token_mask, slot, window=8, prefix_mask=None):
    """The size of the slice for one token a row."""
    token_mask = np.asarray(token_mask, bool)
    mask = token_mask[:, None] & (np.arange(token_mask.shape[1]) <= slot)
    found = find_slots(*limit_mask(jnp.asarray(mask), window, prefix_mask), window, slot)
    return found.sizes[int(found.choice)]


def test_the_shortest_slice_that_holds_every_window():
    rows = np.ones((2, 64), bool)
    assert list_sizes(8, 1, 64, 0) == (9, 18, 36, 64)
    assert choose(rows, 40) == 9
    rows[1, 20:30] = False  # padding after a shorter prompt, and then a window's tokens
    assert [choose(rows, slot) for slot in (30, 36, 37)] == [18, 18, 9]
    rows[1, 10:36] = False
    assert choose(rows, 36) == 36
    rows[1, 1:36] = False
    assert choose(rows, 36) == 64
    rows[1, 36:] = False  # a row that has ended holds no other back
    assert choose(rows, 36) == 9


def test_a_prefix_is_sliced_as_long_as_it_is_reached():
    prefix_mask = np.ones((1, 64), bool)
    rows = np.ones((2, 16), bool)
    assert choose(rows, 3, prefix_mask=prefix_mask) == 9
    prefix_mask[0, 50:-2] = False
    assert choose(rows, 3, prefix_mask=prefix_mask) == 18
    assert choose(rows, 5, prefix_mask=prefix_mask) == 9


def test_slices_that_save_nothing():
    assert list_sizes(8, 1, 12, 0) == (9, 12)
    assert list_sizes(8, 1, 11, 0) == (11,)
    assert list_sizes(8, 6, 16, 0) == (16,)
    mask = jnp.ones((1, 1, 11), bool)
    assert find_slots(mask, None, 8, 10) is None
