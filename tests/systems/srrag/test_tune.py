"""Microbatches of few shapes, and what is trained in each mode."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax import lora
from rag_jax.config import SRRAGConfig, TuningConfig
from rag_jax.errors import RagJaxError
from rag_jax.systems.srrag.data import Row, count_targets
from rag_jax.systems.srrag.tune import Packer, assemble, make_losses, start_trainable

QUESTION, CUE = st.integers(1, 150), 4
LENGTHS = st.tuples(QUESTION, st.integers(0, 80), st.integers(0, 80), st.integers(0, 12))


def make_pair(name, question, better, worse, answer):
    """A question's rows with verbalisations and an answer of so many tokens."""
    start = question + 1
    end = start + better + 1
    spans = {"source": (question, start), "verbalisation": (start, end)}
    spans["answer"] = (end - 1 + CUE, end + CUE + answer)
    chosen = Row(name, [1] * (end + CUE + answer), spans)
    spans = {"source": (question, start), "verbalisation": (start, start + worse + 1)}
    return chosen, Row(name, [2] * (start + worse + 1), spans)


def check_parts(parts, rows, partners, budget, packer):
    """Every row once with its partner, in a shape that depends on the width alone."""
    assert sorted(i for numbers, _ in parts for i in numbers) == list(range(len(rows)))
    for numbers, arrays in parts:
        batch, width = arrays["tokens"].shape
        assert batch * width <= max(budget, (2 if partners else 1) * width)
        assert arrays["at"].shape[1] == packer.targets(width)
        halves = np.split(np.arange(batch), 2) if partners else [np.arange(batch)]
        for half, members in zip(halves, [rows, partners], strict=False):
            for place, row in enumerate(half):
                own = arrays["tokens"][row][arrays["mask"][row]].tolist()
                weights = [arrays[term][row] for term in ("source", "verbalisation", "answer")]
                if place < len(numbers):
                    assert own == members[numbers[place]].tokens
                    kept = sum((w > 0).sum() for w in weights)
                    assert kept == count_targets(members[numbers[place]])
                else:
                    assert own == [] and not np.any(weights)


@given(st.lists(LENGTHS, min_size=1, max_size=6), st.sampled_from([1, 300, 2000]))
def test_packed_parts(lengths, budget):
    pairs = [make_pair(str(i), *one) for i, one in enumerate(lengths)]
    chosen, rejected = ([pair[side] for pair in pairs] for side in (0, 1))
    packer = Packer([*chosen, *rejected], budget, "mean")
    check_parts(packer.pack(chosen, scale=0.5), chosen, [], budget, packer)
    parts = packer.pack(chosen, scale=0.5, partners=rejected)
    check_parts(parts, chosen, rejected, budget, packer)


def test_a_partner_with_more_targets_in_a_narrower_width():
    # 73 tokens and 16 targets beside 72 tokens and 18: the wider shape must have room for both.
    chosen, rejected = make_pair("a", 54, 8, 16, 5)
    assert (len(chosen.tokens), len(rejected.tokens)) == (73, 72)
    assert (count_targets(chosen), count_targets(rejected)) == (16, 18)
    packer = Packer([chosen, rejected], 500, "mean")
    parts = packer.pack([chosen], scale=1.0, partners=[rejected])
    check_parts(parts, [chosen], [rejected], 500, packer)


def make_session(base, **tuning):
    return SimpleNamespace(config=SRRAGConfig(tuning=TuningConfig(**tuning)), base=base)


TOKENS = jnp.asarray([[5, 300, 420, 421, 28, 423]])


@partial(jax.jit, static_argnums=0)
def apply(model, params):
    return model.apply({"params": params}, TOKENS)


def run(base, params):
    return np.asarray(apply(base.model, params))


def test_adapter_starts_as_the_base_model(base):
    session = make_session(base, mode="lora", rank=2)
    trained = start_trainable(session)
    assert set(trained) == {"adapter", "new_tokens"}
    assert trained["new_tokens"].shape == (4, 32)
    assert set(trained["adapter"]) == {"layers_0", "layers_1"}
    assert set(trained["adapter"]["layers_0"]) == {"attention", "ffn"}
    before = run(base, base.params)
    np.testing.assert_allclose(run(base, assemble(trained, base.params, scale=2.0)), before)


def test_assembled_parameters(base):
    trained = start_trainable(make_session(base, mode="lora", rank=2))
    trained = jax.tree.map(lambda leaf: leaf + 0.1, trained)
    params = assemble(trained, base.params, scale=2.0)
    table = np.asarray(base.params["embed"]["embedding"])
    np.testing.assert_array_equal(params["embed"]["embedding"][:-4], table[:-4])
    np.testing.assert_array_equal(params["embed"]["embedding"][-4:], trained["new_tokens"])
    folded = lora.fold(base.params, trained["adapter"], scale=2.0) | {"embed": params["embed"]}
    ours, theirs = run(base, params), run(base, folded)
    assert np.abs(theirs - run(base, base.params)).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_all_weights_are_the_tree_itself(base):
    session = make_session(base, mode="full")
    assert start_trainable(session) is base.params
    assert assemble(base.params, None, scale=None) is base.params


def test_narrower_targets(base):
    session = make_session(base, mode="lora", targets="ffn/down")
    adapter = start_trainable(session)["adapter"]
    assert jax.tree.structure(adapter) == jax.tree.structure(
        {f"layers_{i}": {"ffn": {"down": {"kernel": {"a": 0, "b": 0}}}} for i in range(2)}
    )
    with pytest.raises(RagJaxError, match="config.tuning.targets='nothing': no matrix"):
        start_trainable(make_session(base, mode="lora", targets="nothing"))


def test_losses_reach_the_new_tokens_and_the_adapter_alone(base):
    session = make_session(base, mode="lora", rank=2)
    chosen, _ = make_pair("a", 5, 6, 7, 2)
    chosen.tokens[5] = 422
    arrays = Packer([chosen], 100, "mean").pack([chosen], scale=1.0)[0][1]
    loss = make_losses(session)["rows"]
    grads = jax.jit(jax.grad(lambda *a: loss(*a)[0]))(start_trainable(session), base.params, arrays)
    assert jnp.abs(grads["new_tokens"]).max() > 1e-4
    for path, leaf in jax.tree.leaves_with_path(grads["adapter"]):
        # As long as b is zero, a has no gradient.
        assert leaf.any() == (path[-1].key == "b")
