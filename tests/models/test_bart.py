"""BART through the cache, under shared sources, with adapters, and what it refuses.

That it computes what transformers computes is in `test_parity_golden.py`.
"""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rag_jax import lora
from rag_jax.decoding import append, encode_source, generate, init_cache
from rag_jax.models import load, load_reranker
from rag_jax.models.io.configs import read_config
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden" / "bart"
BART = load(GOLDEN)
MODEL, PARAMS, CONFIG = BART.model, BART.params, BART.config
APPLY = jax.jit(lambda params, *inputs: MODEL.apply({"params": params}, *inputs))
APPEND = jax.jit(partial(append, MODEL), static_argnames="return_layer")
ENCODE = jax.jit(partial(encode_source, MODEL))
LOGITS = jax.jit(lambda params, hidden: MODEL.apply({"params": params}, hidden, method="logits"))
GENERATE = partial(generate, MODEL, PARAMS, stop_ids=[CONFIG.eos_id])


def make_rows(lengths, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(5, CONFIG.vocab_size, length).tolist() for length in lengths]


def pad(rows, width, filler=1):
    tokens = np.full((len(rows), width), filler, np.int32)
    for i, row in enumerate(rows):
        tokens[i, : len(row)] = row
    return tokens, np.arange(width) < np.asarray([len(row) for row in rows])[:, None]


def close(ours, theirs):
    np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-5)


SOURCES = make_rows([9, 4])
ROWS = make_rows([6, 3, 5, 1], seed=1)


def test_padding_changes_nothing():
    for filler in (1, 77):
        tokens, mask = pad(SOURCES, 12, filler)
        decoder_tokens, decoder_mask = pad(ROWS[:2], 8, filler)
        logits = np.asarray(APPLY(PARAMS, tokens, decoder_tokens, mask, decoder_mask))
        for b in range(2):
            (alone,) = np.asarray(APPLY(PARAMS, np.asarray([SOURCES[b]]), np.asarray([ROWS[b]])))
            close(logits[b][decoder_mask[b]], alone)


