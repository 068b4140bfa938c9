"""A folder's weights are those that transformers takes, or the error says what the files are."""

import json

import pytest

from rag_jax.models.io.weight_files import find_weights
from rag_jax.runtime.errors import RagJaxError

PARTS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
GGUF_PARTS = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
INDEX = "model.safetensors.index.json"


@pytest.fixture
def make(tmp_path):
    def make(*names, **files):
        for name in names:
            (tmp_path / name).write_bytes(b"")
        for name, content in files.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(content))
        if INDEX in names:
            (tmp_path / INDEX).write_text(
                json.dumps({"weight_map": {"a": PARTS[0], "b": PARTS[1]}})
            )
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        ([INDEX, *PARTS], PARTS),
        # A model saved in one file over one in parts: the file is current, as in transformers.
        ([INDEX, *PARTS, "model.safetensors"], ["model.safetensors"]),
        ([INDEX, "model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "consolidated.safetensors", "m-q8.gguf"], ["model.safetensors"]),
        (["other.safetensors", "m-q8.gguf", "pytorch_model.bin"], ["other.safetensors"]),
        (["model-00001-of-00001.safetensors"], ["model-00001-of-00001.safetensors"]),
        (["m-q8.gguf"], ["m-q8.gguf"]),
        (["m-00001-of-00001.gguf"], ["m-00001-of-00001.gguf"]),
        (["m-00002-of-00002.gguf", "m-00001-of-00002.gguf"], GGUF_PARTS),
    ],
)
def test_folders(names, found, make):
    folder = make(*names)
    assert find_weights(folder) == [folder / name for name in found]


@pytest.mark.parametrize("name", ["m-q8.gguf", "m-f16.gguf", "model.safetensors", "b.safetensors"])
def test_a_file_by_its_name(name, make):
    folder = make("m-q8.gguf", "m-f16.gguf", "model.safetensors", "b.safetensors")
    assert find_weights(folder / name) == [folder / name]


def test_weights_that_the_config_names(make):
    folder = make(
        "model.safetensors", "x.safetensors", config={"transformers_weights": "x.safetensors"}
    )
    assert find_weights(folder) == [folder / "x.safetensors"]
    make(INDEX, *PARTS, config={"transformers_weights": INDEX})
    assert find_weights(folder) == [folder / name for name in PARTS]
    make(config={"transformers_weights": "y.safetensors"})
    with pytest.raises(RagJaxError, match="lacks y.safetensors, which config.json names"):
        find_weights(folder)
    for name in ("../x.safetensors", "x.bin", 5):
        make(config={"transformers_weights": name})
        with pytest.raises(RagJaxError, match="config.json: transformers_weights .* is no .safe"):
            find_weights(folder)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.gguf", "b.gguf"], "several weight files .a.gguf, b.gguf.: keep one, or give its path"),
        (["a.safetensors", "b.safetensors"], "several weight files .*keep one, or give its path"),
        (["m-00002-of-00003.gguf"], "lacks m-00001-of-00003.gguf, m-00003-of-00003.gguf: copy all"),
        (["m-1-of-99999.gguf"], "is one of 99,999 parts, the limit is 10,000"),
        ([*GGUF_PARTS, "m-00001-of-00003.gguf"], "several weight files"),
        (["a-00001-of-00002.gguf", "b-00002-of-00002.gguf"], "several weight files"),
        (PARTS, f"part 1 of 2 of a model's weights: copy {INDEX} and all parts into"),
        (PARTS[1:], "part 2 of 2 of a model's weights"),
        ([], "no .safetensors or .gguf weights in"),
    ],
)
def test_folders_without_one_model(names, message, make):
    with pytest.raises(RagJaxError, match=message):
        find_weights(make(*names))


def test_a_part_by_its_name(make):
    folder = make(INDEX, *PARTS, "m-00001-of-00002.gguf")
    with pytest.raises(RagJaxError, match=f"is part 2 of 2 .*: give the folder {folder}"):
        find_weights(folder / PARTS[1])
    with pytest.raises(RagJaxError, match="lacks m-00002-of-00002.gguf: copy all 2 parts"):
        find_weights(folder / "m-00001-of-00002.gguf")
    make(*GGUF_PARTS)
    assert find_weights(folder / GGUF_PARTS[1]) == [folder / name for name in GGUF_PARTS]


@pytest.mark.parametrize("names", [["adapter_model.safetensors"], ["model.safetensors"], []])
def test_an_adapters_folder(names, make):
    folder = make(*names, adapter_config={"base_model_name_or_path": "owner/base"})
    with pytest.raises(RagJaxError, match="folder of an adapter: load owner/base, then"):
        find_weights(folder)
    make(adapter_config={})
    with pytest.raises(RagJaxError, match="folder of an adapter: load its base model, then"):
        find_weights(folder)


def test_an_index_of_very_many_files(make):
    folder = make(
        **{INDEX.removesuffix(".json"): {"weight_map": {str(i): f"{i}" for i in range(10_001)}}}
    )
    with pytest.raises(RagJaxError, match=r"it names 10,001 files, the limit is 10,000"):
        find_weights(folder)
