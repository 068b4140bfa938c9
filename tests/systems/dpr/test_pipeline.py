"""Dense retrieval from an empty folder to the report, on the tiny encoder and a tiny world."""

import json
import runpy
import shutil
from pathlib import Path

import ir_measures
import numpy as np
import pytest
from ir_measures import RR, R, Success, nDCG
from pages import read_tables

from rag_jax.config import build, to_config_dict
from rag_jax.data.matching import has_answer
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.rankings import read_run
from rag_jax.models import load
from rag_jax.retrieval import Index, encode_texts
from rag_jax.retrieval.negatives import choose_negatives
from rag_jax.retrieval.validation import BestEpoch
from rag_jax.runtime import trackers
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl
from rag_jax.systems.dpr import ask, evaluate, pipeline, serve
from rag_jax.systems.dpr.config import DPRConfig
from rag_jax.systems.dpr.session import Session
from systems.asked import LONG, OWN, read_facts, take_stock, write_corpus
from systems.evaluated import check_evaluation, list_made, write_world
from systems.reranked import check_ranks, set_reranker
from systems.rooms import check_rooms
from systems.served import check_embeddings

GOLDEN = Path(__file__).parents[2] / "golden"
STAGES = ["corpus", "negatives", "untrained", "train", "trained", "evaluate"]
QUICK = {
    "world.cities": 5,
    "world.train": 12,
    "world.dev": 3,
    "world.test": 9,
    "encoder.name": str(GOLDEN / "bert"),
    "encoder.max_length": 24,
    "train.batch_size": 4,
    "train.epochs": 2,
    "train.learning_rate": 1e-2,
    "train.microbatch_tokens": 64,
}


def make_config(**changes):
    config = to_config_dict(DPRConfig())
    config.update_from_flattened_dict(QUICK | changes)
    return config


TOLD = []  # for each stage that was tracked what is tracked, and the points


class Told:
    def __init__(self, tracked):
        TOLD.append((tracked, {}))

    def log(self, values, step):
        TOLD[-1][1][step] = values

    def close(self): ...


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("dpr") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(trackers.OPENERS, "trackio", Told)
        patch.setitem(trackers.PACKAGES, "trackio", "json")
        return workdir, pipeline.run(make_config(track="trackio"), workdir)


def list_reused(report):
    return [stage["name"] for stage in report["stages"] if stage["reused"]]


def test_room_on_the_disk(finished):
    session = Session(build(DPRConfig, make_config()))
    stages = pipeline.list_stages(session)
    assert check_rooms(session, stages, finished[0]) == ["untrained", "train", "trained"]


def test_report(finished):
    workdir, returned = finished
    report = read_json(workdir / "report.json")
    assert report["methods"] == returned["methods"]
    assert build(DPRConfig, report["config"]) == build(DPRConfig, make_config(track="trackio"))
    assert [stage["name"] for stage in report["stages"]] == STAGES
    assert list(report["methods"]) == ["bm25", "untrained", "trained"]
    for numbers in report["methods"].values():
        assert list(numbers) == list(evaluate.COLUMNS)
        assert numbers["n"] == 9
        assert numbers["passage@1"] <= numbers["mrr"] <= 1
        assert numbers["answer@1"] <= numbers["answer@5"] <= numbers["answer@20"] <= 1
        # A gold passage holds its answer.
        assert numbers["answer@5"] >= numbers["passage@5"]
    assert report["methods"]["trained"] != report["methods"]["untrained"]
    head = read_tables(workdir / "report.html")["methods"][0]
    assert {"answer@5", "mrr", "ndcg@10"} < {*head}


def test_what_is_tracked(finished):
    workdir, report = finished
    train, evaluation = TOLD
    assert [tracked.name for tracked, _ in (train, evaluation)] == ["train", "evaluation"]
    assert train[0].making == read_json(workdir / "stages" / "train" / "stage.json")["run"]
    assert train[0].settings == read_json(workdir / "report.json")["config"]
    for line in read_jsonl(workdir / "stages" / "train" / "log.jsonl"):
        assert train[1][line["step"]]["train/loss"] == line["loss"]
    assert len(train[1]) == line["step"] + 1
    wanted = {
        f"evaluation/{method}/{name}": value
        for method, numbers in report["methods"].items()
        for name, value in numbers.items()
        if isinstance(value, int | float)
    }
    assert evaluation[1] == {0: wanted} and f"evaluation/trained/{evaluate.COLUMNS[1]}" in wanted


