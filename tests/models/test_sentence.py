"""An encoder's own settings are followed, or refused by name."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rag_jax.config import EncoderConfig
from rag_jax.models import load, load_tokenizer, save
from rag_jax.retrieval import encode_texts
from rag_jax.retrieval.texts import configure_encoder, tokenize_for_training
from rag_jax.runtime.errors import RagJaxError

BERT = Path(__file__).parents[1] / "golden" / "bert"
PREFIX = "sentence_transformers.models."


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(BERT, tmp_path / "model")


def write(
    folder, *, modules=("Transformer", "Pooling", "Normalize"), pooling=None, prompts=None, dense=()
):
    """Writes the files of sentence-transformers; `pooling` are the fields of 1_Pooling.

    `dense` are a layer's fields and tensors, one for each Dense of `modules`.
    """
    folders = {"Transformer": "", "Pooling": "1_Pooling"}
    entries = [
        {"idx": i, "name": str(i), "path": folders.get(kind, f"{i}_{kind}"), "type": prefix + kind}
        for i, (prefix, kind) in enumerate(
            (PREFIX, kind) if "." not in kind else ("", kind) for kind in modules
        )
    ]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"pooling_mode_mean_tokens": True} if pooling is None else pooling
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    layers = iter(dense)
    for i, kind in enumerate(modules):
        if kind == "Dense":
            fields, tensors = next(layers)
            (folder / f"{i}_Dense").mkdir()
            (folder / f"{i}_Dense" / "config.json").write_text(json.dumps(fields))
            save_file(tensors, folder / f"{i}_Dense" / "model.safetensors")
    if prompts is not None:
        (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))


def embed(folder, text="What is the capital of France?", **options):
    return encode_texts(load(folder), [text], max_length=16, **options)


def states(text="What is the capital of France?"):
    """The states of a text's tokens."""
    bert = load(BERT)
    row = bert.tokenizer.encode_with_specials(text, max_length=16)
    tokens = np.asarray([row])
    return np.asarray(bert.model.apply({"params": bert.params}, tokens, np.ones_like(tokens)))[0]


def scale(x):
    return x / np.linalg.norm(x)


MEAN = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
CLS = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
PLAIN = ("Transformer", "Pooling")


@pytest.mark.parametrize(
    "settings",
    [
        {"pooling": MEAN},
        {"pooling": {"pooling_mode": "mean", "embedding_dimension": 8}},
        {"pooling": {}},
        {"modules": ("Transformer", "Pooling", "Dropout", "Normalize")},
        {"prompts": {"__version__": {}, "prompts": {"query": "", "document": ""}}},
        {"prompts": {"default_prompt_name": None, "similarity_fn_name": "cosine"}},
    ],
)
def test_the_normalised_mean_changes_nothing(settings, folder):
    write(folder, **settings)
    np.testing.assert_array_equal(embed(folder), embed(BERT))
    assert load(folder).fingerprint == load(BERT).fingerprint


def join(*modes):
    return {"pooling_mode": list(modes)}


@pytest.mark.parametrize(
    ("pooling", "wanted"),
    [
        (CLS, lambda h: h[0]),
        ({"pooling_mode_cls_token": True}, lambda h: h[0]),
        ({"pooling_mode": "lasttoken"}, lambda h: h[-1]),
        (join("max"), lambda h: h.max(axis=0)),
        (join("mean_sqrt_len_tokens"), lambda h: h.sum(axis=0) / np.sqrt(len(h))),
        (join("weightedmean"), lambda h: np.average(h, axis=0, weights=np.arange(1, len(h) + 1))),
        (join("cls", "mean"), lambda h: np.concatenate([h[0], h.mean(axis=0)])),
    ],
)
def test_pooling(pooling, wanted, folder):
    write(folder, pooling=pooling, modules=PLAIN, prompts={"similarity_fn_name": "dot"})
    expected = wanted(states().astype(np.float64))
    np.testing.assert_allclose(embed(folder)[0], expected, atol=1e-5)
    write(folder, pooling=pooling, prompts={})
    np.testing.assert_allclose(embed(folder)[0], scale(expected), atol=1e-5)
    assert load(folder).fingerprint != load(BERT).fingerprint


