"""Parametric RAG from an empty folder to the report, on tiny models and a tiny world."""

import json
import re
import runpy
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from in_process import InProcess
from pages import read_tables

from rag_jax import lora
from rag_jax.config import build, to_config_dict
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import exact_match, f1, match
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.ask import Facts
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, read_jsonl, write_json
from rag_jax.systems import asking
from rag_jax.systems.asking import Pair
from rag_jax.systems.prag import ask, evaluate, pipeline, serve, steps, train
from rag_jax.systems.prag.augment import list_documents, read_augmented
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.data import Augmented, make_examples, repeat_examples
from rag_jax.systems.prag.evaluate import METHODS
from rag_jax.systems.prag.infer import Answers, Engine
from rag_jax.systems.prag.pipeline import list_stages
from rag_jax.systems.prag.session import Session
from rag_jax.systems.session import bind
from systems.asked import (
    LONG,
    OWN,
    check_likelihood,
    list_notes,
    read_facts,
    read_text,
    take_stock,
    write_corpus,
)
from systems.compared import check_rows
from systems.evaluated import check_evaluation, list_made, write_world
from systems.reranked import check_ranks, set_reranker
from systems.rooms import check_rooms
from systems.served import check_answers

ROOT = Path(__file__).parents[3]
QUICK = {
    "model.max_text": 24,
    "retrieve.by": "bm25",
    "retrieve.passages": 2,
    "retrieve.encoder.max_length": 24,
    "augment.max_tokens": 4,
    "augment.batch_size": 4,
    "encode.together": 2,
    "encode.epochs": 2,
    "encode.learning_rate": 1e-2,
    "warm_up.batch_size": 2,
    "answer.max_tokens": 3,
    "answer.batch_size": 4,
}
PLACES = {
    "Riga": "Latvia",
    "Lyon": "France",
    "Gitega": "Burundi",
    "Oslo": "Norway",
    "Quito": "Peru",
}
# Ids are any text, and never paths.
NAMES = dict(zip(PLACES, ["../up", "a/b.c", "Gitéga", "..", "q"], strict=True))


def write_folder(folder):
    """Passages in SQuAD's format, with a question about each place in either split."""
    folder.mkdir(exist_ok=True)
    passages = [
        {"id": NAMES[place], "title": place, "text": f"{place} is a town that lies in {country}."}
        for place, country in PLACES.items()
    ]
    passages.append({"id": "river", "title": "", "text": "There is a river with a bridge."})
    lines = {"passages.jsonl": passages}
    for split, template in {"train": "Where is {}?", "test": "{} lies in which country?"}.items():
        lines[f"{split}_questions.jsonl"] = [
            {
                "id": f"{split}/{place}",
                "question": template.format(place),
                "answers": [country],
                "passage_id": NAMES[place],
            }
            for place, country in PLACES.items()
        ]
    for name, records in lines.items():
        (folder / name).write_text("\n".join(map(json.dumps, records)), "utf-8")
    return {"data.path": str(folder)}


@pytest.fixture(scope="module")
def make_config(llama_folder, bert_folder, tmp_path_factory):
    models = {"model.name": str(llama_folder), "retrieve.encoder.name": str(bert_folder)}
    data = write_folder(tmp_path_factory.mktemp("data"))

    def make(**changes):
        config = to_config_dict(PRAGConfig())
        config.update_from_flattened_dict(QUICK | models | data | changes)
        return config

    return make


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("prag") / "run"
    return workdir, pipeline.run(make_config(ablations=True), workdir)


@pytest.fixture(scope="module")
def session(finished, make_config):
    return Session(build(PRAGConfig, make_config(ablations=True)))


def open_stage(session, workdir, name):
    (stage,) = (stage for stage in list_stages(session) if stage.name == name)
    context = StageContext(stage, workdir / "stages")
    session.open_corpus(context.path("corpus", ""))
    return context


def open_store(session, workdir, name="encode"):
    return session.open_store(workdir / "stages" / name / "adapters", session.variants[name])


def open_documents(session, context):
    return list_documents(context.path("retrieve", "found.jsonl"), session.passages)


def make_engine(session, **changes):
    settings = {
        "model": session.base.model,
        "params": session.base.params,
        "format": session.format,
        "settings": session.config.answer,
        "scale": session.config.tuning.scale,
        "documents": 2,
        "widths": [64],
    }
    return Engine(**settings | changes)


def test_rows_of_a_comparison(finished):
    rows = check_rows("prag", finished[0])
    for name, row in ((name, rows[name]) for name in METHODS):
        assert row["retrieval_rate"] == (name != "direct")
        assert 0 <= row["generated_tokens"] <= 3 and row["prompt_tokens"] > 0


def test_room_on_the_disk(finished, session):
    estimated = check_rooms(session, list_stages(session), finished[0])
    assert estimated == ["warm_up", *session.variants]


def test_report(finished, make_config):
    workdir, report = finished[0], read_json(finished[0] / "report.json")
    assert build(PRAGConfig, report["config"]) == build(PRAGConfig, make_config(ablations=True))
    ablations = ["without_rewrites", "without_questions", "warm_start"]
    assert list(report["methods"]) == [*METHODS, *ablations]
    for numbers in report["methods"].values():
        assert numbers["n"] == 5
        assert 0 <= numbers["exact_match"] <= numbers["f1"] <= 1
    tokens = {name: numbers["prompt_tokens"] for name, numbers in report["methods"].items()}
    assert tokens["direct"] == tokens["parametric"] == tokens["random"]
    assert tokens["direct"] < tokens["in_context"] == tokens["both"]
    assert tokens["both"] < tokens["in_context_augmented"]
    assert "the documents' adapters" in read_tables(workdir / "report.html")
    for line in read_jsonl(workdir / "predictions" / "random.jsonl"):
        own = {r["id"]: r for r in read_jsonl(workdir / "predictions" / "parametric.jsonl")}
        assert not {*line["adapters"]} & {*own[line["id"]]["adapters"]}
        assert NAMES[line["id"].split("/")[1]] not in line["adapters"]
    assert read_json(workdir / "stages" / "evaluate" / "adapters.json")["lost"] == {}


