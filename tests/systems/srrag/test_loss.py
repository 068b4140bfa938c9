"""Both stages' losses against log-probabilities read off full passes in NumPy, row by row."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.systems.srrag.data import TERMS, make_row
from rag_jax.systems.srrag.loss import sequence_logprobs, stage1_loss, stage2_loss
from rag_jax.systems.srrag.train import make_pairs
from rag_jax.training.rows import pack_rows
from systems.srrag.reference import span_logprobs, sum_terms

SELF, WIKI = 0, 1
WIDTH, TARGETS, BETA = 72, 48, 0.3
SCORED = ("tokens", "segments", "positions", "at", "next", "row", *TERMS)


@pytest.fixture(scope="module")
def rows(format):
    return [
        make_row(format, "a", "Where is Riga?", SELF, "Riga is the capital of Latvia.", "Latvia"),
        make_row(format, "b", "Where is Lyon?", WIKI, "[1] Lyon: A city in France.", "France"),
        make_row(format, "c", "Currency of Spain?", SELF, "They pay with the euro.", "euro (EUR)"),
        make_row(format, "d", "What is 東京?", SELF, "", "a city"),
    ]


@pytest.fixture(scope="module")
def pairs(format, rows):
    """Rows whose source is the model itself, and the same questions with another verbalisation."""
    chosen = [rows[0], rows[2]]
    rejected = [
        make_row(format, "a", "Where is Riga?", SELF, "Riga.", None),
        make_row(format, "c", "Currency of Spain?", SELF, "People there pay with dollars.", None),
    ]
    return chosen, rejected


@pytest.fixture(scope="module")
def gradients(base):
    """Each stage's loss, terms and gradients, compiled."""

    def compile_loss(loss):
        return jax.jit(jax.value_and_grad(partial(loss, base.model), has_aux=True))

    stage2 = partial(stage2_loss, beta=BETA)
    return {"stage1": compile_loss(stage1_loss), "stage2": compile_loss(stage2)}


@pytest.fixture(scope="module")
def score(base):
    return jax.jit(partial(sequence_logprobs, base.model), static_argnames="rows")


def pack(sequences, *, batch, scale=0.25, reduction="mean", width=WIDTH):
    return pack_rows(
        sequences,
        terms=TERMS,
        width=width,
        targets=TARGETS,
        batch=batch,
        scale=scale,
        reduction=reduction,
    )


def pack_pairs(chosen, rejected, *, batch, scale=0.25, reduction="mean", seed=0):
    """As stage 2 does: the rejected sides take part in the preference alone."""
    pairs = [list(pair) for pair in zip(chosen, rejected, strict=True)]
    arrays = pack(pairs, batch=batch, scale=scale, reduction=reduction, width=2 * WIDTH)
    reference = np.random.default_rng(seed).normal(-30, 5, (batch, 2)).astype(np.float32)
    return make_pairs(arrays, reference)


def alone(rows):
    return [[row] for row in rows]


def close_trees(ours, theirs, *, rtol=1e-4):
    """Every array within a share of its own largest value: sums are taken in another order."""

    def check(a, b):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol * float(np.abs(b).max()))

    jax.tree.map(check, ours, theirs)


def add_trees(trees):
    return jax.tree.map(lambda *leaves: sum(leaves), *trees)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_stage1(base, rows, gradients, reduction):
    arrays = pack(alone(rows), batch=5, reduction=reduction)
    (loss, terms), _ = gradients["stage1"](base.params, arrays)
    expected = sum_terms(
        base.model, base.params, rows, terms=TERMS, scale=0.25, reduction=reduction
    )
    assert set(terms) == set(TERMS)
    for term in TERMS:
        assert expected[term] > 0.1
        np.testing.assert_allclose(terms[term], expected[term], rtol=2e-5)
    np.testing.assert_allclose(loss, sum(expected.values()), rtol=2e-5)


