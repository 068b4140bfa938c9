"""Chunked gradients against gradients of the whole batch, and what goes into a batch."""

import itertools
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import load_short_bert

from rag_jax.config import ContrastiveConfig, MeshConfig
from rag_jax.losses import in_batch_contrastive
from rag_jax.models import load
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import contrastive, embed
from rag_jax.retrieval.chunks import (
    Sample,
    choose_chunk,
    choose_chunk_widths,
    count_chunk_tokens,
    embed_in_chunks,
    order_rows,
)
from rag_jax.retrieval.contrastive import (
    Encoders,
    PairBatches,
    fit_encoders,
    make_loss,
)
from rag_jax.retrieval.pairs import Pair
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
def short():
    return load_short_bert()


@pytest.fixture(scope="module")
def two():
    return Encoders(load(GOLDEN / "dpr_question"), load(GOLDEN / "dpr_context"), shared=False)


def batch_at(batches, step):
    """The arrays of a step, and its pairs' ids."""
    chosen = batches.plan.examples_at(step)
    return batches.pack(step, chosen), [batches.pairs[number].id for number in chosen]


def list_side(arrays, side):
    return arrays[side], arrays[f"{side}_lengths"]


def flatten(tree):
    return {jax.tree_util.keystr(k): v for k, v in jax.tree_util.tree_leaves_with_path(tree)}


def read_padded(batches, step, params, encoders):
    """The loss of a batch whose rows are all padded to the longest, in the order of the pairs."""
    chosen, each = batches.plan.examples_at(step), 1 + batches.settings.negatives
    rows = batches._choose_passages(step // batches.plan.num_steps_per_epoch, chosen)
    texts = {
        "question": [batches.questions[batches.pairs[i].question] for i in chosen],
        "passage": [batches.passages[row] if row >= 0 else [0] for row in rows],
    }

    def read(side):
        width = max(map(len, texts[side]))
        tokens = np.asarray([[*row, *[0] * (width - len(row))] for row in texts[side]])
        mask = np.asarray([[i < len(row) for i in range(width)] for row in texts[side]])
        tree = params.get("shared", params.get(side))
        return embed(getattr(encoders, side).model, tree, tokens, mask)

    known = [np.isin(rows, list(batches.pairs[i].relevant)) | (rows < 0) for i in chosen]
    return in_batch_contrastive(
        read("question"),
        read("passage"),
        each * jnp.arange(len(chosen)),
        masked=jnp.asarray(known),
        scale=batches.settings.scale,
    ).mean()


# Chunks of one row or of several; batches that are full or not; layers listed or in a loop.
@pytest.mark.parametrize(
    ("kind", "budget", "step", "scans"),
    [("shared", 16, 0, False), ("shared", 32, 2, True), ("two", 32, 1, False)],
)
def test_chunks_give_the_gradient_of_the_padded_batch(kind, budget, step, scans, bert, short, two):
    one = bert if scans else short
    encoders = Encoders(one, one, shared=True) if kind == "shared" else two
    if kind == "two":  # embeddings of one size
        encoders = replace(two, passage=replace(two.question))
    settings = replace(SETTINGS, microbatch_tokens=budget, program_tokens=0, scan_layers=scans)
    batches, params = make_batches(settings), encoders.params()
    arrays, _ = batch_at(batches, step)
    wanted, wanted_gradient = jax.jit(
        jax.value_and_grad(lambda params: read_padded(batches, step, params, encoders))
    )(params)
    loss = make_loss(encoders, settings, batches.widths)
    (value, _), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, None, arrays)
    assert len(batches.widths["passage"]) > 1
    assert abs(value - wanted) <= 1e-5 * abs(wanted)
    gradient, flat = flatten(gradient), flatten(wanted_gradient)
    assert gradient.keys() == flat.keys()
    # Some gradients are zero but for rounding, as those of the keys' biases.
    size = max(float(jnp.abs(leaf).max()) for leaf in flat.values())
    for name, leaf in gradient.items():
        np.testing.assert_allclose(leaf, flat[name], atol=2e-6 * size, rtol=1e-4, err_msg=name)


def test_one_program_for_batches_of_any_lengths(short):
    encoders, settings = Encoders(short, short, shared=True), replace(SETTINGS, program_tokens=0)
    batches = make_batches(settings)
    loss = jax.jit(make_loss(encoders, settings, batches.widths))
    for step in range(6):
        loss(encoders.params(), None, batch_at(batches, step)[0])
    assert loss._cache_size() == 1


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=48),
    rows=st.integers(1, 4),
    program_tokens=st.sampled_from([0, 30, 10**6]),
)
@settings(max_examples=50)
def test_chunks_have_rows_of_similar_length(lengths, rows, program_tokens):
    lengths += [0] * (-len(lengths) % rows)
    sample = Sample([lengths], 40, rows)
    options = {"share": 1.0, "program_tokens": program_tokens}
    widths = choose_chunk_widths({"": sample}, **options)[""]
    assert list(widths) == sorted({*widths}) and widths[-1] == 40
    order = order_rows(lengths, rows)
    assert sorted(order) == list(range(len(lengths)))
    # As `embed_in_chunks` splits them: [R * C] -> [R, C], a chunk a column.
    chunks = np.asarray(lengths)[order].reshape(rows, -1).T
    assert all(a.min() >= b.max() for a, b in itertools.pairwise(chunks))
    cut = [min(width for width in widths if width >= chunk.max()) for chunk in chunks]
    assert count_chunk_tokens(lengths, rows, widths) == rows * sum(cut)