def test_rankings_as_others_score_them(finished):
    """The order in the files, scored by ir_measures, gives the report's numbers."""
    workdir, report = finished
    questions = read_json(workdir / "stages" / "corpus" / "questions.json")["test"]
    qrels = {question["id"]: question["relevant"] for question in questions}
    names = {RR: "mrr", nDCG @ 10: "ndcg@10", R @ 100: "recall@100", Success @ 5: "passage@5"}
    for method, numbers in report["methods"].items():
        path = workdir / f"{method}.trec"
        lines = [line.split() for line in path.read_text("utf-8").splitlines()]
        assert {line[5] for line in lines} == {method}
        ranks = {}
        for question, _, passage, rank, *_ in lines:
            ranks.setdefault(question, {})[passage] = -float(rank)
        # By the scores, as every tool ranks, and by the ranks.
        scored = ir_measures.calc_aggregate(list(names), qrels, ranks)
        assert scored == ir_measures.calc_aggregate(
            list(names), qrels, ir_measures.read_trec_run(str(path))
        )
        for measure, name in names.items():
            assert scored[measure] == pytest.approx(numbers[name], abs=1e-9), (method, name)


def test_predictions(finished):
    workdir, report = finished
    for method, numbers in report["methods"].items():
        records = read_jsonl(workdir / "predictions" / f"{method}.jsonl")
        for record in records:
            hits = [has_answer(p["text"], record["answers"]) for p in record["passages"]]
            assert (record["answer@1"], record["answer@5"]) == (hits[0], any(hits))
        assert np.mean([r["answer@1"] for r in records]) == pytest.approx(numbers["answer@1"])


def test_negatives_answer_nothing(finished):
    corpus = finished[0] / "stages" / "corpus"
    passages = read_jsonl(corpus / "passages.jsonl")
    questions = read_json(corpus / "questions.json")["train"]
    mined = read_jsonl(finished[0] / "stages" / "negatives" / "negatives.jsonl")
    assert [record["id"] for record in mined] == [question["id"] for question in questions]
    for question, record in zip(questions, mined, strict=True):
        assert len(record["rows"]) == 10
        for row in record["rows"]:
            passage = passages[row]
            assert passage["id"] not in question["relevant"]
            assert not has_answer(f"{passage['title']} {passage['text']}", question["answers"])


def test_choosing_negatives():
    texts = ["Gitega.", "gold", "The capital", "Ngozi", "more"]
    passages = [Passage(str(i), "Gitega" if i == 3 else "", t) for i, t in enumerate(texts)]
    question = Question("q", "?", ("Gitega",), {"1": 1})
    ranked = np.asarray([1, 0, 4, 3, 2])
    assert choose_negatives(question, ranked, passages, count=5) == [4, 2]
    assert choose_negatives(question, ranked, passages, count=1) == [4]
    # A question that is itself a passage is no negative of its own.
    argument = Question("4", "more", (), {"1": 1})
    assert choose_negatives(argument, ranked, passages, count=5) == [0, 3, 2]
    # With choices the answer is a text, and no label.
    choices = {"A": "Gitega", "B": "more"}
    question = Question("q", "? A: Gitega B: more", ("A",), {"1": 1}, choices=choices)
    assert choose_negatives(question, ranked, passages, count=5) == [4, 2]


def test_trained_encoders_are_models(finished):
    """What was indexed is what the saved passage encoder makes of the passages."""
    stages = finished[0] / "stages"
    encoder = load(stages / "train" / "passage")
    passages = read_jsonl(stages / "corpus" / "passages.jsonl")
    texts = [(p["title"], p["text"]) for p in passages]
    index = Index.load(stages / "trained" / "index", encoder=encoder.fingerprint)
    np.testing.assert_allclose(
        index.embeddings, encode_texts(encoder, texts, max_length=24), atol=1e-5
    )
    assert not (stages / "train" / "checkpoints").exists()


