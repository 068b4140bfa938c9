"""Which stored tensor, under Hugging Face's names, holds each parameter of a model."""

from collections.abc import Sequence

from rag_jax.models.io.architectures import Config
from rag_jax.models.io.encoder_slots import list_bert, list_modern_bert
from rag_jax.models.io.slot import Slot, linear_slots, norm_slots, scale_slots
from rag_jax.models.nn.bart import POSITION_OFFSET
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.nn.modern_bert import ModernBertConfig


def list_slots(config: Config) -> list[Slot]:
    """The slots of all parameters of a model, in layer order."""
    listers = {
        BartConfig: _bart_slots,
        BertConfig: list_bert,
        ModernBertConfig: list_modern_bert,
        DecoderConfig: _decoder_slots,
    }
    return listers[type(config)](config)


def stored_shapes(slots: Sequence[Slot]) -> dict[str, tuple[int, ...]]:
    """The shape of every stored tensor by Hugging Face name, in the order of `slots`."""
    shapes: dict[str, tuple[int, ...]] = {}
    for slot in slots:
        shape = slot.shape[::-1] if slot.transposed else slot.shape
        shapes[slot.name] = (slot.rows[1], *shape[1:]) if slot.rows else shape
    return shapes


def _decoder_slots(c: DecoderConfig) -> list[Slot]:
    query, key_value = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    linears = {
        "attention/query": ("self_attn.q_proj", c.hidden_size, query),
        "attention/key": ("self_attn.k_proj", c.hidden_size, key_value),
        "attention/value": ("self_attn.v_proj", c.hidden_size, key_value),
        "attention/output": ("self_attn.o_proj", query, c.hidden_size),
        "ffn/gate": ("mlp.gate_proj", c.hidden_size, c.ffn_size),
        "ffn/up": ("mlp.up_proj", c.hidden_size, c.ffn_size),
        "ffn/down": ("mlp.down_proj", c.ffn_size, c.hidden_size),
    }
    biased = ("attention/query", "attention/key", "attention/value") if c.qkv_bias else ()
    fused = {}
    if c.family == "phi3":  # projections of the same input are stored as one tensor
        qkv, gate_up = "self_attn.qkv_proj", "mlp.gate_up_proj"
        fused = {
            "attention/query": (qkv, (0, query)),
            "attention/key": (qkv, (query, query + key_value)),
            "attention/value": (qkv, (query + key_value, query + 2 * key_value)),
            "ffn/gate": (gate_up, (0, c.ffn_size)),
            "ffn/up": (gate_up, (c.ffn_size, 2 * c.ffn_size)),
        }
    norms = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    if c.output_norms:
        norms |= {
            "attention_output_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "ffn_output_norm": "post_feedforward_layernorm",
        }
    head_norms = {"attention/query_norm": "q_norm", "attention/key_norm": "k_norm"}
    list_norm = norm_slots if c.layer_norm else scale_slots
    embedding = (c.vocab_size, c.hidden_size)
    slots = [Slot("model.embed_tokens.weight", "embed/embedding", embedding)]
    for i in range(c.num_layers):
        hf_layer, layer = f"model.layers.{i}", f"layers_{i}"
        for path, name in norms.items():
            slots += list_norm(f"{hf_layer}.{name}", f"{layer}/{path}", c.hidden_size)
        for path, name in head_norms.items() if c.query_key_norm else ():
            slots += list_norm(f"{hf_layer}.self_attn.{name}", f"{layer}/{path}", c.head_dim)
        for path, (name, *shape) in linears.items():
            name, rows = fused.get(path, (name, None))
            kernel = f"{layer}/{path}/kernel"
            slots.append(Slot(f"{hf_layer}.{name}.weight", kernel, tuple(shape), True, rows))
            if path in biased:
                slots.append(Slot(f"{hf_layer}.{name}.bias", f"{layer}/{path}/bias", (shape[1],)))
    slots += list_norm("model.norm", "final_norm", c.hidden_size)
    if not c.tie_embeddings:
        slots.append(Slot("lm_head.weight", "head/kernel", embedding[::-1], True))
    return slots


def _bart_slots(c: BartConfig) -> list[Slot]:
    width = c.hidden_size
    projections = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
    attention, cross = {"attention": "self_attn"}, {"cross_attention": "encoder_attn"}
    sides = {
        "encoder": (c.encoder_layers, c.encoder_ffn_size, attention),
        "decoder": (c.decoder_layers, c.decoder_ffn_size, attention | cross),
    }
    positions = (c.max_length + POSITION_OFFSET, width)
    slots = [Slot("model.shared.weight", "embed/embedding", (c.vocab_size, width))]
    for side, (num_layers, ffn_size, attentions) in sides.items():
        table = f"{side}_position/embedding"
        slots.append(Slot(f"model.{side}.embed_positions.weight", table, positions))
        slots += norm_slots(f"model.{side}.layernorm_embedding", f"{side}_norm", width)
        for i in range(num_layers):
            hf_layer, layer = f"model.{side}.layers.{i}", f"{side}_layers_{i}"
            for path, name in attentions.items():
                for projection, hf_projection in projections.items():
                    hf_linear = f"{hf_layer}.{name}.{hf_projection}"
                    linear = f"{layer}/{path}/{projection}"
                    slots += linear_slots(hf_linear, linear, width, width)
                slots += norm_slots(f"{hf_layer}.{name}_layer_norm", f"{layer}/{path}_norm", width)
            slots += linear_slots(f"{hf_layer}.fc1", f"{layer}/ffn/up", width, ffn_size)
            slots += linear_slots(f"{hf_layer}.fc2", f"{layer}/ffn/down", ffn_size, width)
            slots += norm_slots(f"{hf_layer}.final_layer_norm", f"{layer}/ffn_norm", width)
    slots.append(Slot("final_logits_bias", "logits_bias", (1, c.vocab_size)))
    return slots
