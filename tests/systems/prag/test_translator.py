"""The parameter translator: against NumPy, its loss term by term, and in a run from end to end."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny import make_decoder, read_row, softmax

from rag_jax import lora
from rag_jax.config import DataConfig, build, to_config_dict
from rag_jax.data.passages import Passage
from rag_jax.runtime.checkpoint import Checkpoints
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.systems.prag import ask, pipeline
from rag_jax.systems.prag import translate as translate_stages
from rag_jax.systems.prag.config import PRAGConfig, TranslatorConfig
from rag_jax.systems.prag.evaluate import TRANSLATED
from rag_jax.systems.prag.session import Session
from rag_jax.systems.prag.translator import (
    Weights,
    init_translator,
    list_adapted,
    make_translation_loss,
    translate,
)
from rag_jax.training.fit import limit_steps
from systems.asked import list_notes, read_facts, write_corpus

MODEL, PARAMS = make_decoder()
TARGETS = r".*(attention/query|ffn/(gate|down))/kernel"
ADAPTER = lora.init(jax.random.key(0), PARAMS, targets=TARGETS, rank=2)
KERNELS = list_adapted(ADAPTER)
SCALE = 0.7


def draw_like(tree, seed, size=0.3):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(size * rng.normal(size=x.shape), jnp.float32), tree)


@pytest.fixture(scope="module")
def params():
    made = init_translator(jax.random.key(1), KERNELS, state_size=16, hidden=4)
    return draw_like(made, 2)


def test_kernels_of_an_adapter():
    assert {kernel.kind for kernel in KERNELS} == {
        "attention.query.kernel",
        "ffn.gate.kernel",
        "ffn.down.kernel",
    }
    assert {kernel.layer for kernel in KERNELS} == {0, 1}
    assert list_adapted(jax.eval_shape(lambda: ADAPTER)) == KERNELS
    assert hash(KERNELS) == hash(list_adapted(ADAPTER))


def test_new_parameters_make_adapters_that_change_nothing_yet():
    made = init_translator(jax.random.key(1), KERNELS, state_size=16, hidden=4)
    again = init_translator(jax.random.key(1), KERNELS, state_size=16, hidden=4)
    assert all(map(np.array_equal, jax.tree.leaves(made), jax.tree.leaves(again)))
    down = made["ffn.gate.kernel"]["a"]["down"]
    assert down.shape == (2, 17, 4) and 0.5e-7 < float(down.std()) < 2e-7
    adapter = translate(made, jnp.ones(16), kernels=KERNELS)
    assert jax.tree.map(jnp.shape, adapter) == jax.tree.map(jnp.shape, ADAPTER)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(adapter)) < 1e-10


@pytest.mark.parametrize(("init", "rank"), [(1e-7, 1), (0.1, 4)])
def test_what_the_first_weights_leave_of_the_rank(init, rank):
    """Of documents alike, a tiny start makes all active columns of `W_down` the same."""
    rng = np.random.default_rng(6)
    params = init_translator(jax.random.key(1), KERNELS, state_size=16, hidden=4, init=init)
    loss = make_translation_loss(MODEL, KERNELS, scale=SCALE, weights=Weights(1.0, 0.01, 100.0))
    bank = draw_like(jax.tree.map(lambda x: jnp.zeros((3, *x.shape)), ADAPTER), 5)
    states = rng.normal(size=16) + 0.1 * rng.normal(size=(3, 16))
    arrays = {"states": states.astype(np.float32), "adapters": bank}
    arrays |= {"tokens": rng.integers(0, 31, (3, 7)).astype(np.int32)}
    arrays |= {"mask": np.ones((3, 7), bool), "weight": np.ones(3, np.float32)}
    optimizer = optax.adamw(1e-3)
    state, gradient = optimizer.init(params), jax.jit(jax.grad(loss, has_aux=True))
    for _ in range(4):
        updates, state = optimizer.update(gradient(params, PARAMS, arrays)[0], state, params)
        params = optax.apply_updates(params, updates)
    down = np.asarray(params["ffn.gate.kernel"]["a"]["down"][0])
    assert (np.linalg.svd(down, compute_uv=False) > 0.2 * np.linalg.norm(down)).sum() == rank


def test_adapters_are_the_papers_equation(params):
    """As the released code computes them: a network a kernel and side, PEFT's layout of factors."""
    state = np.random.default_rng(3).normal(size=16).astype(np.float32)
    adapter = translate(params, jnp.asarray(state), kernels=KERNELS)
    places: dict[str, int] = {}
    for kernel in KERNELS:
        place = places[kernel.kind] = places.get(kernel.kind, -1) + 1
        factors = adapter
        for name in kernel.path:
            factors = factors[name]
        inputs = np.append(state, kernel.layer)
        peft = {}
        for side in "ab":
            down, up = (np.asarray(params[kernel.kind][side][n][place]) for n in ("down", "up"))
            peft[side] = np.maximum(inputs @ down, 0) @ up
        lora_a = peft["a"].reshape(kernel.rank, kernel.inputs)  # as PEFT keeps it
        lora_b = peft["b"].reshape(-1, kernel.rank)
        np.testing.assert_allclose(factors["a"], lora_a.T, atol=1e-5)
        np.testing.assert_allclose(
            factors["b"], lora_b.T.reshape(kernel.rank, *kernel.outputs), atol=1e-5
        )
    bank = jax.vmap(lambda s: translate(params, s, kernels=KERNELS))(jnp.stack([state, 2 * state]))
    for leaf, alone in zip(jax.tree.leaves(bank), jax.tree.leaves(adapter), strict=True):
        np.testing.assert_allclose(leaf[0], alone, atol=1e-5)