@pytest.mark.parametrize("similarity", [{}, {"similarity_fn_name": "cosine"}])
def test_embeddings_that_are_compared_by_cosines_have_length_1(similarity, folder, tmp_path):
    """Products of them rank as sentence-transformers' `similarity`, its default too."""
    write(folder, pooling=CLS, modules=PLAIN, prompts=similarity)
    np.testing.assert_allclose(embed(folder)[0], scale(states()[0]), atol=1e-5)
    save(load(folder), tmp_path / "saved")
    np.testing.assert_array_equal(embed(tmp_path / "saved"), embed(folder))
    write(folder, pooling=CLS, modules=PLAIN, prompts={"similarity_fn_name": "dot"})
    np.testing.assert_allclose(embed(folder)[0], states()[0], atol=1e-5)


def make_dense(inputs, outputs, *, activation="torch.nn.modules.linear.Identity", bias=False):
    rng = np.random.default_rng(inputs)
    fields = {"in_features": inputs, "out_features": outputs, "bias": bias}
    tensors = {"linear.weight": rng.normal(size=(outputs, inputs)).astype(np.float32)}
    tensors |= {"linear.bias": rng.normal(size=outputs).astype(np.float32)} if bias else {}
    return {**fields, "activation_function": activation}, tensors


TANH = "torch.nn.modules.activation.Tanh"


def test_dense_layers_are_run_in_their_order_and_saved(folder, tmp_path):
    size = states().shape[1]
    layers = make_dense(size, 7), make_dense(7, 5, activation=TANH, bias=True)
    write(folder, modules=(*PLAIN, "Dense", "Dense", "Normalize"), dense=layers)
    (_, first), (_, second) = layers
    x = first["linear.weight"] @ states().mean(axis=0)
    x = np.tanh(second["linear.weight"] @ x + second["linear.bias"])
    np.testing.assert_allclose(embed(folder)[0], scale(x), atol=1e-5)
    (folder / "config_sentence_transformers.json").write_text('{"prompts": {"query": "Ask: "}}')
    for _ in range(2):  # into a new folder, and over it
        save(load(folder), tmp_path / "saved")
    np.testing.assert_array_equal(embed(tmp_path / "saved"), embed(folder))
    found, wanted = load(tmp_path / "saved"), load(folder)
    assert found.model.pooling == wanted.model.pooling
    assert dict(found.sentence.prompts) == {"query": "Ask: "}


def test_a_prompt_is_chosen_by_role(folder):
    prompts = {"query": "ask: ", "passage": "read: ", "default": "so: "}
    write(folder, prompts={"prompts": prompts, "default_prompt_name": "default"})
    wanted = {"query": "ask: ", "document": "read: ", None: "so: "}
    for role, prompt in wanted.items():
        text = f"{prompt}Paris Its capital"
        np.testing.assert_array_equal(
            embed(folder, "Paris Its capital", role=role), embed(BERT, text)
        )
        # With prompts, a title is no text of its own.
        pair = embed(folder, ("Paris", "Its capital"), role=role)
        np.testing.assert_array_equal(pair, embed(BERT, text))
    with pytest.raises(RagJaxError, match=r"^role='passage': must be 'query' or 'document'"):
        embed(folder, "a", role="passage")


@pytest.mark.parametrize("name", ["document", "passage"])
def test_an_empty_prompt_goes_before_another_of_its_role(name, folder, tmp_path):
    prompts = {name: "", "query": "ask: ", "corpus": "read: "}
    write(folder, prompts={"prompts": prompts, "default_prompt_name": "corpus"})
    save(load(folder), tmp_path / "saved")
    for path in (folder, tmp_path / "saved"):
        np.testing.assert_array_equal(embed(path, "who?", role="document"), embed(BERT, "who?"))
        np.testing.assert_array_equal(embed(path, "who?"), embed(BERT, "read: who?"))
    printed = load(folder).fingerprint
    write(folder, prompts={"prompts": {**prompts, name: None}, "default_prompt_name": "corpus"})
    assert load(folder).fingerprint != printed