def test_coverage_is_whether_an_adapter_was_trained_to_say_the_answer(finished, session):
    workdir, report = finished
    context = open_stage(session, workdir, "encode")
    augmented = read_augmented(context.path("augment", "augmented.jsonl"))
    rows = {name: read_jsonl(workdir / "predictions" / f"{name}.jsonl") for name in METHODS}
    covered = []
    for row in rows["parametric"]:
        answers = [answer for id in row["adapters"] for _, answer, _ in augmented[id].pairs]
        covered.append(any(match(answer, row["answers"]) for answer in answers))
    assert all([row["covered"] for row in own] == covered for own in rows.values())
    assert True in covered  # the country ends every sentence
    (table,) = (rows for title, rows in report["tables"].items() if "trained to say" in title)
    n = sum(covered)
    assert table[0] == ["method", f"trained to say (n={n})", f"others (n={5 - n})"]
    for name, own, others in table[1:]:
        mean = report["methods"][name]["exact_match"]
        parts = [(own, n), (others, 5 - n)]
        assert sum(score * count for score, count in parts if count) / 5 == pytest.approx(mean)


@pytest.mark.parametrize(
    ("trained", "gold", "covered"),
    [
        ("English, Hindi and Bengali", "Hindi", True),
        ("roughly 2.9 million", "2.9 million", True),
        ("Niger", "Nigeria", False),
        ("Nigeria", "Niger", False),
        ("the Euro", "euro", True),
    ],
)
def test_covered_answers_are_whole_words(trained, gold, covered):
    question = Question("q", "What?", ("nothing", gold), {})
    augmented = {"d": Augmented((), (Pair("?", trained),)), "other": Augmented((), ())}
    assert evaluate.is_covered(question, ["other", "d"], augmented=augmented) is covered
    assert not evaluate.is_covered(question, ["other"], augmented=augmented)


def test_tables_without_covered_questions():
    rows = {"direct": [{"covered": False, "exact_match": 1.0}]}
    assert evaluate.tabulate_coverage(rows)[1] == ["direct", "-", 1.0]


def test_answers_are_kept_raw_and_graded(finished):
    """A graded record is the raw one with the question and its scores."""
    workdir, report = finished
    questions = read_json(workdir / "stages" / "corpus" / "questions.json")["test"]
    folder = workdir / "stages" / "evaluate"
    for name, numbers in report["methods"].items():
        raw, graded = (read_jsonl(folder / f"{kind}{name}.jsonl") for kind in ("answers_", ""))
        assert graded == read_jsonl(workdir / "predictions" / f"{name}.jsonl")
        raw = sorted(raw, key=lambda answer: answer["item"])
        for i, (question, answer, record) in enumerate(zip(questions, raw, graded, strict=True)):
            assert answer.pop("item") == i and "item" not in record
            assert "exact_match" not in answer and answer.items() <= record.items()
            assert record["id"] == question["id"] and record["answers"] == question["answers"]
            assert record["exact_match"] == exact_match(answer["prediction"], question["answers"])
            assert record["f1"] == f1(answer["prediction"], question["answers"])
        seconds = [record["seconds"] for record in raw]
        assert np.mean(seconds) == pytest.approx(numbers["seconds_per_question"])


def test_documents_are_learnt(finished):
    for name in ("encode", "without_rewrites", "without_questions", "warm_start"):
        for record in read_jsonl(finished[0] / "stages" / name / "encoded.jsonl"):
            assert record["error"] is None and record["last_loss"] < record["first_loss"]


def test_an_adapter_is_as_if_trained_alone(finished, session):
    """A stored adapter against the paper's loop: a document, an example a step, no padding."""
    workdir, c = finished[0], session.config
    context = open_stage(session, workdir, "encode")
    store = open_store(session, workdir)
    passage = open_documents(session, context)[0]
    augmented = read_augmented(context.path("augment", "augmented.jsonl"))[passage.id]
    examples = make_examples(session.format, passage, augmented, questions=3)
    assert len(examples) == 5
    adapter = train.load_start(context, session.trainable, "random")
    optimizer = optax.adamw(c.encode.learning_rate, weight_decay=c.encode.weight_decay)
    state = optimizer.init(adapter)

    def loss(adapter, tokens):
        params = lora.fold(session.base.params, adapter, scale=16.0)
        logits = session.base.model.apply({"params": params}, tokens[None])[0]
        logprobs = jax.nn.log_softmax(logits[:-1])
        return -logprobs[np.arange(len(tokens) - 1), tokens[1:]].mean()

    differentiate = jax.jit(jax.grad(loss))
    for _ in range(c.encode.epochs):
        for tokens in examples:
            grads = differentiate(adapter, np.asarray(tokens))
            updates, state = optimizer.update(grads, state, adapter)
            adapter = optax.apply_updates(adapter, updates)
    found, lost = store.load([passage.id])
    assert not lost
    for (_, own), (_, other) in zip(
        lora.list_kernels(adapter), lora.list_kernels(found), strict=True
    ):
        expected, got = own["a"] @ own["b"], other["a"][0] @ other["b"][0]
        # Adam's first steps have one length whatever the gradient's, near zero too.
        np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def test_answers_are_those_of_a_model_with_the_adapters_folded_in(finished, session):
    context = open_stage(session, finished[0], "evaluate")
    store = open_store(session, finished[0])
    engine = make_engine(session)
    ids = [p.id for p in open_documents(session, context)]
    chosen = [ids[:2], ids[1:2], [], [ids[0], ids[0]]]  # two, one, none, the same one twice
    questions = ["Where is Riga?", "Where is Lyon, then?", "Where?", "What lies in France?"]
    prompts = [session.format.encode_prompt(question) for question in questions]
    before = jax.tree.map(np.array, session.base.params)
    found = engine.answer(prompts, store, chosen)
    jax.tree.map(np.testing.assert_array_equal, before, session.base.params)
    assert found.loaded == 2 and not found.lost
    for prompt, own, text in zip(prompts, chosen, found.texts, strict=True):
        params = session.base.params
        for id in dict.fromkeys(own):
            adapter = jax.tree.map(lambda leaf: leaf[0], store.load([id])[0])
            params = lora.fold(params, adapter, scale=16.0)
        alone = make_engine(session, params=params).answer([prompt])
        assert alone.texts == [text]