def test_more_widths_than_a_program_is_worth_where_most_is_padding():
    batch = [10] * 60 + [100] * 4
    for program_tokens, wanted in ((100, (16, 104)), (10**9, (16, 104)), (0, (16, 104))):
        options = {"share": 0.01, "program_tokens": program_tokens}
        assert choose_chunk_widths({"": Sample([batch], 104, 4)}, **options)[""] == wanted
    even = Sample([[90] * 60 + [100] * 4], 104, 4)  # here there is little padding with one
    assert choose_chunk_widths({"": even}, share=0.01, program_tokens=10**9)[""] == (104,)


def test_memory_is_bounded_by_the_chunk(short):
    jax.config.update("jax_disable_most_optimizations", False)
    tokens, lengths = np.ones((64, 24), np.int32), np.full(64, 24, np.int32)

    def measure(rows):
        def total(params):
            sizes = {"rows": rows, "widths": (24,)}
            return embed_in_chunks(short.model, params, tokens, lengths, **sizes).sum()

        compiled = jax.jit(jax.grad(total)).lower(short.params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    whole, half, eighth = (measure(rows) for rows in (64, 32, 8))
    assert half < 0.75 * whole
    assert eighth < 0.25 * whole


@pytest.mark.parametrize(
    ("batch", "width", "budget", "rows"),
    [(64, 32, 320, 8), (64, 32, 5000, 16), (64, 32, 31, 1), (12, 10, 25, 2), (7, 10, 60, 1)],
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
        again, _ = batch_at(batches, step)
        jax.tree.map(np.testing.assert_array_equal, arrays, again)
        assert (arrays["weights"] > 0).sum() == len(ids)
        texts, read = (
            [
                tuple(row[:length])
                for row, length in zip(arrays[side], arrays[f"{side}_lengths"], strict=True)
            ]
            for side in ("question", "passage")
        )
        columns = [[r for r, p in batches.passages.items() if tuple(p) == row] for row in read]
        for id in ids:
            pair = next(p for p in batches.pairs if p.id == id)
            (i,) = (
                i for i, text in enumerate(texts) if text == tuple(batches.questions[pair.question])
            )
            assert arrays["weights"][i] > 0
            assert pair.positive in columns[arrays["positives"][i]]
            drawn.add(
                (id, *sorted(row for rows in columns for row in rows[:1] if row in pair.negatives))
            )
            for j, rows in enumerate(columns):
                known = not rows or rows[0] in pair.relevant
                assert arrays["masked"][i, j] == known
    assert len(shapes) == 1
    assert sorted(seen) == sorted(pair.id for pair in batches.pairs for _ in range(3))
    assert len(drawn) > len(batches.pairs)  # other negatives in other epochs


def test_a_question_without_enough_negatives():
    pairs = [Pair("a", 0, 4, (7,), frozenset({4})), Pair("b", 1, 5, (), frozenset({5}))]
    batches = make_batches(pairs=pairs)
    arrays, _ = batch_at(batches, 0)
    asked = [row[:size].tolist() for row, size in zip(*list_side(arrays, "question"), strict=True)]
    read = [row[:size].tolist() for row, size in zip(*list_side(arrays, "passage"), strict=True)]
    a = asked.index(batches.questions[0])
    left = [read[j] for j in np.flatnonzero(~arrays["masked"][a])]
    assert sorted(left) == sorted([batches.passages[7], batches.passages[5]])
    assert read[arrays["positives"][a]] == batches.passages[4]
    assert (arrays["passage_lengths"] >= 1).all()


def run_training(folder, encoders, batches):
    stage = StageContext(Stage("train", lambda context: None), folder)
    stage.folder.mkdir(parents=True, exist_ok=True)
    mesh, trained = make_mesh(MeshConfig()), []
    fit_encoders(encoders, batches, mesh, stage.folder, stage.progress, save=trained.append)
    (encoders,) = trained
    return encoders


@pytest.mark.parametrize("shared", [True, False])
def test_training_tells_passages_apart(tmp_path, short, shared):
    settings = replace(SETTINGS, epochs=5, learning_rate=0.01, checkpoint_every=20)
    batches = make_batches(settings)
    before = Encoders(short, short, shared=shared)
    after = run_training(tmp_path, before, batches)
    assert (after.question.params is after.passage.params) == shared
    losses, loss = [], jax.jit(make_loss(before, settings, batches.widths))
    for encoders in (before, after):
        arrays = (batch_at(batches, step)[0] for step in range(3))
        losses.append(np.mean([loss(encoders.params(), None, a)[0] for a in arrays]))
    assert losses[1] < 0.8 * losses[0]


def share(make):
    """A function that gives at every call what `make` gave at the first."""
    made = []
    return lambda *arguments, **options: (
        made[0] if made else made.append(make(*arguments, **options)) or made[0]
    )


def test_interrupted_training_ends_with_the_same_bits(tmp_path, short, monkeypatch):
    settings = replace(SETTINGS, checkpoint_every=2)
    encoders = Encoders(short, short, shared=True)
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