def test_empty_prompts_that_change_nothing_are_no_part_of_a_fingerprint(folder):
    write(folder, prompts={"prompts": {"query": "ask: ", "document": "read: "}})
    printed = load(folder).fingerprint
    prompts = {"query": "ask: ", "document": "read: ", "passage": "", "corpus": None}
    write(folder, prompts={"prompts": prompts})
    assert load(folder).fingerprint == printed
    assert dict(load(folder).sentence.prompts) == {"query": "ask: ", "document": "read: "}


def test_prompts_that_are_no_part_of_the_embedding(folder):
    write(folder, prompts={"prompts": {"query": "ask this: "}}, pooling={"include_prompt": False})
    skipped = len(load(BERT).tokenizer.encode("ask this: "))
    expected = states("ask this: who?")[1 + skipped :].mean(axis=0)
    np.testing.assert_allclose(embed(folder, "who?", role="query")[0], scale(expected), atol=1e-5)
    np.testing.assert_array_equal(embed(folder, "who?", role="document"), embed(BERT, "who?"))
    with pytest.raises(RagJaxError, match="include_prompt is false.* query_prompt=''"):
        tokenize_for_training(load(folder), ["who?"], 16, role="query")


@pytest.mark.parametrize("dimensions", [0, -3, 2.5, True])
def test_dimensions_that_cannot_be(dimensions):
    with pytest.raises(RagJaxError, match="settings.dimensions="):
        configure_encoder(load(BERT), EncoderConfig(dimensions=dimensions))


def test_the_run_s_settings_go_before_the_files(folder):
    write(folder, prompts={"prompts": {"query": "ask: "}})
    settings = EncoderConfig(query_prompt="", passage_prompt="P: ", dimensions=6)
    encoder = configure_encoder(load(folder), settings)
    whole = embed(BERT, "P: who?")[0]
    found = encode_texts(encoder, ["who?"], max_length=16, role="document")[0]
    np.testing.assert_allclose(found, scale(whole[:6]), atol=1e-6)
    own = encode_texts(encoder, ["who?"], max_length=16, role="query")[0]
    np.testing.assert_allclose(own, scale(embed(BERT, "who?")[0, :6]), atol=1e-6)
    assert encoder.fingerprint not in (load(folder).fingerprint, load(BERT).fingerprint)
    assert configure_encoder(load(folder), EncoderConfig()).fingerprint == load(folder).fingerprint
    with pytest.raises(RagJaxError, match="dimensions is 6000: an embedding has"):
        configure_encoder(load(folder), EncoderConfig(dimensions=6000))


def test_lower_case(folder):
    write(folder)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    path = folder / "tokenizer.json"
    core = json.loads(path.read_text())
    core["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(core))
    np.testing.assert_array_equal(embed(folder, "WHO?"), embed(folder, "who?"))


@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_are_put_in_lower_case_too(include_prompt, folder):
    pooling = {"include_prompt": include_prompt}
    write(folder, prompts={"prompts": {"query": "Is IT: "}}, pooling=pooling)
    (folder / "sentence_bert_config.json").write_text('{"do_lower_case": true}')
    path = folder / "tokenizer.json"
    core = json.loads(path.read_text())
    core["normalizer"]["lowercase"] = False
    path.write_text(json.dumps(core))
    found = embed(folder, "WHO?", role="query")
    write(folder, prompts={"prompts": {"query": "is it: "}}, pooling=pooling)
    np.testing.assert_array_equal(found, embed(folder, "who?", role="query"))


@pytest.mark.parametrize("kind", ["roberta", "distilbert", "xlm-roberta", "xlnet"])
def test_other_names_of_the_transformers_settings(kind, folder):
    write(folder)
    settings = {"max_seq_length": 9, "do_lower_case": True}
    (folder / f"sentence_{kind}_config.json").write_text(json.dumps(settings))
    found = load(folder).sentence
    assert (found.lower_case, found.max_length) == (True, 9)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 7}')
    found = load(folder).sentence
    assert (found.lower_case, found.max_length) == (False, 7)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query_length": 32}, "query_length 32 is not supported"),
        ({"document_length": 300}, "document_length 300 is not supported"),
        ({"query_expansion": True}, "query_expansion True is not supported"),
        ({"modality_config": {"text": {}, "message": {}}}, "modality_config has 'message', with"),
    ],
)
def test_other_ways_to_read_texts_are_refused(fields, message, folder):
    write(folder)
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({"query_length": None, "modality_config": {"text": {}}}))
    assert load(folder).fingerprint == load(BERT).fingerprint
    path.write_text(json.dumps(fields))
    with pytest.raises(RagJaxError, match=message):
        load(folder)


