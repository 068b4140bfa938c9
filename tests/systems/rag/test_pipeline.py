"""RAG from an empty folder to the report, on tiny models and a tiny world."""

import json
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from pages import read_tables

from rag_jax.config import build
from rag_jax.data.batches import BatchPlan
from rag_jax.data.matching import has_answer
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import bleu_1, distinct_ngrams, exact_match, rouge_l
from rag_jax.evaluation.questions import q_bleu_1
from rag_jax.models.io.sizes import find_sizes
from rag_jax.pipeline.ask import Threshold
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import BM25, list_texts, make_text
from rag_jax.runtime.checkpoint import save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl, to_json
from rag_jax.systems.rag import ask, evaluate, pipeline, serve
from rag_jax.systems.rag import session as sessions
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import pick_passages
from rag_jax.systems.rag.lookup import Lookup
from rag_jax.systems.rag.pipeline import list_stages
from rag_jax.systems.rag.rankings import rank_by_words
from rag_jax.systems.rag.session import Session
from rag_jax.systems.rag.train import list_rows
from systems.asked import LONG, OWN, read_facts, read_text, take_stock, write_corpus
from systems.compared import check_rows
from systems.evaluated import (
    check_evaluation,
    evaluate_directly,
    list_made,
    read_answers,
    write_world,
)
from systems.reranked import check_ranks, set_reranker
from systems.rooms import check_rooms
from systems.served import check_answers, check_embeddings

GOLDEN = Path(__file__).parents[2] / "golden"
STAGES = ["corpus", "index", "frozen", "joint", "evaluate", "memory", "likelihood"]
REFRESH = {"train.refresh_every": 2}
SHARED = ("shared_closed_book", "shared_bm25")
QA_METHODS = (*SHARED, "frozen", "token", "fast", "thorough")


@pytest.fixture(scope="module")
def make_session(make_config):
    return lambda **changes: Session(build(RAGConfig, make_config(**changes)))


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("rag") / "run"
    return workdir, pipeline.run(make_config(), workdir)


@pytest.fixture(scope="module")
def refreshed(make_session, tmp_path_factory):
    """Both trainings from an empty folder; the index is due for a refresh before the last step."""
    workdir = tmp_path_factory.mktemp("refreshed") / "run"
    run_stages(list_stages(make_session(**REFRESH))[:4], workdir)
    return workdir


def list_reused(report):
    return [stage["name"] for stage in report["stages"] if stage["reused"]]


def load_trained(session, workdir, stage):
    """The generator's parameters and the question encoder's, after a training."""
    folder = workdir / "stages" / stage / "params"
    return session.make_trainable(joint=stage == "joint").load_merged(folder)


def assert_same(left, right):
    jax.tree.map(np.testing.assert_array_equal, left, right)


def test_rows_of_a_comparison(finished):
    rows = check_rows("rag", finished[0])
    tokens = {name: row["prompt_tokens"] for name, row in rows.items()}
    assert 0 < tokens["shared_closed_book"] < tokens["shared_bm25"]
    assert tokens["token"] == tokens["fast"] == tokens["thorough"]


def test_room_on_the_disk(finished, refreshed, make_session):
    session = make_session()
    assert check_rooms(session, list_stages(session), finished[0]) == ["index", "frozen", "joint"]
    # With the embeddings of an index that is refreshed twice.
    session = make_session(**REFRESH)
    stages = list_stages(session)[:4]
    assert check_rooms(session, stages, refreshed) == ["index", "frozen", "joint"]


def test_report(finished, make_config):
    workdir, returned = finished
    report = read_json(workdir / "report.json")
    assert report["methods"] == json.loads(json.dumps(returned["methods"]))
    assert build(RAGConfig, report["config"]) == build(RAGConfig, make_config())
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert tuple(report["methods"]) == QA_METHODS
    for name, numbers in report["methods"].items():
        assert numbers["n"] == 6
        assert 0 <= numbers["exact_match"] <= numbers["f1"] <= 1
        if name != "shared_closed_book":
            assert numbers["answer@1"] <= numbers["answer@2"] <= numbers["answer@5"]
    # The last three read the same passages.
    hits = [[report["methods"][m][f"answer@{k}"] for k in (1, 2, 5)] for m in QA_METHODS[3:]]
    assert hits[0] == hits[1] == hits[2]
    table, _ = report["tables"].values()
    assert [row[0] for row in table] == ["index", "old index", "new index"]
    assert all(0 <= share <= 1 for row in table[1:] for share in row[1:3])
    tables = read_tables(workdir / "report.html").values()
    assert any(row[0] == "old index" for rows in tables for row in rows)


