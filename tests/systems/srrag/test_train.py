"""What is trained in each mode, and where the losses' gradients go."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax import lora
from rag_jax.models.vocabulary import grow_vocabulary, put_tokens
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.srrag.config import NewTokensConfig, SRRAGConfig
from rag_jax.systems.srrag.data import TERMS
from rag_jax.systems.srrag.session import Session
from rag_jax.training.rows import Row, pack_rows


def make_session(base, **tuning):
    """A session with this model in the place of the settings' model; adapters count twofold."""
    config = SRRAGConfig(tuning=NewTokensConfig(rank=2, alpha=4.0, **tuning))
    session = Session(config)
    session.base = base
    return session


TOKENS = jnp.asarray([[5, 300, 420, 421, 28, 423]])


@partial(jax.jit, static_argnums=0)
def apply(model, params):
    return model.apply({"params": params}, TOKENS)


def run(base, params):
    return np.asarray(apply(base.model, params))


def test_adapter_starts_as_the_base_model(base):
    trainable = make_session(base, mode="lora").trainable
    trained = trainable.start()
    assert set(trained) == {"model", "new_tokens"}
    assert jax.tree.map(jnp.shape, trained["new_tokens"]) == {"embed": {"embedding": (4, 32)}}
    assert set(trained["model"]) == {"layers_0", "layers_1"}
    assert set(trained["model"]["layers_0"]) == {"attention", "ffn"}
    before = run(base, base.params)
    after = trainable.merge(trained, base.params)
    np.testing.assert_allclose(run(base, after), before, rtol=1e-5)  # two programs


def test_assembled_parameters(base):
    trainable = make_session(base, mode="lora").trainable
    trained = jax.tree.map(lambda leaf: leaf + 0.1, trainable.start())
    params = trainable.merge(trained, base.params)
    table = base.params["embed"]["embedding"]
    assert params["embed"]["embedding"] is table
    np.testing.assert_allclose(params["embed"]["rows"], table[-4:] + 0.1)
    whole = put_tokens(base.params, trained["new_tokens"], range(len(table) - 4, len(table)))
    folded = lora.fold(whole, trained["model"], scale=2.0)
    ours, theirs = run(base, params), run(base, folded)
    assert np.abs(theirs - run(base, base.params)).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_all_weights(base):
    trainable = make_session(base, mode="full").trainable
    trained = trainable.start()
    assert set(trained) == {"model", "new_tokens"}
    jax.tree.map(np.testing.assert_array_equal, trained["model"], base.params)
    assert trainable.frozen is None
    merged = trainable.merge(trained, None)
    np.testing.assert_array_equal(run(base, merged), run(base, base.params))
    trained["new_tokens"] = jax.tree.map(lambda leaf: leaf + 0.1, trained["new_tokens"])
    table = trainable.merge(trained, None)["embed"]["embedding"]
    moved = np.asarray(table - base.params["embed"]["embedding"])
    assert (moved[:-4] == 0).all() and (moved[-4:] > 0.05).all()


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_new_tokens_of_a_padded_table_and_a_head_of_its_own(base, mode):
    """The rows at the end are padding, and what a token is in the head is trained as well."""
    padded = grow_vocabulary(base, [], multiple=64)
    first, size = base.config.vocab_size - 4, padded.config.vocab_size
    assert size % 64 == 0 and padded.config.vocab_padding == size - first - 4 > 0
    config = replace(padded.config, tie_embeddings=False)
    head = {"kernel": padded.params["embed"]["embedding"].T}
    untied = replace(padded, config=config, params={**padded.params, "head": head})
    session = make_session(untied, mode=mode)
    assert session.new_ids == list(range(first, first + 4))
    trained = session.trainable.start()
    trained["new_tokens"] = jax.tree.map(lambda leaf: leaf + 0.1, trained["new_tokens"])
    params = session.trainable.merge(trained, untied.params)
    start = np.asarray(padded.params["embed"]["embedding"])
    if mode == "lora":  # beside the tables, which stay as they are
        for new in (params["embed"]["rows"], params["head"]["columns"].T):
            np.testing.assert_allclose(new, start[first : first + 4] + 0.1, rtol=1e-6)
    for table in (params["embed"]["embedding"], params["head"]["kernel"].T):
        moved = np.asarray(table) - start
        assert mode == "lora" or (moved[first : first + 4] > 0.05).all()
        assert (moved[:first] == 0).all() and (moved[first + 4 :] == 0).all()


def test_narrower_targets(base):
    session = make_session(base, mode="lora", targets="ffn/down")
    adapter = session.trainable.start()["model"]
    assert jax.tree.structure(adapter) == jax.tree.structure(
        {f"layers_{i}": {"ffn": {"down": {"kernel": {"a": 0, "b": 0}}}} for i in range(2)}
    )
    with pytest.raises(RagJaxError, match="config.tuning.targets='nothing': no matrix"):
        make_session(base, mode="lora", targets="nothing").trainable.start()


def test_losses_reach_the_new_tokens_and_the_adapter_alone(base):
    session = make_session(base, mode="lora")
    spans = {"source": (5, 6), "verbalisation": (6, 13), "answer": (16, 19)}
    row = Row("0", [1] * 19, spans)
    row.tokens[5] = 422
    settings = {"terms": TERMS, "scale": 1.0, "reduction": "sum"}
    arrays = pack_rows([[row]], width=24, targets=16, batch=1, **settings)
    loss, trained = session.losses["rows"], session.trainable.start()
    grads = jax.jit(jax.grad(lambda *a: loss(*a)[0]))(trained, base.params, arrays)
    assert jnp.abs(grads["new_tokens"]["embed"]["embedding"]).max() > 1e-4
    for path, leaf in jax.tree.leaves_with_path(grads["model"]):
        # As long as b is zero, a has no gradient.
        assert leaf.any() == (path[-1].key == "b")
