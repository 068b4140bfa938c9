"""Labels and likelihoods against slow references, statistics, and labels of another model."""

import re
import shutil
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rag_jax.decoding import prefill
from rag_jax.decoding.prompts import split_prefix
from rag_jax.pipeline.runner import run_stages
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_jsonl
from rag_jax.systems.srrag import pipeline
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import encode_answer_prompt
from rag_jax.systems.srrag.label import (
    choose_closed_book,
    choose_source,
    count_labels,
    read_labels,
    score_answers,
)
from rag_jax.systems.srrag.session import Session
from systems.srrag.reference import answer_logprob
from systems.srrag.tiny_run import open_stage, quick_programs

SELF, WIKI = 0, 1
KINDS = ["verbalise", "search"]


# The rules.


def vote_slowly(scores):
    """The majority among the better half, one context at a time."""
    contexts = [(score, source) for source, row in enumerate(scores) for score in row]
    better = sorted(contexts, key=lambda c: -c[0])[: len(contexts) // 2]
    owned = [sum(source == s for _, source in better) for s in range(len(scores))]
    tied = [s for s in range(len(scores)) if owned[s] == max(owned)]
    return max(tied, key=lambda s: (max(scores[s]), -s))


def draw_scores(elements):
    shapes = st.tuples(st.integers(2, 4), st.integers(1, 5))
    return hnp.arrays(np.float64, shapes, elements=elements)


@given(draw_scores(st.floats(-50, 0)) | draw_scores(st.sampled_from([-3.0, -2.0, -1.0])))
def test_label_is_the_majority_of_the_better_half(scores):
    assert choose_source(scores) == vote_slowly(scores.tolist())


@given(st.permutations(range(10)))
def test_label_depends_on_nothing_but_the_ranks(ranks):
    scores = -np.asarray(ranks, float).reshape(2, 5)
    label = choose_source(scores)
    # Five of ten: whoever has three.
    assert (scores[label] > -5).sum() >= 3
    assert choose_source(scores[::-1]) == 1 - label
    assert choose_source(-np.exp(-scores)) == label


@pytest.mark.parametrize(
    ("scores", "label"),
    [
        # The best single context is external, the better half is not.
        ([[-2, -3, -4], [-1, -8, -9]], SELF),
        # The best sum is external, the better half is not.
        ([[-2, -3, -90], [-4, -5, -6]], SELF),
        ([[-7.0], [-6.0]], WIKI),
        # One each of three: the best single context decides.
        ([[-5, -9], [-2, -9], [-3, -9]], 1),
        # Six in the better half, two each.
        ([[-6, -5, -9, -9], [-4, -3, -9, -9], [-1, -2, -9, -9]], 2),
        # Nothing differs: the first.
        ([[-1, -1, -1], [-1, -1, -1]], SELF),
    ],
)
def test_labels_worked_by_hand(scores, label):
    assert choose_source(np.asarray(scores, float)) == label


def rank_slowly(scores):
    """For each source the sum of its contexts' ranks; equal ones share the mean of theirs."""
    everything = [score for row in scores for score in row]

    def rank(score):
        better = sum(other > score for other in everything)
        return better + (everything.count(score) + 1) / 2

    return [sum(map(rank, row)) for row in scores]


@given(draw_scores(st.floats(-50, 0)) | draw_scores(st.sampled_from([-3.0, -2.0, -1.0])))
def test_the_other_rules(scores):
    rows, best = scores.tolist(), scores.max(axis=1)
    ranks = rank_slowly(rows)
    tied = [s for s in range(len(rows)) if ranks[s] == min(ranks)]
    assert choose_source(scores, "all_rank") == max(tied, key=lambda s: (best[s], -s))
    assert choose_source(scores, "best_single") == best.argmax()
    chosen, means = choose_source(scores, "mean"), scores.mean(axis=1)
    assert means[chosen] == means.max()
    assert best[chosen] == best[means == means.max()].max()


def test_rules_may_disagree():
    """Three of the better half, the best mean, and the best context are not one source's."""
    scores = np.asarray([[-2, -3, -90], [-4, -5, -6], [-1.0, -40, -50]])
    rules = ["top_half_majority", "mean", "best_single", "all_rank"]
    assert [choose_source(scores, rule) for rule in rules] == [0, 1, 2, 0]


def test_without_verbalising_the_question_alone_competes():
    scores = np.asarray([[-1, -2, -3], [-4, -5, -6.0]])
    found = [
        choose_closed_book(scores, alone, KINDS, "top_half_majority") for alone in (-3, -4.5, -5.5)
    ]
    # At the head of the better half, between the best and the second passage, and below that.
    assert found == [SELF, SELF, WIKI]
    assert choose_closed_book(scores[::-1], -5.5, KINDS[::-1], "mean") == SELF


def test_statistics():
    labels = [
        {"source": source, "closed_book_source": alone}
        for source, alone in [(0, 0), (0, 1), (1, 1), (1, 0)]
    ]
    sources = SRRAGConfig().sources
    assert count_labels([*labels, labels[0]], sources) == {
        "n": 5,
        "share": {"Self": 0.6, "Wiki": 0.4},
        "share_closed_book": {"Self": 0.6, "Wiki": 0.4},
        "flipped_by_verbalising": 0.4,
    }


# Likelihoods.


@pytest.fixture
def read(base):
    """The cache of the tokens before every prompt."""
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
    scores = score_answers(base, rests, answers, prefix=read(prefix), width=96, batch_size=4)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    # Nothing hangs on where the prefix ends.
    shorter, longer = prefix[:-3], [[*prefix[-3:], *rest] for rest in rests]
    again = score_answers(base, longer, answers, prefix=read(shorter), width=96, batch_size=4)
    np.testing.assert_allclose(again, expected, rtol=1e-5)


def test_scores_without_a_prefix_and_of_one_token(base, read):
    scores = score_answers(
        base,
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
        score_answers(base, [[7, 8]], [[5]], prefix=read([]), width=2, batch_size=1)


# In a run.


def test_the_question_alone_is_scored(finished, session):
    workdir, _ = finished
    context = open_stage(session, workdir, "labels")
    labels = read_labels(context.path("labels", "labels.jsonl"), session.model_fingerprint)
    for question, label in zip(session.corpus.questions["train"], labels, strict=True):
        prompt = encode_answer_prompt(session.base.tokenizer, question.question)
        answer = session.base.tokenizer.encode(f" {question.answers[0]}")
        expected = answer_logprob(session.base.model, session.base.params, prompt, answer)
        np.testing.assert_allclose(label["closed_book"], expected, rtol=1e-4)
        scores = np.asarray(label["scores"])
        alone = choose_closed_book(scores, expected, KINDS, "top_half_majority")
        assert label["closed_book_source"] == alone


def test_another_model_labelled(finished, copied, session):
    path = copied / "stages" / "labels" / "labels.jsonl"
    labels = read_jsonl(path)
    labels[4]["model"] = "0" * 64
    write_jsonl(path, labels)
    message = f"{path}, line 5: labelled by the model 000000000000, but this run's is "
    with pytest.raises(RagJaxError, match=re.escape(message)) as caught:
        session.make_examples(open_stage(session, copied, "stage1"))
    assert "\n" not in str(caught.value)


def test_the_labels_folder_of_another_model_is_redone(copied, tmp_path, session, capsys):
    """Copied into this run's folder it is not taken for this run's."""
    shutil.copytree(copied, tmp_path / "other")
    record = tmp_path / "other" / "stages" / "labels" / "stage.json"
    record.write_text(record.read_text().replace(session.model_fingerprint, "0" * 64))
    shutil.rmtree(copied / "stages" / "labels")
    shutil.copytree(record.parent, copied / "stages" / "labels")
    stages = pipeline.list_stages(Session(session.config))
    with quick_programs():
        made = run_stages(stages[:6], copied)
    assert [stage["reused"] for stage in made] == [True] * 5 + [False]
    said = capsys.readouterr().err
    assert "stage labels: settings changed (model: " in said