def read_rows(rows):
    """Logits `[4, 8, V]` of four rows, the first two of the first source, in one full pass."""
    tokens, mask = pad([SOURCES[b // 2] for b in range(4)], 12)
    decoder_tokens, decoder_mask = pad(rows, 8)
    return np.asarray(APPLY(PARAMS, tokens, decoder_tokens, mask, decoder_mask))


def test_cached_decoding_is_the_full_pass_under_shared_sources():
    source = ENCODE(PARAMS, *pad(SOURCES, 12))
    assert source.token_mask.shape == (2, 12) and source.position.tolist() == [0, 0]
    tokens, mask = pad(ROWS, 6)
    cache, hidden = init_cache(MODEL, 4, prefix=source), []
    for chunk in (slice(0, 1), slice(1, 4), slice(4, 6)):
        output, cache = APPEND(PARAMS, cache, tokens[:, chunk], mask[:, chunk])
        hidden.append(output.hidden)
    logits = np.asarray(LOGITS(PARAMS, np.concatenate(hidden, axis=1)))
    for ours, whole, row in zip(logits, read_rows(ROWS), ROWS, strict=True):
        close(ours[: len(row)], whole[: len(row)])
    assert cache.position.tolist() == [len(row) for row in ROWS]
    assert cache.layers[0][0].shape == (4, 2, 16, 6)
    # A row goes on after its padding, where its own last token was.
    more = np.asarray(make_rows([2] * 4, seed=2))
    output, _ = APPEND(PARAMS, cache, more, np.ones((4, 2), bool))
    logits = np.asarray(LOGITS(PARAMS, output.hidden))
    longer = read_rows([[*row, *new] for row, new in zip(ROWS, more, strict=True)])
    for ours, whole, row in zip(logits, longer, ROWS, strict=True):
        close(ours, whole[len(row) : len(row) + 2])


def test_rows_of_one_source_do_not_see_each_other():
    source = ENCODE(PARAMS, *pad(SOURCES, 12))
    tokens, mask = pad(ROWS, 6)
    other = np.where(np.arange(4)[:, None] == 1, 50 + np.arange(6), tokens)
    ours, theirs = (
        np.asarray(APPEND(PARAMS, init_cache(MODEL, 4, prefix=source), rows, mask)[0].hidden)
        for rows in (tokens, other)
    )
    np.testing.assert_array_equal(ours[[0, 2, 3]], theirs[[0, 2, 3]])
    assert np.abs(ours[1] - theirs[1]).max() > 1e-2


def test_a_second_batch_compiles_nothing_and_no_row_depends_on_its_batch():
    compiled = []

    def listen(event, duration, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for seed, lengths in enumerate([(3, 24, 11), (9, 1, 24), (23, 21, 2)]):
            prompts = make_rows(lengths, seed=seed)
            texts = GENERATE(prompts, max_tokens=5, batch_size=2)
            APPLY(PARAMS, *(np.asarray(make_rows([7, 7], seed=seed)) for _ in "ab"))
            assert bool(compiled) == (seed == 0)
            compiled.clear()
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert texts == [GENERATE([prompt], max_tokens=5)[0] for prompt in prompts]
    assert len({tuple(text) for text in texts}) == 3


def test_generate_takes_every_position_there_is():
    (text,) = generate(MODEL, PARAMS, make_rows([24]), max_tokens=22, stop_ids=())
    assert len(text) == 22
    with pytest.raises(RagJaxError, match="^max_tokens=23: .* positions for only 22; lower it$"):
        GENERATE([[5]], max_tokens=23)
    with pytest.raises(RagJaxError, match="^prompts: prompt 1 has 25 tokens, but .* only 24; "):
        GENERATE(make_rows([24, 25]), max_tokens=5)
    with pytest.raises(RagJaxError, match="^prefix: an encoder-decoder has none; "):
        GENERATE([[5]], max_tokens=5, prefix=[7])


def test_generate_in_bfloat16():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    (text,) = generate(MODEL, params, [SOURCES[0]], max_tokens=1, stop_ids=())
    logits = APPLY(PARAMS, np.asarray([SOURCES[0]]), np.asarray([CONFIG.start_ids]))[0, -1]
    assert logits[text[0]] > logits.max() - 0.5


def test_what_has_no_position_or_no_source():
    wide, fine = jnp.zeros((1, 25), jnp.int32), jnp.zeros((1, 2), jnp.int32)
    for inputs in ((wide, fine), (fine, wide)):
        with pytest.raises(ValueError, match="25 tokens in a row, but only 24 positions"):
            APPLY(PARAMS, *inputs)
    with pytest.raises(ValueError, match="need a source"):
        init_cache(MODEL, 2)


def test_every_parameter_but_the_bias_is_trained():
    tokens, mask = pad(SOURCES, 12)
    decoder_tokens, decoder_mask = pad(ROWS[:2], 8)

    def loss(params):
        logits = APPLY(params, tokens, decoder_tokens, mask, decoder_mask)
        return jnp.where(decoder_mask[..., None], jax.nn.log_softmax(logits), 0)[..., 7].sum()

    gradients = jax.tree_util.tree_leaves_with_path(jax.jit(jax.grad(loss))(PARAMS))
    # A bias on all keys alike changes no softmax.
    still = {
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in gradients
        if np.abs(leaf).max() < 1e-5
    }
    keys = {name for name in still if name.endswith("attention/key/bias")}
    assert still == {"logits_bias"} | keys and len(keys) == 2 + 2 * 3


def test_adapters_beside_biased_kernels():
    targets = r".*attention/(query|value)/kernel|.*ffn/up/kernel"
    adapter = lora.init(jax.random.key(0), PARAMS, targets=targets, rank=2)
    draw = np.random.default_rng(0).normal
    adapter = jax.tree.map(lambda leaf: jnp.asarray(0.1 * draw(size=leaf.shape), "f"), adapter)
    inputs = jnp.asarray([SOURCES[0]]), jnp.asarray([ROWS[0]])
    unfused = APPLY(lora.apply(PARAMS, adapter, scale=2.0), *inputs)
    close(unfused, APPLY(lora.fold(PARAMS, adapter, scale=2.0), *inputs))
    assert np.abs(unfused - APPLY(PARAMS, *inputs)).max() > 1e-2


def write_config(folder, *left_out, **changes):
    """The golden model's config, changed."""
    fields = json.loads((GOLDEN / "config.json").read_text())
    fields = {name: value for name, value in fields.items() if name not in left_out} | changes
    (folder / "config.json").write_text(json.dumps(fields))


def test_the_token_that_an_output_starts_with(tmp_path):
    """As in transformers, `generation_config.json` has it where the file is there."""
    write_config(tmp_path, decoder_start_token_id=3)
    cases = (None, 3), ({}, 3), ({"decoder_start_token_id": 5}, 5), ({"bos_token_id": 6}, 6)
    for generation, start in cases:
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        assert read_config(tmp_path / "config.json").start_id == start


@pytest.mark.parametrize(
    ("fields", "starts"),
    [
        ({"decoder_start_token_id": None, "bos_token_id": 4}, (4,)),
        ({"decoder_start_token_id": 3, "bos_token_id": 4}, (3,)),
        # huggingface/transformers#6526: before 2021.
        ({"force_bos_token_to_be_generated": True, "bos_token_id": 4}, (2, 4)),
        ({"force_bos_token_to_be_generated": False, "bos_token_id": 4}, (2,)),
        ({"forced_bos_token_id": [4], "eos_token_id": [6, 7]}, (2, 4)),
    ],
)
def test_how_older_files_say_what_an_output_starts_with(fields, starts, tmp_path):
    write_config(tmp_path, "decoder_start_token_id", "forced_bos_token_id", **fields)
    config = read_config(tmp_path / "config.json")
    assert config.start_ids == starts
    golden = read_config(GOLDEN / "config.json")
    assert config.eos_id == (6 if "eos_token_id" in fields else golden.eos_id)


def test_several_ids_where_one_is_forced_are_refused(tmp_path):
    write_config(tmp_path, forced_eos_token_id=[2, 3])
    with pytest.raises(RagJaxError, match="forced_eos_token_id must be a token id below"):
        read_config(tmp_path / "config.json")


def test_a_head_for_classes_is_refused(tmp_path):
    folder = shutil.copytree(GOLDEN, tmp_path / "bart")
    write_config(folder, architectures=["BartForSequenceClassification"])
    for read in (load, load_reranker):
        with pytest.raises(RagJaxError, match="a BART with a head for classes is not supported"):
            read(folder)


def test_configs():
    assert BartConfig().start_ids == (2,) and CONFIG.start_ids == (2, 0)
    assert hash(BartConfig()) == hash(replace(BartConfig())) and BartConfig() == BartConfig()
    shapes = jax.eval_shape(
        Bart(BartConfig()).init, jax.random.key(0), *[jnp.zeros((1, 1), jnp.int32)] * 2
    )
    # BART-large, and the bias of its logits.
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 406_291_456 + 50_265
