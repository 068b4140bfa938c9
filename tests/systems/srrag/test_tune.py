"""Microbatches of few shapes, and what is trained in each mode."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax import lora
from rag_jax.config import TrainConfig, TuningConfig
from rag_jax.models.vocabulary import grow_vocabulary
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import make_mesh
from rag_jax.systems.srrag.config import NewTokensConfig, SRRAGConfig
from rag_jax.systems.srrag.data import TERMS, special_tokens
from rag_jax.systems.srrag.examples import Example, make_plan, pack
from rag_jax.systems.srrag.tune import assemble, make_losses, start_trainable
from rag_jax.training.rows import Row, pack_rows

CUE = 4  # tokens of <EOK> and " Answer:"
# Of the question, both verbalisations (one at times, or a found passage) and the answer.
LENGTHS = st.tuples(
    st.integers(1, 150),
    st.integers(0, 80),
    st.none() | st.integers(0, 80),
    st.integers(0, 12),
    st.booleans(),
)


def make_example(name, question, better, worse, answer, found=False):
    """An example with so many tokens of each."""
    start = question + 1
    end = start + better + 1
    spans = {"source": (question, start), "answer": (end - 1 + CUE, end + CUE + answer)}
    tokens = [int(name) + 1] * (end + CUE + answer)
    if found:
        return Example(1, Row(name, tokens, spans), None)
    row = Row(name, tokens, spans | {"verbalisation": (start, end)})
    if worse is None:
        return Example(0, row, None)
    spans = {"source": (question, start), "verbalisation": (start, start + worse + 1)}
    return Example(0, row, Row(name, [int(name) + 101] * (start + worse + 1), spans))


@given(
    st.lists(LENGTHS, min_size=1, max_size=8),
    st.integers(1, 4),
    st.sampled_from([1, 300, 2000]),
    st.sampled_from(["mean", "sum"]),
)
def test_packed_microbatches(lengths, batch_size, budget, reduction):
    """Every example of a step once, with its partner beside it, in shapes of a kind and width."""
    examples = [make_example(str(i), *one) for i, one in enumerate(lengths)]
    session = SimpleNamespace(config=SRRAGConfig(loss_reduction=reduction))
    settings = TrainConfig(batch_size=batch_size, microbatch_tokens=budget)
    plan = make_plan(session, examples, settings)
    shapes, dealt = {}, []
    for step in range(plan.num_steps_per_epoch):
        for micro in plan.group(plan.examples_at(step)):
            dealt += micro.indices
            arrays = pack(session, examples, plan, micro, scale=0.5)
            shape = shapes.setdefault((micro.kind, micro.width), arrays["at"].shape)
            assert arrays["at"].shape == shape
            paired = micro.kind == "pairs"
            assert arrays["tokens"].size <= max(budget, micro.width)
            assert len(arrays["tokens"]) == micro.rows * (1 + paired)
            sides = [[examples[i].row for i in micro.indices]]
            if paired:
                sides.append([examples[i].rejected for i in micro.indices])
            for side, rows in enumerate(sides):
                for place in range(micro.rows):
                    row = rows[place] if place < len(rows) else Row("", [], {})
                    check_packed_row(row, arrays, side * micro.rows + place, reduction)
    assert sorted(dealt) == list(range(len(examples)))


def check_packed_row(row, arrays, place, reduction):
    assert arrays["tokens"][place][arrays["mask"][place]].tolist() == row.tokens
    for term in TERMS:
        start, stop = row.spans.get(term, (0, 0))
        weights = arrays[term][place]
        assert arrays["at"][place][weights > 0].tolist() == list(range(start - 1, stop - 1))
        total = 0.5 * (stop - start if reduction == "sum" else stop > start)
        assert weights.sum() == pytest.approx(total)


def join(base, trained, frozen, *, scale):
    """`assemble` with the ids of the run's new tokens; no scale where all weights are trained."""
    tuning = TuningConfig(mode="full") if scale is None else TuningConfig(rank=2, alpha=2 * scale)
    return assemble(trained, frozen, ids=list_new_ids(base), tuning=tuning, dtype=jnp.float32)


def list_new_ids(base):
    return [base.tokenizer.token_id(name) for name in special_tokens(SRRAGConfig().sources)]


