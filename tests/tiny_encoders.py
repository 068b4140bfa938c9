"""Folders of tiny encoders of words' weights and of token embeddings, as sentence-transformers has.

They are golden BERT with random weights beside it.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from rag_jax.models import load
from rag_jax.models.nn.bert import Bert

BERT = Path(__file__).parent / "golden" / "bert"
WIDTH, VOCABULARY = 32, 128
PREFIX = "sentence_transformers."


def load_short_bert(mesh=None):
    """Golden BERT without its second layer, where compiling two would take most of the time."""
    bert = load(BERT, mesh=mesh)
    params = {name: part for name, part in bert.params.items() if name != "layers_1"}
    config = replace(bert.config, num_layers=1)
    return replace(bert, config=config, model=Bert(config), params=params)


def change_json(path, **fields):
    """Sets fields of a JSON file, which may be new."""
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**old, **fields}))


def change_weights(folder, tensors, *, drop=""):
    """Adds tensors to a folder's weights, and takes away those whose names begin with `drop`."""
    path = folder / "model.safetensors"
    old = {n: t for n, t in load_file(path).items() if not drop or not n.startswith(drop)}
    save_file({**old, **tensors}, path, metadata={"format": "pt"})


def lengthen(folder, positions):
    """Gives an encoder more positions, and returns its folder."""
    name = "embeddings.position_embeddings.weight"
    table = np.resize(load_file(folder / "model.safetensors")[name], (positions, WIDTH))
    change_weights(folder, {name: table})
    change_json(folder / "config.json", max_position_embeddings=positions)
    return folder


def write_modules(folder, *modules):
    """Writes `modules.json` and the folder of each module, given as its class and its fields."""
    entries = [{"idx": 0, "name": "0", "path": "", "type": f"{PREFIX}models.Transformer"}]
    for i, (kind, fields) in enumerate(modules, 1):
        place = f"{i}_{kind}"
        entries.append({"idx": i, "name": str(i), "path": place, "type": f"{PREFIX}a.b.{kind}"})
        (folder / place).mkdir(exist_ok=True)
        (folder / place / "config.json").write_text(json.dumps(fields))
    (folder / "modules.json").write_text(json.dumps(entries))


def write_masked(folder):
    """A folder of golden BERT with a head over masked tokens, without settings."""
    shutil.copytree(BERT, folder)
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    head = "cls.predictions"
    tensors = {
        f"{head}.bias": draw(VOCABULARY) - 1,
        f"{head}.transform.dense.weight": draw(WIDTH, WIDTH) * 0.3,
        f"{head}.transform.dense.bias": draw(WIDTH),
        f"{head}.transform.LayerNorm.weight": 1 + 0.2 * draw(WIDTH),
        f"{head}.transform.LayerNorm.bias": draw(WIDTH) * 0.2,
    }
    change_weights(folder, tensors)
    change_json(folder / "config.json", architectures=["BertForMaskedLM"])
    return folder


def write_splade(folder, **fields):
    """A folder of a sparse encoder; `fields` are those of its pooling."""
    write_masked(folder)
    write_modules(folder, ("SpladePooling", fields))
    change_json(folder / "sentence_bert_config.json", transformer_task="fill-mask")
    prompts = {"query": "ask: ", "document": ""}
    change_json(folder / "config_sentence_transformers.json", prompts=prompts)
    return folder


def write_colbert(folder, *, expansion=None, width=6, **fields):
    """A folder of a late-interaction encoder; `fields` are those of its mask."""
    shutil.copytree(BERT, folder)
    sizes = {"in_features": WIDTH, "out_features": width, "bias": False}
    identity = {"activation_function": "torch.nn.modules.linear.Identity"}
    reads = {"module_input_name": "token_embeddings", "module_output_name": "token_embeddings"}
    write_modules(
        folder,
        ("Dense", {**sizes, **identity, **reads}),
        ("MultiVectorMask", {"skiplist_words": [".", ",", "*"], **fields}),
        ("Normalize", reads),
    )
    kernel = np.random.default_rng(1).normal(size=(width, WIDTH)).astype(np.float32)
    save_file({"linear.weight": kernel}, folder / "1_Dense" / "model.safetensors")
    settings = {"transformer_task": "feature-extraction", "document_length": 16}
    if expansion is not None:
        settings["query_expansion"] = expansion
    change_json(folder / "sentence_bert_config.json", **settings)
    prompts = {"query": "ask: ", "document": "read: "}
    change_json(folder / "config_sentence_transformers.json", prompts=prompts)
    return folder


def write_reranker(folder):
    """A folder of golden BERT with a head for scores."""
    shutil.copytree(BERT, folder)
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    tensors = {"classifier.weight": draw(1, WIDTH), "classifier.bias": draw(1)}
    tensors["bert.pooler.dense.weight"] = draw(WIDTH, WIDTH)
    tensors["bert.pooler.dense.bias"] = draw(WIDTH)
    change_weights(folder, tensors, drop="pooler.")
    fields = {"architectures": ["BertForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    change_json(folder / "config.json", **fields)
    return folder


def write_scored_decoder(folder):
    """A folder of golden Qwen2 with a score of its last token."""
    shutil.copytree(BERT.parent / "qwen2", folder)
    width = json.loads((folder / "config.json").read_text())["hidden_size"]
    column = np.random.default_rng(0).normal(size=(1, width)).astype(np.float32)
    change_weights(folder, {"score.weight": column}, drop="lm_head.")
    labels = {"architectures": ["Qwen2ForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    change_json(folder / "config.json", **labels)
    return folder
