"""The slots of encoders' parameters."""

from rag_jax.models.io.slot import Slot, linear_slots, norm_slots, scale_slots
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.modern_bert import ModernBertConfig

# Names of the attention's query, key, value and output and of the norm after it.
_ATTENTION = {
    "bert": ("self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"),
    "mpnet": ("attn.q", "attn.k", "attn.v", "attn.o", "LayerNorm"),
}


def list_bert(c: BertConfig) -> list[Slot]:
    """The slots of BERT, RoBERTa, XLM-R or MPNet, in layer order."""
    query, key, value, output, norm = _ATTENTION["mpnet" if c.family == "mpnet" else "bert"]
    linears = {
        "attention/query": (f"attention.{query}", c.hidden_size, c.hidden_size),
        "attention/key": (f"attention.{key}", c.hidden_size, c.hidden_size),
        "attention/value": (f"attention.{value}", c.hidden_size, c.hidden_size),
        "attention/output": (f"attention.{output}", c.hidden_size, c.hidden_size),
        "ffn/up": ("intermediate.dense", c.hidden_size, c.ffn_size),
        "ffn/down": ("output.dense", c.ffn_size, c.hidden_size),
    }
    norms = {"attention_norm": f"attention.{norm}", "ffn_norm": "output.LayerNorm"}
    tables = {
        "word": ("word_embeddings", c.vocab_size),
        "position": ("position_embeddings", c.max_length + c.position_offset),
    }
    tables |= {"type": ("token_type_embeddings", c.num_types)} if c.num_types else {}
    side = {None: "", "question": "question_encoder.", "context": "ctx_encoder."}[c.dpr_role]
    bert = f"{side}bert_model." if side else ""
    slots = [
        Slot(f"{bert}embeddings.{name}.weight", f"embed/{path}/embedding", (rows, c.hidden_size))
        for path, (name, rows) in tables.items()
    ]
    slots += norm_slots(f"{bert}embeddings.LayerNorm", "embed/norm", c.hidden_size)
    for i in range(c.num_layers):
        hf_layer, layer = f"{bert}encoder.layer.{i}", f"layers_{i}"
        for path, (name, *shape) in linears.items():
            slots += linear_slots(f"{hf_layer}.{name}", f"{layer}/{path}", *shape)
        for path, name in norms.items():
            slots += norm_slots(f"{hf_layer}.{name}", f"{layer}/{path}", c.hidden_size)
    if c.position_buckets:
        buckets = (c.position_buckets, c.num_heads)
        slots.append(Slot("encoder.relative_attention_bias.weight", "near/embedding", buckets))
    if c.projection_size:
        slots += linear_slots(f"{side}encode_proj", "projection", c.hidden_size, c.projection_size)
    return slots


def list_modern_bert(c: ModernBertConfig) -> list[Slot]:
    """The slots of ModernBERT, in layer order: projections of one input are one tensor."""
    width, ffn = c.hidden_size, c.ffn_size
    slots = [Slot("embeddings.tok_embeddings.weight", "embed/embedding", (c.vocab_size, width))]
    slots += scale_slots("embeddings.norm", "embed_norm", width)
    for i in range(c.num_layers):
        stored, layer = f"layers.{i}", f"layers_{i}"
        slots += scale_slots(f"{stored}.attn_norm", f"{layer}/attention_norm", width) if i else []
        for number, name in enumerate(("query", "key", "value")):
            rows = (number * width, (number + 1) * width)
            kernel = f"{layer}/{name}/kernel"
            slots.append(Slot(f"{stored}.attn.Wqkv.weight", kernel, (width, width), True, rows))
        square = (width, width)
        slots.append(Slot(f"{stored}.attn.Wo.weight", f"{layer}/output/kernel", square, True))
        slots += scale_slots(f"{stored}.mlp_norm", f"{layer}/ffn_norm", width)
        for number, name in enumerate(("gate", "up")):
            rows = (number * ffn, (number + 1) * ffn)
            kernel = f"{layer}/{name}/kernel"
            slots.append(Slot(f"{stored}.mlp.Wi.weight", kernel, (width, ffn), True, rows))
        slots.append(Slot(f"{stored}.mlp.Wo.weight", f"{layer}/down/kernel", (ffn, width), True))
    return slots + scale_slots("final_norm", "final_norm", width)
