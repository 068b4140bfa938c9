"""Documents of the untrained model: their prompts' shared prefix, cleaning, and clusters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.decoding.prompts import split_prefix
from rag_jax.systems.srrag.verbalise import clean_document, is_document, pick_demonstrations

PROMPTS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=6)


# Prompts.


@given(PROMPTS)
def test_split_prompts_are_the_prompts(prompts):
    prefix, rests = split_prefix(prompts)
    assert [prefix + rest for rest in rests] == prompts
    assert min(map(len, rests)) >= 1
    # No longer prefix would do.
    assert min(map(len, rests)) == 1 or len({rest[0] for rest in rests}) > 1


@pytest.mark.parametrize(
    ("prompts", "prefix"),
    [
        ([[1, 2, 3]], [1, 2]),
        ([[1, 2, 3], [1, 2, 3]], [1, 2]),
        ([[1, 2, 3], [1, 2]], [1]),
        ([[1, 2, 3], [1, 3, 3], [1, 2, 4]], [1]),
        ([[1, 2], [2, 2]], []),
        ([[7]], []),
        ([(1, 2), (1, 3)], [1]),
    ],
)
def test_prefixes(prompts, prefix):
    assert split_prefix(prompts)[0] == prefix


# Documents.


@pytest.mark.parametrize(
    ("text", "finished", "document"),
    [
        ("  Lyon\n\n is\tin France. \n", True, "Lyon is in France."),
        ("Lyon is in France. It has", True, "Lyon is in France. It has"),
        ("Lyon is in France.\nIt has", False, "Lyon is in France."),
        ("Where? There! It has 3.5", False, "Where? There!"),
        ("Lyon is in", False, "Lyon is in"),
        ("", False, ""),
    ],
)
def test_cleaned_documents(text, finished, document):
    assert clean_document(text, finished=finished) == document


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("Lyon is a city in France.", True),
        ("Documentary films answered questionable questions.", True),
        ("The answer is Lyon.", False),
        ("You asked this question: where is Lyon?", False),
        ("Here is the DOCUMENT: Lyon.", False),
    ],
)
def test_documents_do_not_talk_about_the_question(text, good):
    assert is_document(text) == good


# Clusters.


def make_groups(sizes, seed=0):
    """Points around well-separated centres, shuffled, and the group of each."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 10 * np.eye(len(sizes), 8)
    return (centres[groups] + 0.1 * rng.normal(size=(len(groups), 8))).astype(np.float32), groups


def test_demonstrations_come_from_one_cluster_each():
    embeddings, groups = make_groups([9, 5, 2])
    drawn = pick_demonstrations(embeddings, clusters=3, count=4, seed=0)
    # A cluster smaller than the count gives all it has.
    assert sorted((len(rows), len({groups[i] for i in rows})) for rows in drawn) == [
        (2, 1),
        (4, 1),
        (4, 1),
    ]
    assert {groups[rows[0]] for rows in drawn} == {0, 1, 2}
    assert all(len(set(rows)) == len(rows) for rows in drawn)
    assert drawn == pick_demonstrations(embeddings, clusters=3, count=4, seed=0)


def test_another_seed_draws_other_demonstrations():
    embeddings, _ = make_groups([20, 20])
    draws = [pick_demonstrations(embeddings, clusters=2, count=5, seed=s) for s in range(3)]
    assert len({str(sorted(map(sorted, drawn))) for drawn in draws}) == 3