def fold(adapter):
    return lora.fold(PARAMS, adapter, scale=SCALE)


def test_the_loss_term_by_term(params):
    rng = np.random.default_rng(4)
    tokens, lengths = rng.integers(0, 31, (3, 7)).astype(np.int32), [7, 4, 0]
    mask = np.arange(7)[None] < np.asarray(lengths)[:, None]
    states = rng.normal(size=(3, 16)).astype(np.float32)
    bank = draw_like(jax.tree.map(lambda x: jnp.zeros((3, *x.shape)), ADAPTER), 5)
    weights = Weights(0.5, 0.2, 3.0)
    loss = make_translation_loss(MODEL, KERNELS, scale=SCALE, weights=weights)
    arrays = {"states": states, "tokens": tokens, "mask": mask, "adapters": bank}
    arrays["weight"] = np.asarray([0.5, 0.5, 0.0], np.float32)
    value, named = jax.jit(loss)(params, PARAMS, arrays)
    expected = dict.fromkeys(Weights._fields, 0.0)
    for b, length in enumerate(lengths[:2]):
        made = translate(params, jnp.asarray(states[b]), kernels=KERNELS)
        trained = jax.tree.map(lambda leaf, b=b: leaf[b], bank)
        row = tokens[b, :length].tolist()
        own, other = (
            np.log(softmax(np.asarray(read_row(MODEL, fold(a), row)[2], np.float64)))
            for a in (made, trained)
        )
        expected["language"] -= 0.5 * own[np.arange(length - 1), row[1:]].mean()
        expected["divergence"] += 0.5 * (np.exp(other) * (other - own)).sum()
        pairs = zip(jax.tree.leaves(made), jax.tree.leaves(trained), strict=True)
        expected["distance"] += 0.5 * sum(float(((x - y) ** 2).mean()) for x, y in pairs)
    for name, wanted in expected.items():
        assert float(named[name]) == pytest.approx(wanted, rel=1e-4), name
    total = sum(getattr(weights, name) * wanted for name, wanted in expected.items())
    assert float(value) == pytest.approx(total, rel=1e-4)
    # An example that fills up the batch has no gradient.
    less = {n: jax.tree.map(lambda x: x[:2], array) for n, array in arrays.items()}
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    grads = [gradient(params, PARAMS, a)[0] for a in (arrays, less)]
    for x, y in zip(*map(jax.tree.leaves, grads), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4)


