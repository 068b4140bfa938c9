"""llama.cpp's names of architectures and tensors, and what its converter changes in the tensors."""

import re

# The family of each architecture.
ARCHITECTURES = {
    "llama": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
}
ROPE_DIVISORS = "rope_freqs.weight"  # no parameter: Llama 3's scaling of the rotary frequencies

# From GGUF names to Hugging Face names.
_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA_NAMES = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def translate_name(name: str, architecture: str) -> str:
    """The Hugging Face name; an unknown name stays, for `build_params` to report."""
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
    names = _LAYER_NAMES | (_GEMMA_NAMES if architecture == "gemma3" else {})
    if match and match[2] in names:
        return f"model.layers.{match[1]}.{names[match[2]]}.{match[3]}"
    return _NAMES.get(name, name)


def is_offset(name: str, architecture: str) -> bool:
    """Whether a tensor is stored with 1 added: the scales of Gemma's norms."""
    return architecture == "gemma3" and name.endswith("norm.weight")


def is_interleaved(name: str, architecture: str) -> bool:
    """Whether a tensor's rows are stored in the order of `gguf_file.unpermute`."""
    return architecture == "llama" and name.endswith(
        ("self_attn.q_proj.weight", "self_attn.k_proj.weight")
    )