def test_predictions(finished):
    workdir, report = finished
    passages = {p["id"]: p for p in read_jsonl(workdir / "stages" / "corpus" / "passages.jsonl")}
    for method, numbers in report["methods"].items():
        records = read_jsonl(workdir / "predictions" / f"{method}.jsonl")
        scores = [record["exact_match"] for record in records]
        assert np.mean(scores) == pytest.approx(numbers["exact_match"])
        seconds = [record["seconds"] for record in records]
        assert np.mean(seconds) == pytest.approx(numbers["seconds_per_question"])
        for record in records if method != "shared_closed_book" else ():
            read = [
                has_answer(passages[p["id"]]["text"], record["answers"]) for p in record["passages"]
            ]
            assert len(read) == 2
            assert (record["answer@1"], record["answer@2"]) == (read[0], any(read))


def test_what_is_trained(finished, make_session):
    workdir, session = finished[0], make_session()
    frozen, joint = (load_trained(session, workdir, stage) for stage in ("frozen", "joint"))
    assert_same(frozen["query"], session.encoder.params)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), joint["query"], frozen["query"])
    assert max(jax.tree.leaves(moved)) > 1e-3
    for name in ("frozen", "joint"):
        folder = workdir / "stages" / name
        log = read_jsonl(folder / "log.jsonl")
        assert [line["step"] for line in log] == [0, 1, 2]
        assert all(0 < line["retrieved_entropy"] < 1 + 1e-9 and line["nll"] > 0 for line in log)
        assert [line["step"] for line in read_jsonl(folder / "found.jsonl")] == [0, 1, 2]
        assert not (folder / "checkpoints").exists()
    # What the frozen encoder finds is what the index gives for its embeddings.
    found = read_jsonl(workdir / "stages" / "frozen" / "found.jsonl")
    assert all(len(row) == 2 for line in found for row in line["rows"])