QUICK = {
    "model.max_text": 24,
    "retrieve.by": "bm25",
    "retrieve.passages": 2,
    "encode.together": 2,
    "encode.learning_rate": 1e-2,
    "translator.documents": 5,
    "translator.batch_size": 2,
    "translator.epochs": 3,
    "translator.learning_rate": 1e-3,
    "translator.checkpoint_every": 4,
    "answer.max_tokens": 3,
    "answer.batch_size": 4,
}
COUNTRIES = {"Riga": "Latvia", "Lyon": "France", "Oslo": "Norway"}


@pytest.fixture(scope="module")
def make_config(llama_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    passages = [
        {"id": f"../{place}", "title": place, "text": f"{place} is a town that lies in {country}."}
        for place, country in COUNTRIES.items()
    ]
    passages += [
        {"id": f"other {i}", "title": f"Thing {i}", "text": f"Thing {i} has the color {color}."}
        for i, color in enumerate(["red", "blue", "green", "grey", "white", "black"])
    ]
    questions = [
        {"id": place, "question": f"{place} is where?", "answers": [country]}
        for place, country in COUNTRIES.items()
    ]
    for name, records in {"passages": passages, "test_questions": questions}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")

    def make(**changes):
        config = to_config_dict(PRAGConfig())
        given = {"model.name": str(llama_folder), "data.path": str(folder)}
        config.update_from_flattened_dict(QUICK | given | changes)
        return config

    return make


@pytest.fixture(scope="module")
def finished(make_config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("translated") / "run"
    return workdir, pipeline.run(make_config(), workdir)


def test_a_run_with_a_translator(finished, make_config):
    workdir, report = finished
    stages = workdir / "stages"
    found = {id for r in read_jsonl(stages / "retrieve" / "found.jsonl") for id in r["passages"]}
    trained = [
        r["passages"][0] for r in read_jsonl(stages / "translator_documents" / "found.jsonl")
    ]
    assert len(trained) == 5 and not found & {*trained}
    assert {*TRANSLATED} < {*report["methods"]}
    answered = {path.stem for path in (stages / "evaluate_translated").glob("*.jsonl")}
    assert {name for name in answered if not name.startswith("answers_")} == {*TRANSLATED}
    assert report["paired"]["reference"] == "translated"
    translated = [r["id"] for r in read_jsonl(stages / "translate" / "translated.jsonl")]
    assert sorted(translated) == sorted(found)
    logged = read_jsonl(stages / "translator" / "log.jsonl")
    assert len(logged) == 3 * 3  # five documents, two a step, three times
    assert logged[-1]["distance"] < logged[0]["distance"]
    session = Session(build(PRAGConfig, make_config()))
    # What is stored is what the translator makes, alone or in another batch.
    store = session.open_translated(stages / "translate")
    session.open_corpus(stages / "corpus")
    made = session.make_translator(stages / "translator" / "params", session.passages)
    for id in found:
        assert id in made and "nothing" not in made
        (kept, lost), (anew, _) = store.load([id], rows=2), made.load([id], rows=2)
        assert not lost
        for x, y in zip(jax.tree.leaves(kept), jax.tree.leaves(anew), strict=True):
            assert np.shape(y)[0] == 2
            np.testing.assert_allclose(x[0], y[0], atol=1e-6)
    # An adapter like any other: PEFT's files have it.
    folder = workdir / "peft"
    adapter = jax.tree.map(lambda leaf: leaf[0], kept)
    tuning = session.config.tuning
    lora.save_peft(adapter, folder, session.base, alpha=tuning.alpha)
    again, scale = lora.load_peft(folder, session.base)
    assert scale == tuning.scale
    for x, y in zip(jax.tree.leaves(again), jax.tree.leaves(adapter), strict=True):
        np.testing.assert_array_equal(x, y)


def test_an_interrupted_training_ends_with_the_same_bits(
    finished, make_config, tmp_path, monkeypatch
):
    workdir, report = finished
    save = Checkpoints.save

    def save_and_stop(self, step, *arguments, **options):
        save(self, step, *arguments, **options)
        if step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        pipeline.run(make_config(), tmp_path / "run")
    monkeypatch.undo()
    again = pipeline.run(make_config(), tmp_path / "run")
    assert again["methods"]["translated"] == report["methods"]["translated"] | {
        "seconds_per_question": again["methods"]["translated"]["seconds_per_question"]
    }
    logs = [f / "stages" / "translator" / "log.jsonl" for f in (workdir, tmp_path / "run")]
    assert logs[0].read_bytes() == logs[1].read_bytes()


def test_a_step_in_microbatches(finished, make_config, tmp_path):
    """The loss of a step is that of all its documents, however many are read together."""
    shutil.copytree(finished[0], tmp_path / "run")
    config = make_config(**{"translator.microbatch_tokens": 64})
    with limit_steps(3):
        pipeline.run(config, tmp_path / "run", overwrite=True)
    ours, theirs = (
        read_jsonl(folder / "stages" / "translator" / "log.jsonl")[:3]
        for folder in (tmp_path / "run", finished[0])
    )
    for own, other in zip(ours, theirs, strict=True):
        assert own == pytest.approx(other, rel=1e-4)


def test_without_a_translator_nothing_is_translated(make_config):
    session = Session(build(PRAGConfig, make_config(**{"translator.documents": 0})))
    names = [stage.name for stage in pipeline.list_stages(session)]
    assert not [name for name in names if name.startswith("transla")]
    assert not {*TRANSLATED} & {*pipeline.describe_report(session.config).methods}


def test_a_corpus_whose_passages_are_all_found(tmp_path):
    class Context:
        folder = tmp_path

        def path(self, stage, file):
            return tmp_path / stage / file

    (tmp_path / "retrieve").mkdir()
    found = tmp_path / "retrieve" / "found.jsonl"
    found.write_text('{"id": "q", "passages": ["a", "b"]}\n')
    passages = [Passage("a", "", "x"), Passage("b", "", "y"), Passage("c", "", "z")]
    settings = TranslatorConfig(documents=3)
    translate_stages.choose_documents(Context(), passages=passages, translator=settings, seed=0)
    assert read_jsonl(tmp_path / "found.jsonl") == [{"id": "c", "passages": ["c"]}]
    with pytest.raises(RagJaxError, match="translator.documents=3: the questions find every"):
        translate_stages.choose_documents(
            Context(), passages=passages[:2], translator=settings, seed=0
        )


def test_asking_over_a_corpus_translates_what_is_found(finished, make_config, tmp_path):
    workdir, _ = finished
    own = [{"id": "Tartu", "title": "Tartu", "text": "Tartu lies in Estonia."}]
    corpus = write_corpus(tmp_path / "own.jsonl", own)
    session = Session(build(PRAGConfig, make_config(ask="parametric")))
    shown = [*ask.open_run(session, workdir, corpus)("Where does Tartu lie?")]
    assert read_facts(shown, "passages found")[0][0] == "adapter"
    assert list_notes(shown) == ["adapters are merged into the model, the passages are not read"]
    untold = Session(build(PRAGConfig, make_config(**{"translator.documents": 0})))
    shown = [*ask.open_run(untold, workdir, corpus)("Where does Tartu lie?")]
    assert read_facts(shown, "passages found")[0][0] == "no adapter"


def test_another_dataset_is_translated_by_the_run_s_translator(finished, make_config, tmp_path):
    workdir, report = finished
    config = make_config()
    data = DataConfig(path=config.data.path)
    again = pipeline.evaluate_on(config, workdir, data, "test", tmp_path / "out")
    assert {stage["name"] for stage in again["stages"]} == {
        *("corpus", "retrieve", "augment", "encode", "translate", "evaluate_translated"),
        "evaluate",
    }
    for name in TRANSLATED:
        assert again["methods"][name]["f1"] == report["methods"][name]["f1"]
    loaded = pipeline.evaluate_on(config, None, data, "test", tmp_path / "loaded")
    assert not {*TRANSLATED} & {*loaded["methods"]}