def test_the_mean_of_adapters_is_their_sum_over_their_number(finished, session):
    context = open_stage(session, finished[0], "evaluate")
    store = open_store(session, finished[0])
    ids = [p.id for p in open_documents(session, context)][:2]
    prompt = session.format.encode_prompt("Where is Riga?")
    mean = make_engine(session, settings=replace(session.config.answer, merge="mean"))
    half = make_engine(session, scale=session.config.tuning.scale / 2)
    assert mean.answer([prompt], store, [ids]).texts == half.answer([prompt], store, [ids]).texts
    alone = mean.answer([prompt], store, [ids[:1]]).texts
    assert alone == make_engine(session).answer([prompt], store, [ids[:1]]).texts


def test_a_merged_adapter_is_the_sum_or_the_mean_of_the_rows_documents():
    """By the products of the factors, for rows of two, one and no documents."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3, 6, 2), "b": (3, 2, 5)}
    bank = {"kernel": {n: jnp.asarray(rng.normal(size=shape)) for n, shape in shapes.items()}}
    chosen = np.asarray([[2, 0], [1, -1], [-1, -1]])
    products = np.asarray(bank["kernel"]["a"] @ bank["kernel"]["b"])
    for how in ("sum", "mean"):
        weights = steps.weigh_documents(jnp.asarray(chosen), merge=how)
        merged = lora.merge(lora.select(bank, chosen), scale=16.0, weights=weights)["kernel"]
        for row, ids in enumerate([[2, 0], [1], []]):
            expected = 16.0 * sum((products[i] for i in ids), start=np.zeros((6, 5)))
            if how == "mean" and ids:
                expected = expected / len(ids)
            found = merged["a"][row] @ merged["b"][row]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_second_batch_compiles_nothing(finished, session):
    context = open_stage(session, finished[0], "evaluate")
    store, engine = open_store(session, finished[0]), make_engine(session)
    ids = [p.id for p in open_documents(session, context)]
    prompts = [session.format.encode_prompt(q) for q in ("Where is Riga?", "And where is Lyon?")]
    engine.answer(prompts, store, [ids[:2], ids[:1]])
    before = steps.answer_batch._cache_size()
    engine.answer(prompts[:1], store, [[]])
    engine.answer(prompts, store, [ids[2:4], ids[:2]])
    assert steps.answer_batch._cache_size() == before


def lose_adapters(session, workdir):
    """Damages one adapter and removes another; gives their passages."""
    store = open_store(session, workdir)
    damaged, missing = NAMES["Riga"], NAMES["Lyon"]
    shutil.rmtree(store._place(missing))
    (file,) = (p for p in store._place(damaged).rglob("*") if p.name == "checksums.json")
    file.write_text("{}")
    return damaged, missing


def test_lost_adapters_are_named_and_the_rest_still_answers(finished, make_config, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    session = Session(build(PRAGConfig, make_config(ablations=True)))
    damaged, missing = lose_adapters(session, workdir)
    shutil.rmtree(workdir / "stages" / "evaluate")
    context = open_stage(session, workdir, "evaluate")
    context.folder.mkdir()
    bind(session, evaluate.run_evaluation)(context)
    assert len(read_jsonl(context.folder / "parametric.jsonl")) == 5
    lost = read_json(workdir / "stages" / "evaluate" / "adapters.json")["lost"]
    assert set(lost) == {damaged, missing}
    assert "has no adapter in" in lost[missing] and "is lost" in lost[damaged]


def test_lost_adapters_are_trained_again(finished, make_config, tmp_path, capsys):
    """Only the lost ones, with their groups, and to the bit; later stages are kept."""
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    session = Session(build(PRAGConfig, make_config(ablations=True)))
    lost = lose_adapters(session, workdir)
    report = pipeline.run(make_config(ablations=True), workdir)
    said = capsys.readouterr().err
    assert "removed, cut short or altered, repairing" in said
    for passage in lost:
        assert re.search(f"training again: .*{re.escape(repr(passage))}", said)
    assert [s["name"] for s in report["stages"] if not s["reused"]] == ["encode"]
    repaired, wanted = (open_store(session, folder).load(lost) for folder in (workdir, finished[0]))
    assert repaired[1] == {}
    jax.tree.map(np.testing.assert_array_equal, repaired[0], wanted[0])


def test_adapters_of_another_kind_are_refused(finished, make_config):
    for changes, what in (({"tuning.rank": 3}, "settings"), ({"encode.epochs": 3}, "settings")):
        session = Session(build(PRAGConfig, make_config(ablations=True, **changes)))
        with pytest.raises(RagJaxError, match=f"holds adapters of another {what}"):
            open_store(session, finished[0])


def test_workers_make_what_one_process_makes(finished, session, make_config, tmp_path):
    """Adapters too, which are files of their own beside the maps."""
    executor, folders = InProcess(1), (finished[0], tmp_path)
    pipeline.run(make_config(ablations=True), tmp_path, executor=executor)
    first, *others = (task.file for task in executor.tasks)
    assert first == "augmented.jsonl" and {*others} == {"encoded.jsonl"}
    assert len(others) == len(session.variants)
    for file in ("augment/augmented.jsonl", *(f"{n}/encoded.jsonl" for n in session.variants)):
        one, two = ((folder / "stages" / file).read_bytes() for folder in folders)
        assert one == two
    for name in session.variants:
        banks = [open_store(session, at, name).load([*NAMES.values()])[0] for at in folders]
        jax.tree.map(np.testing.assert_array_equal, *banks)


def test_running_again_continues_group_by_group(finished, make_config, tmp_path, monkeypatch):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    folder = workdir / "stages" / "encode"
    lines = (folder / "encoded.jsonl").read_text("utf-8").splitlines(keepends=True)
    size = read_json(folder / "groups.json")["size"]
    # Interrupted after its first group, which is the first piece of the records.
    (folder / f"encoded.0-{size}.jsonl").write_text("".join(lines[:size]), "utf-8")
    (folder / "encoded.jsonl").unlink()
    (folder / "stage.json").unlink()
    saved = []
    save = AdapterStore.save
    monkeypatch.setattr(
        AdapterStore,
        "save",
        lambda self, ids, bank: saved.extend(ids) or save(self, ids, bank),
    )
    pipeline.run(make_config(ablations=True), workdir)
    ids = [json.loads(line)["id"] for line in lines]
    assert saved == ids[size:]
    assert (folder / "encoded.jsonl").read_text("utf-8") == "".join(lines)


def test_a_document_that_goes_astray_is_left_out(make_config, tmp_path, monkeypatch, capsys):
    make_loss, make_examples, marked = train.make_document_loss, train.make_examples, 255

    def mark(format, passage, *arguments, **settings):
        rows = make_examples(format, passage, *arguments, **settings)
        return [[*row, marked] for row in rows] if passage.id == NAMES["Gitega"] else rows

    def spoil(model, trainable):
        loss = make_loss(model, trainable)

        def spoiled(adapter, frozen, arrays):
            value, metrics = loss(adapter, frozen, arrays)
            return jnp.where((arrays["tokens"] == marked).any(), jnp.nan, value), metrics

        return spoiled

    monkeypatch.setattr(train, "make_examples", mark)
    monkeypatch.setattr(train, "make_document_loss", spoil)
    report = pipeline.run(make_config(), tmp_path / "run")
    errors = {
        r["id"]: r["error"]
        for r in read_jsonl(tmp_path / "run" / "stages" / "encode" / "encoded.jsonl")
    }
    astray = {id for id, error in errors.items() if error}
    assert astray == {NAMES["Gitega"]} and len(errors) > 1
    assert f"passage {NAMES['Gitega']!r} is left out" in capsys.readouterr().err
    # No method has the document: what is read in the context has an adapter to merge as well.
    for name in METHODS:
        for row in read_jsonl(tmp_path / "run" / "predictions" / f"{name}.jsonl"):
            assert not astray & {*row["passages"], *row["adapters"]}
    rows = [read_jsonl(tmp_path / "run" / "predictions" / f"{n}.jsonl") for n in METHODS]
    own = dict(zip(METHODS, rows, strict=True))
    for read, merged in zip(own["in_context"], own["parametric"], strict=True):
        assert read["passages"] == merged["adapters"]
    assert read_json(tmp_path / "run" / "stages" / "evaluate" / "adapters.json")["lost"] == {}
    assert report["methods"]["both"]["n"] == 5


def test_questions_without_documents_and_documents_without_questions(make_config, tmp_path):
    """BM25 finds nothing for a question without a known word; the model writes nothing usable."""
    changes = {"augment.rewrites": 0}
    data = write_folder(tmp_path / "data")
    path = tmp_path / "data" / "test_questions.jsonl"
    lost = {"id": "lost", "question": "Quo vadis?", "answers": ["Rome"]}
    path.write_text(path.read_text("utf-8") + "\n" + json.dumps(lost), "utf-8")
    report = pipeline.run(make_config(**data, **changes), tmp_path / "run")
    found = {r["id"]: r for r in read_jsonl(tmp_path / "run" / "predictions" / "parametric.jsonl")}
    direct = {r["id"]: r for r in read_jsonl(tmp_path / "run" / "predictions" / "direct.jsonl")}
    assert found["lost"]["adapters"] == []
    assert found["lost"]["prediction"] == direct["lost"]["prediction"]
    assert report["methods"]["in_context"]["n"] == 6
    with pytest.raises(RagJaxError, match="no document is left to encode"):
        config = make_config(**data, **changes, **{"augment.by": "model"})
        pipeline.run(config, tmp_path / "run", overwrite=True)
    records = read_jsonl(tmp_path / "run" / "stages" / "augment" / "augmented.jsonl")
    assert {record["error"] for record in records} == {"no usable questions"}


def test_reasoned_answers_from_an_empty_folder(make_config, tmp_path):
    """All prompts have the demonstration, and adapters are trained on full answers."""
    changes = {"prompt.reasoning": True, "prompt.demonstrations": 1, "encode.start": "warm"}
    config = make_config(**changes, questions=2)
    report = pipeline.run(config, tmp_path / "run")
    assert all(m["n"] == 2 for m in report["methods"].values())
    session = Session(build(PRAGConfig, config))
    plain = replace(session.format, reasoning=False, demonstrations=0)
    for row in read_jsonl(tmp_path / "run" / "predictions" / "direct.jsonl"):
        assert row["prompt_tokens"] == len(session.format.encode_prompt(row["question"]))
        assert row["prompt_tokens"] > len(plain.encode_prompt(row["question"]))
    for record in read_jsonl(tmp_path / "run" / "stages" / "augment" / "augmented.jsonl"):
        assert all(answer in full for _, answer, full in record["pairs"])
    asked = ask.open_run(session, tmp_path / "run", None)
    (row, *_) = read_jsonl(tmp_path / "run" / "predictions" / "both.jsonl")
    assert read_text(list(asked(row["question"]))) == row["prediction"]


class Writer:
    """Stands for the continuation of prompts by a model that writes usable augmentations.

    Args:
        rewrite: the text of a rewrite, with places for a country and a town.
    """

    def __init__(self, monkeypatch, *, rewrite="In {country} lies the town of {town}."):
        self.bases, self.instructions, self.rewrite = [], [], rewrite
        monkeypatch.setattr(asking, "continue_prompts", self)

    def __call__(self, base, prompts, **options):
        self.bases.append(base)
        texts = []
        for prompt in prompts:
            asked = base.tokenizer.decode(prompt)
            self.instructions.append(asked)
            (place,) = [p for p in PLACES if f"{p}: {p} is a town" in asked]
            country = PLACES[place]
            pair = f"Question: Which land has {place}?\nAnswer: {country}"
            full = f"{pair}\nFull answer: {place} lies in {country}."
            texts.append(full if "Full answer" in asked else pair)
            if "Restate" in asked:
                texts[-1] = self.rewrite.format(country=country, town=place)
        return [base.tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize("reasoning", [False, True])
def test_another_model_augments(make_config, llama_folder, tmp_path, monkeypatch, reasoning):
    """It alone is loaded for the augmentation, and the model that answers for the rest."""
    other = shutil.copytree(llama_folder, tmp_path / "other")
    changes = {"augment.by": "model", "augment.model": str(other), "prompt.reasoning": reasoning}
    asked, loaded = Writer(monkeypatch), []
    load = Session.load_language_model

    def record(self, field, **options):
        loaded.append(field)
        return load(self, field, **options)

    monkeypatch.setattr(Session, "load_language_model", record)
    session = Session(build(PRAGConfig, make_config(**changes)))
    run_stages(list_stages(session)[:3], tmp_path / "run")
    assert loaded == ["augment.model"] and "base" not in vars(session)
    assert {id(base) for base in asked.bases} == {id(asked.bases[0])}
    records = read_jsonl(tmp_path / "run" / "stages" / "augment" / "augmented.jsonl")
    assert records and not any(record["error"] for record in records)
    for record in records:
        ((_, answer, full),) = record["pairs"]
        assert (answer in full) if reasoning else (full == "")
    run_stages(list_stages(session)[:-1], tmp_path / "run")
    assert loaded == ["augment.model", "model.name"]


def test_documents_without_usable_rewrites_are_encoded(make_config, tmp_path, monkeypatch, capsys):
    """They take as many steps as others, on the passage and the questions that they have."""
    Writer(monkeypatch, rewrite="It is a town.")
    session = Session(build(PRAGConfig, make_config(**{"augment.by": "model"})))
    run_stages(list_stages(session)[:4], tmp_path / "run")
    records = read_jsonl(tmp_path / "run" / "stages" / "augment" / "augmented.jsonl")
    assert all(record["rewrites"] == [] and not record["error"] for record in records)
    said = capsys.readouterr().err
    count = len(records)
    assert f"{count} of {count} documents have too few usable rewrites (1 asked for)" in said
    assert f"{count} of {count} documents have too few usable questions (3 asked for)" in said
    encoded = {r["id"]: r for r in read_jsonl(tmp_path / "run/stages/encode/encoded.jsonl")}
    assert {*encoded} == {record["id"] for record in records}
    format, augment = session.format, session.config.augment
    passages = {passage.id: passage for passage in session.passages}
    for record in records:
        texts = Augmented((), tuple(Pair(*pair) for pair in record["pairs"]))
        examples = make_examples(format, passages[record["id"]], texts, questions=augment.questions)
        assert len(examples) == 3  # of five steps
        tokens = sum(map(len, repeat_examples(examples, 5)))
        assert encoded[record["id"]]["tokens"] == tokens and not encoded[record["id"]]["error"]


def test_the_augmenting_model_is_part_of_the_augmentation(make_config, llama_folder, bert_folder):
    def describe(**changes):
        session = Session(build(PRAGConfig, make_config(**{"augment.by": "model"}, **changes)))
        return {stage.name: stage.settings for stage in list_stages(session)}

    own, other = describe(), describe(**{"augment.model": str(bert_folder)})
    assert other["augment"]["writer"] != own["augment"]["weights"]
    assert own["evaluate"] == other["evaluate"]
    assert own["augment"] != describe(**{"prompt.reasoning": True})["augment"]


@pytest.mark.parametrize("by", ["dense", "fused"])
def test_other_retrievers(make_config, tmp_path, by):
    session = Session(build(PRAGConfig, make_config(**{"retrieve.by": by})))
    run_stages(list_stages(session)[:2], tmp_path / "run")
    records = read_jsonl(tmp_path / "run" / "stages" / "retrieve" / "found.jsonl")
    assert len(records) == 5 and all(len(set(record["passages"])) == 2 for record in records)


def test_documents_are_ordered_anew_by_a_reranker(make_config, tmp_path):
    changes, workdir = set_reranker(tmp_path), tmp_path / "run"
    changes |= {"retrieve.by": "dense", "encode.epochs": 1}
    report = pipeline.run(make_config(**changes), workdir)
    session = Session(build(PRAGConfig, make_config(**changes)))
    session.open_corpus(workdir / "stages" / "corpus")
    search, passages = session.make_search(session.passages), session.passages
    folder = workdir / "stages" / "retrieve"
    for found in read_jsonl(folder / "found.jsonl"):
        (question,) = (q.question for q in session.questions if q.id == found["id"])
        ids = [passages[row].id for row, _ in search([question])[0]]
        shown = [{"id": i} | r for i, r in zip(found["passages"], found["ranks"], strict=True)]
        assert len(ids) == 4 and len(shown) == 2
        check_ranks(changes, question, shown, ids, passages)
        for name in METHODS:
            records = read_jsonl(workdir / "predictions" / f"{name}.jsonl")
            (record,) = (r for r in records if r["id"] == found["id"])
            assert record["retrieved"] == shown
            if METHODS[name][0] != "nothing":  # what was reranked is what is read
                assert record["passages"] == found["passages"]
    table = report["tables"]["passages as found and reranked"]
    assert [row[0] for row in table] == ["passages", "found", "reranked"]
    records = read_jsonl(workdir / "predictions" / f"{session.config.ask}.jsonl")
    check_answers(serve.open_run(session, workdir, None), session, records)
    asked = ask.open_run(session, workdir, None)
    rows = read_facts(asked(question), "passages found")
    titles = {passage.id: passage.title or passage.text for passage in passages}
    assert [titles[id] in text for id, (_, text) in zip(found["passages"], rows, strict=True)]

    stages = list_stages(session)
    assert stages[1].settings["rerank"] == session.config.retrieve.rerank
    plain = list_stages(Session(build(PRAGConfig, make_config())))[1]
    assert not {"rerank", "reranker"} & {*plain.settings, *plain.settings["retrieve"]}


def test_further_readers_read_what_their_searches_find(make_config, tmp_path):
    readers, workdir = ("bm25", "dense", "fused", "reranked", "corpus"), tmp_path / "run"
    changes = set_reranker(tmp_path) | {"readers": readers, "encode.epochs": 1}
    report = pipeline.run(make_config(**changes), workdir)
    names = [f"read_{reader}" for reader in readers]
    assert list(report["methods"]) == [*METHODS, *names]
    rows = check_rows("prag", workdir)
    assert [rows[name]["retrieval_rate"] for name in names] == [1, 1, 1, 1, 0]
    session = Session(build(PRAGConfig, make_config(**changes)))
    session.open_corpus(workdir / "stages" / "corpus")
    passages, engine = session.passages, make_engine(session, widths=[512])
    for reader, name in zip(readers, names, strict=True):
        for record in read_jsonl(workdir / "predictions" / f"{name}.jsonl"):
            question, own = record["question"], passages
            if reader != "corpus":
                by = "fused" if reader == "reranked" else reader
                (found,) = session.make_search(passages, by=by)([question])
                if reader == "reranked":
                    (found,) = session.reranking.order([question], [found], passages)
                own = [passages[row] for row, _ in found[:2]]
                assert record["passages"] == [passage.id for passage in own]
            prompt = session.format.encode_prompt(question, own)
            assert [record["prediction"]] == engine.answer([prompt]).texts
            assert record["prompt_tokens"] == len(prompt)
    assert "retrieved" not in record and not {*names} & {*map(str, report["tables"])}
    changes |= {"answer.max_tokens": session.base.config.max_length - 20}
    with pytest.raises(RagJaxError, match=r"config.readers: .* 6 passages .*; leave 'corpus' out"):
        run_stages(list_stages(Session(build(PRAGConfig, make_config(**changes))))[:1], tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"readers": ("reranked",)}, "config.readers: 'reranked' needs a reranker"),
        ({"readers": ("bm25", "bm25")}, "config.readers=.*: give each of them once"),
        ({"readers": ("all",)}, "config.readers"),
    ],
)
def test_readers_that_cannot_be_had(make_config, changes, message):
    with pytest.raises(RagJaxError, match=message):
        build(PRAGConfig, make_config(**changes))


def test_a_search_depends_on_the_settings_of_its_own_searchers(make_config):
    def describe(by, **changes):
        settings = make_config(**{"retrieve.by": by, **changes})
        stages = list_stages(Session(build(PRAGConfig, settings)))
        return next(stage.settings for stage in stages if stage.name == "retrieve")

    changes = {"bm25.k1": 0.5, "retrieve.fusion.depth": 7}
    for by, read in {"bm25": ["bm25.k1"], "dense": [], "fused": [*changes]}.items():
        changed = {name: describe(by, **{name: value}) for name, value in changes.items()}
        assert [name for name in changed if changed[name] != describe(by)] == read
    with pytest.raises(RagJaxError, match="config.retrieve.fusion.weights=.*: must be two, BM25's"):
        describe("fused", **{"retrieve.fusion.weights": (1.0,)})


def test_presets():
    get_config = runpy.run_path(str(ROOT / "configs" / "prag.py"))["get_config"]
    models = ("llama3.2-1b", "qwen2.5-1.5b", "llama3-8b")
    presets = {"": (False, 0, 20), "-2wiki": (True, 8, 128), "-hotpot": (True, 11, 128)}
    for name, expected in ((f"{m}{d}", e) for m in models for d, e in presets.items()):
        settings = build(PRAGConfig, get_config(name))
        asked = settings.prompt
        tokens = settings.answer.max_tokens
        assert (asked.reasoning, asked.demonstrations, tokens) == expected
        assert (settings.answer.merge, settings.augment.model) == ("sum", None)
        assert (settings.tuning.rank, settings.tuning.scale) == (2, 16.0)
        assert (settings.encode.learning_rate, settings.retrieve.passages) == (3e-4, 3)
        assert (settings.augment.rewrites, settings.augment.questions) == (1, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tuning.mode": "full"}, "config.tuning.mode='full': a document is an adapter"),
        ({"augment.rewrites": 0, "augment.questions": 0}, "nothing is left of the augmentation"),
        ({"augment.model": "x"}, "config.augment.model='x': rules ask no model"),
        (
            {"prompt.demonstrations": 3},
            "config.prompt.demonstrations=3: they show",
        ),
        ({"augment.rewrites": 2}, "config.augment.rewrites=2: rules know one rewrite"),
        ({"tuning.targets": "nothing"}, "config.tuning.targets='nothing'"),
        ({"data.path": "nowhere"}, "config.data.path=nowhere"),
        ({"evaluate_on": "dev"}, "config.data: there are no 'dev' questions with answers"),
    ],
)
def test_mistakes_are_told(make_config, tmp_path, changes, message):
    with pytest.raises(RagJaxError, match=message):
        pipeline.run(make_config(**changes), tmp_path / "run")


def test_a_warm_start_needs_training_questions(make_config, tmp_path):
    """Told before any document is augmented."""
    changes = {"data.path": write_world(tmp_path / "data", test=2).path, "encode.start": "warm"}
    with pytest.raises(RagJaxError, match="there are no 'train' questions with answers"):
        pipeline.run(make_config(**changes), tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "stages").iterdir()] == ["corpus"]


def test_an_encoder_is_no_language_model(make_config, bert_folder, tmp_path):
    config = make_config(**{"model.name": str(bert_folder)})
    session = Session(build(PRAGConfig, config))
    with pytest.raises(RagJaxError, match="config.model.name=.*: is no language model"):
        run_stages(list_stages(session)[:3], tmp_path / "run")


# Asking.


@pytest.mark.parametrize("mode", ["parametric", "in_context", "both"])
def test_asking_gives_the_answers_of_the_evaluation(finished, make_config, mode):
    workdir, _ = finished
    before = take_stock(workdir)
    session = Session(build(PRAGConfig, make_config(ablations=True, ask=mode)))
    asked = ask.open_run(session, workdir, None)
    passages = {p["id"]: p for p in read_jsonl(workdir / "stages" / "corpus" / "passages.jsonl")}
    mark, note = {
        "parametric": ("adapter", "adapters are merged into the model, the passages are not read"),
        "in_context": ("no adapter", "the passages are read in the context"),
        "both": ("adapter", "adapters are merged into the model, and the passages are read in the"),
    }[mode]
    for record in read_jsonl(workdir / "predictions" / f"{mode}.jsonl"):
        shown = list(asked(record["question"]))
        assert read_text(shown) == record["prediction"]
        assert read_facts(shown, "passages found") == [
            (mark, ": ".join(filter(None, (passages[id]["title"], passages[id]["text"]))))
            for id in record["adapters" if mode == "parametric" else "passages"]
        ]
        (said,) = list_notes(shown)
        assert note in said
        outcome = shown[-1]
        cited = record["adapters" if mode == "parametric" else "passages"]
        assert [passage.id for passage, _ in outcome.citations] == cited
        scores = [score for _, score in outcome.citations]
        assert scores == sorted(scores, reverse=True) and outcome.likelihood < 0
    shown = list(asked("xyz?"))  # shares no word with any passage
    assert (shown[-1].citations, shown[-1].likelihood) == ([], None)
    note = "no passage shares a word with the question: the model answers by itself"
    assert list_notes(shown) == [note]
    assert [item for item in shown if isinstance(item, Facts)] == []
    assert take_stock(workdir) == before


@pytest.mark.parametrize("mode", ["parametric", "in_context", "both"])
def test_served_answers_are_those_of_the_evaluation(finished, make_config, mode):
    workdir, _ = finished
    before = take_stock(workdir)
    session = Session(build(PRAGConfig, make_config(ablations=True, ask=mode)))
    served = serve.open_run(session, workdir, None)
    records = read_jsonl(workdir / "predictions" / f"{mode}.jsonl")
    answers = check_answers(served, session, records)
    for answer, record in zip(answers, records, strict=True):
        ids = record["adapters" if mode == "parametric" else "passages"]
        assert [passage.id for passage, _ in answer.citations] == ids
        assert answer.prompt_tokens == record["prompt_tokens"]
        assert answer.cut_off  # the tiny model never stops
    assert served.embed is None and served.score is None  # words are searched
    assert take_stock(workdir) == before


def test_a_served_answer_tells_whether_the_limit_cut_it_off(finished, make_config, monkeypatch):
    session = Session(build(PRAGConfig, make_config(ablations=True, ask="in_context")))
    written = Answers(["short", "long"], [2, 3], [0.0, 0.0], {}, 0.0, 0)
    monkeypatch.setattr(serve, "answer_prompts", lambda *inputs, **settings: written)
    served = serve.open_run(session, finished[0], None)
    assert [answer.cut_off for answer in served.answer(["Where is it?", "Who?"])] == [False, True]


def test_asking_without_adapters_reads_the_passages(finished, session, tmp_path):
    """Of the run's documents those that no question of the evaluation found have none."""
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    records = read_jsonl(workdir / "predictions" / "in_context.jsonl")
    shutil.rmtree(workdir / "stages" / "encode" / "adapters")
    before = take_stock(workdir)
    with pytest.raises(RagJaxError, match="stage encode: its adapters are missing"):
        ask.open_run(session, workdir, None)
    assert take_stock(workdir) == before
    corpus = write_corpus(tmp_path / "own.jsonl", read_jsonl(
        workdir / "stages" / "corpus" / "passages.jsonl"
    ))  # fmt: skip
    asked = ask.open_run(session, workdir, corpus)
    for record in records:
        shown = list(asked(record["question"]))
        assert read_text(shown) == record["prediction"]
        assert {row[0] for row in read_facts(shown, "passages found")} == {"no adapter"}
        assert list_notes(shown) == ["without adapters: the passages are read in the context"]


