"""Golden decoders as GGUF files, as llama.cpp's converter writes them."""

import json

import gguf
import numpy as np
from tokenizers import pre_tokenizers

from rag_jax.models.io.tensors import read_safetensors

# llama.cpp's names of a layer's tensors by Hugging Face's; Gemma's norms have others.
_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
}
_NORMS = {"post_attention_layernorm": "ffn_norm"}
_GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}


def interleave(kernel, heads):
    """Row by row, the rotary layout llama.cpp stores: the halves of each head in turn."""
    size = len(kernel) // heads
    rows = []
    for head in range(heads):
        for i in range(size // 2):
            rows += [kernel[head * size + i], kernel[head * size + size // 2 + i]]
    return np.stack(rows)


def describe(folder, architecture):
    """The metadata of a golden model, and a tokenizer of as many bytes as it has tokens."""
    config = json.loads((folder / "config.json").read_text())
    rope = config["rope_parameters"]
    rope = rope.get("full_attention", rope)
    fields = {
        "vocab_size": config["vocab_size"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "block_count": config["num_hidden_layers"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "context_length": config["max_position_embeddings"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    if "head_dim" in config:
        fields["attention.key_length"] = config["head_dim"]
    if rope["rope_type"] == "linear":
        fields |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if architecture == "gemma3":
        fields["attention.sliding_window"] = config["sliding_window"]
        fields["attention.sliding_window_pattern"] = 2
        fields["rope.freq_base_swa"] = config["rope_parameters"]["sliding_attention"]["rope_theta"]
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet())[: config["vocab_size"] - 1], "AB"]
    return {f"{architecture}.{name}": value for name, value in fields.items()} | {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.merges": ["A B"],
        "tokenizer.ggml.token_type": [3, 3, *[1] * (len(tokens) - 2)],
    }


def read_tensors(folder, architecture):
    """A golden model's tensors under llama.cpp's names, with what its converter does to them."""
    config = json.loads((folder / "config.json").read_text())
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    norms = _GEMMA_NORMS if architecture == "gemma3" else _NORMS
    tensors = {}
    for name, stored in read_safetensors(sorted(folder.glob("*.safetensors"))).items():
        tensor = np.asarray(stored.read(), np.float32)
        if architecture == "gemma3" and "norm" in name:
            tensor = tensor + 1
        own = next((n for part, n in heads.items() if part in name), None)
        if architecture == "llama" and own and tensor.ndim == 2:
            tensor = interleave(tensor, own)
        for theirs, ours in (_NAMES | norms).items():
            name = name.replace(theirs, ours)
        tensors[name] = tensor
    return tensors


def write(path, architecture, fields, tensors):
    """A GGUF file with metadata, None for none, and tensors."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in fields.items():
        if isinstance(value, list):
            writer.add_array(name, value)
        elif value is not None:
            kinds = {bool: "bool", int: "uint32", float: "float32", str: "string"}
            getattr(writer, f"add_{kinds[type(value)]}")(name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_parts(folder, architecture, fields, tensors, *, parts):
    """The same in several files: the metadata are in the first."""
    names = list(tensors)
    paths = [folder / f"m-{i + 1:05d}-of-{parts:05d}.gguf" for i in range(parts)]
    for i, path in enumerate(paths):
        split = {"split.no": i, "split.count": parts, "split.tensors.count": len(tensors)}
        own = (fields if i == 0 else {}) | split
        write(path, architecture, own, {name: tensors[name] for name in names[i::parts]})
    return paths
