"""Files that others made: whatever is in one, loading it works or is refused in one line."""

import json
import os
import shutil
from functools import cache, partial
from pathlib import Path

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from damage import ODD_FILES, at_most, damage_bytes, damage_json, refuses_in_a_line
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_encoders import write_colbert, write_modules
from tiny_gguf import describe, write, write_parts
from tokenizers import pre_tokenizers

from rag_jax import lora
from rag_jax.data.formats.lines import BadLines
from rag_jax.data.formats.records import read_records
from rag_jax.data.passages import Passage, PassageFile, write_passages
from rag_jax.data.questions import Question, load_collection, store_questions
from rag_jax.decoding.trie import Trie
from rag_jax.evaluation.rankings import read_run
from rag_jax.lora.store import AdapterStore
from rag_jax.models.io.configs import read_config
from rag_jax.models.io.gguf_config import read_gguf_config
from rag_jax.models.io.gguf_file import read_gguf
from rag_jax.models.io.load import load as load_model
from rag_jax.models.io.multi_vector import read_token_settings
from rag_jax.models.io.sentence import read_sentence
from rag_jax.models.io.sparse import read_splade
from rag_jax.models.io.stops import read_stop_ids
from rag_jax.models.io.tensors import read_safetensors
from rag_jax.models.io.weight_files import find_weights
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.retrieval.bm25 import BM25
from rag_jax.retrieval.index import Index
from rag_jax.retrieval.sparse_index import SparseIndex
from rag_jax.retrieval.token_index import TokenIndex
from rag_jax.retrieval.token_vectors import TokenVectors
from rag_jax.runtime.checkpoint import load_tree, save_tree
from rag_jax.runtime.files import map_array, read_arrays, read_json, read_jsonl, sum_files
from rag_jax.runtime.manifest import hash_file

GOLDEN = Path(__file__).parent / "golden"
LLAMA, SHARDED, BART = (GOLDEN / name for name in ("llama_tied", "llama_untied_sharded", "bart"))
ADAPTER = {"a": np.ones((2, 3), np.float32)}


def read_tokenizer(folder):
    tokenizer = Tokenizer.from_folder(folder)
    ids = tokenizer.encode_prompt("the house")
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


def read_weights(folder):
    for tensor in read_safetensors(find_weights(folder)).values():
        tensor.read()


def read_gguf_model(folder):
    path = folder / "a.gguf"
    found = read_gguf(path)
    read_gguf_config(found.metadata, found.tensors, path=path)
    Tokenizer.from_gguf(found.metadata, source=str(path))
    for tensor in found.tensors.values():
        if np.prod(tensor.shape, dtype=float) < 1e6:
            tensor.read()


def read_gguf_parts(folder):
    first, *others = find_weights(folder)
    for tensor in read_gguf(first, others).tensors.values():
        tensor.read()


def read_passages(folder):
    passages = PassageFile(folder / "passages.jsonl")
    assert list(passages) == [passages[i] for i in range(len(passages))] == passages[:]


def search_words(folder):
    BM25.load(folder).search(["the cat", "a dog"], 2)


def search_vectors(folder):
    index = Index.load(folder, encoder="e")
    index.search(np.ones((2, index.width), np.float32), min(3, index.size))


def search_weights(folder):
    SparseIndex.load(folder, encoder="e").search(np.ones((2, 3)), 2)


def make_tokens():
    return TokenVectors(np.ones((4, 3), np.float32), np.asarray([0, 1, 4]))


def search_tokens(folder):
    TokenIndex.load(folder, encoder="e").search(make_tokens(), 2)


def walk_trie(folder):
    trie = Trie.load(folder)
    trie.find([[]])
    leaves = [node for node in range(trie.size) if trie.leaves[node] >= 0]
    assert all(trie.sequence(node) and trie.rows_at(node) for node in leaves)


@cache
def load_llama():
    return load_model(LLAMA)


def read_peft(folder):
    lora.load_peft(folder, load_llama())


