"""Thresholds by one rule for every router, against slow references and on a tiny run."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.config import DataConfig, build
from rag_jax.evaluation.answers import match
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.systems.srrag import ask, pipeline
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.pipeline import evaluate_on
from rag_jax.systems.srrag.policy import weigh
from rag_jax.systems.srrag.session import Session
from rag_jax.systems.srrag.thresholds import choose_by_accuracy, choose_by_rate
from systems.asked import read_facts, read_text
from systems.srrag.tiny_run import list_names, quick_programs

SCORES = st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=9)
EVERY = np.linspace(0, 1, 1001)


@given(SCORES, st.sampled_from([0.0, 0.3, 0.5, 0.8, 1.0]))
def test_the_least_threshold_of_a_rate(scores, rate):
    scores = np.asarray(scores)
    found = choose_by_rate(scores, rate)
    assert found["retrieval_rate"] == np.mean(scores > found["tau"]) <= rate
    # No threshold of a fine grid searches more and still few enough.
    allowed = [np.mean(scores > tau) for tau in EVERY if np.mean(scores > tau) <= rate]
    assert found["retrieval_rate"] == max(allowed)
    assert 0 <= found["tau"] <= 1


@given(SCORES, st.data())
def test_the_most_accurate_threshold(scores, data):
    right = st.lists(st.sampled_from([0.0, 1.0]), min_size=len(scores), max_size=len(scores))
    internal, external = (np.asarray(data.draw(right)) for _ in range(2))
    scores = np.asarray(scores)
    found = choose_by_accuracy(scores, internal, external)

    def measure(tau):
        triples = zip(scores, internal, external, strict=True)
        accuracy = np.mean([e if s > tau else i for s, i, e in triples])
        return accuracy, -np.mean(scores > tau)

    assert (found["accuracy"], -found["retrieval_rate"]) == pytest.approx(measure(found["tau"]))
    assert measure(found["tau"]) == max(map(measure, EVERY))


def test_a_threshold_is_halfway_between_two_scores():
    assert choose_by_rate(np.asarray([0.2, 0.4, 0.8]), 0.5)["tau"] == pytest.approx(0.6)
    assert choose_by_rate(np.asarray([0.2, 0.4, 0.8]), 1.0)["tau"] == pytest.approx(0.1)
    assert choose_by_rate(np.asarray([0.2, 0.4, 0.8]), 0.0)["tau"] == pytest.approx(0.9)
    # Without votes for a search the rule searches at no threshold.
    assert choose_by_rate(np.zeros(3), 1.0) == {"tau": 0.5, "retrieval_rate": 0.0}


def test_a_mass_that_rounds_to_more_than_one_can_be_left_unsearched():
    above = np.nextafter(np.float32(0.5), np.float32(1))
    probabilities = np.asarray([[0.0, 0.5, above]], np.float32)
    assert probabilities.astype(float).sum() > 1
    scores = weigh(probabilities, None, ["verbalise", "search", "search"]).search
    assert choose_by_rate(scores, 0.0)["retrieval_rate"] == 0.0


# A run.

TUNED = {"route.tau": None, "route.rate": 0.5, "world.dev": 8, "ablations": True}
ROUTERS = ["srrag", "without_knn", "selective", "without_verbalisation", "without_stage2"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    with quick_programs():
        yield


@pytest.fixture(scope="module")
def tuned(make_config, tmp_path_factory):
    """A run with its ablations whose thresholds are chosen on the development questions."""
    workdir = tmp_path_factory.mktemp("tuned") / "run"
    return workdir, pipeline.run(make_config(**TUNED), workdir)


def test_every_router_has_its_threshold(tuned):
    """The least that searches at most half of the development questions, without their answers."""
    workdir, report = tuned
    stages = workdir / "stages"
    taus = read_json(stages / "evaluate" / "taus.json") | read_json(
        stages / "compare" / "taus.json"
    )
    assert set(taus) == {*ROUTERS, "selective_fixed"} and taus["selective_fixed"] == 0.2
    passes = {
        "srrag": stages / "thresholds" / "passes.jsonl",
        "without_knn": stages / "thresholds" / "passes.jsonl",
        **{name: stages / "compare" / f"{name}_dev.jsonl" for name in ROUTERS[2:]},
    }
    for name in ROUTERS:
        records = read_jsonl(passes[name])
        assert len(records) == 8 and set(records[0]) == {"probabilities", "votes"}
        alone = name in ("without_knn", "selective")
        scores = [r["probabilities"][1] * (1 if alone else r["votes"][1]) for r in records]
        rates = [np.mean(np.asarray(scores) > tau) for tau in EVERY]
        assert np.mean(np.asarray(scores) > taus[name]) == max(r for r in rates if r <= 0.5)
        rows = read_jsonl(workdir / "predictions" / f"{name}.jsonl")
        for row in rows:
            product = row["probabilities"][1] * (1 if alone else row["votes"][1])
            assert row["retrieved"] == float(product > taus[name])
    rows = read_jsonl(workdir / "predictions" / "selective_fixed.jsonl")
    assert all(row["retrieved"] == float(row["probabilities"][1] > 0.2) for row in rows)
    assert set(report["methods"]) >= {*ROUTERS, "selective_fixed", "selective_retrieve"}


def test_selective_retrieval_is_trained_for_as_many_steps(tuned):
    folder = tuned[0] / "stages"
    steps = {
        name: sum(len(read_jsonl(folder / stage / "log.jsonl")) for stage in stages)
        for name, stages in {
            "srrag": ("stage1", "stage2"),
            "without_stage2": ("stage1", "stage1_again"),
            "without_verbalisation": ("stage1_closed_book", "stage2_closed_book"),
            "selective": ("selective", "selective_again"),
        }.items()
    }
    assert len(set(steps.values())) == 1 and steps["srrag"] == 6


def test_the_most_accurate_threshold_of_a_run(tuned, make_config):
    """Another rule redoes the choice and what depends on it; asking and transfer use the choice."""
    workdir, _ = tuned
    config = make_config(**TUNED | {"route.rate": None, "ablations": False})
    report = pipeline.run(config, workdir)
    assert list_names(report, reused=False) == ["thresholds", "evaluate"]
    chosen = read_json(workdir / "stages" / "thresholds" / "thresholds.json")
    records = read_jsonl(workdir / "stages" / "thresholds" / "passes.jsonl")
    dev = Session(build(SRRAGConfig, config))
    dev.open_corpus(workdir / "stages" / "corpus")
    questions = dev.dev_questions
    assert len(questions) == len(records) == 8
    for name, found in chosen.items():
        scores = [
            r["probabilities"][1] * (r["votes"][1] if name == "srrag" else 1) for r in records
        ]
        picks = [r["answers"][int(s > found["tau"])] for r, s in zip(records, scores, strict=True)]
        assert np.mean([pick["source"] == "Wiki" for pick in picks]) == found["retrieval_rate"]
        right = [
            match(pick["prediction"], q.answers) for pick, q in zip(picks, questions, strict=True)
        ]
        assert np.mean(right) == found["accuracy"]

    opened = ask.open_run(Session(build(SRRAGConfig, config)), workdir, None)
    record = read_jsonl(workdir / "predictions" / "srrag.jsonl")[0]
    shown = list(opened(record["question"]))
    assert read_text(shown) == record["prediction"]
    assert any("tau=" in row[-1] for row in read_facts(shown, "sources"))


def test_the_likelihood_of_development_questions(tuned, make_config, capsys):
    """Every one is answered from passages, with what asking gives where it searches."""
    workdir, _ = tuned
    records = read_jsonl(workdir / "stages" / "likelihood" / "answers.jsonl")
    session = Session(build(SRRAGConfig, make_config(**TUNED | {"route.tau": 0.0})))
    opened = ask.open_run(session, workdir, None)
    read = 0
    for question, record in zip(session.corpus.questions["dev"], records, strict=True):
        outcome = list(opened(question.question))[-1]
        assert record["id"] == question.id and record["likelihood"] < 0
        assert record["right"] == bool(match(record["prediction"], question.answers))
        if outcome.citations:
            read += 1
            assert outcome.answer == record["prediction"]
            assert outcome.likelihood == pytest.approx(record["likelihood"], abs=1e-4)
    assert len(records) == 8 and read
    # With other settings of answers the threshold does not hold.
    changes = {"route.tau": 0.0, "answer.passages": 2}
    session = Session(build(SRRAGConfig, make_config(**TUNED | changes)))
    capsys.readouterr()
    ask.open_run(session, workdir, None)
    said = capsys.readouterr().err
    assert "answers get no verdict" in said and "answer.passages: 1 -> 2" in said


def test_thresholds_need_development_questions(make_config, tmp_path):
    message = "config.route.tau=None: there are no 'dev' questions with answers to choose it on"
    with pytest.raises(RagJaxError, match=re.escape(message)):
        pipeline.run(make_config(**TUNED | {"world.dev": 0}), tmp_path / "run")


def test_a_transfer_keeps_the_thresholds(tuned, make_config, tmp_path):
    """Nothing is tuned on the other dataset, which needs no development questions."""
    workdir, _ = tuned
    config = make_config(**TUNED)
    pipeline.run(config, workdir)
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "passages.jsonl").write_text('{"id": "0", "title": "Ada", "text": "A poet."}\n')
    (folder / "test_questions.jsonl").write_text(
        '{"id": "0", "question": "Who?", "answers": ["poet"]}\n'
    )
    out = tmp_path / "out"
    evaluate_on(config, workdir, DataConfig(path=str(folder)), "test", out)
    kept = [read_json(d / "stages" / "evaluate" / "taus.json") for d in (workdir, out)]
    assert kept[0] == kept[1]