@pytest.mark.parametrize(("changes", "stop"), [({}, 1), (REFRESH, 2)], ids=["", "refreshed"])
def test_interrupted_training_ends_with_the_same_bits(
    finished, refreshed, make_session, tmp_path, monkeypatch, changes, stop
):
    whole = refreshed if changes else finished[0]
    workdir = Path(shutil.copytree(whole, tmp_path / "run"))
    shutil.rmtree(workdir / "stages" / "joint")
    find = Lookup.find

    def stopping(self, step):
        if step == stop and self.folder.name == "joint":
            raise KeyboardInterrupt
        return find(self, step)

    session = make_session(**changes)
    stages = list_stages(session)[:4]
    with monkeypatch.context() as patch:
        patch.setattr(Lookup, "find", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_stages(stages, workdir)
    records = run_stages(stages, workdir)
    assert [record["name"] for record in records if record["reused"]] == STAGES[:3]
    ours, theirs = (load_trained(session, folder, "joint") for folder in (workdir, whole))
    assert_same(ours, theirs)
    for name in ("log", "found"):
        ours, theirs = (
            (folder / "stages" / "joint" / f"{name}.jsonl").read_bytes()
            for folder in (workdir, whole)
        )
        assert ours == theirs


def test_a_refreshed_index_is_of_the_joint_training_alone(finished, refreshed, make_session):
    """More steps than `refresh_every`: the frozen encoder keeps the index as it was."""
    session = make_session(**REFRESH)
    frozen, joint = (refreshed / "stages" / name for name in ("frozen", "joint"))
    for folder in (frozen, joint):
        assert [line["step"] for line in read_jsonl(folder / "log.jsonl")] == [0, 1, 2]
        assert [line["step"] for line in read_jsonl(folder / "found.jsonl")] == [0, 1, 2]
    assert not list(frozen.glob("passages-*"))
    names = sorted(path.name for path in joint.glob("passages-*"))
    assert names == ["passages-2.npy", "passages-3.npy"]
    # As without any refreshing.
    ours, theirs = (load_trained(session, folder, "frozen") for folder in (refreshed, finished[0]))
    assert_same(ours, theirs)
    found = (finished[0] / "stages" / "frozen" / "found.jsonl").read_bytes()
    assert (frozen / "found.jsonl").read_bytes() == found
    # The last step reads the refreshed index, and what it trains differs.
    before, after = (
        read_jsonl(folder / "stages" / "joint" / "log.jsonl") for folder in (finished[0], refreshed)
    )
    assert before[:2] == after[:2] and before[2] != after[2]


def test_running_again(finished, make_config, make_session, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    again = pipeline.run(make_config(**{"decode.beams": 1, "decode.questions": 4}), workdir)
    assert list_reused(again) == STAGES[:4]
    assert {numbers["n"] for numbers in again["methods"].values()} == {4}
    # A refreshed index is another joint training, but the same frozen one.
    session = make_session(**REFRESH)
    records = run_stages(list_stages(session)[:4], workdir)
    assert [record["name"] for record in records if record["reused"]] == STAGES[:3]
    (stage,) = (stage for stage in list_stages(session) if stage.name == "evaluate")
    context = StageContext(stage, workdir / "stages")
    session.open_corpus(context.path("corpus", ""))
    joint = load_trained(session, workdir, "joint")
    index, encoder = session.open_final_index(context, joint)
    np.testing.assert_allclose(
        index.embeddings, session.encode_passages(encoder, session.passages), atol=1e-6
    )
    assert_same(encoder.params, joint["query"])
    assert sorted(p.name for p in (workdir / "stages" / "joint").glob("passages-*")) == [
        "passages-2.npy",
        "passages-3.npy",
    ]


def test_the_number_of_passages_at_test_time(finished, make_config, make_session, tmp_path):
    """Another number, and a curve of them, from the same training."""
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    changes = {"decode.passages": 3, "decode.curve": (4, 1, 3)}
    again = pipeline.run(make_config(**changes), workdir)
    assert list_reused(again) == STAGES[:4]
    assert [stage["name"] for stage in again["stages"]] == [*STAGES[:5], "curve", *STAGES[5:]]
    for name in ("frozen", "thorough"):
        records = read_jsonl(workdir / "predictions" / f"{name}.jsonl")
        assert all(len(record["passages"]) == 3 for record in records)
        assert "answer@3" in again["methods"][name]
    table = again["tables"]["exact match by the number of passages read"]
    assert table[0] == ["passages", "token", "thorough", "answer in them"]
    assert [row[0] for row in table[1:]] == ["1", "3", "4"]
    token, thorough = (again["methods"][name] for name in ("token", "thorough"))
    scores = token["exact_match"], thorough["exact_match"], token["answer@3"]
    assert table[2][1:] == pytest.approx(scores)
    assert table[1][3] == pytest.approx(token["answer@1"])
    shown = list(ask.open_run(make_session(**changes), workdir, None)(records[0]["question"]))
    assert len(read_facts(shown, "passages read")) == 3
    # Another curve is no reason to evaluate again.
    again = pipeline.run(make_config(**changes | {"decode.curve": (2,)}), workdir)
    assert list_reused(again) == STAGES


def test_retrievers_are_compared_on_more_questions_than_are_answered(
    finished, make_config, tmp_path
):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    asked = finished[1]["methods"]["thorough"]["n"]
    again = pipeline.run(make_config(ranked_questions=asked), workdir)
    assert list_reused(again) == STAGES
    head, *rows = again["tables"][f"retrievers alone, {asked} questions"]
    assert head == ["retriever", "answer@1", "answer@5", "answer@20"]
    # Of the questions that are answered, the hits are those of the methods that read the passages.
    readers = {"bm25": "shared_bm25", "frozen": "frozen", "joint": "thorough"}
    assert [row[0] for row in rows] == [*readers]
    for name, *hits in rows:
        method = again["methods"][readers[name]]
        assert hits[:2] == pytest.approx([method["answer@1"], method["answer@5"]])
        assert hits[1] <= hits[2]
    pairs = again["tables"][f"retrievers alone, {asked} questions, question by question"]
    joint = rows[2][1:]
    expected = [[row[0], row[i] - joint[i - 1]] for row in rows[:2] for i in (1, 2, 3)]
    assert [row[0] for row in pairs[1:]] == [name for name, _ in expected]
    assert [float(row[2]) for row in pairs[1:]] == pytest.approx(
        [difference for _, difference in expected], abs=6e-4
    )
    rows = again["analysis"]["hits"]["rows"].values()
    given = [row[f"answer@{k}"]["difference"] for row in rows for k in (1, 5, 20)]
    assert given == pytest.approx([difference for _, difference in expected])
    more = 10 * asked  # than there are
    again = pipeline.run(make_config(ranked_questions=more), workdir)
    assert list_reused(again) == STAGES
    assert len([title for title in again["tables"] if title.startswith("retrievers alone")]) == 2


def answer_nll(session, question, passages, scores):
    """`-log p(y|x)` of RAG-Sequence by the generator as loaded, one full pass a passage."""
    model, params, format = session.generator.model, session.generator.params, session.format
    target, logprobs = format.encode_answer(question.answers[0]), []
    for passage in passages:
        prompt, _ = format.encode_input(question.question, passage)
        tokens = np.asarray([[*prompt, *target[:-1]]], np.int32)
        logits = np.asarray(model.apply({"params": params}, tokens), np.float64)[0]
        steps = logits[len(prompt) - 1 :] - np.logaddexp.reduce(
            logits[len(prompt) - 1 :], axis=1, keepdims=True
        )
        logprobs.append(sum(steps[t, token] for t, token in enumerate(target)))
    prior = np.asarray(scores, np.float64) - np.logaddexp.reduce(scores)
    return -np.logaddexp.reduce(prior + logprobs)


def test_ablations_are_trained_for_what_they_read(finished, make_config, make_session, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    again = pipeline.run(make_config(ablations=True), workdir)
    assert list_reused(again) == STAGES
    trained = {"closed_book", "bm25"}
    assert {s["name"] for s in again["stages"] if not s["reused"]} == {*trained, "compare"}
    assert tuple(again["methods"]) == (*QA_METHODS, "closed_book", "bm25")
    session = make_session()
    session.open_corpus(workdir / "stages" / "corpus")
    before = session.make_trainable(joint=False)
    questions, passages = session.train_questions, session.passages
    words = BM25.build(map(make_text, passages))
    found = rank_by_words(words, [q.question for q in questions], 2)
    for name in trained:
        log = read_jsonl(workdir / "stages" / name / "log.jsonl")
        chosen = BatchPlan([0] * len(questions), batch_size=3, seed=0).examples_at(0)
        read = {
            "closed_book": lambda i: ([None], [0.0]),
            "bm25": lambda i: (pick_passages(passages, found.rows[[i]])[0], found.scores[i]),
        }[name]
        nll = np.mean([answer_nll(session, questions[i], *read(i)) for i in chosen])
        assert log[0]["nll"] == pytest.approx(nll, rel=1e-4)
        after = before.load(workdir / "stages" / name / "params")
        assert after.keys() == {"generator"}
        moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), after, before.start())
        assert max(jax.tree.leaves(moved)) > 1e-3
        records = read_jsonl(workdir / "predictions" / f"{name}.jsonl")
        assert all(("passages" in record) == (name == "bm25") for record in records)


def test_the_retriever_is_trained_alone(finished, make_config, make_session, tmp_path):
    """The generator's parameters stay equal to the bit."""
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    changes = {"train.generator": False}
    again = pipeline.run(make_config(**changes), workdir, overwrite=True)
    assert [stage["name"] for stage in again["stages"]] == [n for n in STAGES if n != "frozen"]
    assert list_reused(again) == STAGES[:2]
    assert tuple(again["methods"]) == QA_METHODS
    session = make_session(**changes)
    trainable = session.make_trainable(joint=True)
    assert trainable.load(workdir / "stages" / "joint" / "params").keys() == {"query"}
    trained = load_trained(session, workdir, "joint")
    assert_same(trained["generator"], session.generator.params)
    moved = jax.tree.map(lambda a, b: abs(a - b).max(), trained["query"], session.encoder.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    # The generator alone decides how well the first passages explain the first answers.
    log = read_jsonl(workdir / "stages" / "joint" / "log.jsonl")
    assert log[0]["nll"] == read_jsonl(finished[0] / "stages" / "joint" / "log.jsonl")[0]["nll"]


def write_folder(folder, answer_to):
    """A folder in SQuAD's format: four training questions about places and two for the test."""
    folder.mkdir()
    places = ["Riga", "Lyon", "Gitega", "Oslo", "Paris", "Zürich"]
    passages = [{"id": p, "title": p, "text": f"{p} is a town."} for p in places]
    (folder / "passages.jsonl").write_text("\n".join(map(json.dumps, passages)))
    for split, part in {"train": places[:4], "test": places[4:]}.items():
        questions = [
            {"id": f"{split}{i}", "question": f"{p}?", "answers": answer_to(i, p)}
            for i, p in enumerate(part)
        ]
        (folder / f"{split}_questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    return {"data.path": str(folder)}


def test_an_encoder_decoder_writes_texts_about_a_folder(make_config, tmp_path):
    """BART, DPR's kind of encoder twice, RAG-Token, all weights, SQuAD's format, ROUGE and BLEU."""
    changes = {
        "task": "generation",
        "marginal": "token",
        "generator.name": str(GOLDEN / "bart"),
        "generator.max_length": 24,
        "retriever.name": str(GOLDEN / "dpr_question"),
        "retriever.passage_name": str(GOLDEN / "dpr_question"),
        "retriever.scale": 1.0,
        "tuning.mode": "full",
        "train.smoothing": 0.1,
        "train.answers": "all",
    } | write_folder(tmp_path / "data", lambda i, place: [place, f"the town of {place}"])
    report = pipeline.run(make_config(**changes), tmp_path / "run")
    assert [stage["name"] for stage in report["stages"]] == STAGES[:5]
    table, _ = report["tables"].values()  # "Paris" and "Zürich" have no three words
    assert table == [["texts", "share"], ["answers", "none"]]
    assert tuple(report["methods"]) == QA_METHODS
    # Four questions with two answers each are eight rows, in batches of three.
    assert len(read_jsonl(tmp_path / "run" / "stages" / "joint" / "log.jsonl")) == 3
    for name, numbers in report["methods"].items():
        records = read_jsonl(tmp_path / "run" / "predictions" / f"{name}.jsonl")
        assert numbers["n"] == len(records) == 2
        written, answers = zip(*((r["prediction"], r["answers"]) for r in records), strict=True)
        assert numbers["bleu_1"] == bleu_1(written, answers)
        assert numbers.get("distinct_trigrams") == distinct_ngrams(written, 3)
        rouge = [rouge_l(*pair) for pair in zip(written, answers, strict=True)]
        assert numbers["rouge_l"] == pytest.approx(np.mean(rouge))
        asked = [q_bleu_1(*pair) for pair in zip(written, answers, strict=True)]
        assert numbers["q_bleu_1"] == pytest.approx(np.mean(asked))
        assert "exact_match" not in numbers


def test_a_row_for_each_answer():
    asked = [Question("a", "A?", ("x", "y", "x"), {}), Question("b", "B?", ("z",), {})]
    assert list_rows(asked, "first") == [(asked[0], "x"), (asked[1], "z")]
    assert list_rows(asked, "all") == [(asked[0], "x"), (asked[0], "y"), (asked[1], "z")]


LABELS = ["true", "false", "both", "neither"]


@pytest.fixture(scope="module")
def classified(make_config, tmp_path_factory):
    """A run of a classification of a folder's questions: its settings, folder and report."""
    folder = tmp_path_factory.mktemp("labels")
    data = write_folder(folder / "data", lambda i, place: [LABELS[i]])
    changes = {"task": "classification", **data}
    return changes, folder / "run", pipeline.run(make_config(**changes), folder / "run")


def test_labels_are_the_answers_of_a_classification(classified):
    _, workdir, report = classified
    assert list(report["methods"]) == [*SHARED, "frozen", "joint"]
    for name, numbers in report["methods"].items():
        records = read_jsonl(workdir / "predictions" / f"{name}.jsonl")
        assert {record["prediction"] for record in records} <= set(LABELS)
        right = [record["prediction"] == record["answers"][0] for record in records]
        assert numbers["accuracy"] == np.mean(right) and len(right) == 2


def test_too_many_labels(make_session, tmp_path, monkeypatch):
    monkeypatch.setattr(sessions, "MAX_LABELS", 3)
    with pytest.raises(RagJaxError, match="classification': the training answers are . different"):
        run_stages(list_stages(make_session(task="classification"))[:1], tmp_path)
    assert not list((tmp_path / "stages").rglob("*.jsonl"))
    assert not list((tmp_path / "stages").rglob("*.npy"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"generator.name": str(GOLDEN / "bert")}, "generator.name=.*: is no generator but an enc"),
        ({"retriever.name": str(GOLDEN / "llama_tied")}, "retriever.name=.*: is no encoder"),
        (
            {"train.refresh_every": 1, "retriever.passage_name": "x"},
            "config.train.refresh_every=1: only an encoder of both questions and passages",
        ),
        (
            {"ablations": True, "train.generator": False},
            "config.ablations=True with config.train.generator=False: the ablations are",
        ),
        (
            {"passages": 1, "train.generator": False},
            "config.passages=1 with config.train.generator=False: nothing would be trained",
        ),
        (
            {"ranked_questions": 5, "task": "generation"},
            "config.ranked_questions=5 with config.task='generation': passages hold no answers",
        ),
        ({"data.path": "x", "evaluate_on": "dev"}, "config.data.path=x: no such folder"),
    ],
)
def test_mistakes_are_told(make_config, tmp_path, changes, message):
    with pytest.raises(RagJaxError, match=message):
        pipeline.run(make_config(**changes), tmp_path / "run")


def test_presets():
    get_config = runpy.run_path(str(GOLDEN.parents[1] / "configs" / "rag.py"))["get_config"]
    small, paper = (build(RAGConfig, get_config(preset)) for preset in ("", "bart-large"))
    assert small == RAGConfig()
    assert (paper.passages, paper.retriever.scale, paper.train.smoothing) == (5, 1.0, 0.1)
    # Lewis et al. 2020, section 2.5 and appendix A: greedy, 50 passages of RAG-Sequence.
    assert (paper.marginal, paper.decode.beams, paper.passages_read) == ("sequence", 1, 50)
    assert small.passages_read == small.passages
    for name in (paper.retriever.name, paper.retriever.passage_name):
        assert name.endswith("-multiset-base") and find_sizes(name).num_layers == 12
    with pytest.raises(RagJaxError, match="preset 'huge': must be one of bart-large, or left out"):
        get_config("huge")


# Asking.


def test_asking_gives_the_answers_of_the_evaluation(finished, make_session):
    workdir = finished[0]
    before = take_stock(workdir)
    session = make_session()
    way = evaluate.choose_way(session.config)
    asked = ask.open_run(session, workdir, None)
    passages = {p["id"]: p for p in read_jsonl(workdir / "stages" / "corpus" / "passages.jsonl")}
    for record in read_jsonl(workdir / "predictions" / f"{way}.jsonl"):
        shown = list(asked(record["question"]))
        assert read_text(shown) == record["prediction"]
        rows = read_facts(shown, "passages read")
        read = [passages[found["id"]] for found in record["passages"]]
        assert [text for _, text in rows] == [f"{p['title']}: {p['text']}" for p in read]
        weights = np.exp([found["score"] for found in record["passages"]])
        shares = [float(share) for share, _ in rows]
        assert shares == pytest.approx(weights / weights.sum(), abs=2e-3)
        chance, best = read_facts(shown, "likeliest answers")[0]
        assert best == record["prediction"] and 0 < float(chance) <= 1
        outcome = shown[-1]
        assert (outcome.answer, outcome.source) == (record["prediction"], None)
        assert [p.id for p, _ in outcome.citations] == [p["id"] for p in record["passages"]]
        assert [score for _, score in outcome.citations] == pytest.approx(shares, abs=1e-3)
    assert take_stock(workdir) == before


def test_a_run_without_verdicts(finished, make_config, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "stages" / "likelihood")
    options = {"verdicts": False, "overwrite": True}  # as a comparison runs it
    report = pipeline.run(make_config(), tmp_path / "run", **options)
    assert list_reused(report) == [stage["name"] for stage in report["stages"]] == STAGES[:-1]
    assert not (tmp_path / "run" / "stages" / "likelihood").exists()


def test_the_likelihood_of_development_questions(finished, make_session, tmp_path, capsys):
    """What the stage measured is what asking gives; an older folder is asked without a verdict."""
    workdir, session = Path(shutil.copytree(finished[0], tmp_path / "run")), make_session()
    measured = read_jsonl(workdir / "stages" / "likelihood" / "answers.jsonl")
    asked = ask.open_run(session, workdir, None)
    questions = session.corpus.questions["dev"]
    assert [record["id"] for record in measured] == [q.id for q in questions]
    for question, record in zip(questions, measured, strict=True):
        outcome = list(asked(question.question))[-1]
        assert outcome.answer == record["prediction"]
        assert outcome.likelihood == pytest.approx(record["likelihood"], abs=1e-4)
        assert record["right"] == exact_match(outcome.answer, question.answers)
        assert outcome.in_documents is None  # the tiny model is never right
    assert "no threshold tells the 0 right ones of 3 answers" in capsys.readouterr().err
    path = workdir / "stages" / "likelihood" / "likelihood.json"
    chosen = {"threshold": outcome.likelihood, "right_kept": 0.5, "wrong_found": 1}
    path.write_text(json.dumps({"n": 5, "right": 4, **chosen}))
    (path.parent / "stage.json").write_text(
        json.dumps({**read_json(path.parent / "stage.json"), "files": {}})
    )
    again = list(ask.open_run(session, workdir, None)(questions[-1].question))[-1]
    assert again.threshold == Threshold(outcome.likelihood, 3, 1, 2, 2)
    assert again.verdict_precision == (1 if again.in_documents else 1 / 3)
    shutil.rmtree(path.parent)
    older = ask.open_run(session, workdir, None)
    assert "stage likelihood: is not finished; run launch/train.py" in capsys.readouterr().err
    assert list(older(questions[-1].question))[-1] == outcome


def test_served_answers_are_those_of_the_evaluation(finished, make_session):
    workdir, session = finished[0], make_session()
    before = take_stock(workdir)
    way, served = evaluate.choose_way(session.config), serve.open_run(session, workdir, None)
    records = read_jsonl(workdir / "predictions" / f"{way}.jsonl")
    answers = check_answers(served, session, records)
    for answer, record in zip(answers, records, strict=True):
        cited = [passage.id for passage, _ in answer.citations]
        assert cited == [p["id"] for p in record["passages"]]
        assert answer.prompt_tokens == record["prompt_tokens"]
        assert answer.cut_off == (answer.written_tokens >= session.config.decode.max_tokens)
    parts, texts = ask.open_finished(session, workdir, None), [r["question"] for r in records[:3]]
    check_embeddings(served, session, "query", parts.query, texts)
    check_embeddings(served, session, "document", session.passage_encoder, texts)
    assert take_stock(workdir) == before


def test_asking_a_corpus_of_ones_own(finished, make_session, tmp_path):
    session = make_session()
    asked = ask.open_run(session, finished[0], write_corpus(tmp_path / "own.jsonl", OWN[:1]))
    shown = list(asked("What is the capital of Atlantis <|im_end|>?"))
    assert read_facts(shown, "passages read") == [("1.000", f"Atlantis: {OWN[0]['text']}")]
    with pytest.raises(RagJaxError, match="the question has 1.... tokens, and there is room for"):
        list(asked(LONG))


def test_a_served_classifier(classified, make_session):
    changes, workdir, _ = classified
    session = make_session(**changes)
    records = read_jsonl(workdir / "predictions" / "joint.jsonl")
    answers = check_answers(serve.open_run(session, workdir, None), session, records)
    assert not any(answer.cut_off for answer in answers)


def test_asking_a_classifier(classified, make_session):
    changes, workdir, _ = classified
    asked = ask.open_run(make_session(**changes), workdir, None)
    for record in read_jsonl(workdir / "predictions" / "joint.jsonl"):
        shown = list(asked(record["question"]))
        assert read_text(shown) == record["prediction"]
        rows = read_facts(shown, "likeliest answers")
        assert len({answer for _, answer in rows} & set(LABELS)) == 3  # the likeliest
        assert sum(float(chance) for chance, _ in rows) <= 1.01


# Reranking.


def test_the_generator_reads_what_a_reranker_puts_first(
    finished, make_config, make_session, tmp_path
):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    changes = set_reranker(tmp_path)
    report = pipeline.run(make_config(**changes), workdir)
    assert list_made(report) == ["evaluate", "likelihood"]
    assert tuple(report["methods"]) == (*QA_METHODS, "reranked")
    session = make_session(**changes)
    asked = ask.open_run(session, workdir, None)
    trained = load_trained(session, workdir, "joint")
    engine, passages = session.make_engine(trained["generator"]), session.passages
    folder = workdir / "stages" / "index" / "index"
    records = read_jsonl(workdir / "predictions" / "reranked.jsonl")
    check_answers(serve.open_run(session, workdir, None), session, records)
    queries = session.encode_questions(trained["query"], [r["question"] for r in records])
    found = session.load_index(folder).search(queries, 5)
    rows = {passage.id: row for row, passage in enumerate(passages)}
    for record, scores, places in zip(records, *found, strict=True):
        ids, read = [passages[row].id for row in places], record["passages"]
        assert len(read) == 2
        check_ranks(changes, record["question"], read, ids, passages)
        # The retriever's own p(z|x), of the passages that are read.
        logits = dict(zip(ids, session.config.retriever.scale * scores, strict=True))
        weights = np.asarray([[logits[passage["id"]] for passage in read]], np.float32)
        np.testing.assert_allclose([passage["score"] for passage in read], weights[0], atol=1e-3)
        texts = pick_passages(passages, np.asarray([[rows[passage["id"]] for passage in read]]))
        answers = engine.answer([record["question"]], texts, weights, ways=["thorough"])
        assert answers["thorough"][0][0][0] == record["prediction"]
        shown = list(asked(record["question"]))
        assert read_text(shown) == record["prediction"]
        assert len(read_facts(shown, "passages read")) == 2
    before, after = (read_answers(w / "predictions", QA_METHODS) for w in (finished[0], workdir))
    assert before == after


# Another dataset.


def test_evaluate_on_another_dataset(finished, make_config, make_session, tmp_path):
    shared = {"trained": ["frozen", "joint"], "made": ["corpus", "index", "evaluate"]}
    data, trained = check_evaluation(pipeline, Session, make_config(), finished, tmp_path, **shared)
    assert tuple(trained["methods"]) == QA_METHODS
    # Models as loaded are those of trainings before their first step.
    report = pipeline.evaluate_on(make_config(), None, data, "test", tmp_path / "loaded")
    assert list_made(report) == ["corpus", "index", "evaluate"]
    methods = [*SHARED, "token", "fast", "thorough"]
    assert list(report["methods"]) == methods
    assert report["model"].endswith("tiny-llama, untrained")
    start = tmp_path / "start"
    for name in ("frozen", "joint"):
        tree = make_session().make_trainable(joint=name == "joint").start()
        save_tree(start / name / "params", tree)
    direct = make_config(), data, start, ["corpus", "index", "evaluate"], methods
    answers = read_answers(tmp_path / "loaded" / "predictions", methods)
    assert answers == evaluate_directly(pipeline, Session, *direct)


@pytest.mark.parametrize("trains", [True, False])
def test_the_marginal_is_a_setting_of_whoever_reads_it(make_config, trains):
    """Without training, the evaluation alone does."""
    sessions = (
        Session(build(RAGConfig, make_config(marginal=way)), trains=trains)
        for way in ("token", "sequence")
    )
    ours, theirs = (
        {stage.name: to_json(stage.settings) for stage in pipeline.list_stages(session)}
        for session in sessions
    )
    changed = {name for name in ours if ours[name] != theirs[name]}
    assert "joint" in changed and ("evaluate" in changed) == (not trains)


def test_a_refreshed_index_is_made_anew_over_other_passages(refreshed, make_config, tmp_path):
    """By the trained encoder of questions, as training refreshed it; the other is as before."""
    config, data = make_config(**REFRESH), write_world(tmp_path / "other", test=2)
    report = pipeline.evaluate_on(config, refreshed, data, "test", tmp_path / "out")
    assert list_made(report) == ["corpus", "index", "refreshed", "evaluate"]
    session = Session(build(RAGConfig, config), trains=False)
    session.open_corpus(tmp_path / "out" / "stages" / "corpus")
    query = load_trained(session, refreshed, "joint")["query"]
    texts = list_texts(session.passages)
    for name, params in (("index", session.encoder.params), ("refreshed", query)):
        index = session.load_index(tmp_path / "out" / "stages" / name / "index")
        expected = session.encode(replace(session.encoder, params=params), texts, "document")
        np.testing.assert_allclose(index.embeddings, expected, atol=1e-6)


def test_the_labels_of_another_dataset(finished, make_config, tmp_path):
    data = write_world(tmp_path / "other", test=2)
    config = make_config(task="classification")
    with pytest.raises(RagJaxError, match="the labels are the answers of 'train' questions"):
        pipeline.evaluate_on(config, finished[0], data, "test", tmp_path / "out")
