"""Training of rerankers: losses against NumPy, packed gradients against each question's alone."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_encoders import BERT, lengthen, write_reranker, write_scored_decoder

from rag_jax.config import MeshConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.models import Pretrained, load, load_reranker, save_reranker
from rag_jax.models.nn.modern_bert import ModernBert, ModernBertConfig
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import score_pairs
from rag_jax.retrieval.pairs import list_pairs
from rag_jax.retrieval.rerank import score_batch, tokenize_pairs
from rag_jax.retrieval.rerank_train import (
    RerankTrainConfig,
    fit_reranker,
    make_loss,
    pack_groups,
    rank_loss,
    start_reranker,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.sharding import make_mesh
from rag_jax.search_config import YesNo

SETTINGS = RerankTrainConfig(
    epochs=20, batch_size=4, learning_rate=3e-3, negatives=2, microbatch_tokens=220
)
WORDS = ["river", "snow", "bread", "music", "iron", "glass", "horse", "paper"]
ENDS = ["", "and more", "and very much more"]
PASSAGES = [Passage(w, "", f"a text about {w} {ENDS[i % 3]}") for i, w in enumerate(WORDS)]
QUESTIONS = [Question(w, f"what is {w}", (w,), {w: 1}) for w in WORDS]
PAIRS = list_pairs(QUESTIONS, [[j for j in range(8) if j != i] for i in range(8)], PASSAGES)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    folder = lengthen(write_reranker(tmp_path_factory.mktemp("reranker") / "bert"), 64)
    return load_reranker(folder)


@pytest.mark.parametrize("pairwise", [False, True])
def test_losses_by_numpy(pairwise):
    rng = np.random.default_rng(0)
    scores, masked = rng.normal(size=(5, 4)), np.zeros((5, 4), bool)
    masked[1, 2:], masked[2, 1:] = True, True  # and a question without negatives
    found = rank_loss(jnp.asarray(scores), jnp.asarray(masked), pairwise=pairwise)
    for own, row, out in zip(found, scores, masked, strict=True):
        kept = row[~out]
        if pairwise:
            wanted = np.log1p(np.exp(kept[1:] - kept[0])).mean() if len(kept) > 1 else 0.0
        else:
            wanted = np.log(np.exp(kept - kept[0]).sum())
        assert own == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("by", ["list", "pairs"])
def test_packed_gradients_are_those_of_each_question_alone(reranker, by):
    settings = replace(SETTINGS, by=by)
    asked = [("what is snow", PASSAGES[i].text) for i in range(8)]
    groups = [list(tokenize_pairs(reranker, asked[:n], 64)) for n in (3, 3, 2, 1)]
    base, loss = reranker.base, make_loss(reranker, settings)

    def alone(params):
        total = 0.0
        for group in groups:
            scores = []
            for row in group:
                arrays = jnp.asarray([row]), jnp.asarray([len(row)])
                scores.append(score_batch(base.model, reranker.head, params, *arrays)[0])
            scores = jnp.stack(scores)[None]
            masked = jnp.zeros(scores.shape, bool)
            total += rank_loss(scores, masked, pairwise=by == "pairs")[0] / len(groups)
        return total

    batches = pack_groups(groups, settings, [16, 24, 64])
    assert len(batches) > 1 and any((arrays["weights"] == 0).any() for arrays in batches)
    assert sum(float(arrays["weights"].sum()) for arrays in batches) == pytest.approx(1)
    wanted, wanted_gradient = jax.value_and_grad(alone)(base.params)
    value, gradient = 0.0, jax.tree.map(jnp.zeros_like, base.params)
    for arrays in batches:
        (own, _), part = jax.value_and_grad(loss, has_aux=True)(base.params, None, arrays)
        value, gradient = value + own, jax.tree.map(jnp.add, gradient, part)
    assert value == pytest.approx(float(wanted), abs=1e-5)
    size = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(wanted_gradient))
    for own, leaf in zip(jax.tree.leaves(gradient), jax.tree.leaves(wanted_gradient), strict=True):
        np.testing.assert_allclose(own, leaf, atol=1e-5 * size)


def test_training_tells_passages_apart(tmp_path, reranker):
    mesh, kept = make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1]), []
    stage = StageContext(Stage("train", lambda context: None), tmp_path)
    stage.folder.mkdir(parents=True, exist_ok=True)
    inputs = PAIRS, QUESTIONS, PASSAGES, SETTINGS, mesh, stage.folder, stage.progress
    fit_reranker(reranker, *inputs, max_length=32, seed=0, save=kept.append)
    (trained,) = kept
    save_reranker(trained, tmp_path / "saved")
    again = load_reranker(tmp_path / "saved")
    pairs = [(QUESTIONS[0].question, passage.text) for passage in PASSAGES]
    scores = score_pairs(again, pairs, max_length=32)
    np.testing.assert_array_equal(scores, score_pairs(trained, pairs, max_length=32))
    losses = [line["loss"] for line in read_jsonl(stage.folder / "log.jsonl")]
    assert losses[-1] < 0.2 * losses[0]


def test_a_decoder_is_trained_and_what_cannot_be_is_refused(tmp_path):
    folder = write_scored_decoder(tmp_path / "scored")
    mesh, kept = make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1]), []
    stage = StageContext(Stage("train", lambda context: None), tmp_path)
    stage.folder.mkdir(parents=True, exist_ok=True)
    settings = replace(SETTINGS, epochs=1)
    inputs = QUESTIONS, PASSAGES, settings, mesh, stage.folder, stage.progress
    options = {"max_length": 24, "seed": 0, "save": kept.append}
    asked = load_reranker(BERT.parent / "llama_tied", question=YesNo("", " ", "", yes="a", no="b"))
    with pytest.raises(RagJaxError, match="has no head to train"):
        fit_reranker(asked, PAIRS, *inputs, **options)
    scored = load_reranker(folder)
    with pytest.raises(RagJaxError, match="1 pairs have no negatives, such as 'river'"):
        fit_reranker(scored, [replace(PAIRS[0], negatives=()), *PAIRS[1:]], *inputs, **options)
    fit_reranker(scored, PAIRS, *inputs, **options)
    save_reranker(kept[0], tmp_path / "saved")
    pairs = [("what is snow", passage.text) for passage in PASSAGES]
    found = score_pairs(load_reranker(tmp_path / "saved"), pairs, max_length=24)
    np.testing.assert_array_equal(found, score_pairs(kept[0], pairs, max_length=24))


def test_an_encoder_starts_a_reranker():
    started = start_reranker(load(BERT), seed=1)
    again = start_reranker(load(BERT), seed=1)
    pairs = [("a", "b"), ("b", "a")]
    scores = score_pairs(started, pairs, max_length=24)
    np.testing.assert_array_equal(scores, score_pairs(again, pairs, max_length=24))
    assert scores[0] != scores[1]
    with pytest.raises(RagJaxError, match="a Decoder starts no reranker"):
        start_reranker(load(BERT.parent / "llama_tied"))


def test_pairs_that_are_cut_are_counted(tmp_path, reranker, caplog):
    mesh = make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1])
    stage = StageContext(Stage("train", lambda context: None), tmp_path)
    stage.folder.mkdir(parents=True, exist_ok=True)
    settings = replace(SETTINGS, epochs=2)
    inputs = PAIRS, QUESTIONS, PASSAGES, settings, mesh, stage.folder, stage.progress
    with caplog.at_level("WARNING"):
        fit_reranker(reranker, *inputs, max_length=20, seed=0, save=lambda trained: None)
    # Two steps of four questions an epoch, each with its passage and two others.
    lines = [line for line in caplog.messages if "pairs" in line]
    first, last = (re.fullmatch(r"(\d+) of (\d+) pairs (.*)", line).groups() for line in lines)
    assert first[1:] == ("24", "of the first 2 steps were cut to 20 tokens")
    assert last[1:] == ("48", "read were cut to 20 tokens")
    assert 0 < int(first[0]) <= int(last[0]) < 48


def test_a_modernbert_starts_a_reranker(tmp_path):
    sizes = {"vocab_size": 128, "hidden_size": 16, "ffn_size": 24, "num_heads": 2}
    reach = {"is_local": (False, True), "window": 4, "global_theta": 1e4, "local_theta": 1e4}
    config = ModernBertConfig(**sizes, **reach, norm_eps=1e-5, max_length=32)
    model, tokens = ModernBert(config), jnp.zeros((1, 3), jnp.int32)
    params = model.init(jax.random.key(0), tokens)["params"]
    started = start_reranker(Pretrained(config, model, params, load(BERT).tokenizer, "own"), seed=1)
    save_reranker(started, tmp_path / "saved")
    again = load_reranker(tmp_path / "saved")
    assert again.head == started.head
    pairs = [("a", "b"), ("b", "a")]
    scores = score_pairs(started, pairs)
    np.testing.assert_array_equal(scores, score_pairs(again, pairs))
    assert scores[0] != scores[1]

    mesh, kept = make_mesh(MeshConfig(1, 1), devices=jax.devices()[:1]), []
    stage = StageContext(Stage("train", lambda context: None), tmp_path)
    stage.folder.mkdir(parents=True, exist_ok=True)
    settings = replace(SETTINGS, epochs=1)
    inputs = PAIRS, QUESTIONS, PASSAGES, settings, mesh, stage.folder, stage.progress
    fit_reranker(started, *inputs, seed=0, save=kept.append)
    assert (score_pairs(kept[0], pairs) != scores).all()