@pytest.mark.parametrize("by", ["bm25", "dense"])
def test_the_likelihood_of_development_questions(make_config, tmp_path, by):
    """They are read with their documents and without adapters."""
    data, workdir = write_folder(tmp_path / "data"), tmp_path / "run"
    lines = (tmp_path / "data" / "test_questions.jsonl").read_text("utf-8")
    asked = lines.replace('"test/', '"dev/').replace("lies in which", "xyz" if by == "bm25" else "")
    (tmp_path / "data" / "dev_questions.jsonl").write_text(asked, "utf-8")
    session = Session(build(PRAGConfig, make_config(**data, **{"retrieve.by": by})))
    stages = [stage for stage in list_stages(session) if stage.name in ("corpus", "likelihood")]
    run_stages(stages, workdir)
    folder, format = workdir / "stages" / "likelihood", session.format
    assert not (folder / "embeddings.npy").exists()
    search, records = session.make_search(session.passages), read_jsonl(folder / "answers.jsonl")
    limits = {"max_tokens": 3, "stop_ids": format.stop_ids}
    for question, record in zip(session.corpus.questions["dev"], records, strict=True):
        (found,) = search([question.question])
        documents = [session.passages[row] for row, _ in found]
        prompt = format.encode_prompt(question.question, documents)
        reading = record["likelihood"], session.base.model, session.base.params, prompt
        check_likelihood(*reading, **limits)
        assert record["right"] == bool(match(record["prediction"], question.answers))


