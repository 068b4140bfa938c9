"""Folders of tiny models of transformers with random weights, and golden BERT's tokenizer."""

import json
import shutil
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
}
PADDED = ("roberta", "xlm-roberta", "mpnet")  # these count positions by the padding's id
DECODERS = {"head_dim": 8, "num_key_value_heads": 2, "pad_token_id": 0, "sliding_window": None}
GEMMA = {"sliding_window": 16, "use_bidirectional_attention": True, "query_pre_attn_scalar": 8}
LOCAL = {"local_attention": 16, "pad_token_id": 0, "global_attn_every_n_layers": 2}


def make_transformer(kind, folder, *, model="AutoModel", **changes):
    """Writes a folder; `model` is the class of transformers that makes the model of its config."""
    import torch
    import transformers

    torch.manual_seed(0)
    padding = {"pad_token_id": 1} if kind in PADDED else {}
    others = {
        "llama": DECODERS,
        "qwen3": DECODERS,
        "mistral": DECODERS,
        "distilbert": {"hidden_dim": 48},
    }
    others["gemma3_text"] = DECODERS | GEMMA
    own = {"modernbert": LOCAL, **others}.get(kind, {})
    settings = {**SIZES, **padding, **own, **changes}
    config = transformers.AutoConfig.for_model(kind, **settings)
    made = getattr(transformers, model).from_config(config)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            scale = "norm" in name.lower() and "bias" not in name
            parameter.copy_(torch.randn(parameter.shape) * 0.3 + scale)
    made.save_pretrained(folder)
    for path in (GOLDEN / "bert").glob("tokenizer*"):
        shutil.copy(path, folder)
    if padding:
        core = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        swapped = {0: 1, 1: 0}
        vocabulary = core["model"]["vocab"].items()
        core["model"]["vocab"] = {name: swapped.get(i, i) for name, i in vocabulary}
        for token in core["added_tokens"]:
            token["id"] = swapped.get(token["id"], token["id"])
        (folder / "tokenizer.json").write_text(json.dumps(core), "utf-8")
