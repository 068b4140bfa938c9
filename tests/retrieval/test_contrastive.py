"""Chunked gradients against gradients of the whole batch, and what goes into a batch."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax.config import ContrastiveConfig, MeshConfig
from rag_jax.losses import in_batch_contrastive
from rag_jax.models import load
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import contrastive, embed
from rag_jax.retrieval.contrastive import (
    Encoders,
    Pair,
    PairBatches,
    choose_chunk,
    embed_in_chunks,
    fit_encoders,
    make_loss,
)
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.sharding import make_mesh
from rag_jax.training import fit

GOLDEN = Path(__file__).parents[1] / "golden"
SETTINGS = ContrastiveConfig(batch_size=4, negatives=2, epochs=3, microbatch_tokens=32)


@pytest.fixture(autouse=True)
def quick():
    """Programs that run a few times only are left unoptimised."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def make_pairs(count=10, corpus=20, negatives=3):
    rng = np.random.default_rng(0)
    pairs = []
    for i in range(count):
        positive, other, *wrong = rng.permutation(corpus)[: 2 + negatives].tolist()
        pairs.append(Pair(f"q{i}", i, positive, tuple(wrong), frozenset({positive, other})))
    return pairs


def make_batches(settings=SETTINGS, pairs=None, corpus=20):
    rng = np.random.default_rng(1)
    rows = lambda n, longest: [  # noqa: E731
        rng.integers(5, 90, rng.integers(2, longest + 1)).tolist() for _ in range(n)
    ]
    pairs = make_pairs(corpus=corpus) if pairs is None else pairs
    return PairBatches(pairs, rows(10, 7), dict(enumerate(rows(corpus, 15))), settings, seed=3)


@pytest.fixture(scope="module")
def bert():
    return load(GOLDEN / "bert")


@pytest.fixture(scope="module")
def two():
    return Encoders(load(GOLDEN / "dpr_question"), load(GOLDEN / "dpr_context"), shared=False)


def batch_at(batches, step):
    """The arrays of a step, and its pairs' ids."""
    chosen = batches.plan.examples_at(step)
    return batches.pack(step, chosen), [batches.pairs[number].id for number in chosen]


def flatten(tree):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


# Some rows at a time, or all at once.
@pytest.mark.parametrize(("kind", "budgets"), [("shared", (32, 10_000)), ("two", (32,))])
def test_chunks_give_the_gradient_of_the_whole(kind, budgets, bert, two):
    encoders = Encoders(bert, bert, shared=True) if kind == "shared" else two
    if kind == "two":  # embeddings of one size
        encoders = replace(two, passage=replace(two.question))
    arrays, _ = batch_at(make_batches(), 0)
    params = encoders.params()

    def of_whole(params):
        def read(side, model):
            tree = params.get("shared", params.get(side))
            mask = np.arange(arrays[side].shape[1])[None] < arrays[f"{side}_lengths"][:, None]
            return embed(model, tree, arrays[side], mask)

        values = in_batch_contrastive(
            read("question", encoders.question.model),
            read("passage", encoders.passage.model),
            jnp.asarray(arrays["positives"]),
            masked=jnp.asarray(arrays["masked"]),
            scale=SETTINGS.scale,
        )
        return (values * arrays["weights"]).sum()

    wanted, wanted_gradient = jax.jit(jax.value_and_grad(of_whole))(params)
    for budget in budgets:
        loss = make_loss(encoders, replace(SETTINGS, microbatch_tokens=budget))
        (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, None, arrays)
        assert abs(value - wanted) <= 1e-5 * abs(wanted)
        gradient, flat = flatten(gradient), flatten(wanted_gradient)
        assert gradient.keys() == flat.keys()
        # Some gradients are zero but for rounding, as those of the keys' biases.
        size = max(float(jnp.abs(leaf).max()) for leaf in flat.values())
        for name, leaf in gradient.items():
            np.testing.assert_allclose(leaf, flat[name], atol=2e-6 * size, rtol=1e-4, err_msg=name)