def test_searched_rows_have_no_verbalisation_loss(base, rows, gradients):
    (_, terms), _ = gradients["stage1"](base.params, pack([[rows[1]]], batch=5))
    assert terms["verbalisation"] == 0
    assert terms["source"] > 0 and terms["answer"] > 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sequence_logprobs_are_sums(base, rows, score, reduction):
    sequences = [[rows[0], rows[1]], [rows[2]], [rows[3]]]
    found = score(base.params, pack(sequences, batch=4, reduction=reduction), rows=2)
    expected = [span_logprobs(base.model, base.params, row, "verbalisation").sum() for row in rows]
    wanted = [expected[:2], [expected[2], 0], [expected[3], 0], [0, 0]]
    np.testing.assert_allclose(found, wanted, rtol=2e-5)
    assert expected[0] < -10 and expected[1] == 0


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_stage2(base, pairs, gradients, reduction):
    chosen, rejected = pairs
    arrays = pack_pairs(chosen, rejected, batch=3, reduction=reduction)
    (loss, terms), _ = gradients["stage2"](base.params, arrays)

    # Source and answer of the chosen rows only; the preference always over whole sequences.
    expected = sum_terms(
        base.model, base.params, chosen, terms=("source", "answer"), scale=0.25, reduction=reduction
    )
    ours, reference = [], arrays["reference"].T[:, :2]
    for half in (chosen, rejected):
        ours.append(
            [span_logprobs(base.model, base.params, row, "verbalisation").sum() for row in half]
        )
    margins = (ours[0] - reference[0]) - (ours[1] - reference[1])
    expected["preference"] = 0.25 * np.log1p(np.exp(-BETA * margins)).sum()
    assert set(terms) == {*expected, "preferred"}
    for term, value in expected.items():
        np.testing.assert_allclose(terms[term], value, rtol=5e-5)
    np.testing.assert_allclose(loss, sum(expected.values()), rtol=5e-5)
    assert terms["preferred"] == (margins > 0).sum()


def test_preference_at_the_reference_is_log_two(base, pairs, gradients, score):
    arrays = pack_pairs(*pairs, batch=3)
    arrays["reference"] = np.asarray(score(base.params, {k: arrays[k] for k in SCORED}, rows=2))
    (_, terms), _ = gradients["stage2"](base.params, arrays)
    np.testing.assert_allclose(terms["preference"], 2 * 0.25 * np.log(2), rtol=1e-5)
    assert terms["preferred"] == 0


def test_stage2_raises_the_chosen_and_lowers_the_rejected(base, pairs, gradients, score):
    arrays = pack_pairs(*pairs, batch=3)
    only = arrays | {"source": 0 * arrays["source"], "answer": 0 * arrays["answer"]}
    _, grads = gradients["stage2"](base.params, only)
    moved = jax.tree.map(lambda p, g: p - 1e-4 * g, base.params, grads)
    scored = {k: arrays[k] for k in SCORED}
    change = np.asarray(score(moved, scored, rows=2) - score(base.params, scored, rows=2))
    assert (change[:, 0] - change[:, 1])[:2].sum() > 1e-3


def spoil_padding(arrays):
    """Other tokens wherever no row's own token is."""
    noise = np.random.default_rng(1).integers(0, 400, arrays["tokens"].shape).astype(np.int32)
    return arrays | {"tokens": np.where(arrays["segments"] > 0, arrays["tokens"], noise)}


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_padding_contributes_nothing(base, rows, pairs, gradients, stage):
    arrays = pack(alone(rows), batch=5) if stage == "stage1" else pack_pairs(*pairs, batch=3)
    spoilt = spoil_padding(arrays)
    assert (spoilt["tokens"] != arrays["tokens"]).sum() > 100
    before, after = (gradients[stage](base.params, part) for part in (arrays, spoilt))
    np.testing.assert_array_equal(before[0][0], after[0][0])
    close_trees(after[1], before[1], rtol=1e-6)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(before[1]))


def test_microbatches_add_up_to_the_batch(base, rows, gradients):
    (loss, terms), grads = gradients["stage1"](base.params, pack(alone(rows), batch=5))
    parts = [
        gradients["stage1"](base.params, pack([part], batch=1, width=2 * WIDTH))
        for part in (rows[:2], rows[2:3], rows[3:])
    ]
    np.testing.assert_allclose(sum(part[0][0] for part in parts), loss, rtol=1e-5)
    close_trees(add_trees([part[0][1] for part in parts]), terms)
    close_trees(add_trees([part[1] for part in parts]), grads)
    assert float(jnp.abs(grads["embed"]["embedding"]).max()) > 1e-3


def test_microbatches_of_pairs_add_up_to_the_batch(base, pairs, gradients):
    whole = pack_pairs(*pairs, batch=3)
    (loss, terms), grads = gradients["stage2"](base.params, whole)
    parts = []
    for i in range(2):
        arrays = pack_pairs(pairs[0][i : i + 1], pairs[1][i : i + 1], batch=1)
        arrays["reference"] = whole["reference"][i : i + 1]
        parts.append(gradients["stage2"](base.params, arrays))
    np.testing.assert_allclose(sum(part[0][0] for part in parts), loss, rtol=1e-5)
    close_trees(add_trees([part[0][1] for part in parts]), terms)
    close_trees(add_trees([part[1] for part in parts]), grads)
