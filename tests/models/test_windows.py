"""Sliding windows, and layers without rotary positions, against NumPy's decoder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_decoder, make_rows, read_row

from rag_jax.decoding.cache import append, fork, init_cache
from rag_jax.models.int8 import quantize_layers
from rag_jax.models.nn.rope import LongScaling
from rag_jax.models.nn.windows import WindowBlocks, limit_to_window
from rag_jax.runtime.errors import RagJaxError

# Layers that slide and rotate, that do neither, and that slide without rotation.
KINDS = {"num_layers": 3, "sliding_layers": (0, 2), "unrotated_layers": (1, 2)}
WINDOW = 5  # a block of two tokens reaches seven
MODEL, PARAMS = make_decoder(window=WINDOW, **KINDS)
WIDTH = 13
HIDDEN = jax.jit(partial(MODEL.apply, method="hidden"))
close = partial(np.testing.assert_allclose, atol=3e-5, rtol=1e-5)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 3), min_size=WIDTH, max_size=WIDTH), st.integers(0, 9))
def test_texts_and_padding_in_any_order(of_text, seed):
    """Tokens of up to three texts in one row, between each other and with padding (0) between."""
    segments = np.asarray(of_text)
    tokens = np.asarray(make_rows([WIDTH], seed=seed)[0])
    positions = np.zeros(WIDTH, int)
    for text in range(4):
        positions[segments == text] = np.arange((segments == text).sum())
    given = {"mask": segments > 0, "segments": segments, "positions": positions}
    hidden = HIDDEN(
        {"params": PARAMS}, tokens[None], **{name: x[None] for name, x in given.items()}
    ).hidden[0]
    assert np.isfinite(hidden).all()
    for text in set(of_text) - {0}:
        close(hidden[segments == text], read_row(MODEL, PARAMS, tokens[segments == text])[1])


def test_a_long_text_beside_a_short_one():
    """Each is rotated by its own length, as alone."""
    factors = {"short_factors": (1.0, 1.0), "long_factors": (3.0, 5.0)}
    scaling = LongScaling(**factors, original_length=8, attention_factor=1.2)
    model, params = make_decoder(rope_scaling=scaling)
    rows = make_rows([4, 12, 2])
    segments = np.repeat([1, 2, 3, 0], [4, 12, 2, 3])
    positions = np.concatenate([np.arange(n) for n in (4, 12, 2, 3)])
    tokens = np.concatenate([*rows, np.zeros(3, int)])
    given = {"mask": segments > 0, "segments": segments, "positions": positions}
    given = {name: x[None] for name, x in given.items()}
    hidden = model.apply({"params": params}, tokens[None], **given, method="hidden").hidden[0]
    for text, row in enumerate(rows, 1):
        alone = model.apply({"params": params}, np.asarray([row]), method="hidden").hidden[0]
        close(hidden[segments == text], alone)


def test_tokens_that_attend_to_later_ones():
    model, params = make_decoder(window=WINDOW, bidirectional=True, **KINDS)
    rows = make_rows([WIDTH, 7])
    tokens, mask = np.zeros((2, WIDTH), np.int32), np.zeros((2, WIDTH), bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row)], mask[i, : len(row)] = row, True
    hidden = model.apply({"params": params}, tokens, mask=mask, method="hidden").hidden
    for i, row in enumerate(rows):
        close(hidden[i, : len(row)], read_row(model, params, row)[1])
    with pytest.raises(RagJaxError, match="it only embeds texts"):
        append(model, params, init_cache(model, 1), tokens[:1], mask[:1])


def test_a_window_makes_a_difference():
    (row,) = make_rows([WIDTH])
    open_model, _ = make_decoder(window=None, **KINDS)
    ours = np.asarray(MODEL.apply({"params": PARAMS}, jnp.asarray([row])))[0]
    full = np.asarray(open_model.apply({"params": PARAMS}, jnp.asarray([row])))[0]
    close(ours[:WINDOW], full[:WINDOW])
    assert (np.abs(ours - full)[WINDOW:].max(axis=1) > 1e-2).all()


@pytest.mark.parametrize("window", [1, 2, 5, 9])
def test_long_and_short_chunks_after_a_shared_prefix(window):
    """Rows of which two share a prefix, read as a chunk with padding in it, then token by token."""
    model, params = make_decoder(window=window, **KINDS)
    rows = np.asarray(make_rows([14] * 4))
    rows[1, :4], rows[3, :4] = rows[0, :4], rows[2, :4]
    read = jax.jit(partial(append, model))
    before = np.ones((2, 4), bool)
    _, prefix = read(params, init_cache(model, 2), rows[::2, :4], before)
    cache = fork(model, prefix, 2)
    assert cache.prefix is prefix
    chunk = np.full((4, 11), 7)
    mask = np.ones((4, 11), bool)
    for row, padding in enumerate([(0, 1, 2), (8, 9, 10), (0, 5, 10), (4, 5, 6)]):
        mask[row, list(padding)] = False
        chunk[row, mask[row]] = rows[row, 4:12]
    expected = [read_row(model, params, row)[1] for row in rows]
    output, cache = read(params, cache, chunk, mask)
    for row, found in enumerate(np.asarray(output.hidden)):
        close(found[mask[row]], expected[row][4:12])
    for at in (12, 13):
        output, cache = read(params, cache, rows[:, at : at + 1], np.ones((4, 1), bool))
        close(output.hidden[:, 0], [states[at] for states in expected])


def count_flops(width, **changes):
    model, params = make_decoder(**changes)
    tokens = jax.ShapeDtypeStruct((1, width), jnp.int32)
    read = jax.jit(lambda p, t: model.apply({"params": p}, t, method="hidden").hidden)
    prefill = jax.jit(
        lambda p, t: append(model, p, init_cache(model, 1), t, jnp.ones((1, width), bool))[0].hidden
    )
    return [f.lower(params, tokens).compile().cost_analysis()["flops"] for f in (read, prefill)]


def test_work_grows_with_the_length_alone():
    """Of a pass over whole rows and of a prompt into a cache; a layer without a window's, more."""
    sliding = {"num_layers": 1, "window": 16, "sliding_layers": (0,)}
    for short, long in zip(count_flops(256, **sliding), count_flops(512, **sliding), strict=True):
        assert long < 2.1 * short
    for short, long in zip(*(count_flops(n, num_layers=1) for n in (256, 512)), strict=True):
        assert long > 2.8 * short


def test_blocks_are_chosen_by_shape():
    def choose(width, **options):
        token_mask = jnp.ones((2, width), bool)
        mask = jnp.tril(jnp.ones((2, width, width), bool))
        given = {"width": width, "token_mask": token_mask} | options
        return limit_to_window(mask, WINDOW, **given)[0]

    assert isinstance(choose(WINDOW + 1), WindowBlocks)
    assert choose(WINDOW).all(axis=(0, 1))[0]  # the causal mask as it was
    assert not isinstance(choose(WINDOW + 1, token_mask=None), WindowBlocks)
    assert choose(WINDOW + 1, token_mask=None)[0, -1].tolist() == [False] + [True] * WINDOW


def test_int8():
    (row,) = make_rows([WIDTH])
    read = jax.jit(lambda params: MODEL.apply({"params": params}, jnp.asarray([row])))
    steps = quantize_layers(PARAMS)
    close(read(steps), read(restore(steps)), atol=1e-4)


def restore(tree):
    """The weights that steps and scales stand for."""
    if not isinstance(tree, dict):
        return tree
    tree = {name: restore(node) for name, node in tree.items()}
    if "kernel_scale" in tree:
        tree["kernel"] = tree["kernel"] * tree.pop("kernel_scale")[None]
    return tree
