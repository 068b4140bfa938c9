"""GGUF files of every architecture hold the model that the golden folder holds."""

from dataclasses import replace
from pathlib import Path

import gguf
import jax
import numpy as np
import pytest
from tiny_gguf import describe, read_tensors, write, write_parts

from rag_jax.models import load
from rag_jax.models.io.gguf_config import read_gguf_config
from rag_jax.models.io.gguf_file import read_gguf
from rag_jax.models.io.load import load_config, load_tokenizer
from rag_jax.models.nn.rope import LlamaScaling, scale_frequencies
from rag_jax.runtime.errors import RagJaxError

GOLDEN = Path(__file__).parents[1] / "golden"
ARCHITECTURES = {"llama3": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3"}


def make(name, folder, **changes):
    """A golden model as a GGUF file, with changed metadata."""
    architecture = ARCHITECTURES[name]
    fields = describe(GOLDEN / name, architecture) | changes
    write(folder / "m.gguf", architecture, fields, read_tensors(GOLDEN / name, architecture))
    return folder / "m.gguf"


def read_config(path):
    found = read_gguf(path)
    return read_gguf_config(found.metadata, found.tensors, path=path)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_same_config_and_parameters(name, tmp_path):
    found, wanted = load(make(name, tmp_path)), load(GOLDEN / name)
    config = wanted.config
    if name == "llama3":  # whose scaling is a tensor, see below
        config = replace(config, rope_scaling=None)
    if name == "gemma3":  # llama.cpp scales by the head's size
        config = replace(config, query_scalar=16)
    assert found.config == config
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    assert found.tokenizer.vocab_size == config.vocab_size


def test_a_model_in_several_files(tmp_path):
    fields, tensors = (read(GOLDEN / "gemma3", "gemma3") for read in (describe, read_tensors))
    paths = write_parts(tmp_path, "gemma3", fields, tensors, parts=3)
    wanted, found = load(make("gemma3", tmp_path)), load(paths[0])
    assert found.config == wanted.config and found.fingerprint != wanted.fingerprint
    jax.tree.map(np.testing.assert_array_equal, found.params, wanted.params)
    (tmp_path / "m.gguf").unlink()
    for path in (tmp_path, *paths):  # a folder, or any of the parts
        assert load_config(path) == found.config
        assert load_tokenizer(path).vocab_size == found.tokenizer.vocab_size
    assert load(tmp_path).fingerprint == load(paths[1]).fingerprint == found.fingerprint
    content = [path.read_bytes() for path in paths]
    paths[1].write_bytes(content[2])
    with pytest.raises(RagJaxError, match="00002-of-00003.gguf is part 2 .from 0. of 3 of a model"):
        load(paths[0])
    paths[1].unlink()
    for path in (tmp_path, *paths[::2]):
        with pytest.raises(RagJaxError, match="lacks m-00002-of-00003.gguf: copy all 3 parts"):
            load(path)
    paths[1].write_bytes(content[1])
    alone = tmp_path / "alone.gguf"
    paths[0].rename(alone)
    with pytest.raises(RagJaxError, match="alone.gguf is part 0 .from 0. of 3 .*: name the parts"):
        load(alone)


def test_parts_that_lack_a_tensor(tmp_path):
    fields, tensors = (read(GOLDEN / "qwen3", "qwen3") for read in (describe, read_tensors))
    (first, second) = write_parts(tmp_path, "qwen3", fields, tensors, parts=2)
    split = {"split.no": 1, "split.count": 2}
    write(second, "qwen3", split, {name: tensors[name] for name in list(tensors)[1:-2:2]})
    with pytest.raises(RagJaxError, match="the 2 parts have .* tensors, not"):
        read_gguf(first, [second])
    write(second, "qwen3", split, {name: tensors[name] for name in list(tensors)[:2]})
    with pytest.raises(RagJaxError, match=r"00002-of-00002.gguf .*: \S+ comes twice"):
        read_gguf(first, [second])


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("gemma3", {"gemma3.attention.sliding_window": None}, "attention.sliding_window must be a"),
        ("gemma3", {"gemma3.final_logit_softcapping": 30.0}, "final_logit_softcapping 30.0 is not"),
        ("qwen3", {"qwen3.attention.sliding_window": 8}, "attention.sliding_window 8 is not supp"),
        ("qwen2", {"qwen2.expert_count": 4}, "expert_count 4 is not supported"),
        ("qwen2", {"qwen2.rope.scaling.type": "yarn"}, "rope.scaling.type 'yarn' is not supported"),
        ("qwen2", {"qwen2.rope.freq_base_swa": 1.0}, "rope.freq_base_swa 1.0 is not supported"),
        ("qwen3", {"qwen3.attention.causal": False}, "attention.causal false, .*: use the model's"),
    ],
)
def test_metadata_refused(name, fields, message, tmp_path):
    path = make(name, tmp_path, **fields)
    with pytest.raises(RagJaxError, match=message):
        read_config(path)