def test_fewer_dimensions_in_the_files_are_refused(folder):
    path = folder / "config_sentence_transformers.json"
    for dimensions in (None, 8):
        path.write_text(json.dumps({"prompts": {}, "truncate_dim": dimensions}))
        if dimensions is None:
            assert load(folder).fingerprint == load(BERT).fingerprint
    with pytest.raises(RagJaxError, match="truncate_dim is not followed: remove it, and give as m"):
        load(folder)


@pytest.mark.parametrize(
    "name",
    [
        *("model_args", "model_kwargs", "tokenizer_args", "processor_kwargs"),
        *("config_args", "config_kwargs", "processing_kwargs"),
    ],
)
def test_what_is_passed_to_transformers_is_refused(name, folder):
    write(folder)
    path = folder / "sentence_bert_config.json"
    for given in ({}, None, {"trust_remote_code": True}):  # which change nothing
        path.write_text(json.dumps({name: given}))
        assert load(folder).fingerprint == load(BERT).fingerprint
    path.write_text(json.dumps({name: {"is_causal": False}}))
    with pytest.raises(RagJaxError, match=f"{name} .*is_causal.* is not supported$") as error:
        load(folder)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("both", [True, False])
def test_an_encoder_in_a_folder_of_its_own_is_named(both, folder):
    write(folder)
    shutil.copytree(BERT, folder / "0_Transformer")
    path = folder / "modules.json"
    modules = json.loads(path.read_text())
    modules[0]["path"] = "0_Transformer"
    path.write_text(json.dumps(modules))
    if not both:
        for name in ("config.json", "model.safetensors"):
            (folder / name).unlink()
    for function in (load, load_tokenizer):
        with pytest.raises(RagJaxError, match="in a folder of its own, '0_Transformer': ") as error:
            function(folder)
        assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_assumed_without_files_is_said(folder, caplog):
    with caplog.at_level(logging.WARNING):
        load(folder)
    assert caplog.messages == [
        f"{folder} has no modules.json, which would say what an embedding is: the mean of the "
        "tokens' states, scaled to length 1, is assumed"
    ]
    caplog.clear()
    write(folder)
    load(folder)
    assert not caplog.messages


def test_settings_without_modules(folder):
    write(folder, pooling=CLS, prompts={"prompts": {}})
    (folder / "modules.json").unlink()
    np.testing.assert_allclose(embed(folder)[0], scale(states()[0]), atol=1e-5)
    shutil.rmtree(folder / "1_Pooling")
    np.testing.assert_array_equal(embed(folder), embed(BERT))


@pytest.mark.parametrize("kind", ["LSTM", "WeightedLayerPooling", "custom_st.Transformer"])
def test_other_modules_are_refused(kind, folder):
    write(folder, modules=("Transformer", "Pooling", kind, "Normalize"))
    with pytest.raises(RagJaxError, match=rf"modules.json: module .*{kind}.* is not supported"):
        load(folder)


