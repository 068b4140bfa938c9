"""Retrieval as a hook of training: which passages each step reads, and found by which encoder."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from rag_jax.data.batches import BatchPlan
from rag_jax.data.passages import Passage
from rag_jax.models import load
from rag_jax.retrieval import Index, encode_texts, list_texts
from rag_jax.retrieval.texts import tokenize_texts
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems.rag.lookup import WINDOW, Lookup, load_refreshed

PLACES = ("Riga", "Lyon", "Gitega", "Oslo", "Paris", "Bern", "Quito")
PASSAGES = [Passage(place, place, f"{place} is a town.") for place in PLACES]
QUESTIONS = [f"Where is {place}?" for place in PLACES[:6]]
PLAN = BatchPlan([0] * len(QUESTIONS), batch_size=2, seed=0)
STEPS = 6  # two epochs


@pytest.fixture(scope="module")
def encoder(bert_folder):
    return load(bert_folder)


def encode_passages(encoder, passages):
    return encode_texts(encoder, list_texts(passages), max_length=24)


@pytest.fixture
def make_lookup(encoder, tmp_path):
    def make(**changes):
        settings = {
            "folder": tmp_path,
            "encoder": encoder,
            "passages": PASSAGES,
            "index": Index.build(
                encode_passages(encoder, PASSAGES), backend="exact", encoder="before training"
            ),
            "plan": PLAN,
            "queries": tokenize_texts(encoder, QUESTIONS, 24),
            "count": 2,
            "total_steps": STEPS,
            "joint": True,
            "refresh_every": 0,
            "encode_passages": encode_passages,
        }
        settings |= changes
        settings["folder"].mkdir(exist_ok=True)
        return Lookup(**settings)

    return make


@pytest.fixture(scope="module")
def params(encoder):
    """The question encoder's parameters before each step, and after the last."""

    def change(leaf, rng, step):
        return leaf + np.float32(0.3 * step) * rng.normal(size=leaf.shape).astype(np.float32)

    rngs = map(np.random.default_rng, range(STEPS + 1))
    return [
        jax.tree.map(lambda leaf, rng=rng, step=step: change(leaf, rng, step), encoder.params)
        for step, rng in enumerate(rngs)
    ]


def train(lookup, params, steps=range(STEPS)):
    """Calls the hook as the training loop does; gives what each step reads."""
    read = []
    for step in steps:
        read.append(lookup.find(step))
        lookup.before(step, {"query": params[step]})
        metrics = lookup.after(step, {"query": params[step + 1]})
        assert metrics == {"retrieved_entropy": lookup.measure_entropy(step)}
    return read


def find_nearest(encoder, step, query, passage):
    """The two passages nearest to each question of a step, by parameters for either side."""
    questions = [QUESTIONS[i] for i in PLAN.examples_at(step)]
    queries = encode_texts(replace(encoder, params=query), questions, max_length=24)
    embeddings = encode_passages(replace(encoder, params=passage), PASSAGES)
    rows = np.argsort(-queries @ embeddings.T, axis=1)[:, :2]
    return rows, embeddings[rows]


def check(read, encoder, params, asked, indexed):
    """Compares what each step reads with a search by the encoders of the steps `asked`."""
    assert len(read) == STEPS
    for step, (rows, embeddings) in enumerate(read):
        wanted = find_nearest(encoder, step, params[asked[step]], params[indexed[step]])
        np.testing.assert_array_equal(rows, wanted[0])
        np.testing.assert_allclose(embeddings, wanted[1], atol=1e-5)


def test_passages_are_found_by_the_encoder_of_the_step_before(make_lookup, encoder, params):
    read = train(make_lookup(), params)
    check(read, encoder, params, asked=[0, 0, 1, 2, 3, 4], indexed=[0] * STEPS)


def test_a_frozen_encoder_finds_the_passages_itself(make_lookup, encoder, params, tmp_path):
    read = train(make_lookup(joint=False), params)
    check(read, encoder, params, asked=[0] * STEPS, indexed=[0] * STEPS)
    assert not list(tmp_path.glob("passages-*"))


def test_a_refreshed_index_holds_from_its_step_on(make_lookup, encoder, params, tmp_path):
    """Questions of a step that begins with a new index are embedded by the same parameters."""
    read = train(make_lookup(refresh_every=2), params)
    check(read, encoder, params, asked=[0, 0, 2, 2, 4, 4], indexed=[0, 0, 2, 2, 4, 4])
    names = sorted(path.name for path in tmp_path.glob("passages-*"))
    assert names == ["passages-2.npy", "passages-4.npy", "passages-6.npy"]
    last = np.load(tmp_path / "passages-6.npy")
    wanted = encode_passages(replace(encoder, params=params[STEPS]), PASSAGES)
    np.testing.assert_allclose(last, wanted, atol=1e-5)


@pytest.mark.parametrize("stopped_after", [2, 3])
def test_continuing_reads_the_same_passages(make_lookup, params, tmp_path, stopped_after):
    whole = train(make_lookup(folder=tmp_path / "whole", refresh_every=2), params)
    settings = {"folder": tmp_path / "stopped", "refresh_every": 2}
    first = train(make_lookup(**settings), params, range(stopped_after))
    # The last checkpoint may be older than the last line.
    last = train(make_lookup(**settings), params, range(stopped_after - 1, STEPS))
    for ours, theirs in zip([*first[:-1], *last], whole, strict=True):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
    lines = read_jsonl(tmp_path / "stopped" / "found.jsonl")
    assert lines == read_jsonl(tmp_path / "whole" / "found.jsonl")
    assert [line["step"] for line in lines] == list(range(STEPS))


def test_a_step_whose_passages_are_not_written_down(make_lookup, tmp_path):
    with pytest.raises(RagJaxError, match="found.jsonl has no line for step 3: delete .* to train"):
        make_lookup().find(3)


def test_the_entropy_is_that_of_the_last_steps(make_lookup):
    lookup = make_lookup()
    lookup._rows = {step: [[0, 1], [0, 1]] for step in range(WINDOW)}
    for step in range(WINDOW, 2 * WINDOW):
        lookup._rows[step] = [[4 * step + i, 4 * step + i + 1] for i in (0, 2)]
    count = 4 * WINDOW
    assert lookup.measure_entropy(WINDOW - 1) == pytest.approx(np.log(2) / np.log(count))
    assert lookup.measure_entropy(2 * WINDOW - 1) == pytest.approx(1)


def test_a_collapse_is_reported_once(make_lookup, capsys):
    lookup = make_lookup()
    for step in range(WINDOW):
        lookup._warn_of_collapse(0.9, step)
    for entropy in (0.8, 0.5, 0.44, 0.3):
        lookup._warn_of_collapse(entropy, WINDOW)
    (line,) = capsys.readouterr().err.splitlines()
    assert "entropy is 0.44 of its largest value, at first 0.90" in line


def test_a_refreshed_index_is_kept_as_the_first_one(tmp_path):
    vectors = np.eye(3, dtype=np.float32)
    np.save(tmp_path / "passages-4.npy", vectors)
    first = Index.build(vectors, backend="exact", encoder="e", storage="float16")
    found = load_refreshed(tmp_path, 4, first)
    assert (found.backend, found.storage, found.encoder) == ("exact", "float16", "step 4")