def test_running_again(finished, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    assert list_reused(pipeline.run(make_config(), workdir)) == STAGES
    again = pipeline.run(make_config(evaluate_on="dev"), workdir)
    assert list_reused(again) == STAGES[:-1]
    assert again["methods"]["bm25"]["n"] == 3
    changes = {"train.epochs": 0}
    with pytest.raises(RagJaxError, match=r"stage train: settings changed \(train.epochs: 2 -> 0"):
        pipeline.run(make_config(**changes), workdir)
    again = pipeline.run(make_config(**changes), workdir, overwrite=True)
    assert list_reused(again) == ["corpus", "negatives", "untrained"]
    # Not trained at all is not changed at all.
    assert again["methods"]["trained"] == again["methods"]["untrained"]


def test_seeds(finished, tmp_path):
    """Further seeds train anew on the same questions, and take the rest from the first run."""
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    report = pipeline.run(make_config(), workdir, seeds=2)
    second = read_json(workdir / "seeds" / "1" / "report.json")
    assert list_reused(second) == ["corpus", "negatives", "untrained"]
    names = "bm25", "untrained", "trained"
    single = [read_json(path / "report.json") for path in (workdir, workdir / "seeds" / "1")]
    for name in names:
        values = [one["methods"][name]["mrr"] for one in single]
        assert report["methods"][name]["mrr"] == pytest.approx(np.mean(values))
        assert report["deviation"][name]["mrr"] == pytest.approx(np.std(values, ddof=1))
    assert report["deviation"]["untrained"]["mrr"] == 0
    assert list(report["paired"]["rows"]) == ["bm25", "untrained"]


def test_a_mixture_has_tables_for_each_dataset(tmp_path):
    for name, places in {
        "east": ["Riga", "Oslo", "Lodz"],
        "west": ["Lyon", "Porto", "Cork"],
    }.items():
        (tmp_path / name).mkdir()
        passages = [{"id": p, "title": p, "text": f"{p} is a town."} for p in places]
        asked = [{"question": f"Where is {p}?", "answers": [p], "passage_id": p} for p in places]
        files = {"passages": passages, "train_questions": asked[:2], "test_questions": asked[1:]}
        for file, records in files.items():
            text = "\n".join(map(json.dumps, records))
            (tmp_path / name / f"{file}.jsonl").write_text(text)
    path = f"{tmp_path / 'east'}:{tmp_path / 'west'}"
    report = pipeline.run(make_config(**{"data.path": path}), tmp_path / "run")
    assert report["methods"]["trained"]["n"] == 4
    for name in ("east", "west"):
        rows = report["tables"][f"{name}: methods"]
        assert [row[0] for row in rows] == ["method", "bm25", "untrained", "trained"]
        asked = [
            row
            for row in read_jsonl(tmp_path / "run" / "predictions" / "bm25.jsonl")
            if row["dataset"] == name
        ]
        assert len(asked) == 2 and all(row["id"].startswith(f"{name}/") for row in asked)
        column = rows[0].index("mrr")
        assert float(rows[1][column]) == pytest.approx(np.mean([r["mrr"] for r in asked]), abs=1e-3)
        assert f"{name}: differences on the same questions" in report["tables"]


VALIDATED = {
    "positives": "first",
    "train.epochs": 3,
    "train.checkpoint_every": 1,
    "validation.after": 1,
    "validation.questions": 2,
    "validation.negatives": 4,
}


def test_the_epoch_with_the_best_average_rank(finished, tmp_path, monkeypatch):
    """Two of three epochs are validated on dev questions; a run that stops between continues."""
    workdirs = [shutil.copytree(finished[0], tmp_path / name) for name in ("whole", "stopped")]
    report = pipeline.run(make_config(**VALIDATED), workdirs[0], overwrite=True)
    names = [stage["name"] for stage in report["stages"]]
    assert names == [*STAGES[:2], "dev_negatives", *STAGES[2:]]
    table, words = report["tables"].values()
    assert words == [["k1", "b", "language"], [1.2, 0.75, "english"]]
    assert [row[0] for row in table] == ["epoch", "2", "3"]
    ranks = {int(epoch): rank for epoch, rank in table[1:]}
    stages = workdirs[0] / "stages"
    log = read_jsonl(stages / "train" / "log.jsonl")
    steps = [line["step"] + 1 for line in log if "average_rank" in line]
    assert steps == [6, 9]
    # The encoders that were saved have the best average rank.
    encoder = load(stages / "train" / "question")
    assert not list((stages / "train").glob("epoch-*"))
    asked = read_json(stages / "corpus" / "questions.json")["dev"][:2]
    mined = read_jsonl(stages / "dev_negatives" / "negatives.jsonl")
    assert [len(record["rows"]) for record in mined] == [4, 4]
    passages = read_jsonl(stages / "corpus" / "passages.jsonl")
    number = {passage["id"]: row for row, passage in enumerate(passages)}
    own = [number[next(iter(question["relevant"]))] for question in asked]
    pool = [row for i in range(2) for row in (own[i], *mined[i]["rows"])]
    texts = [(passages[row]["title"], passages[row]["text"]) for row in pool]
    queries = encode_texts(encoder, [question["question"] for question in asked], max_length=24)
    scores = queries @ encode_texts(encoder, texts, max_length=24).T
    above = [(scores[i] > scores[i, 5 * i] + 1e-6).sum() for i in range(2)]
    assert np.mean(above) == min(ranks.values())

    with monkeypatch.context() as patch:

        def stop(self, epoch, params):
            if epoch == 3:
                raise KeyboardInterrupt
            return validate(self, epoch, params)

        validate = BestEpoch._validate
        patch.setattr(BestEpoch, "_validate", stop)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(make_config(**VALIDATED), workdirs[1], overwrite=True)
    assert (workdirs[1] / "stages" / ".train.draft" / "epoch-2").is_dir()
    again = pipeline.run(make_config(**VALIDATED), workdirs[1], overwrite=True)
    assert again["tables"] == report["tables"]
    weights = [w / "stages" / "train" / "question" / "model.safetensors" for w in workdirs]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_two_encoders_with_cls_states_on_a_folder(tmp_path):
    """The paper's kind of encoder, on data without answers in BEIR's format."""
    data = tmp_path / "data"
    (data / "qrels").mkdir(parents=True)
    places = ["Riga", "Lyon", "Gitega", "Oslo", "Paris", "Zürich"]
    passages = [{"_id": p, "title": "", "text": f"{p} is a town."} for p in places]
    queries = [{"_id": f"q{i}", "text": f"Where is {p}?"} for i, p in enumerate(places)]
    for name, records in {"corpus": passages, "queries": queries}.items():
        (data / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)))
    for split, numbers in {"train": range(4), "test": range(4, 6)}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\t{places[i]}\t1" for i in numbers)]
        (data / "qrels" / f"{split}.tsv").write_text("\n".join(lines))
    changes = {
        "data.path": str(data),
        "encoder.shared": False,
        "encoder.pooling": "cls",
        "train.scale": 1.0,
    }
    report = pipeline.run(make_config(**changes), tmp_path / "run")
    assert report["dataset"] == f"{data}, test questions"
    for numbers in report["methods"].values():
        assert numbers["n"] == 2 and "answer@1" not in numbers
    question, passage = (
        load(tmp_path / "run" / "stages" / "train" / side) for side in ("question", "passage")
    )
    assert (question.config.dpr_role, passage.config.dpr_role) == ("question", "context")
    kernel = "layers_0", "attention", "query", "kernel"
    trees = [question.params, passage.params]
    for name in kernel:
        trees = [tree[name] for tree in trees]
    assert np.abs(trees[0] - trees[1]).max() > 1e-3
    with pytest.raises(RagJaxError, match="evaluate_on='dev': the data has no such questions, but"):
        pipeline.run(make_config(**changes, evaluate_on="dev"), tmp_path / "run")
    with pytest.raises(RagJaxError, match="validation.after=1: the data has no 'dev' questions wi"):
        config = make_config(**changes, **{"validation.after": 1})
        pipeline.run(config, tmp_path / "run", overwrite=True)


