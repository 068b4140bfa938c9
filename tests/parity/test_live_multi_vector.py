"""Late-interaction encoders against sentence-transformers, live, on tiny folders that it writes.

pip install -e .[parity] && pytest -m parity tests/parity
"""

import json
import string

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_transformers import make_transformer

from rag_jax.models import load_multi_vector
from rag_jax.retrieval import TokenIndex, encode_tokens
from rag_jax.runtime.errors import RagJaxError

pytestmark = pytest.mark.parity

TEXTS = [
    "What is the capital of France?",
    "",
    "Paris, the capital, is the largest city of France. " * 12,
    "東京 naïve \U0001f5fc!",
]
KINDS = ["bert", "roberta", "xlm-roberta", "mpnet", "distilbert", "modernbert"]
FIXED = {"strategy": "fixed", "length": 32}


def make_folder(kind, folder, *, markers=(), prompts=None, mask=None, normalize=True, **settings):
    """A folder of sentence-transformers, and its model; `markers` are its special tokens."""
    import torch
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    # Of a model with local layers the window holds a question.
    local = {"local_attention": 80} if kind == "modernbert" else {}
    make_transformer(kind, folder / "transformer", **local)
    transformer = Transformer(str(folder / "transformer"), **settings)
    if markers:
        added = {"additional_special_tokens": list(markers)}
        transformer.tokenizer.add_special_tokens(added)
    reads = {"module_input_name": "token_embeddings"}
    layer = Dense(32, 12, bias=False, activation_function=torch.nn.Identity(), **reads)
    torch.nn.init.normal_(layer.linear.weight, std=0.3)
    mask = {"skiplist_words": list(string.punctuation)} if mask is None else mask
    modules = [transformer, layer, MultiVectorMask(**mask)]
    modules += [Normalize(**reads)] if normalize else []
    prompts = {"query": "[Q] ", "document": "[D] "} if prompts is None else prompts
    theirs = MultiVectorEncoder(modules=modules, prompts=prompts, device="cpu")
    theirs.save(str(folder / "saved"))
    return folder / "saved", theirs.eval()


def compare(folder, theirs):
    ours = load_multi_vector(folder)
    encoders = {"query": theirs.encode_query, "document": theirs.encode_document}
    found, wanted = {}, {}
    for role, encode in encoders.items():
        found[role] = encode_tokens(ours, TEXTS, role=role)
        wanted[role] = encode(TEXTS, convert_to_numpy=True)
        for own, other in zip(found[role], wanted[role], strict=True):
            print(role, own.shape, np.abs(own - other).max(initial=0))
            np.testing.assert_allclose(own, other, atol=1e-4 * max(1, np.abs(other).max()))
    index = TokenIndex.build(found["document"], encoder=ours.fingerprint)
    scores, rows = index.search(found["query"], len(TEXTS))
    # The index stores float16, so theirs compare what it stores.
    stored = [own.astype(np.float16).astype(np.float32) for own in found["document"]]
    sums = theirs.similarity([*found["query"]], stored).numpy()
    for own, hits, products in zip(scores, rows, sums, strict=True):
        np.testing.assert_allclose(own, products[hits], atol=1e-4 * max(1, sums.max()))
    return ours


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(kind, tmp_path):
    compare(*make_folder(kind, tmp_path, document_length=60, query_expansion=FIXED))


@pytest.mark.parametrize("attend", [True, False])
@pytest.mark.parametrize("strategy", ["fixed", "min"])
def test_expansions(strategy, attend, tmp_path):
    expansion = {"strategy": strategy, "length": 24, "attend": attend, "token": "[SEP]"}
    compare(*make_folder("bert", tmp_path, query_expansion=expansion))


def test_without_expansion_and_scaling(tmp_path):
    mask = {"skiplist_words": [".", "!"], "skiplist_tasks": ["query", "document"]}
    settings = {"query_length": 20, "normalize": False, "mask": mask, "prompts": {}}
    compare(*make_folder("bert", tmp_path, **settings))


def test_markers_that_are_special_tokens(tmp_path):
    prompts = {"query": "[QUERY] ", "document": "[DOC] so: "}
    markers = ("[QUERY]", "[DOC]")
    settings = {"prompts": prompts, "markers": markers, "query_expansion": FIXED}
    ours = compare(*make_folder("bert", tmp_path, **settings))
    tokenizer = ours.base.tokenizer
    row = tokenizer.encode_with_specials("[DOC] a", prompt="[QUERY] ", max_length=20)
    assert [row.count(tokenizer.token_id(name)) for name in markers] == [1, 0]


def add_markers(folder):
    """As ordinary words of the vocabulary."""
    core = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    core["model"]["vocab"] |= {"[unused0]": 200, "[unused1]": 201}
    (folder / "tokenizer.json").write_text(json.dumps(core), "utf-8")


def test_stanford_s_form_after_its_conversion(tmp_path):
    from sentence_transformers import MultiVectorEncoder

    folder = tmp_path / "colbert"
    make_transformer("bert", folder)
    path = folder / "model.safetensors"
    tensors = {f"bert.{name}": tensor for name, tensor in load_file(path).items()}
    tensors["linear.weight"] = np.random.default_rng(0).normal(size=(12, 32)).astype(np.float32)
    save_file(tensors, path, metadata={"format": "pt"})
    fields = json.loads((folder / "config.json").read_text()) | {"architectures": ["HF_ColBERT"]}
    (folder / "config.json").write_text(json.dumps(fields))
    add_markers(folder)
    with pytest.raises(RagJaxError, match="ColBERT in another form"):
        load_multi_vector(folder)
    theirs = MultiVectorEncoder(str(folder), device="cpu")
    theirs.save(str(tmp_path / "anew"))
    ours = compare(tmp_path / "anew", theirs)
    row = ours.base.tokenizer.encode_with_specials("a", prompt="[unused1] ", max_length=9)
    assert row[1] == 201


def test_pylate_s_form_after_its_conversion(tmp_path):
    from sentence_transformers import MultiVectorEncoder

    folder, _ = make_folder("bert", tmp_path, normalize=False, mask={})
    modules = json.loads((folder / "modules.json").read_text())[:2]
    modules[1]["type"] = "pylate.models.Dense.Dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    layer = json.loads((folder / "1_Dense" / "config.json").read_text())
    layer = {name: value for name, value in layer.items() if not name.startswith("module_")}
    (folder / "1_Dense" / "config.json").write_text(json.dumps(layer))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 100}')
    add_markers(folder)
    settings = {"query_prefix": "[unused0]", "document_prefix": "[unused1]", "query_length": 32}
    settings |= {"document_length": 60, "attend_to_expansion_tokens": False}
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps({"model_type": "ColBERT", "prompts": {}, **settings}))
    with pytest.raises(RagJaxError, match="in PyLate's form"):
        load_multi_vector(folder)
    theirs = MultiVectorEncoder(str(folder), device="cpu")
    theirs.save(str(tmp_path / "anew"))
    ours = compare(tmp_path / "anew", theirs)
    assert ours.lengths == {"query": 32, "document": 60} and ours.settings.steps[-1] == "normalize"
    row = ours.base.tokenizer.encode_with_specials("a", prompt="[unused0]", max_length=9)
    assert row[1] == 200