def test_a_head_for_classes_is_no_language_model(tmp_path):
    fields, tensors = (read(GOLDEN / "qwen3", "qwen3") for read in (describe, read_tensors))
    tensors["cls.output.weight"] = np.ones((2, 8), np.float32)
    write(tmp_path / "m.gguf", "qwen3", fields | {"qwen3.attention.causal": True}, tensors)
    with pytest.raises(RagJaxError, match=r"cls\.output\.weight"):
        load(tmp_path / "m.gguf")


def test_what_llama_cpp_leaves_out_of_gemma(tmp_path):
    """Every sixth layer is full, and the sliding layers turn by 10,000."""
    left_out = dict.fromkeys(("attention.sliding_window_pattern", "rope.freq_base_swa"))
    changes = {f"gemma3.{name}": value for name, value in left_out.items()}
    config = read_config(make("gemma3", tmp_path, **changes, **{"gemma3.block_count": 13}))
    assert config.sliding_layers == (0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12)
    assert config.local_rope_theta == 10_000 and config.query_scalar == config.head_dim
    config = read_config(make("gemma3", tmp_path, **{"gemma3.block_count": 62}))
    assert config.query_scalar == 8  # 27B: of 32 features and 4 heads of 16


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama_3_s_scaling_is_found_in_its_divisors(factor, tmp_path):
    scaling = LlamaScaling(factor, 1.0, 4.0, 8192)
    fields = describe(GOLDEN / "llama3", "llama") | {"llama.rope.freq_base": 500_000.0}
    fields |= {"llama.attention.head_count": 1, "llama.attention.head_count_kv": 1}
    frequencies = 500_000.0 ** -(np.arange(0, 8, 2) / 8)
    divisors = (frequencies / scale_frequencies(frequencies, scaling)).astype(np.float32)
    tensors = read_tensors(GOLDEN / "llama3", "llama")
    fields["llama.attention.key_length"] = 8
    for given, wanted in ((divisors, scaling), (divisors * 1.1, None), (divisors[:2], None)):
        write(tmp_path / "m.gguf", "llama", fields, tensors | {"rope_freqs.weight": given})
        if wanted is None:
            with pytest.raises(RagJaxError, match="rope_freqs.weight are not the divisors of Ll"):
                read_config(tmp_path / "m.gguf")
        else:
            assert read_config(tmp_path / "m.gguf").rope_scaling == wanted


@pytest.mark.parametrize("kind", ["Q4_0", "Q5_1", "Q8_0", "BF16", "TQ2_0"])
def test_what_the_package_quantises_is_read(kind, tmp_path):
    """The file's weights, to what the package itself makes of them."""
    kind = gguf.GGMLQuantizationType[kind]
    weights = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
    stored = gguf.quants.quantize(weights, kind)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "qwen3")
    writer.add_tensor("blk.0.ffn_up.weight", stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tensor,) = read_gguf(tmp_path / "m.gguf").tensors.values()
    np.testing.assert_array_equal(tensor.read(), gguf.quants.dequantize(stored, kind))


def test_every_quantisation_of_the_package_has_a_size_and_a_way_back():
    """Floats and all types that `gguf.quants` dequantises; the others are refused by name."""
    known = {
        *gguf.quants._type_traits,
        gguf.GGMLQuantizationType.F32,
        gguf.GGMLQuantizationType.F16,
    }
    assert len(known) > 20
    for kind in known:
        weights, size = gguf.GGML_QUANT_SIZES[kind]
        assert gguf.quants.dequantize(np.zeros((1, size), np.uint8), kind).shape == (1, weights)
