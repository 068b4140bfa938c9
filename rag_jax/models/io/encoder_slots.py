"""The slots of encoders' parameters."""

from rag_jax.models.io.slot import Slot, linear_slots, norm_slots, scale_slots
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.modern_bert import ModernBertConfig

# Names of the attention's query, key, value and output and of the norm after it, and of the FFN's
# layers and its norm.
_ATTENTION = ("attention.self.query", "attention.self.key", "attention.self.value")
_FFN = ("intermediate.dense", "output.dense", "output.LayerNorm")
_BERT = (*_ATTENTION, "attention.output.dense", "attention.output.LayerNorm", *_FFN)
_NAMES = {
    "mpnet": (*(f"attention.attn.{name}" for name in "qkvo"), "attention.LayerNorm", *_FFN),
    "distilbert": (
        *(f"attention.{name}_lin" for name in ("q", "k", "v", "out")),
        "sa_layer_norm",
        "ffn.lin1",
        "ffn.lin2",
        "output_layer_norm",
    ),
}


def list_bert(c: BertConfig) -> list[Slot]:
    """The slots of BERT, RoBERTa, XLM-R, MPNet or DistilBERT, in layer order."""
    query, key, value, output, norm, up, down, last = _NAMES.get(c.family, _BERT)
    linears = {
        "attention/query": (query, c.hidden_size, c.hidden_size),
        "attention/key": (key, c.hidden_size, c.hidden_size),
        "attention/value": (value, c.hidden_size, c.hidden_size),
        "attention/output": (output, c.hidden_size, c.hidden_size),
        "ffn/up": (up, c.hidden_size, c.ffn_size),
        "ffn/down": (down, c.ffn_size, c.hidden_size),
    }
    norms = {"attention_norm": norm, "ffn_norm": last}
    layers = "transformer" if c.family == "distilbert" else "encoder"
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
        hf_layer, layer = f"{bert}{layers}.layer.{i}", f"layers_{i}"
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