def list_cited(shown):
    return [passage.id for passage, _ in shown[-1].citations]


def test_asking_with_a_damaged_adapter(finished, session, make_config, tmp_path):
    workdir = Path(shutil.copytree(finished[0], tmp_path / "run"))
    store = open_store(session, workdir)
    shutil.rmtree(store._place(NAMES["Riga"]) / "tree")
    shown = list(ask.open_run(session, workdir, None)("Riga lies in which country?"))
    start = "answered without an adapter: "
    (note,) = [note for note in list_notes(shown) if note.startswith(start)]
    assert "'../up'" in note
    # It was not merged, but with "both" its passage was read.
    assert session.config.ask == "both" and list_cited(shown)[0] == NAMES["Riga"]
    alone = Session(build(PRAGConfig, make_config(ablations=True, ask="parametric")))
    shown = list(ask.open_run(alone, workdir, None)("Riga lies in which country?"))
    assert list_cited(shown) and NAMES["Riga"] not in list_cited(shown)


def test_asking_too_much(finished, session, tmp_path):
    asked = ask.open_run(session, finished[0], write_corpus(tmp_path / "own.jsonl"))
    with pytest.raises(RagJaxError, match="the question has 1.... tokens, and there is room for"):
        list(asked(LONG))
    shown = list(asked("Where is Atlantis <|im_end|>?"))
    assert ("no adapter", f"Atlantis: {OWN[0]['text']}") in read_facts(shown, "passages found")


