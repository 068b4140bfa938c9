"""Self-Retrieval from an empty folder to the report, on tiny models and a tiny world."""

import json
import runpy
import shutil
from collections import Counter
from functools import partial
from pathlib import Path

import ir_measures
import jax
import numpy as np
import pytest
from ir_measures import RR, Success
from pages import read_tables

from rag_jax.config import build, to_config_dict
from rag_jax.evaluation.rankings import read_run
from rag_jax.losses import token_logprobs
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.runtime.checkpoint import save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl, to_json
from rag_jax.systems.self_retrieval import ask, evaluate, pipeline, reader, serve, steps
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.pipeline import list_stages
from rag_jax.systems.self_retrieval.scores import score
from rag_jax.systems.self_retrieval.session import Session
from rag_jax.training.rows import pack_rows
from systems.asked import (
    LONG,
    check_likelihood,
    read_facts,
    read_text,
    take_stock,
    write_corpus,
)
from systems.compared import check_rows
from systems.evaluated import check_evaluation, evaluate_directly, list_made, read_answers
from systems.reranked import check_ranks, set_reranker
from systems.rooms import check_rooms
from systems.served import check_answers

ROOT = Path(__file__).parents[3]
QUICK = {
    "model.max_text": 24,
    "tuning.rank": 2,
    "indexing.epochs": 1,
    "indexing.batch_size": 8,
    "indexing.checkpoint_every": 1,
    "indexing.microbatch_tokens": 2048,
    "indexing.learning_rate": 1e-2,
    "train.batch_size": 8,
    "train.microbatch_tokens": 2048,
    "train.learning_rate": 1e-2,
    "train.checkpoint_every": 1,
    "examples.other": 1,
    "search.titles": 2,
    "search.passages": 2,
    "search.max_answer": 3,
    "dense.encoder.max_length": 24,
    "dense.train.batch_size": 4,
    "dense.hard": 2,
    "bm25.language": "none",  # other passages share only stop words with a question
}


PLACES = {
    "Riga": "Latvia",
    "Lyon": "France",
    "Gitega": "Burundi",
    "Oslo": "Norway",
    "Quito": "Ecuador",
    "Lyons": "the United States",  # which another title begins
}


TRAININGS, LEFT_OUT = (
    ("indexing", "train"),
    ("without_indexing", "indexing_untitled", "without_titles"),
)
SECOND = "Nobody knows for certain who built it, or when."


def write_folder(folder, passages):
    """Passages as a folder in SQuAD's format, with a question about each place in either split."""
    folder.mkdir(exist_ok=True)
    lines = {"passages.jsonl": passages}
    for split, template in {"train": "Where is {}?", "test": "{} is in which country?"}.items():
        lines[f"{split}_questions.jsonl"] = [
            {
                "id": f"{split}/{place}",
                "question": template.format(place),
                "answers": [country],
                "passage_id": f"{place}/1",
            }
            for place, country in PLACES.items()
        ][:5]
    for name, records in lines.items():
        (folder / name).write_text("\n".join(map(json.dumps, records)), "utf-8")
    return {"data.path": str(folder)}


def make_passages():
    """Two passages a place that begin alike, one place with one passage, and one said twice."""
    passages = []
    for place, country in PLACES.items():
        lies, has = f"lies in {country}, of old.", "has a river and a very old bridge."
        passages.append((f"{place}/1", place, f"{place} is a town that {lies}"))
        passages.append((f"{place}/2", place, f"{place} is a town that {has}"))
    passages[-1] = ("twin", *passages[0][1:])
    return [{"id": id, "title": title, "text": text} for id, title, text in passages]


@pytest.fixture(scope="module")
def make_config(llama_folder, bert_folder, tmp_path_factory):
    models = {"model.name": str(llama_folder), "dense.encoder.name": str(bert_folder)}
    data = write_folder(tmp_path_factory.mktemp("data"), make_passages())

    def make(**changes):
        config = to_config_dict(SelfRetrievalConfig())
        config.update_from_flattened_dict(QUICK | models | data | changes)
        return config

    return make


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("self_retrieval") / "run"
    return workdir, pipeline.run(make_config(ablations=True), workdir)


@pytest.fixture(scope="module")
def engine(finished, make_config):
    """The trained model's, with the corpus."""
    session = Session(build(SelfRetrievalConfig, make_config(ablations=True)))
    (stage,) = (stage for stage in list_stages(session) if stage.name == "evaluate")
    context = StageContext(stage, finished[0] / "stages")
    session.open_corpus(context.path("corpus", ""))
    return session.open_engine(context, "train")


