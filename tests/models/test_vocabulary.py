"""New tokens: where they start, what their ids are, and that the old ones stay as they were."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.decoding import Sampling, generate
from rag_jax.models import load
from rag_jax.models.vocabulary import (
    grow_vocabulary,
    overlay_tokens,
    put_tokens,
    take_tokens,
)
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = ["<EOQ>", "<Self>", "<Wiki>"]
TOKENS = jnp.asarray([[1, 40, 7, 289, 2]])


@pytest.fixture(scope="module")
def base():
    return load(GOLDEN / "llama_tied")


def run(pretrained, tokens=TOKENS):
    return np.asarray(jax.jit(pretrained.model.apply)({"params": pretrained.params}, tokens))


def test_new_tokens_follow_the_last_one_and_start_from_the_mean(base):
    grown = grow_vocabulary(base, NAMES)
    assert [grown.tokenizer.token_id(name) for name in NAMES] == [290, 291, 292]
    assert grown.config.vocab_size == grown.tokenizer.vocab_size == 293
    assert grown.model.config == grown.config
    old, new = np.split(np.asarray(grown.params["embed"]["embedding"]), [290])
    table = np.asarray(base.params["embed"]["embedding"])
    np.testing.assert_array_equal(old, table)
    np.testing.assert_allclose(
        new, np.stack([table.astype(np.float64).mean(axis=0)] * 3), atol=1e-6
    )
    assert base.config.vocab_size == base.tokenizer.vocab_size == len(table) == 290


@pytest.mark.parametrize("multiple", [1, 8])
def test_a_tokenizer_with_a_token_that_the_model_lacks(base, multiple):
    """As Gemma 3's text models, whose last token is an image's."""
    more = replace(base, tokenizer=base.tokenizer.add_special_tokens(["<image>"]))
    grown = grow_vocabulary(more, NAMES, multiple=multiple)
    assert [grown.tokenizer.token_id(name) for name in NAMES] == [291, 292, 293]
    table = grown.params["embed"]["embedding"]
    assert len(table) == grown.config.vocab_size == -(-294 // multiple) * multiple
    logits = run(grown)
    np.testing.assert_allclose(logits[..., :290], run(base), atol=1e-5)


def test_old_logits_stay_and_new_ones_are_their_mean(base):
    logits = run(grow_vocabulary(base, NAMES))
    old = run(base)
    np.testing.assert_allclose(logits[..., :290], old, atol=1e-5)
    mean = old.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(logits[..., 290:], mean.repeat(3, axis=-1), atol=1e-5)


def test_new_tokens_can_be_read(base):
    grown = grow_vocabulary(base, NAMES)
    one, other = (run(grown, jnp.asarray([[1, 40, new, 7]])) for new in (290, 292))
    np.testing.assert_array_equal(one, other)
    known = run(grown, jnp.asarray([[1, 40, 41, 7]]))
    assert np.abs(one[0, 2:] - known[0, 2:]).max() > 0.1


def test_dtype_is_kept_and_the_mean_is_taken_in_float32(base):
    params = {"embed": {"embedding": jnp.full((290, 32), 1.0, jnp.bfloat16).at[0].set(257.0)}}
    grown = grow_vocabulary(replace(base, params=params), NAMES[:1])
    table = grown.params["embed"]["embedding"]
    assert table.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(table[-1], np.float32), 1 + 256 / 290, rtol=2**-8)


def test_unused_rows_after_the_tokenizers_are_dropped(base):
    table = base.params["embed"]["embedding"]
    padded = replace(
        base,
        config=replace(base.config, vocab_size=320),
        params={**base.params, "embed": {"embedding": jnp.pad(table, ((0, 30), (0, 0)))}},
    )
    grown = grow_vocabulary(padded, NAMES)
    assert grown.config.vocab_size == grown.tokenizer.vocab_size == 293
    expected = grow_vocabulary(base, NAMES).params["embed"]["embedding"]
    np.testing.assert_array_equal(grown.params["embed"]["embedding"], expected)


def test_a_head_of_its_own_grows_as_well():
    untied = load(GOLDEN / "llama_untied_sharded")
    grown = grow_vocabulary(untied, NAMES)
    logits, old = run(grown), run(untied)
    np.testing.assert_allclose(logits[..., :290], old, atol=1e-5)
    mean = old.mean(axis=-1, keepdims=True)
    np.testing.assert_allclose(logits[..., 290:], mean.repeat(3, axis=-1), atol=1e-5)
    assert grown.params["head"]["kernel"].shape == (32, 293)
    table = grown.params["embed"]["embedding"]
    np.testing.assert_allclose(table[292], np.asarray(table[:290]).mean(axis=0), atol=1e-6)


def test_an_encoder_is_refused():
    with pytest.raises(RagJaxError, match="new tokens: the model must be a decoder"):
        grow_vocabulary(load(GOLDEN / "bert"), NAMES)


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied_sharded"])
def test_rows_of_padding_are_never_generated(name):
    """Even where their logits would be the largest, and without touching the others."""
    plain = grow_vocabulary(load(GOLDEN / name), NAMES)
    padded = grow_vocabulary(load(GOLDEN / name), NAMES, multiple=128)
    assert padded.config.vocab_size == 384 and padded.config.vocab_padding == 384 - 293
    assert padded.tokenizer.vocab_size == 293
    assert [padded.tokenizer.token_id(name) for name in NAMES] == [290, 291, 292]
    logits = run(padded)
    np.testing.assert_allclose(logits[..., :293], run(plain), atol=1e-5)
    assert np.isfinite(logits).all() and (logits[..., 293:] == -1e9).all()
    for sign in (1, -1):  # one of the two would be above all others
        params = jax.tree.map(lambda leaf: leaf, padded.params)
        table = params["embed"]["embedding"]
        params["embed"]["embedding"] = table.at[293:].set(sign * 100.0)
        if "head" in params:
            params["head"]["kernel"] = params["head"]["kernel"].at[:, 293:].set(sign * 100.0)
        forced = replace(padded, params=params)
        np.testing.assert_array_equal(run(forced), logits)
        (written,) = generate(forced.model, params, [[1, 40]], max_tokens=8, stop_ids=[])
        (drawn,) = generate(
            forced.model,
            params,
            [[1, 40]],
            max_tokens=8,
            stop_ids=[],
            sampling=Sampling(temperature=5.0),
        )
        assert max(written + drawn) < 293

    def loss(params):
        scores = padded.model.apply({"params": params}, TOKENS)
        return -jax.nn.log_softmax(scores)[..., 7].mean()

    grads = jax.jit(jax.grad(loss))(padded.params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
    assert (np.asarray(grads["embed"]["embedding"])[293:] == 0).all()
    assert np.abs(grads["embed"]["embedding"]).max() > 1e-3


def test_padding_again_replaces_the_padding(base):
    once = grow_vocabulary(base, NAMES, multiple=128)
    twice = grow_vocabulary(once, [], multiple=8)
    assert (twice.config.vocab_size, twice.config.vocab_padding) == (296, 3)
    rows = np.asarray(once.params["embed"]["embedding"])[:293]
    np.testing.assert_array_equal(np.asarray(twice.params["embed"]["embedding"])[:293], rows)
    none = grow_vocabulary(twice, [])
    assert (none.config.vocab_size, none.config.vocab_padding) == (293, 0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_padding_is_finite_in_half_precision(dtype):
    model = grow_vocabulary(load(GOLDEN / "llama_tied", dtype=dtype), [], multiple=64)
    logits = run(model)
    assert np.isfinite(logits.astype(np.float32)).all()
    assert (logits[..., 290:] < -6e4).all() and logits.dtype == dtype


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied_sharded"])
def test_tokens_taken_and_put_back(name):
    params = load(GOLDEN / name).params
    ids = [3, 280, 17]
    taken = take_tokens(params, ids)
    np.testing.assert_array_equal(
        taken["embed"]["embedding"], params["embed"]["embedding"][np.asarray(ids)]
    )
    assert ("head" in taken) == (name == "llama_untied_sharded")
    same = put_tokens(params, taken, ids)
    jax.tree.map(np.testing.assert_array_equal, same, params)
    moved = put_tokens(params, jax.tree.map(lambda leaf: leaf + 1, taken), ids)
    for path in taken:
        (before,), (after,) = jax.tree.leaves(params[path]), jax.tree.leaves(moved[path])
        change = np.asarray(after - before)
        change = change.T if path == "head" else change
        assert (change[ids] > 0.5).all() and (np.delete(change, ids, axis=0) == 0).all()


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied_sharded"])
def test_tokens_beside_their_tables(name):
    """Logits and gradients are those of tokens put into the tables, and nothing is copied."""
    lm, ids = load(GOLDEN / name), [3, 289, 17]
    taken = jax.tree.map(lambda leaf: leaf * 2 + 0.1, take_tokens(lm.params, ids))
    tokens = jnp.asarray([[1, 3, 7, 289, 3], [5, 17, 2, 3, 9]])
    weights = jax.random.normal(jax.random.key(0), (2, 5, lm.config.vocab_size))

    def compute(put):
        def loss(taken):
            logits = lm.model.apply({"params": put(lm.params, taken, ids)}, tokens)
            return (logits * weights).sum(), logits

        (_, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(taken)
        return logits, grads

    (ours, grads), (wanted, wanted_grads) = compute(overlay_tokens), compute(put_tokens)
    np.testing.assert_allclose(ours, wanted, atol=1e-5)
    assert all(np.abs(leaf).max() > 0.1 for leaf in jax.tree.leaves(wanted_grads))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)  # noqa: E731
    jax.tree.map(close, grads, wanted_grads)
    laid = overlay_tokens(lm.params, taken, ids)
    assert laid["embed"]["embedding"] is lm.params["embed"]["embedding"]
    with pytest.raises(RagJaxError, match=r"^ids: .*500"):
        overlay_tokens(lm.params, taken, [500])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["<A>", "<|end|>"], "new tokens: '<\\|end\\|>' is taken or named twice"),
        (["<A>", "<B>", "<A>"], "new tokens: '<A>' is taken or named twice"),
        (["a"], "'a' cannot become a special token: it is ordinary text"),
        ([""], "'' cannot become a special token"),
    ],
)
def test_names_that_are_taken(base, names, message):
    with pytest.raises(RagJaxError, match=message):
        grow_vocabulary(base, names)