def test_settings_that_contradict_each_other():
    with pytest.raises(RagJaxError, match="config.validation.after=2: no epoch is left to valid"):
        build(DPRConfig, make_config(**{"validation.after": 2}))
    with pytest.raises(RagJaxError, match="config.train.negatives=3 is above"):
        build(DPRConfig, {"train": {"negatives": 3}, "negatives": {"kept": 2}})


def test_presets():
    get_config = runpy.run_path(str(GOLDEN.parents[1] / "configs" / "dpr.py"))["get_config"]
    small, paper = (build(DPRConfig, get_config(preset)) for preset in ("", "bert-base"))
    assert small == DPRConfig()
    assert (paper.encoder.shared, paper.encoder.pooling, paper.train.scale) == (False, "cls", 1.0)
    # Of the negatives that a question has, one is drawn; the last ten of 40 epochs are validated.
    assert (paper.train.negatives, paper.negatives.kept, paper.positives) == (1, 30, "first")
    assert (paper.validation.after, paper.validation.questions) == (30, 10_000)
    # On Natural Questions' 58,880 training questions.
    assert paper.train.warmup_fraction * paper.train.epochs * 58_880 / 128 == pytest.approx(1237)
    with pytest.raises(RagJaxError, match="config preset 'large': must be one of bert-base"):
        get_config("large")


# Asking.