def test_rows_of_a_comparison(finished):
    rows = check_rows("self_retrieval", finished[0])
    assert {row["retrieval_rate"] for row in rows.values() if "offline_seconds" in row} == {1}


def test_room_on_the_disk(finished, make_config):
    session = Session(build(SelfRetrievalConfig, make_config(ablations=True)))
    estimated = check_rooms(session, list_stages(session), finished[0])
    assert {"train", "dense_tuned", "without_indexing", "without_titles"} <= {*estimated}


def test_report(finished, make_config):
    workdir, report = finished[0], read_json(finished[0] / "report.json")
    settings = build(SelfRetrievalConfig, make_config(ablations=True))
    assert build(SelfRetrievalConfig, report["config"]) == settings
    assert sorted(report["methods"]) == sorted((*evaluate.METHODS, *evaluate.ABLATIONS))
    for numbers in report["methods"].values():
        assert numbers["n"] == 5
        assert 0 <= numbers["hits@1"] <= numbers["mrr@5"] <= numbers["hits@5"] <= 1
        assert numbers["document_recall@1"] <= numbers["document_mrr@100"] + 1e-9
        assert numbers["hits@1"] <= numbers["document_recall@1"] <= 1
    rows = read_tables(workdir / "report.html")["methods"]
    assert "without_titles" in [row[0] for row in rows]
    rows = read_json(workdir / "stages" / "train" / "rows.json")
    assert rows["indexing"] == len(make_passages())
    # The one passage of the same title that does not answer, and one of another.
    assert (rows["positives"], rows["negatives"]) == (5, 10)


def test_the_ablations_train_for_as_many_steps_as_the_full_model(finished):
    stages = finished[0] / "stages"
    rows = {name: read_json(stages / name / "rows.json") for name in (*TRAININGS, *LEFT_OUT)}
    steps = {name: len(read_jsonl(stages / name / "log.jsonl")) for name in rows}
    assert rows["without_indexing"] == {
        **rows["train"],
        "indexing": 0,
        "indexing_tokens": 0,
        "longest": rows["without_indexing"]["longest"],
    }
    # By 8: 12 passages of a sentence each; 27 rows, of which 15 are questions', alone in 2 steps.
    assert [steps[name] for name in TRAININGS] == [2, 4]
    assert steps["without_indexing"] == 6
    assert (steps["indexing_untitled"], steps["without_titles"]) == (2, 4)
    for name in ("indexing", "positives", "negatives"):
        assert rows["without_titles"][name] == rows["train"][name]


def test_the_second_run_continues_the_first(make_config, tmp_path):
    """Without epochs of its own it ends with the first one's weights, all sentences trained."""
    passages = [{**p, "text": f"{p['text']} {SECOND}"} for p in make_passages()]
    data = write_folder(tmp_path / "data", passages)
    config = make_config(**data, **{"train.epochs": 0, "examples.sentences": 1})
    session = Session(build(SelfRetrievalConfig, config))
    stages = list_stages(session)[:5]
    assert [stage.name for stage in stages][-2:] == ["indexing", "train"]
    run_stages(stages, tmp_path / "run")
    folders = [tmp_path / "run" / "stages" / name for name in TRAININGS]
    counts = [read_json(folder / "rows.json") for folder in folders]
    assert [count["indexing"] for count in counts] == [2 * len(passages), len(passages)]
    assert [count["positives"] for count in counts] == [0, 5]
    first, second = (session.trainable.load(folder / "params") for folder in folders)
    jax.tree.map(np.testing.assert_array_equal, first, second)
    start = session.trainable.start()
    assert not all(jax.tree.leaves(jax.tree.map(np.array_equal, first, start)))


def test_either_run_resumes(finished, make_config, tmp_path, monkeypatch):
    """Interrupted in both of its runs, a training ends with the same bits."""
    session = Session(build(SelfRetrievalConfig, make_config()))
    steps = []

    def stop(rows, **settings):
        steps.append(rows)
        if len(steps) in (2, 5):
            raise KeyboardInterrupt
        return pack_rows(rows, **settings)

    monkeypatch.setattr("rag_jax.training.rows.pack_rows", stop)
    begun = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_stages(list_stages(session)[:5], tmp_path / "run")
        begun.append([(tmp_path / "run" / "stages" / name).exists() for name in TRAININGS])
    assert begun == [[True, False], [True, True]]
    run_stages(list_stages(session)[:5], tmp_path / "run")
    for name in TRAININGS:
        folders = [
            folder / "stages" / name / "params" for folder in (finished[0], tmp_path / "run")
        ]
        jax.tree.map(np.testing.assert_array_equal, *map(session.trainable.load, folders))


