"""Votes and decisions in plain Python, and the datastore's stage on an engine of fixed scores."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rag_jax.data.questions import Question
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.files import read_json
from rag_jax.systems.srrag.config import DatastoreConfig, SRRAGConfig
from rag_jax.systems.srrag.policy import (
    Datastore,
    decide,
    read_datastore,
    run_datastore,
    scale_keys,
    vote,
)

SELF, WIKI = 0, 1

# The policy datastore.

RNG = np.random.default_rng(0)
KEYS = np.asarray(scale_keys(jnp.asarray(RNG.normal(size=(20, 32))), "cosine"))
LABELS = RNG.integers(0, 2, 20).astype(np.int32)
DATASTORE = Datastore(jnp.asarray(KEYS), jnp.asarray(LABELS))


def vote_slowly(query, *, itself, k, num_sources):
    """Shares of the labels among the k entries with the largest cosine, one at a time."""
    cosines = [np.dot(query, key) / np.linalg.norm(query) / np.linalg.norm(key) for key in KEYS]
    order = sorted((i for i in range(len(KEYS)) if i != itself), key=lambda i: -cosines[i])
    return [np.mean([LABELS[i] == s for i in order[:k]]) for s in range(num_sources)]


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1, 7]), st.floats(1e-3, 1e3))
def test_votes(seed, k, size):
    rng = np.random.default_rng(seed)
    itself = rng.integers(-1, 20, 5)
    # Beside others the entries themselves, which are their own nearest neighbours.
    queries = np.where(itself[:, None] < 0, rng.normal(size=(5, 32)), KEYS[itself]) * size
    found = vote(
        DATASTORE, jnp.asarray(queries, jnp.float32), jnp.asarray(itself), k=k, num_sources=2
    )
    expected = [
        vote_slowly(query, itself=i, k=k, num_sources=2)
        for query, i in zip(queries, itself, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_where_there_are_fewer_entries_than_voters_all_others_vote(size):
    few = Datastore(DATASTORE.keys[:size], DATASTORE.labels[:size])
    for k in (size, size + 3):
        shares = vote(few, jnp.asarray(KEYS[:2]), jnp.asarray([0, -1]), k=k, num_sources=2)
        for share, voters in zip(shares, (LABELS[1:size], LABELS[:size]), strict=True):
            wanted = [np.mean(voters == s) for s in range(2)] if len(voters) else [0.5, 0.5]
            np.testing.assert_allclose(share, wanted, rtol=1e-6)


def test_an_entry_does_not_vote_on_itself():
    queries = jnp.asarray(KEYS[:4])
    own, others = (
        np.asarray(vote(DATASTORE, queries, jnp.asarray(i), k=1, num_sources=2))
        for i in (np.full(4, -1), np.arange(4))
    )
    assert own.argmax(axis=1).tolist() == LABELS[:4].tolist()
    expected = [vote_slowly(KEYS[i], itself=i, k=1, num_sources=2) for i in range(4)]
    assert others.tolist() == expected != own.tolist()


def test_a_source_nobody_prefers_has_no_votes():
    found = vote(DATASTORE, jnp.asarray(KEYS[:4]), jnp.full(4, -1), k=20, num_sources=3)
    shares = np.bincount(LABELS, minlength=3) / 20
    np.testing.assert_allclose(found, np.tile(shares, (4, 1)), rtol=1e-6)


def test_keys_have_length_one():
    states = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-3, 0.0]], jnp.bfloat16)
    keys = scale_keys(states, "cosine")
    assert keys.dtype == jnp.float32
    np.testing.assert_allclose(keys, [[0.6, 0.8], [0, 0], [1, 0]], atol=1e-6)
    np.testing.assert_array_equal(scale_keys(states, "dot"), states.astype(jnp.float32))


def test_dot_products_favour_long_keys():
    keys = jnp.asarray([[1.0, 0.0], [5.0, 5.0]])
    query, nobody = jnp.asarray([[1.0, 0.1]]), jnp.asarray([-1])
    for metric, nearest in (("cosine", 0), ("dot", 1)):
        datastore = Datastore(scale_keys(keys, metric), jnp.asarray([0, 1]), metric)
        found = vote(datastore, query, nobody, k=1, num_sources=2)
        assert found.tolist() == [[1 - nearest, nearest]]


def test_a_datastore_of_one_label():
    """Its votes are all for that source; the model's own probabilities still differ."""
    one = Datastore(jnp.asarray(KEYS), jnp.zeros(20, jnp.int32))
    votes = np.asarray(vote(one, jnp.asarray(KEYS[:3]), jnp.full(3, -1), k=5, num_sources=2))
    assert votes.tolist() == [[1, 0]] * 3
    probabilities = np.asarray([[0.1, 0.9], [0.5, 0.5], [0.9, 0.1]])
    kinds = ["verbalise", "search"]
    for decision in ("threshold", "argmax_product"):
        assert decide(probabilities, votes, kinds, tau=0.2, decision=decision).tolist() == [0] * 3
        swapped = decide(probabilities, votes, kinds[::-1], tau=0.2, decision=decision)
        assert swapped.tolist() == ([1, 0, 0] if decision == "threshold" else [0] * 3)