def test_asking_finds_the_passages_of_the_evaluation(finished, tmp_path, caplog):
    workdir = finished[0]
    before = take_stock(workdir)
    session = pipeline.Session(build(DPRConfig, make_config()))
    asked = ask.open_run(session, workdir, None)
    for record in read_jsonl(workdir / "predictions" / "trained.jsonl"):
        shown = list(asked(record["question"]))
        rows, outcome = read_facts(shown, "passages found"), shown[-1]
        assert (outcome.answer, outcome.likelihood, outcome.in_documents) == (None, None, None)
        cited = [(passage.text, f"{score:.3f}") for passage, score in outcome.citations]
        expected = zip(record["passages"], rows, strict=True)
        assert cited == [(passage["text"], row[0]) for passage, row in expected]
        assert [text for _, text in rows] == [
            f"{p['title']}: {p['text']}" for p in record["passages"]
        ]
        scores = [p["score"] for p in record["passages"]]
        assert [float(score) for score, _ in rows] == pytest.approx(scores, abs=1e-3)
    asked = ask.open_run(session, workdir, write_corpus(tmp_path / "own.jsonl"))
    rows = read_facts(asked("Where is Atlantis [SEP] [MASK]?"), "passages found")
    assert {text for _, text in rows} == {f"Atlantis: {OWN[0]['text']}", OWN[1]["text"]}
    with caplog.at_level("WARNING"):
        assert len(read_facts(asked(LONG), "passages found")) == 2
    assert "1 of 1 texts were cut to 24 tokens" in caplog.text
    assert take_stock(workdir) == before


def test_served_embeddings_are_those_of_the_run(finished):
    workdir = finished[0]
    before = take_stock(workdir)
    session = pipeline.Session(build(DPRConfig, make_config()))
    served = serve.open_run(session, workdir, None)
    encoders, *_ = ask.open_parts(session, workdir, None)
    texts = ["Where is Gitega?", "Gitega is the capital.", "[SEP] [MASK] Burundi"]
    check_embeddings(served, session, "query", encoders.question, texts)
    check_embeddings(served, session, "document", encoders.passage, texts)
    assert served.answer is None and served.score is None
    assert take_stock(workdir) == before


# Reranking.


def test_a_reranked_row(finished, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    changes = set_reranker(tmp_path)
    report = pipeline.run(make_config(**changes), workdir)
    assert list_made(report) == ["evaluate"]
    methods = dict(report["methods"])
    assert list(methods.pop("reranked")) == list(evaluate.COLUMNS)
    assert methods == finished[1]["methods"]  # what was found stays as it was
    session = Session(build(DPRConfig, make_config(**changes)))
    asked = ask.open_run(session, workdir, None)
    found = read_run(workdir / "trained.trec")
    for record in read_jsonl(workdir / "predictions" / "reranked.jsonl"):
        ids = [id for id, _ in found[record["id"]]]
        inputs = record["question"], record["passages"], ids
        check_ranks(changes, *inputs, session.passages)
        rows = read_facts(asked(record["question"]), "passages found")
        assert [text for _, text in rows] == [
            f"{p['title']}: {p['text']}" for p in record["passages"]
        ]
    # Off again, nothing tells that there was a reranker.
    again = pipeline.run(make_config(), workdir)
    assert list_made(again) == ["evaluate"] and again["methods"] == finished[1]["methods"]
    files = {path.name for path in (workdir / "stages" / "evaluate").iterdir()}
    assert files == {path.name for path in (finished[0] / "stages" / "evaluate").iterdir()}


# Another dataset.


def test_evaluate_on_another_dataset(finished, tmp_path):
    made = ["corpus", "untrained", "trained", "evaluate"]
    shared = {"trained": ["train"], "made": made}
    data, trained = check_evaluation(pipeline, Session, make_config(), finished, tmp_path, **shared)
    # Models as loaded are the run's before its training, which is not needed.
    config = make_config(**{"validation.after": 0})
    report = pipeline.evaluate_on(config, None, data, "test", tmp_path / "loaded")
    assert list_made(report) == ["corpus", "untrained", "evaluate"]
    assert report["model"].endswith("bert, untrained")
    assert report["methods"] == {n: trained["methods"][n] for n in ("bm25", "untrained")}
    with pytest.raises(RagJaxError, match="evaluate_on='dev': the data has no such questions"):
        pipeline.evaluate_on(make_config(), finished[0], data, "dev", tmp_path / "dev")


def test_evaluate_on_another_dataset_with_other_settings(finished, tmp_path):
    data = write_world(tmp_path / "other", test=3)
    with pytest.raises(RagJaxError, match="stage train: settings changed .train.epochs: 2 -> 1"):
        config = make_config(**{"train.epochs": 1})
        pipeline.evaluate_on(config, finished[0], data, "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()