def test_development_questions_are_asked_after_each_epoch(finished, make_config, tmp_path):
    """The numbers are those of an evaluation on these questions; what is trained stays the same."""
    data = write_folder(tmp_path / "data", make_passages())
    shutil.copy(tmp_path / "data/test_questions.jsonl", tmp_path / "data/dev_questions.jsonl")
    config = make_config(**data, **{"validation": 3, "train.epochs": 2})
    session = Session(build(SelfRetrievalConfig, config))
    stages = {stage.name: stage for stage in list_stages(session)}
    names = ("corpus", "negatives", "trie", *TRAININGS, "dense_tuned", "evaluate")
    run_stages([stages[name] for name in names], tmp_path / "run")
    folder = tmp_path / "run" / "stages"
    logs = {name: read_jsonl(folder / name / "log.jsonl") for name in TRAININGS}
    for epochs, log in zip((1, 2), logs.values(), strict=True):
        steps = [line["step"] for line in log if "hits@1" in line]
        assert steps == [len(log) // epochs * epoch - 1 for epoch in range(1, epochs + 1)]
    asked = read_jsonl(folder / "evaluate" / "self_retrieval.jsonl")[:3]
    for name in ("hits@1", "hits@5", "mrr@5", "document_recall@1"):
        evaluated = np.mean([record[name] for record in asked])
        assert logs["train"][-1][name] == pytest.approx(evaluated)
    spec = evaluate.describe_report(session.config)
    context = StageContext(Stage("", lambda context: None, needs=names), folder)
    heading, *rows = spec.extras(context)["tables"][evaluate.EPOCHS]
    assert [row[:2] for row in rows] == [["indexing", "1"], ["train", "1"], ["train", "2"]]
    assert rows[-1][2:] == [logs["train"][-1][name] for name in heading[2:]]
    trees = [place / "indexing/params" for place in (folder, finished[0] / "stages")]
    jax.tree.map(np.testing.assert_array_equal, *map(session.trainable.load, trees))


def test_validation_needs_development_questions(make_config, tmp_path):
    with pytest.raises(RagJaxError, match="config.data: there are no 'dev' questions"):
        pipeline.run(make_config(validation=3), tmp_path / "run")


def test_one_run_without_epochs_of_indexing(make_config):
    config = make_config(ablations=True, **{"indexing.epochs": 0})
    session = Session(build(SelfRetrievalConfig, config))
    stages = {stage.name: stage for stage in list_stages(session)}
    assert not {"indexing", "indexing_untitled"} & stages.keys()
    assert stages["train"].needs == ("corpus", "negatives")
    assert stages["without_indexing"].needs == ("corpus", "negatives", "train")


def test_what_the_first_run_does_not_read_keeps_it(make_config):
    def list_settings(**changes):
        stages = list_stages(Session(build(SelfRetrievalConfig, make_config(**changes))))
        return {stage.name: stage.settings for stage in stages}

    before, after = list_settings(), list_settings(**{"examples.same": 3, "train.epochs": 2})
    assert before["indexing"] == after["indexing"] and before["train"] != after["train"]
    other = list_settings(**{"examples.indexing_sentences": 2})
    assert other["indexing"] != before["indexing"]


def test_seconds(finished):
    """Of the search and of the answer; the report's column is the mean."""
    workdir, report = finished
    seconds = {}
    for name, numbers in report["methods"].items():
        records = read_jsonl(workdir / "predictions" / f"{name}.jsonl")
        seconds[name] = np.asarray([record["seconds"] for record in records])
        assert seconds[name].mean() == pytest.approx(numbers["seconds_per_question"])
    # The same search, and then an answer that is timed separately.
    answers = read_jsonl(workdir / "stages" / "evaluate" / "answers.jsonl")
    for spent in seconds["without_assessment"] - seconds["self_retrieval"]:
        assert any(spent == pytest.approx(answer["seconds"]) for answer in answers)


def test_rankings_as_others_score_them(finished):
    workdir, report = finished
    questions = read_json(workdir / "stages" / "corpus" / "questions.json")["test"]
    qrels = {question["id"]: question["relevant"] for question in questions}
    names = {Success @ 1: "hits@1", Success @ 5: "hits@5", RR @ 5: "mrr@5"}
    for method, numbers in report["methods"].items():
        run = list(ir_measures.read_trec_run(str(workdir / f"{method}.trec")))
        scored = ir_measures.calc_aggregate(list(names), qrels, run)
        for measure, name in names.items():
            assert scored[measure] == pytest.approx(numbers[name], abs=1e-9), (method, name)


@partial(jax.jit, static_argnums=0)
def read_logprobs(model, params, tokens):
    return token_logprobs(model.apply({"params": params}, tokens[None])[0, :-1], tokens[1:])


def read_all(engine, tokens):
    padded = np.pad(tokens, (0, 128 - len(tokens)))  # to one length: one program
    found = read_logprobs(engine.model, engine.params, padded.astype(np.int32))
    return np.asarray(found)[: len(tokens) - 1]


def test_candidates_are_passages_with_the_models_own_probabilities(engine):
    """Every number of every candidate against the model read from the start, without a cache."""
    questions = ["Where is Gitega?", "What is to be seen in Lyon, and since when?", "Oslo?"]
    format, rejected = engine.format, engine.format.encode_reject()
    counts = Counter(passage.title for passage in engine.passages)
    seen, retrieved = set(), engine.retrieve(questions)
    for (groups, _), written in zip(retrieved, engine.write_passages(questions), strict=True):
        assert [[c[:3] for c in group] for group in written] == [[c[:3] for c in g] for g in groups]
        assert all(np.isnan(c.reject) for group in written for c in group)
    for question, (groups, _) in zip(questions, retrieved, strict=True):
        assert 1 <= len(groups) <= 2
        titles = [{engine.passages[r].title for c in group for r in c.rows} for group in groups]
        assert all(len(title) == 1 for title in titles) and titles[0] != titles[-1:]
        assert [g[0].title for g in groups] == sorted((g[0].title for g in groups), reverse=True)
        asked = format.encode_question(question)
        for group in groups:
            assert len(group) <= 2
            for candidate in group:
                passage = engine.passages[candidate.rows[0]]
                seen.add(counts[passage.title])
                texts = {format.encode_text(engine.passages[r].text)[0] for r in candidate.rows}
                assert len(texts) == 1
                end = format.cut_title(format.encode_title(passage.title))
                logprobs = read_all(engine, asked + end)[-len(end) :]
                assert candidate.title == pytest.approx(np.exp(logprobs.sum()), rel=1e-3)
                whole = format.encode_sequence(passage)
                leaf = int(engine.trie.find([whole])[0])
                known = engine.trie.path(leaf)
                start = len(format.encode_title(passage.title))
                own = read_all(engine, asked + whole)[len(asked) - 1 :]
                expected = own[start : len(known)].sum()
                assert candidate.passage == pytest.approx(expected, abs=2e-3)
                reading = asked + format.encode_reading(passage)
                logprobs = read_all(engine, reading + rejected)[-len(rejected) :]
                assert candidate.reject == pytest.approx(np.exp(logprobs.sum()), rel=1e-3)
    assert 1 in seen  # a title with one passage is scored whole, too


def test_the_answer_continues_from_the_best_passage(engine):
    questions = ["Where is Gitega?", "Which language is spoken in Peru?"]
    found = engine.retrieve(questions)
    best = []
    for groups, _ in found:
        flat = [candidate for group in groups for candidate in group]
        scores = np.concatenate(score(groups, engine.settings))
        best.append(flat[int(scores.argmax())].rows[0])
    for (_, own), alone in zip(found, engine.answer(questions, best), strict=True):
        assert (own.text, own.cut_off) == (alone.text, alone.cut_off)
        assert own.likelihood == pytest.approx(alone.likelihood, abs=1e-4)


def test_a_second_batch_compiles_nothing(engine):
    programs = (
        steps.read,
        steps.search,
        steps.read_titles,
        steps.assess,
        steps.pick_candidates,
        steps.answer,
    )
    engine.retrieve(["Where is Gitega?", "Which language is spoken in Peru?"])
    before = [program._cache_size() for program in programs]
    engine.retrieve(["Where is Gitega, then?", "What is spoken in Chile?"])
    assert [program._cache_size() for program in programs] == before


def test_running_again(finished, make_config, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    changes = {"search.method": "reference", "search.over": "all", "search.lengths": "mean"}
    again = pipeline.run(make_config(**changes), workdir)
    redone = [stage["name"] for stage in again["stages"] if not stage["reused"]]
    assert redone == ["evaluate", "likelihood"]
    assert set(again["methods"]) == set(evaluate.METHODS)


def test_passages_without_titles_get_them(make_config, tmp_path):
    passages = [{"id": p["id"], "text": p["text"]} for p in make_passages()]
    data = write_folder(tmp_path / "data", passages)
    config = make_config(**data, **{"examples.target": "prefix", "examples.assessment": "answer"})
    report = pipeline.run(config, tmp_path / "run")
    given = read_jsonl(tmp_path / "run" / "stages" / "corpus" / "passages.jsonl")
    assert all(passage["title"].strip() for passage in given)
    assert report["methods"]["self_retrieval"]["n"] == 5


def test_presets():
    get_config = runpy.run_path(str(ROOT / "configs" / "self_retrieval.py"))["get_config"]
    names = ("", "stablelm-3b", "llama2-7b")
    small, *paper = (build(SelfRetrievalConfig, get_config(preset)) for preset in names)
    for settings in paper:
        assert settings.examples.target == "passage"
        assert (settings.search.titles, settings.search.passages) == (5, 10)
        assert (settings.train.learning_rate, settings.train.epochs) == (2e-5, 3)
        assert settings.indexing == settings.train
        examples = settings.examples
        assert (examples.indexing_sentences, examples.sentences, examples.repeats) == (0, 3, 2)
        assert (examples.same, examples.other, examples.positives) == (5, 0, 3)
    assert small.indexing.epochs == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search.titles": 0}, "config.search.titles=0: must be at least 1"),
        ({"data.path": "nowhere"}, "config.data.path=nowhere: no such folder"),
    ],
)
def test_mistakes_are_told(make_config, tmp_path, changes, message):
    with pytest.raises(RagJaxError, match=message):
        pipeline.run(make_config(**changes), tmp_path / "run")