# The datastore's stage.

QUESTIONS = [Question(f"q{i}", f"Question {i}?", (f"answer {i}",), {}) for i in range(5)]
SCORES = np.asarray([[-1, -2], [-3, -2], [-9, -1], [-4, -4], [-5, -6]], np.float32)
STATES = RNG.normal(size=(5, 8)).astype(np.float32)


class FixedEngine:
    """An engine that gives `SCORES` and `STATES`; the index has no passage for question 2."""

    batch_size = 2

    def route(self, questions):
        rows = [int(question.split()[1][:-1]) for question in questions]
        padded = np.resize(rows, self.batch_size)  # a batch has rows that are padding
        return SimpleNamespace(key=jnp.asarray(STATES[padded]), rows=rows)

    def gather_knowledge(self, routed, rows, source, questions):
        numbers = [routed.rows[row] for row in rows]
        found = [not (source == WIKI and number == 2) for number in numbers]
        return SimpleNamespace(source=source, numbers=numbers, found=found)

    def score_answers(self, knowledge, answers):
        assert answers == [f"answer {number}" for number in knowledge.numbers]
        return SCORES[knowledge.numbers, knowledge.source]


def fill_datastore(folder, *, questions=QUESTIONS, metric="dot"):
    """Runs the stage without a session; gives the path of the datastore."""
    stage = Stage("datastore", lambda context: None, needs=("stage2",))
    context, opened = StageContext(stage, folder), []
    context.folder.mkdir()

    def open_engine(context, params):
        opened.append(params)
        return FixedEngine()

    run_datastore(
        context,
        train_questions=questions,
        sources=SRRAGConfig().sources,
        open_engine=open_engine,
        datastore=DatastoreConfig(metric=metric),
    )
    assert opened == [folder / "stage2" / "params"]
    return context.folder / "datastore.npz"


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_the_datastore_of_a_run(tmp_path, metric):
    path = fill_datastore(tmp_path, metric=metric)
    with np.load(path, allow_pickle=False) as stored:
        assert stored["id"].tolist() == [question.id for question in QUESTIONS]
        # Without a passage a source is never the better one; of two equal ones it is the first.
        assert stored["source"].tolist() == [SELF, WIKI, SELF, SELF, SELF]
        expected = SCORES.copy()
        expected[2, WIKI] = np.finfo(np.float32).min
        np.testing.assert_array_equal(stored["scores"], expected)
        lengths = np.linalg.norm(STATES, axis=1, keepdims=True) if metric == "cosine" else 1
        np.testing.assert_allclose(stored["key"], STATES / lengths, rtol=1e-6)
        keys = stored["key"]
    statistics = read_json(tmp_path / "datastore" / "statistics.json")
    assert statistics == {"n": 5, "share": {"Self": 0.8, "Wiki": 0.2}}

    datastore = read_datastore(path, DatastoreConfig(metric=metric))
    assert datastore.metric == metric
    np.testing.assert_array_equal(datastore.keys, keys)
    assert datastore.labels.tolist() == [SELF, WIKI, SELF, SELF, SELF]


def test_one_label_is_told(tmp_path, capsys):
    fill_datastore(tmp_path)
    assert "works better" not in capsys.readouterr().err
    folder = tmp_path / "one"
    folder.mkdir()
    fill_datastore(folder, questions=QUESTIONS[2:])
    message = "stage datastore: Self works better for every training question; the vote does not"
    assert message in capsys.readouterr().err


# The decision.


def decide_slowly(probabilities, votes, kinds, tau):
    """The best searched source if all of them are above the threshold, or else the model itself."""
    searched = [s for s, kind in enumerate(kinds) if kind == "search"]
    own = kinds.index("verbalise")
    mass = sum(probabilities[s] for s in searched) * sum(votes[s] for s in searched)
    if mass > (probabilities[own] * votes[own] if tau is None else tau):
        return max(searched, key=lambda s: probabilities[s] * votes[s])
    return own