def test_code_of_an_encoders_own_is_refused(folder):
    """As of Qwen2's encoders whose tokens attend to all others. Of language models it is unread."""
    own = {"AutoConfig": "own.Config", "AutoModel": "own.BiModel"}
    change(folder, "", auto_map=own)
    with pytest.raises(RagJaxError, match=r"config.json: auto_map has AutoModel 'own.BiModel', .*"):
        load(folder)
    change(folder, "", auto_map={"AutoConfig": "own.Config"})
    settings = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(RagJaxError, match=r"tokenizer_config.json: auto_map has AutoTokenizer"):
        load(folder)
    llama = shutil.copytree(BERT.parent / "llama_tied", folder.parent / "llama")
    change(llama, "", auto_map=own)
    assert load(llama).tokenizer.vocab_size


def change(folder, place, **fields):
    path = folder / place / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("place", "fields", "message"),
    [
        ("1_Pooling", {"pooling_mode": "middle"}, "pooling_mode 'middle' is none of cls, max, "),
        ("1_Pooling", {"pooling_mode": []}, "must name each mode once"),
        ("1_Pooling", {"pooling_mode_mean_tokens": False}, "must name each mode once"),
        ("1_Pooling", {"include_prompt": "no"}, "include_prompt must be true or false"),
        ("2_Dense", {"activation_function": "os.system"}, "activation_function 'os.system' is no"),
        ("2_Dense", {"activation_function": "torch.nn.Softmax2d"}, "is not supported; supported"),
        ("2_Dense", {"use_residual": True}, "use_residual True is not supported"),
        ("2_Dense", {"module_input_name": "token_embeddings"}, "module_input_name 'token_emb"),
        ("2_Dense", {"out_features": 5}, "model.safetensors has tensors"),
        ("2_Dense", {"in_features": -1}, "in_features must be a positive integer, not -1"),
    ],
)
def test_what_a_layer_asks_for_beyond_is_refused(place, fields, message, folder):
    write(folder, modules=(*PLAIN, "Dense"), dense=[make_dense(states().shape[1], 4)])
    change(folder, place, **fields)
    with pytest.raises(RagJaxError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


def test_damaged_settings_are_named(folder):
    write(folder, modules=("Transformer",))
    with pytest.raises(RagJaxError, match="modules.json has no module Pooling"):
        load(folder)
    write(folder, prompts={"default_prompt_name": "ask", "prompts": {"query": "q: "}})
    with pytest.raises(RagJaxError, match="default_prompt_name 'ask': there is query"):
        load(folder)
    write(folder, prompts={"similarity_fn_name": "manhattan"})
    with pytest.raises(RagJaxError, match="similarity_fn_name 'manhattan' is not supported"):
        load(folder)
    write(folder)
    (folder / "1_Pooling" / "config.json").unlink()
    with pytest.raises(RagJaxError, match=r"1_Pooling.config.json is missing: copy"):
        load(folder)
    (folder / "modules.json").write_text('{"a": 1}')
    with pytest.raises(RagJaxError, match="modules.json is no list of modules"):
        load(folder)


def test_a_damaged_layer_is_named(folder):
    fields, tensors = make_dense(states().shape[1], 4)
    tensors["linear.weight"][1, 2] = np.nan
    write(folder, modules=(*PLAIN, "Dense"), dense=[(fields, tensors)])
    with pytest.raises(RagJaxError, match="2_Dense/model.safetensors: linear.weight has a NaN"):
        load(folder)
    (folder / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(RagJaxError, match="2_Dense/model.safetensors is missing: copy"):
        load(folder)
    (folder / "2_Dense" / "pytorch_model.bin").touch()
    with pytest.raises(RagJaxError, match="is missing; pickled .bin weights are not supported"):
        load(folder)


def test_dprs_encoders_have_their_own_way(folder):
    write(folder, prompts={"prompts": {"query": "ask: "}})
    encoder = load(folder)
    config = replace(encoder.config, dpr_role="question")
    encoder = replace(encoder, config=config, model=encoder.model.clone(config=config))
    with pytest.raises(RagJaxError, match="DPR's encoders have no prompts"):
        configure_encoder(encoder, EncoderConfig(query_prompt="a"))