def test_an_encoder_is_no_language_model(make_config, bert_folder, tmp_path):
    config = make_config(**{"model.name": str(bert_folder)})
    session = Session(build(SelfRetrievalConfig, config))
    with pytest.raises(RagJaxError, match="config.model.name=.*: is no language model"):
        run_stages(list_stages(session)[:3], tmp_path / "run")


# Asking.


def test_asking_gives_what_the_evaluation_found(finished, engine, make_config):
    workdir, format, likelihoods = finished[0], engine.format, {}
    before = take_stock(workdir)
    session = Session(build(SelfRetrievalConfig, make_config(ablations=True)))
    asked = ask.open_run(session, workdir, None)
    passages = {p["id"]: p for p in read_jsonl(workdir / "stages" / "corpus" / "passages.jsonl")}
    for record in read_jsonl(workdir / "predictions" / "self_retrieval.jsonl"):
        shown = list(asked(record["question"]))
        assert read_text(shown) == record["prediction"]
        head, *rows = read_facts(shown, "passages written")
        assert head[:2] == ("score", "rejected")
        for (value, _, text), found in zip(rows, record["passages"], strict=False):
            passage = passages[found["id"]]
            assert text == f"{passage['title']}: {passage['text']}"
            assert float(value) == pytest.approx(found["score"], abs=2e-3)
        outcome = shown[-1]
        ((passage, value),) = outcome.citations
        assert outcome.answer == record["prediction"]
        # Of several with the best score it is the one that the answer was written after.
        assert passage.id in [found["id"] for found in record["passages"]]
        assert value == pytest.approx(record["passages"][0]["score"], abs=1e-4)
        prompt = [*format.encode_question(record["question"]), *format.encode_reading(passage)]
        prompt += format.encode_accept()
        limits = {"max_tokens": 3, "stop_ids": format.tokenizer.stop_ids}
        check_likelihood(outcome.likelihood, engine.model, engine.params, prompt, **limits)
        likelihoods[record["question"]] = outcome.likelihood
    # What the threshold would be chosen from.
    stage = next(stage for stage in list_stages(session) if stage.name == "likelihood")
    read, _ = reader.open_reader(StageContext(stage, workdir / "stages"), session)
    measured = [value for _, value in read(list(likelihoods))]
    assert measured == pytest.approx(list(likelihoods.values()), abs=1e-4)
    with pytest.raises(RagJaxError, match="the question has 1.... tokens, and there is room for"):
        list(asked(LONG))
    assert read_facts(list(asked("<|im_end|> <|endoftext|>")), "passages written")
    assert take_stock(workdir) == before