@pytest.mark.parametrize(
    ("wiki", "share", "tau", "source"),
    [
        (0.146, 9 / 30, 0.1, SELF),  # the paper's figure 9: 0.0438
        (0.576, 24 / 30, 0.1, WIKI),  # figure 10 as its text has it
        (0.576, 6 / 30, 0.1, WIKI),  # with the votes the other way round
        (0.576, 6 / 30, 0.2, SELF),
        (0.5, 0.5, 0.25, SELF),  # above, not at, the threshold
        (1.0, 1.0, 1.0, SELF),
        (0.01, 0.1, 0.0, WIKI),
        (1.0, 0.0, 0.0, SELF),
        (0.0, 1.0, 0.0, SELF),
    ],
)
def test_decisions_worked_by_hand(wiki, share, tau, source):
    arrays = [np.asarray([[1 - p, p]]) for p in (wiki, share)]
    assert decide(*arrays, ["verbalise", "search"], tau=tau).tolist() == [source]
    swapped = [array[:, ::-1] for array in arrays]
    assert decide(*swapped, ["search", "verbalise"], tau=tau).tolist() == [1 - source]


KINDS = st.integers(0, 3).flatmap(
    lambda own: st.integers(max(1, own), 3).map(
        lambda n: ["search"] * own + ["verbalise"] + ["search"] * (n - own)
    )
)
# Sums and products of sixteenths are exact.
SHARES = st.integers(0, 16).map(lambda n: n / 16)


@given(KINDS, st.integers(1, 5), SHARES, st.data())
def test_decisions(kinds, rows, tau, data):
    shares = hnp.arrays(np.float64, (rows, len(kinds)), elements=SHARES)
    probabilities, votes = data.draw(shares), data.draw(shares)
    for decision, threshold in (("threshold", tau), ("argmax_product", None)):
        found = decide(probabilities, votes, kinds, tau=tau, decision=decision)
        pairs = zip(probabilities, votes, strict=True)
        assert found.tolist() == [decide_slowly(p, v, kinds, threshold) for p, v in pairs]
        alone = decide(probabilities, None, kinds, tau=tau, decision=decision)
        certain = [float(kind == "verbalise") for kind in kinds]
        certain = [c or 1 / (len(kinds) - 1) for c in certain]  # sums to one over the indexes
        pairs = ((p, certain) for p in probabilities)
        expected = [decide_slowly(p, v, kinds, threshold) for p, v in pairs]
        if len(kinds) != 4:  # thirds are not exact
            assert alone.tolist() == expected


@given(st.integers(0, 16), st.integers(0, 16), SHARES, SHARES, SHARES)
def test_one_index_is_decided_by_its_product(wiki, share, tau, other, third):
    """The paper's rule for two sources, to the bit."""
    probabilities, votes = (np.asarray([[1 - n / 16, n / 16]]) for n in (wiki, share))
    product = probabilities * votes
    kinds = ["verbalise", "search"]
    found = decide(probabilities, votes, kinds, tau=tau)
    assert found.tolist() == [int(product[0, 1] > tau)]
    largest = decide(probabilities, votes, kinds, decision="argmax_product")
    assert largest.tolist() == product.argmax(axis=1).tolist()


@given(KINDS, SHARES, st.sampled_from(["threshold", "argmax_product"]), st.data())
def test_splitting_an_index_does_not_change_the_decision(kinds, tau, decision, data):
    """An index in two parts, with its probability and its votes divided among them anyhow."""
    shares = hnp.arrays(np.float64, (4, len(kinds)), elements=SHARES)
    probabilities, votes = data.draw(shares), data.draw(shares)
    split = data.draw(st.sampled_from([i for i, kind in enumerate(kinds) if kind == "search"]))

    def divide(values):
        part = data.draw(hnp.arrays(np.float64, 4, elements=SHARES))
        first, second = values[:, split] * part, values[:, split] * (1 - part)
        return np.column_stack([values[:, :split], first, second, values[:, split + 1 :]])

    rule = {"tau": tau, "decision": decision}
    more = [*kinds[:split], "search", *kinds[split:]]
    before = decide(probabilities, votes, kinds, **rule)
    after = decide(divide(probabilities), divide(votes), more, **rule)
    own, now = (k.index("verbalise") for k in (kinds, more))
    assert ((before == own) == (after == now)).all()


def test_a_split_index_that_the_largest_product_alone_would_not_search():
    """0.56 is above the threshold, a quarter of it is not."""
    halves = np.asarray([[0.2, 0.4, 0.4]]), np.asarray([[0.3, 0.35, 0.35]])
    kinds = ["verbalise", "search", "search"]
    assert decide(*halves, kinds, tau=0.2).tolist() == [WIKI]
    assert decide(*halves, kinds, decision="argmax_product").tolist() == [WIKI]


def test_figure_10_by_the_largest_product():
    """0.576 and 0.424 with the votes as its neighbours have them: 0.115 against 0.339."""
    arrays = (np.asarray([[0.424, 0.576]]), np.asarray([[0.8, 0.2]]))
    kinds = ["verbalise", "search"]
    assert decide(*arrays, kinds, tau=0.1, decision="argmax_product").tolist() == [SELF]