def read_tree(folder):
    tree = folder / "tree"
    (folder / "checksums.json").write_text(json.dumps(sum_files(tree) if tree.is_dir() else {}))
    load_tree(folder, {"a": jax.ShapeDtypeStruct((2, 3), jnp.float32)})


def read_lines(folder):
    for _ in read_records(folder / "a.jsonl", BadLines()):
        pass


def load_adapters(folder):
    store = AdapterStore(folder, ADAPTER, base="b", settings={"rank": 2})
    store.load(["p"])


# Kinds of files: how to load them, the file of the folder, and whether it is JSON, or how many of
# its first bytes are damaged, all if None.
KINDS = {
    "config": (lambda f: read_config(f / "config.json"), "config.json", True),
    "BART's config": (lambda f: read_config(f / "config.json"), "config.json", True),
    "generation": (read_stop_ids, "generation_config.json", True),
    "tokenizer": (read_tokenizer, "tokenizer.json", True),
    "tokenizer's settings": (read_tokenizer, "tokenizer_config.json", True),
    "chat template": (read_tokenizer, "chat_template.jinja", None),
    "modules": (read_sentence, "modules.json", True),
    "pooling": (read_sentence, "1_Pooling/config.json", True),
    "vocabulary": (read_tokenizer, "vocab.json", True),
    "merges": (read_tokenizer, "merges.txt", None),
    "PEFT's config": (read_peft, "adapter_config.json", True),
    "PEFT's weights": (read_peft, "adapter_model.safetensors", 2000),
    "metadata of a checkpoint": (read_tree, "tree/_METADATA", True),
    "weights": (read_weights, "model.safetensors", 3000),
    "index of weights": (read_weights, "model.safetensors.index.json", True),
    "GGUF": (read_gguf_model, "a.gguf", 5000),
    "GGUF of a Gemma": (read_gguf_model, "a.gguf", 5000),
    "GGUF in parts": (read_gguf_parts, "m-00002-of-00002.gguf", 300),
    "passages": (read_passages, "passages.jsonl", None),
    "offsets": (read_passages, "passages.offsets.npy", None),
    "questions": (load_collection, "questions.json", True),
    "manifest of an index": (search_vectors, "index.json", True),
    "ids": (search_vectors, "ids.json", True),
    "embeddings": (search_vectors, "dataset.npy", 200),
    "BM25's parameters": (search_words, "params.index.json", True),
    "BM25's words": (search_words, "vocab.index.json", True),
    "BM25's rows": (search_words, "indices.csc.index.npy", None),
    "BM25's starts": (search_words, "indptr.csc.index.npy", None),
    "BM25's scores": (search_words, "data.csc.index.npy", None),
    "weighing of words": (read_splade, "1_SpladePooling/config.json", True),
    "sparse manifest": (search_weights, "index.json", True),
    "sparse weights": (search_weights, "data.npy", 200),
    "sparse counts": (search_weights, "counts.npy", None),
    "sparse rows": (search_weights, "rows.npy", None),
    "sparse starts": (search_weights, "starts.npy", None),
    "mask of tokens": (read_token_settings, "2_MultiVectorMask/config.json", True),
    "lengths of tokens": (read_token_settings, "sentence_bert_config.json", True),
    "tokens' manifest": (search_tokens, "index.json", True),
    "tokens' vectors": (search_tokens, "vectors.npy", 200),
    "tokens' starts": (search_tokens, "starts.npy", None),
    "tokens' scales": (search_tokens, "scales.npy", None),
    "trie": (walk_trie, "first_child.npy", None),
    "trie's rows": (walk_trie, "row_starts.npy", None),
    "manifest of adapters": (load_adapters, "adapters.json", True),
    "JSON": (lambda f: read_json(f / "a.json"), "a.json", True),
    "JSON lines": (lambda f: read_jsonl(f / "a.jsonl"), "a.jsonl", None),
    "data": (read_lines, "a.jsonl", None),
    "run": (lambda f: read_run(f / "a.run"), "a.run", None),
    "array": (lambda f: map_array(f / "a.npy"), "a.npy", 200),
    "arrays": (lambda f: read_arrays(f / "a.npz"), "a.npz", None),
}


