"""Lengths of texts: what is drawn, and files that hold none."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.planning.lengths import DEFAULT, Lengths, read_lengths
from rag_jax.runtime.errors import RagJaxError

KINDS = [field.name for field in dataclasses.fields(Lengths)]


def give_all(quantiles):
    return {kind: quantiles for kind in KINDS}


def test_what_is_drawn_has_the_quantiles():
    lengths = read_lengths()
    for kind in KINDS:
        quantiles = getattr(lengths, kind)
        drawn = lengths.draw(kind, 20_000, np.random.default_rng(0))
        assert drawn.min() >= quantiles[0] and drawn.max() <= quantiles[-1]
        assert np.median(drawn) == pytest.approx(np.median(quantiles), abs=1)
    again = lengths.draw("text", 50, np.random.default_rng(3))
    assert again.tolist() == lengths.draw("text", 50, np.random.default_rng(3)).tolist()


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([1, 2], "holds no lengths of texts: write"),
        ({}, "tokens.question is missing; the kinds are question, answer"),
        (give_all([1]), "tokens.question: must be a list of at least two numbers"),
        (give_all([0, 5]), "tokens.question: must be a list .* from 1 to a million"),
        (give_all([1, True]), "tokens.question: must be a list"),
        (give_all([5, 3]), "tokens.question: must be ascending"),
    ],
)
def test_a_file_that_holds_no_lengths(tmp_path, tokens, message):
    (tmp_path / "lengths.json").write_text(json.dumps({"tokens": tokens}))
    with pytest.raises(RagJaxError, match=message) as found:
        read_lengths(tmp_path / "lengths.json")
    assert str(found.value).startswith(str(tmp_path)) and "\n" not in str(found.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(RagJaxError, match="lengths.json is missing"):
        read_lengths(tmp_path / "lengths.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KINDS), inner),
    max_leaves=8,
)


@settings(deadline=None, max_examples=10)
@given(VALUES)
def test_wild_files_are_refused(tmp_path_factory, tokens):
    path = tmp_path_factory.mktemp("wild") / "lengths.json"
    whole = json.loads(DEFAULT.read_text("utf-8"))["tokens"]
    for content in (tokens, {"tokens": tokens}, {"tokens": {**whole, "text": tokens}}):
        path.write_text(json.dumps(content))
        with pytest.raises(RagJaxError):
            read_lengths(path)