def test_memory_is_bounded_by_the_chunk(bert):
    jax.config.update("jax_disable_most_optimizations", False)
    tokens, lengths = np.ones((64, 24), np.int32), np.full(64, 24, np.int32)

    def measure(rows):
        def total(params):
            return embed_in_chunks(bert.model, params, tokens, lengths, rows=rows).sum()

        compiled = jax.jit(jax.grad(total)).lower(bert.params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, half, eighth = (measure(rows) for rows in (64, 32, 8))
    assert half < 0.75 * whole
    assert eighth < 0.25 * whole


@pytest.mark.parametrize(
    ("batch", "width", "budget", "rows"),
    [(64, 32, 1024, 32), (64, 32, 5000, 64), (64, 32, 31, 1), (12, 10, 55, 4), (7, 10, 60, 1)],
)
def test_chunks_divide_the_batch(batch, width, budget, rows):
    assert choose_chunk(batch, width, budget=budget) == rows


def test_batches():
    batches = make_batches()
    assert batches.plan.num_steps_per_epoch == 3  # ten pairs in batches of four
    seen, shapes, drawn = [], set(), set()
    for step in range(9):
        arrays, ids = batch_at(batches, step)
        shapes.add(tuple((name, array.shape, str(array.dtype)) for name, array in arrays.items()))
        seen += ids
        assert arrays["weights"].sum() == pytest.approx(1)
        assert (arrays["weights"] > 0).sum() == len(ids)
        again, _ = batch_at(batches, step)
        jax.tree.map(np.testing.assert_array_equal, arrays, again)
        read = [
            tuple(row[:length])
            for row, length in zip(arrays["passage"], arrays["passage_lengths"], strict=True)
        ]
        columns = [[r for r, p in batches.passages.items() if tuple(p) == row] for row in read]
        for i, id in enumerate(ids):
            pair = next(p for p in batches.pairs if p.id == id)
            question = arrays["question"][i, : arrays["question_lengths"][i]]
            assert question.tolist() == batches.questions[pair.question]
            assert arrays["positives"][i] == 3 * i
            own, *wrong = (c[0] for c in columns[3 * i : 3 * i + 3])
            assert own == pair.positive and set(wrong) < set(pair.negatives)
            drawn.add((id, *sorted(wrong)))
            for j, rows in enumerate(columns):
                known = rows and rows[0] in pair.relevant
                assert arrays["masked"][i, j] == bool(known or j >= 3 * len(ids))
    assert len(shapes) == 1
    assert sorted(seen) == sorted(pair.id for pair in batches.pairs for _ in range(3))
    assert len(drawn) > len(batches.pairs)  # other negatives in other epochs


def test_a_question_without_enough_negatives():
    pairs = [Pair("a", 0, 4, (7,), frozenset({4})), Pair("b", 1, 5, (), frozenset({5}))]
    arrays, ids = batch_at(make_batches(pairs=pairs), 0)
    masked = arrays["masked"][ids.index("a")]
    a, b = 3 * ids.index("a"), 3 * ids.index("b")
    assert sorted(np.flatnonzero(~masked)) == sorted([a + 1, b])
    assert (arrays["passage_lengths"] >= 1).all()


def run_training(folder, encoders, batches):
    stage = StageContext(Stage("train", lambda context: None), folder)
    stage.folder.mkdir(parents=True, exist_ok=True)
    mesh, trained = make_mesh(MeshConfig()), []
    fit_encoders(encoders, batches, mesh, stage.folder, stage.progress, save=trained.append)
    (encoders,) = trained
    return encoders


@pytest.mark.parametrize("shared", [True, False])
def test_training_tells_passages_apart(tmp_path, bert, shared):
    settings = replace(SETTINGS, epochs=5, learning_rate=0.01, checkpoint_every=20)
    batches = make_batches(settings)
    before = Encoders(bert, bert, shared=shared)
    after = run_training(tmp_path, before, batches)
    assert (after.question.params is after.passage.params) == shared
    losses = []
    for encoders in (before, after):
        loss = jax.jit(make_loss(encoders, settings))
        arrays = (batch_at(batches, step)[0] for step in range(3))
        losses.append(np.mean([loss(encoders.params(), None, a)[0] for a in arrays]))
    assert losses[1] < 0.8 * losses[0]


def share(make):
    """A function that gives at every call what `make` gave at the first."""
    made = []
    return lambda *arguments, **options: (
        made[0] if made else made.append(make(*arguments, **options)) or made[0]
    )


def test_interrupted_training_ends_with_the_same_bits(tmp_path, bert, monkeypatch):
    settings = replace(SETTINGS, checkpoint_every=2)
    encoders = Encoders(bert, bert, shared=True)
    # All runs share their programs.
    for module, name in ((contrastive, "make_loss"), (fit, "make_optimizer")):
        monkeypatch.setattr(module, name, share(getattr(module, name)))
    wanted = run_training(tmp_path / "straight", encoders, make_batches(settings))
    steps = [line["step"] for line in read_jsonl(tmp_path / "straight" / "train" / "log.jsonl")]
    assert steps == list(range(9))  # ten pairs in batches of four, three times
    pack = PairBatches.pack

    def stop(self, step, chosen):
        if step == 5:
            raise KeyboardInterrupt
        return pack(self, step, chosen)

    with monkeypatch.context() as patch:
        patch.setattr(PairBatches, "pack", stop)
        with pytest.raises(KeyboardInterrupt):
            run_training(tmp_path / "stopped", encoders, make_batches(settings))
    found = run_training(tmp_path / "stopped", encoders, make_batches(settings))
    jax.tree.map(np.testing.assert_array_equal, found.params(), wanted.params())