def write_gguf(path):
    """A GGUF file with a tokenizer and the first tensors of a model."""
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {"embedding_length": 8, "feed_forward_length": 8, "block_count": 1}
    sizes |= {"attention.head_count": 2, "context_length": 64, "vocab_size": len(tokens)}
    for name, size in sizes.items():
        writer.add_uint32(f"llama.{name}", size)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for name, text in {"model": "gpt2", "pre": "smollm"}.items():
        writer.add_string(f"tokenizer.ggml.{name}", text)
    writer.add_string("tokenizer.chat_template", "{{ messages }}")
    writer.add_array("tokenizer.ggml.tokens", tokens)
    writer.add_array("tokenizer.ggml.merges", ["t h"])
    writer.add_array("tokenizer.ggml.token_type", [3, 3] + [1] * (len(tokens) - 2))
    writer.add_uint32("tokenizer.ggml.bos_token_id", 0)
    writer.add_bool("tokenizer.ggml.add_bos_token", True)
    writer.add_tensor("token_embd.weight", np.ones((len(tokens), 8), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.ones((8, 8), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_sentence_files(folder):
    (folder / "1_Pooling").mkdir(parents=True)
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    entries = [
        {"type": f"sentence_transformers.models.{kind}", "path": path}
        for kind, path in {"Transformer": "", "Pooling": "1_Pooling"}.items()
    ]
    (folder / "modules.json").write_text(json.dumps(entries))


def make_files(kind, folder):
    """A folder with good files of a kind."""
    source = {
        "config": LLAMA,
        "BART's config": BART,
        "generation": LLAMA,
        "tokenizer": LLAMA,
        "tokenizer's settings": LLAMA,
        "chat template": LLAMA,
        "weights": LLAMA,
        "index of weights": SHARDED,
    }.get(kind)
    if source:
        shutil.copytree(source, folder)
    elif kind == "GGUF":
        folder.mkdir()
        write_gguf(folder / "a.gguf")
    elif kind == "GGUF of a Gemma":
        folder.mkdir()
        fields, tensors = describe(GOLDEN / "gemma3", "gemma3"), {}
        tokens = fields["tokenizer.ggml.tokens"]
        fields["tokenizer.ggml.scores"] = [-float(i) for i in range(len(tokens))]
        write(folder / "a.gguf", "gemma3", fields | {"tokenizer.ggml.model": "llama"}, tensors)
    elif kind == "GGUF in parts":
        folder.mkdir()
        tensors = {f"{name}.weight": np.ones(4, np.float32) for name in "abcd"}
        write_parts(folder, "qwen3", {}, tensors, parts=2)
    elif kind in ("vocabulary", "merges"):
        folder.mkdir()
        model = json.loads((BART / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
        (folder / "merges.txt").write_text("\n".join(" ".join(pair) for pair in model["merges"]))
    elif kind.startswith("PEFT"):
        params = load_llama().params
        adapter = lora.init(jax.random.key(0), params, targets=".*ffn/.*/kernel", rank=2)
        lora.save_peft(adapter, folder, load_llama(), alpha=8)
    elif kind == "metadata of a checkpoint":
        save_tree(folder, ADAPTER)
    elif kind in ("modules", "pooling"):
        write_sentence_files(folder)
    elif kind in ("passages", "offsets", "questions"):
        folder.mkdir()
        passages = [Passage(str(i), "A title", "text " * i) for i in range(5)]
        write_passages(folder / "passages.jsonl", passages)
        store_questions(folder, {"train": [Question("q", "who", ("me",), {"1": 1})]})
    elif kind in ("manifest of an index", "ids", "embeddings"):
        vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        Index.build(vectors, backend="exact", encoder="e", ids=list("abcde")).save(folder)
    elif kind.startswith("BM25"):
        BM25.build(["the cat sat", "a dog ran", "the mouse"]).save(folder)
    elif kind.startswith("sparse"):
        SparseIndex.build(np.asarray([[1.0, 0, 2], [3, 0, 0]]), encoder="e").save(folder)
    elif kind == "weighing of words":
        folder.mkdir()
        write_modules(folder, ("SpladePooling", {"pooling_strategy": "max"}))
    elif kind.startswith("tokens'"):
        TokenIndex.build(make_tokens(), encoder="e", dtype="int8").save(folder)
    elif kind.endswith("of tokens"):
        write_colbert(folder, expansion={"strategy": "fixed", "length": 8})
    elif kind.startswith("trie"):
        Trie.from_sequences([[1, 2], [1, 3, 4], [5], [5]], end_id=0).save(folder)
    elif kind == "manifest of adapters":
        AdapterStore(folder, ADAPTER, base="b", settings={"rank": 2})
    else:
        folder.mkdir()
        (folder / "a.json").write_text('{"a": [1, {"b": null}]}')
        (folder / "a.jsonl").write_text('{"a": 1}\n{"a": 2}\n')
        (folder / "a.run").write_text("q Q0 a 1 2.5 me\nq Q0 b 2 1.5 me\n")
        np.save(folder / "a.npy", np.arange(4.0))
        np.savez(folder / "a.npz", a=np.arange(4.0), b=np.arange(3))
    return folder


def replace_file(folder, name, data):
    """Writes a file, and its hash into the manifest of an index: its author may have made it so."""
    (folder / name).write_bytes(data)
    manifest = folder / "index.json"
    if manifest.exists() and name != manifest.name:
        read = json.loads(manifest.read_text())
        read["sha256"][name] = hash_file(folder / name)
        manifest.write_text(json.dumps(read))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Makes the good files of a kind, once."""
    folders = {}

    def get(kind):
        if kind not in folders:
            folders[kind] = make_files(kind, tmp_path_factory.mktemp("good") / "files")
        return folders[kind]

    return get


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=10)
@given(data=st.data())
def test_any_damage_is_refused_in_a_line(good, kind, data):
    load, name, how = KINDS[kind]
    folder = good(kind)
    whole = (folder / name).read_bytes()
    is_json = how is True and data.draw(st.booleans())
    damage = damage_json(whole) if is_json else damage_bytes(whole, None if how is True else how)
    damaged = data.draw(damage)
    try:
        replace_file(folder, name, damaged)
        with at_most(30):
            refuses_in_a_line(partial(load, folder))
    finally:
        replace_file(folder, name, whole)
    assert not refuses_in_a_line(partial(load, folder))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_is_refused_in_a_line(tmp_path, good, kind):
    """Such as a named pipe, which would never end."""
    load, name, _ = KINDS[kind]
    folder = shutil.copytree(good(kind), tmp_path / "files")
    path = folder / name
    path.unlink()
    for odd, make in ODD_FILES.items():
        make(path)
        with at_most(30):
            refused = refuses_in_a_line(partial(load, folder))
        assert refused or odd in ("nothing", "nothing in it")
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)


# Whose files are looked at as a whole, by their hash, before they are read.
HASHED = {
    kind for kind in KINDS if kind.startswith(("BM25", "sparse", "tokens'", "trie", "metadata"))
}
HASHED |= {"ids"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in HASHED])
def test_a_file_with_a_hole_is_refused_in_a_line(tmp_path, good, kind):
    """It has 64 GiB, of which the disk has none: reading it as a whole would take all memory."""
    load, name, _ = KINDS[kind]
    folder = shutil.copytree(good(kind), tmp_path / "files")
    (folder / name).write_bytes(b"")
    os.truncate(folder / name, 1 << 36)
    with at_most(30):
        assert refuses_in_a_line(partial(load, folder))