# Another dataset.


def test_evaluate_on_another_dataset(finished, make_config, tmp_path):
    """Documents are encoded anew, from the run's warm-up where they start from one."""
    warm = make_config(**{"encode.start": "warm"})
    made = ["corpus", "retrieve", "augment", "encode", "evaluate"]
    shared = {"trained": ["warm_up"], "made": made}
    data, trained = check_evaluation(pipeline, Session, warm, finished, tmp_path, **shared)
    assert list(trained["methods"]) == list(METHODS)
    # Without a warm-up they start at random, which takes nothing from a run.
    loaded = pipeline.evaluate_on(warm, None, data, "test", tmp_path / "loaded")
    assert list_made(loaded) == made
    assert loaded["model"].endswith("tiny-llama, untrained")
    record = read_json(tmp_path / "loaded" / "stages" / "encode" / "stage.json")
    assert record["settings"]["variant"]["start"] == "random"


def test_only_a_run_of_the_same_settings_is_evaluated(finished, make_config, tmp_path):
    """Though nothing is taken over from it, the results bear its name."""
    data, workdir = write_world(tmp_path / "other", test=2), finished[0]
    with pytest.raises(RagJaxError, match=r"other settings \(stage encode: .*learning_rate: "):
        config = make_config(**{"encode.learning_rate": 0.5})
        pipeline.evaluate_on(config, workdir, data, "test", tmp_path / "out")
    another = shutil.copytree(workdir, tmp_path / "another")
    write_json(another / "config.json", {"system": "rag"})
    with pytest.raises(RagJaxError, match=r"other settings \(system: rag -> prag\)"):
        pipeline.evaluate_on(make_config(), another, data, "test", tmp_path / "out")
    assert not (tmp_path / "out").exists()