def make_session(base, **tuning):
    config = SRRAGConfig(tuning=NewTokensConfig(**tuning))
    return SimpleNamespace(
        config=config, base=base, mesh=make_mesh(config.mesh), new_ids=list_new_ids(base)
    )


TOKENS = jnp.asarray([[5, 300, 420, 421, 28, 423]])


@partial(jax.jit, static_argnums=0)
def apply(model, params):
    return model.apply({"params": params}, TOKENS)


def run(base, params):
    return np.asarray(apply(base.model, params))


def test_adapter_starts_as_the_base_model(base):
    session = make_session(base, mode="lora", rank=2)
    trained = start_trainable(session)
    assert set(trained) == {"model", "new_tokens"}
    assert jax.tree.map(jnp.shape, trained["new_tokens"]) == {"embed": {"embedding": (4, 32)}}
    assert set(trained["model"]) == {"layers_0", "layers_1"}
    assert set(trained["model"]["layers_0"]) == {"attention", "ffn"}
    before = run(base, base.params)
    after = join(base, trained, base.params, scale=2.0)
    np.testing.assert_allclose(run(base, after), before)


def test_assembled_parameters(base):
    trained = start_trainable(make_session(base, mode="lora", rank=2))
    trained = jax.tree.map(lambda leaf: leaf + 0.1, trained)
    params = join(base, trained, base.params, scale=2.0)
    table = np.asarray(base.params["embed"]["embedding"])
    np.testing.assert_array_equal(params["embed"]["embedding"][:-4], table[:-4])
    np.testing.assert_allclose(params["embed"]["embedding"][-4:], table[-4:] + 0.1)
    folded = lora.fold(base.params, trained["model"], scale=2.0) | {"embed": params["embed"]}
    ours, theirs = run(base, params), run(base, folded)
    assert np.abs(theirs - run(base, base.params)).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_all_weights(base):
    session = make_session(base, mode="full")
    trained = start_trainable(session)
    assert set(trained) == {"model", "new_tokens"}
    jax.tree.map(np.testing.assert_array_equal, trained["model"], base.params)
    np.testing.assert_array_equal(
        run(base, join(base, trained, None, scale=None)), run(base, base.params)
    )
    trained["new_tokens"] = jax.tree.map(lambda leaf: leaf + 0.1, trained["new_tokens"])
    table = join(base, trained, None, scale=None)["embed"]["embedding"]
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
    trained = start_trainable(session)
    trained["new_tokens"] = jax.tree.map(lambda leaf: leaf + 0.1, trained["new_tokens"])
    scale = None if mode == "full" else 2.0
    params = join(untied, trained, untied.params, scale=scale)
    for table in (params["embed"]["embedding"], params["head"]["kernel"].T):
        moved = np.asarray(table - padded.params["embed"]["embedding"])
        assert (moved[first : first + 4] > 0.05).all()
        assert (moved[:first] == 0).all() and (moved[first + 4 :] == 0).all()


def test_narrower_targets(base):
    session = make_session(base, mode="lora", targets="ffn/down")
    adapter = start_trainable(session)["model"]
    assert jax.tree.structure(adapter) == jax.tree.structure(
        {f"layers_{i}": {"ffn": {"down": {"kernel": {"a": 0, "b": 0}}}} for i in range(2)}
    )
    with pytest.raises(RagJaxError, match="config.tuning.targets='nothing': no matrix"):
        start_trainable(make_session(base, mode="lora", targets="nothing"))


def test_losses_reach_the_new_tokens_and_the_adapter_alone(base):
    session = make_session(base, mode="lora", rank=2)
    row = make_example("0", 5, 6, None, 2).row
    row.tokens[5] = 422
    settings = {"terms": TERMS, "scale": 1.0, "reduction": "sum"}
    arrays = pack_rows([row], width=24, targets=16, batch=1, **settings)
    loss = make_losses(session)["rows"]
    grads = jax.jit(jax.grad(lambda *a: loss(*a)[0]))(start_trainable(session), base.params, arrays)
    assert jnp.abs(grads["new_tokens"]["embed"]["embedding"]).max() > 1e-4
    for path, leaf in jax.tree.leaves_with_path(grads["model"]):
        # As long as b is zero, a has no gradient.
        assert leaf.any() == (path[-1].key == "b")
