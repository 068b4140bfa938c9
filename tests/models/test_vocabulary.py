"""New tokens: where they start, what their ids are, and that the old ones stay as they were."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.errors import RagJaxError
from rag_jax.models import load
from rag_jax.models.vocabulary import grow_vocabulary

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


def test_unused_rows_behind_the_tokenizer_are_dropped(base):
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


def test_untied_embeddings_are_refused():
    untied = load(GOLDEN / "llama_untied_sharded")
    with pytest.raises(RagJaxError, match="input and output embeddings are tied"):
        grow_vocabulary(untied, NAMES)


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