def test_served_answers_are_those_of_the_evaluation(finished, make_config):
    workdir = finished[0]
    before = take_stock(workdir)
    session = Session(build(SelfRetrievalConfig, make_config(ablations=True)))
    served = serve.open_run(session, workdir, None)
    records = read_jsonl(workdir / "predictions" / "self_retrieval.jsonl")
    answers = check_answers(served, session, records)
    for answer, record in zip(answers, records, strict=True):
        ((passage, value),) = answer.citations
        assert passage.id in [found["id"] for found in record["passages"]]
        assert value == pytest.approx(record["passages"][0]["score"], abs=1e-4)
        assert answer.cut_off == (answer.written_tokens >= session.config.search.max_answer)
    assert served.embed is None and served.score is None
    assert take_stock(workdir) == before


def test_asking_a_corpus_that_is_not_in_the_weights(finished, make_config, tmp_path):
    session = Session(build(SelfRetrievalConfig, make_config(ablations=True)))
    with pytest.raises(RagJaxError, match="the corpus of Self-Retrieval is in its weights"):
        ask.open_run(session, finished[0], write_corpus(tmp_path / "own.jsonl"))


# Reranking.


def test_what_is_written_and_what_others_find_is_reranked(finished, make_config, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    changes = set_reranker(tmp_path)
    report = pipeline.run(make_config(ablations=True, **changes), workdir)
    assert list_made(report) == ["evaluate", "likelihood"]
    names = [*evaluate.METHODS[:4], *evaluate.METHODS[4:], *evaluate.ABLATIONS]
    rows = evaluate.RERANKINGS
    wanted = [row for name in names for row in (name, rows.get(name)) if row]
    assert list(report["methods"]) == wanted
    session = Session(build(SelfRetrievalConfig, make_config(ablations=True, **changes)))
    asked = ask.open_run(session, workdir, None)
    engine = asked.args[0]
    places = {passage.id: row for row, passage in enumerate(session.passages)}
    for name, row in rows.items():
        found = read_run(workdir / f"{name}.trec")
        for record in read_jsonl(workdir / "predictions" / f"{row}.jsonl"):
            question, shown = record["question"], record["passages"]
            ids = [id for id, _ in found[record["id"]]]
            check_ranks(changes, question, shown, ids, session.passages)
            (answer,) = engine.answer([question], [places[shown[0]["id"]]])
            assert record["prediction"] == answer.text
            if row == "reranked":
                assert read_text(asked(question)) == answer.text
    records = read_jsonl(workdir / "predictions" / "reranked.jsonl")
    check_answers(serve.open_run(session, workdir, None), session, records)
    shared = [name for name in names if name in finished[1]["methods"]]
    before, after = (read_answers(w / "predictions", shared) for w in (finished[0], workdir))
    assert before == after


# Another dataset.


def test_the_dense_encoder_is_a_setting_of_an_evaluation_without_training(make_config):
    settings = []
    for length in (16, 24):
        config = build(SelfRetrievalConfig, make_config(**{"dense.encoder.max_length": length}))
        stages = pipeline.list_stages(Session(config, trains=False))
        settings += [to_json(s.settings) for s in stages if s.name == "evaluate"]
    assert settings[0] != settings[1]


def test_evaluate_on_another_dataset(finished, make_config, tmp_path):
    config, made = make_config(ablations=True), ["corpus", "trie", "evaluate"]
    shared = {"trained": ["train", "dense_tuned"], "made": made}
    data, trained = check_evaluation(pipeline, Session, config, finished, tmp_path, **shared)
    assert sorted(trained["methods"]) == sorted(evaluate.METHODS)
    # Models as loaded are those of a training before its first step.
    report = pipeline.evaluate_on(config, None, data, "test", tmp_path / "loaded")
    assert list_made(report) == made
    methods = [name for name in evaluate.METHODS if name != "dense_tuned"]
    assert sorted(report["methods"]) == sorted(methods)
    assert report["model"].endswith("tiny-llama, untrained")
    start, session = tmp_path / "start", Session(build(SelfRetrievalConfig, config))
    save_tree(start / "train" / "params", session.trainable.start())
    shutil.copytree(finished[0] / "stages" / "dense_tuned", start / "dense_tuned")
    direct = evaluate_directly(pipeline, Session, config, data, start, made, methods)
    assert read_answers(tmp_path / "loaded" / "predictions", methods) == direct
