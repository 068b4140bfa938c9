"""Documents of the untrained model: their prompts' shared prefix, cleaning, and clusters."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.data.questions import Question
from rag_jax.decoding.prompts import split_prefix
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems.srrag import verbalise
from rag_jax.systems.srrag.config import SourceConfig, VerbaliseConfig
from rag_jax.systems.srrag.verbalise import (
    choose_demonstrations,
    clean_document,
    draw_clusters,
    is_clean,
    write_second_round,
)

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
        ("<think>Lyon? It is.</think>\nLyon is in France.", True, "Lyon is in France."),
        ("<think>Lyon? It is. Then", False, ""),
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
        ("", False),
    ],
)
def test_documents_do_not_talk_about_the_question(text, good):
    assert is_clean(text) == good


# Clusters.


def make_groups(sizes, seed=0):
    """Points around well-separated centres, shuffled, and the group of each."""
    rng = np.random.default_rng(seed)
    groups = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    centres = 10 * np.eye(len(sizes), 8)
    return (centres[groups] + 0.1 * rng.normal(size=(len(groups), 8))).astype(np.float32), groups


def test_clusters_are_groups_in_random_order():
    embeddings, groups = make_groups([9, 5, 2])
    drawn = draw_clusters(embeddings, clusters=3, seed=0)
    assert sorted((len(rows), len({groups[i] for i in rows})) for rows in drawn) == [
        (2, 1),
        (5, 1),
        (9, 1),
    ]
    assert sorted(i for rows in drawn for i in rows) == list(range(16))
    assert drawn != [sorted(rows) for rows in drawn]
    assert drawn == draw_clusters(embeddings, clusters=3, seed=0)


def test_another_seed_draws_other_demonstrations():
    embeddings, _ = make_groups([20, 20])
    draws = [draw_clusters(embeddings, clusters=2, seed=s) for s in range(3)]
    shown = [sorted(sorted(rows[:5]) for rows in drawn) for drawn in draws]
    assert len({str(rows) for rows in shown}) == 3


CLUSTER = [(f"q{i}", f"document {i}") for i in range(4)]


@pytest.mark.parametrize(
    ("question", "count", "shown"),
    [
        ("q9", 2, [0, 1]),
        ("q1", 2, [0, 2]),  # the next one takes its place
        ("q3", 2, [0, 1]),  # was not shown anyway
        ("q0", 3, [1, 2, 3]),
        ("q0", 4, [1, 2, 3]),  # there is no other
        ("q2", 9, [0, 1, 3]),
    ],
)
def test_no_question_is_its_own_demonstration(question, count, shown):
    found = choose_demonstrations(CLUSTER, question, count=count)
    assert found == [CLUSTER[i] for i in shown]


def test_a_question_that_was_asked_twice_is_left_out_twice():
    cluster = [("q0", "one"), ("q0", "another"), *CLUSTER[1:]]
    assert choose_demonstrations(cluster, "q0", count=2) == CLUSTER[1:3]
    assert choose_demonstrations([("q0", "one")], "q0", count=2) == []


@given(st.permutations(range(8)), st.integers(1, 8))
def test_demonstrations_do_not_depend_on_the_batch(order, size):
    """Whatever is written together, each question has its own demonstrations, in its place."""
    clusters = [CLUSTER, [("q9", "document 9"), ("q2", "other")]]
    items = [(k, f"q{i}") for k in range(2) for i in range(4)]

    def write(base, questions, demonstrations, settings, *, seed):
        return [f"{q} after {list(d)}" for q, d in zip(questions, demonstrations, strict=True)]

    settings, found = VerbaliseConfig(demonstrations=2), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verbalise, "write_documents", write)
        for start in range(0, 8, size):
            batch = [items[i] for i in order[start : start + size]]
            texts = write_second_round(None, clusters, *zip(*batch, strict=True), settings, seed=0)
            found |= dict(zip(batch, texts, strict=True))
    for k, question in items:
        shown = choose_demonstrations(clusters[k], question, count=2)
        assert question not in {asked for asked, _ in shown}
        assert found[k, question] == f"{question} after {shown}"


def make_mixture(sizes):
    return [
        Question(f"{name}/{i}", f"{name}{i}?", ("x",), {}, dataset=name)
        for name, size in sizes.items()
        for i in range(size)
    ]


def run_rounds(folder, questions, monkeypatch, *, pool, contexts=2):
    """Both rounds with a model that repeats the question; gives the demonstrations of each text."""
    shown = {}

    def write_documents(base, asked, demonstrations, settings, *, seed):
        for question, pairs in zip(asked, demonstrations, strict=True):
            shown.setdefault(question, []).extend(asked for asked, _ in pairs)
        return [f"about {question}" for question in asked]

    monkeypatch.setattr(verbalise, "write_documents", write_documents)
    settings = VerbaliseConfig(pool=pool, demonstrations=2, only_answered=False)
    common = {"train_questions": questions, "base": None, "verbalise": settings, "seed": 0}
    rng = np.random.default_rng(0)
    first = StageContext(Stage("demonstrations", print), folder)
    first.folder.mkdir(parents=True)
    embed = lambda texts: rng.normal(size=(len(texts), 4))  # noqa: E731
    verbalise.run_demonstrations(first, **common, embed=embed, contexts=contexts)
    shown.clear()
    second = StageContext(Stage("contexts", print, needs=("demonstrations",)), folder)
    second.folder.mkdir()
    options = {
        "open_search": lambda *_: None,
        "reranking": None,
        "sources": [SourceConfig("Self", "<Self>", "verbalise")],
    }
    verbalise.run_contexts(second, **common, **options, contexts=contexts)
    return shown, read_jsonl(second.folder / "contexts.jsonl")


def test_a_question_of_a_mixture_is_shown_its_own_dataset(tmp_path, monkeypatch):
    questions = make_mixture({"a": 6, "b": 9})
    shown, contexts = run_rounds(tmp_path, questions, monkeypatch, pool=15)
    for question in questions:
        others = shown[question.question]
        assert others and all(asked.startswith(question.dataset) for asked in others)
    assert [record["id"] for record in contexts] == [question.id for question in questions]
    for question, record in zip(questions, contexts, strict=True):
        assert record["contexts"] == [[f"about {question.question}"] * 2]


def test_a_dataset_with_too_few_documents_for_its_clusters(tmp_path, monkeypatch):
    with pytest.raises(
        RagJaxError, match="config.verbalise.pool=9: has 1 questions of b, and each"
    ):
        run_rounds(tmp_path, make_mixture({"a": 8, "b": 1}), monkeypatch, pool=9)
