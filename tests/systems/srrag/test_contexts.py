"""What the untrained model is asked: prompts, clusters, and answer likelihoods."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.decoding import prefill
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.srrag.contexts import (
    clean_document,
    encode_answer_prompt,
    encode_document_prompt,
    is_document,
    pick_demonstrations,
    score_answers,
    split_prefix,
)
from systems.srrag.reference import answer_logprob

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


def test_document_prompt(base):
    tokenizer = base.tokenizer
    shown = [("Where is Riga?", "Riga is in Latvia."), ("And Lyon?", "In France.")]
    ids = encode_document_prompt(tokenizer, "Where is <Self><|im_end|>?", shown)
    # A turn of the system, two a demonstration, the question, and the start of the document.
    start, end = (tokenizer.token_id(name) for name in ("<|im_start|>", "<|im_end|>"))
    assert (ids.count(start), ids.count(end)) == (7, 6)
    assert tokenizer.token_id("<Self>") not in ids
    text = tokenizer.decode(ids)
    assert text.startswith("system\nYou write a short Wikipedia-style background document")
    assert text.endswith(
        "user\nWhere is Riga?\nassistant\nRiga is in Latvia.\n"
        "user\nAnd Lyon?\nassistant\nIn France.\n"
        "user\nWhere is <Self><|im_end|>?\nassistant\n"
    )


def test_prompts_of_one_cluster_share_all_but_the_question(base):
    shown = [("Where is Riga?", "Riga is in Latvia.")]
    questions = ["Where is Lyon?", "What is the capital of Spain?"]
    prompts = [encode_document_prompt(base.tokenizer, q, shown) for q in questions]
    prefix, rests = split_prefix(prompts)
    assert base.tokenizer.decode(prefix).endswith("Riga is in Latvia.\nuser\nW")
    assert max(map(len, rests)) < len(prefix) / 2


def test_answer_prompt(base):
    decode = base.tokenizer.decode
    ids = encode_answer_prompt(base.tokenizer, "Where is Lyon?", "Lyon: <EOK> in France.")
    assert decode(ids) == (
        "user\nAnswer the question with a few words.\n\n"
        "Background knowledge: Lyon: <EOK> in France.\n\nQuestion: Where is Lyon?\n"
        "assistant\nThe answer is"
    )
    assert base.tokenizer.token_id("<EOK>") not in ids
    assert "knowledge" not in decode(encode_answer_prompt(base.tokenizer, "Where is Lyon?"))


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


# Likelihoods.


@pytest.fixture
def read(base):
    """The cache of what stands before every prompt."""
    return partial(prefill, base.model, base.params)


@pytest.mark.parametrize("knowledge", [("", "Riga.", "Lyon is in France."), ("Riga.",)])
def test_scores_are_those_of_a_full_pass(base, read, knowledge):
    texts = [" Lyon", " France, in Europe", " Latvia"][: len(knowledge)]
    answers = [base.tokenizer.encode(text) for text in texts]
    prompts = [encode_answer_prompt(base.tokenizer, "Where is Lyon?", k) for k in knowledge]
    expected = [
        answer_logprob(base.model, base.params, p, a) for p, a in zip(prompts, answers, strict=True)
    ]
    prefix, rests = split_prefix(prompts)
    scores = score_answers(
        base.model, base.params, rests, answers, prefix=read(prefix), width=96, batch_size=4
    )
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    # Nothing hangs on where the prefix ends.
    shorter, longer = prefix[:-3], [[*prefix[-3:], *rest] for rest in rests]
    again = score_answers(
        base.model, base.params, longer, answers, prefix=read(shorter), width=96, batch_size=4
    )
    np.testing.assert_allclose(again, expected, rtol=1e-5)


def test_scores_without_a_prefix_and_of_one_token(base, read):
    scores = score_answers(
        base.model,
        base.params,
        [[7], [9, 300]],
        [[5], [6]],
        prefix=read([]),
        width=96,
        batch_size=4,
    )
    expected = [
        answer_logprob(base.model, base.params, [7], [5]),
        answer_logprob(base.model, base.params, [9, 300], [6]),
    ]
    np.testing.assert_allclose(scores, expected, rtol=1e-5)


def test_rows_that_do_not_fit(base, read):
    with pytest.raises(RagJaxError, match="length=2: 1 of 1 rows are longer"):
        score_answers(
            base.model, base.params, [[7, 8]], [[5]], prefix=read([]), width=2, batch_size=1
        )
