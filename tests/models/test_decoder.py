"""The decoder against a slow NumPy one, wherever padding stands and however keys are shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import make_decoder, make_rows, read_row, softmax, turn

from rag_jax import lora
from rag_jax.models.nn import decoder
from rag_jax.models.nn.layers import Linear, attend
from rag_jax.models.nn.rope import rotary_angles, rotate

MODEL, PARAMS = make_decoder()
WIDTH = 9
FORWARD = jax.jit(lambda params, tokens, mask: MODEL.apply({"params": params}, tokens, mask))
HIDDEN = jax.jit(
    lambda params, tokens, **rest: MODEL.apply({"params": params}, tokens, method="hidden", **rest),
    static_argnames="return_layer",
)


def close(ours, theirs, atol=2e-5):
    np.testing.assert_allclose(ours, theirs, atol=atol, rtol=1e-5)


def spread(row, places, filler):
    """A row of `WIDTH` tokens with the real ones at `places`."""
    tokens, mask = np.full(WIDTH, filler, np.int32), np.zeros(WIDTH, bool)
    tokens[list(places)], mask[list(places)] = row, True
    return tokens, mask


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_the_numpy_decoder(tied):
    model, params = make_decoder(tie_embeddings=tied)
    (row,) = make_rows([WIDTH])
    logits = jax.jit(model.apply)({"params": params}, jnp.asarray([row]))
    expected = read_row(model, params, row)[2]
    assert expected.std() > 0.5  # far from a constant
    close(logits[0], expected)


def test_padding_changes_nothing_wherever_it_stands():
    (row,) = make_rows([5])
    places = {
        "right": range(5),
        "left": range(4, 9),
        "middle": (0, 1, 4, 5, 8),
        "everywhere": (1, 3, 4, 6, 7),
    }
    for filler in (0, 30):
        tokens, mask = zip(*(spread(row, p, filler) for p in places.values()), strict=True)
        logits = FORWARD(PARAMS, jnp.asarray(tokens), jnp.asarray(mask))
        for padded, real in zip(logits, mask, strict=True):
            close(padded[real], read_row(MODEL, PARAMS, row)[2])
        assert np.isfinite(logits).all()


@settings(max_examples=25)
@given(st.lists(st.booleans(), min_size=WIDTH, max_size=WIDTH), st.integers(0, 9))
def test_padding_changes_nothing_hypothesis(mask, seed):
    real = np.asarray(mask)
    row, tokens = make_rows([real.sum(), WIDTH], seed=seed)
    tokens = np.asarray(tokens, np.int32)
    tokens[real] = row
    logits = FORWARD(PARAMS, jnp.asarray([tokens] * 4), jnp.asarray([real] * 4))
    assert np.isfinite(logits).all()
    if row:
        close(logits[0][real], read_row(MODEL, PARAMS, row)[2])


def test_positions_may_be_given():
    (row,) = make_rows([6])
    tokens = jnp.asarray([row])

    def run(positions):
        return HIDDEN(PARAMS, tokens, positions=positions).hidden

    plain = run(None)
    close(run(jnp.arange(6)[None]), plain)
    close(run(jnp.arange(6)[None] + 40), plain)  # only differences matter
    assert np.abs(run(2 * jnp.arange(6)[None]) - plain).max() > 1e-2


def test_tap_is_the_residual_stream():
    rows = make_rows([WIDTH, WIDTH])
    streams = [read_row(MODEL, PARAMS, row)[0] for row in rows]
    hidden = [read_row(MODEL, PARAMS, row)[1] for row in rows]
    for return_layer in range(MODEL.config.num_layers + 1):
        output = HIDDEN(PARAMS, jnp.asarray(rows), return_layer=return_layer)
        close(output.layer_output, [s[return_layer] for s in streams])
        close(output.hidden, hidden)
        assert output.cache is None
    embedding = PARAMS["embed"]["embedding"]
    first = HIDDEN(PARAMS, jnp.asarray(rows), return_layer=0).layer_output
    np.testing.assert_array_equal(first, embedding[jnp.asarray(rows)])


def test_logits_only_where_asked():
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 16)), jnp.float32)
    logits = MODEL.apply({"params": PARAMS}, hidden, method="logits")
    one = MODEL.apply({"params": PARAMS}, hidden[1, 2], method="logits")
    assert logits.shape == (2, 3, 31) and one.shape == (31,)
    close(one, logits[1, 2])


def attend_slowly(query, keys, values, mask):
    """Every row, key head, query head of its group and position in a loop of its own."""
    rows, heads, width, depth = query.shape
    y = np.zeros(query.shape)
    for b, k, m in np.ndindex(rows, heads, width):
        scores = query[b, k, m] @ keys[b, k] / np.sqrt(depth)
        y[b, k, m] = softmax(np.where(mask[b, 0, m], scores, -np.inf)) @ values[b, k]
    return y


def draw(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("prefixes", [1, 2, 3, 6])
def test_a_shared_prefix_is_as_if_every_row_had_it(prefixes):
    rng = np.random.default_rng(prefixes)
    rows, heads, width, depth, slots, length = 6, 2, 6, 4, 5, 7
    query = draw(rng, rows, heads, width, depth)
    keys, values = draw(rng, rows, heads, depth, slots), draw(rng, rows, heads, slots, depth)
    before = draw(rng, prefixes, heads, depth, length), draw(rng, prefixes, heads, length, depth)
    mask = rng.random((rows, 1, width, slots)) < 0.5
    mask[0] = False  # a row may look at nothing but its prefix
    prefix_mask = rng.random((prefixes, length)) < 0.6
    prefix_mask[:, 3] = True
    y = attend(query, keys, values, mask, prefix=before, prefix_mask=prefix_mask)

    own = [x.repeat(rows // prefixes, axis=0) for x in (*before, prefix_mask)]
    all_keys = np.concatenate([own[0], keys], axis=3)
    all_values = np.concatenate([own[1], values], axis=2)
    seen = np.broadcast_to(own[2][:, None, None, :], (rows, 1, width, length))
    all_mask = np.concatenate([seen, mask], axis=3)
    close(y, attend_slowly(query, all_keys, all_values, all_mask))
    close(attend(query, all_keys, all_values, all_mask), y)


def test_nothing_to_look_at_gives_no_nan():
    rng = np.random.default_rng(0)
    shape = 1, 2, 3, 4
    y = attend(
        draw(rng, *shape),
        draw(rng, 1, 2, 4, 5),
        draw(rng, 1, 2, 5, 4),
        np.zeros((1, 1, 3, 5), bool),
    )
    assert np.isfinite(y).all()


@settings(max_examples=20)
@given(st.lists(st.integers(0, 100_000), min_size=5, max_size=5), st.integers(0, 9))
def test_rotary_is_a_complex_turn(positions, seed):
    x = draw(np.random.default_rng(seed), 1, 3, 5, 8)
    angles = rotary_angles(jnp.asarray([positions]), rotary_dim=8, theta=10_000.0)
    turned = rotate(x, angles)
    expected = turn(x[0].swapaxes(0, 1), np.asarray(positions), 10_000.0).swapaxes(0, 1)
    # float32 angles of 1e5 radians are good to 1e5 * 2**-24.
    close(turned[0], expected, atol=1e-5 + 2e-7 * max(positions))
    close(np.linalg.norm(turned, axis=-1), np.linalg.norm(x, axis=-1))


def test_rotary_positions_survive_bfloat16():
    x = jnp.ones((1, 1, 2, 4), jnp.bfloat16)
    angles = rotary_angles(jnp.asarray([[256, 257]]), rotary_dim=4, theta=100.0)
    turned = rotate(x, angles)
    assert turned.dtype == jnp.bfloat16 and angles[0].dtype == jnp.float32
    assert np.abs(turned[0, 0, 0] - turned[0, 0, 1]).max() > 0.1


def test_linear_adds_an_adapter_where_it_finds_one():
    rng = np.random.default_rng(0)
    x, kernel, a, b = draw(rng, 5, 4), draw(rng, 4, 3), draw(rng, 4, 2), draw(rng, 2, 3)
    layer = Linear(3)
    assert set(layer.init(jax.random.key(0), x)["params"]) == {"kernel"}
    close(layer.apply({"params": {"kernel": kernel}}, x), x @ kernel)
    adapted = layer.apply({"params": {"kernel": kernel, "lora_a": a, "lora_b": b}}, x)
    close(adapted, x @ (kernel + a @ b))
    assert np.abs(adapted - x @ kernel).max() > 0.1


def test_each_part_of_a_batch_has_its_own_adapter():
    """Forward over 6 rows with 3 adapters: two rows each, as with that adapter folded in."""
    bank = lora.init_bank(jax.random.key(0), PARAMS, targets=".*/kernel", rank=2, size=3)
    rng = np.random.default_rng(0)
    bank = jax.tree.map(lambda leaf: jnp.asarray(draw(rng, *leaf.shape) * 0.2), bank)
    tokens = jnp.asarray(make_rows([5] * 6))
    read = jax.jit(lambda params, tokens: MODEL.apply({"params": params}, tokens))
    logits = read(lora.apply(PARAMS, bank, scale=0.5), tokens)
    for i in range(3):
        own = lora.fold(PARAMS, jax.tree.map(lambda leaf, i=i: leaf[i], bank), scale=0.5)
        rows = slice(2 * i, 2 * i + 2)
        np.testing.assert_allclose(logits[rows], read(own, tokens[rows]), atol=2e-5)
    # 5 rows of 3 tokens divide into 3 parts of tokens, but not of rows.
    with pytest.raises(ValueError, match=r"head/lora_a: 3 adapters for a batch of 5 rows"):
        read(lora.apply(PARAMS, bank, scale=0.5), tokens[:5, :3])


@pytest.mark.parametrize("adapted", [False, True])
def test_layers_are_traced_once_for_all(adapted, monkeypatch):
    model, params = make_decoder(num_layers=3)
    if adapted:
        adapter = lora.init(jax.random.key(0), params, targets=".*(query|up)/kernel", rank=2)
        params = lora.apply(params, adapter, scale=1.0)
    traced = []
    rotate_one = decoder.rotate
    monkeypatch.setattr(decoder, "rotate", lambda *args: traced.append(1) or rotate_one(*args))
    tokens = jnp.ones((1, 23), jnp.int32)  # a width that no other test has
    jax.jit(model.apply).trace({"params": params}, tokens)
    assert len(traced) == 2  # queries and keys of one layer
