"""Where each Hugging Face tensor goes in our parameter trees, and the filling of those trees."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rag_jax.models.io.tensors import StoredTensor
from rag_jax.models.nn.bart import POSITION_OFFSET, BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import (
    BART_RULES,
    BERT_RULES,
    DECODER_RULES,
    Rules,
    choose_spec,
    shard_array,
)

# Stored by some versions of transformers, but no parameters of these models: rotary tables and
# position numbers, the pooling layer over [CLS], the heads of BERT's pre-training and the format
# numbers of BART's first files.
_NOT_PARAMETERS = re.compile(
    r".*rotary_emb\.inv_freq|(.*\.)?embeddings\.position_ids|(.*\.)?pooler\..*|cls\..*"
    r"|(.*\.)?(en|de)coder\.version"
)
# The embedding of the vocabulary, then the names of what is tied to it and may be stored as well.
_TIED = {
    DecoderConfig: ("model.embed_tokens.weight", "lm_head.weight"),
    BartConfig: (
        "model.shared.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
        "lm_head.weight",
    ),
}


@dataclass(frozen=True)
class Slot:
    """One parameter: its Hugging Face name and its place and shape in our tree.

    `transposed` marks linear layers: Hugging Face stores `[out, in]`, our kernels are `[in, out]`.
    `rows` are those of the stored tensor that are this parameter, where several share a tensor, one
    after the other.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    transposed: bool = False
    rows: tuple[int, int] | None = None


def list_slots(config: DecoderConfig | BertConfig | BartConfig) -> list[Slot]:
    """Every parameter of a model, in the order of its layers."""
    if isinstance(config, BartConfig):
        return _bart_slots(config)
    return _bert_slots(config) if isinstance(config, BertConfig) else _decoder_slots(config)


def stored_shapes(slots: Sequence[Slot]) -> dict[str, tuple[int, ...]]:
    """The shape of every stored tensor by name, in the order of the slots."""
    shapes: dict[str, tuple[int, ...]] = {}
    for slot in slots:
        shape = slot.shape[::-1] if slot.transposed else slot.shape
        shapes[slot.name] = (slot.rows[1], *shape[1:]) if slot.rows else shape
    return shapes


def build_params(
    config: DecoderConfig | BertConfig | BartConfig,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    source: str = "the weights",
) -> dict:
    """Reads the tensors into a parameter tree, one at a time.

    Args:
        config: the sizes the tree must have.
        tensors: by Hugging Face name; a leading `bert.`, the old names `gamma` and `beta` of layer
            norms and the names of a BART without its head are understood.
        dtype: of the parameters, float32 by default.
        mesh: over which each tensor is split as it is read; None for one device.
        rules: how; by default the family's own.
        source: what an error message calls the weights.

    Raises:
        RagJaxError: one message with every tensor that is missing, has the wrong shape, is not made
            of floats or has no place in the model; not exactly one rule for some parameter.
    """
    tensors = _rename(config, tensors)
    slots = list_slots(config)
    _check(config, slots, tensors, source)
    dtype = dtype or jnp.float32
    if rules is None:
        family = {DecoderConfig: DECODER_RULES, BertConfig: BERT_RULES, BartConfig: BART_RULES}
        rules = family[type(config)]
    shardings = {}
    if mesh is not None:  # all of them before anything is read
        for slot in slots:
            spec = choose_spec(slot.path, slot.shape, mesh, rules)
            shardings[slot.path] = NamedSharding(mesh, spec)
    params: dict = {}
    for slot in slots:
        array = tensors[slot.name].read()
        if slot.rows:
            array = array[slice(*slot.rows)]
        array = array.T if slot.transposed else array
        *parents, leaf = slot.path.split("/")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        if mesh is None:
            node[leaf] = jnp.asarray(array, dtype)
        else:
            # Waited for: the host would otherwise hold every tensor that is still under way.
            node[leaf] = shard_array(array, shardings[slot.path], dtype).block_until_ready()
    return params


def _rename(config, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names as today's transformers saves the bare model, without what are no parameters."""
    renamed = {}
    for name, tensor in tensors.items():
        if isinstance(config, BertConfig):
            name = name.removeprefix("bert.")
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
            name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if not _NOT_PARAMETERS.fullmatch(name):
            renamed[name] = tensor
    return _complete_bart(config, renamed) if isinstance(config, BartConfig) else renamed


def _complete_bart(config: BartConfig, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """BART's tensors as the model with its head has them, whichever were stored.

    The bare model has other names and no bias, and of the embedding, which one copy stands for,
    any copy may be the one that was kept.
    """
    bare = re.compile(r"(shared|encoder|decoder)\.")
    tensors = {f"model.{n}" if bare.match(n) else n: tensor for n, tensor in tensors.items()}
    embedding, *copies = _TIED[BartConfig]
    for name in copies:
        if name in tensors:
            tensors.setdefault(embedding, tensors[name])
    shape = (1, config.vocab_size)
    zeros = StoredTensor(shape, lambda: np.zeros(shape, np.float32))
    return {"final_logits_bias": zeros, **tensors}


def _check(config, slots: list[Slot], tensors: dict[str, StoredTensor], source: str) -> None:
    problems = []
    expected = stored_shapes(slots)
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"missing {name} {list(shape)}")
        elif tensors[name].shape != shape:
            found = list(tensors[name].shape)
            problems.append(f"{name} has shape {found}, the config wants {list(shape)}")
        elif tensors[name].fault:
            problems.append(f"{name} {tensors[name].fault}")
    embedding, *copies = _TIED.get(type(config), ("",))
    embedding = tensors.get(embedding)
    for name in tensors.keys() - expected.keys():
        if name in copies:
            # Tied, but stored all the same: fine as long as it is indeed the embedding.
            if embedding and not np.array_equal(tensors[name].read(), embedding.read()):
                problems.append(f"{name} differs from the embedding, the config says it is tied")
        else:
            problems.append(f"no place for {name} {list(tensors[name].shape)}")
    if problems:
        raise RagJaxError(f"{source} do not fit the config: {'; '.join(sorted(problems))}")


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
    if c.family == "phi3":  # stores as one those that read the same input
        qkv, gate_up = "self_attn.qkv_proj", "mlp.gate_up_proj"
        fused = {
            "attention/query": (qkv, (0, query)),
            "attention/key": (qkv, (query, query + key_value)),
            "attention/value": (qkv, (query + key_value, query + 2 * key_value)),
            "ffn/gate": (gate_up, (0, c.ffn_size)),
            "ffn/up": (gate_up, (c.ffn_size, 2 * c.ffn_size)),
        }
    norms = {"attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    norm_slots = _norm_slots if c.layer_norm else _scale_slots
    embedding = (c.vocab_size, c.hidden_size)
    slots = [Slot("model.embed_tokens.weight", "embed/embedding", embedding)]
    for i in range(c.num_layers):
        theirs, ours = f"model.layers.{i}", f"layers_{i}"
        for path, name in norms.items():
            slots += norm_slots(f"{theirs}.{name}", f"{ours}/{path}", c.hidden_size)
        for path, (name, *shape) in linears.items():
            name, rows = fused.get(path, (name, None))
            kernel = f"{ours}/{path}/kernel"
            slots.append(Slot(f"{theirs}.{name}.weight", kernel, tuple(shape), True, rows))
            if path in biased:
                slots.append(Slot(f"{theirs}.{name}.bias", f"{ours}/{path}/bias", (shape[1],)))
    slots += norm_slots("model.norm", "final_norm", c.hidden_size)
    if not c.tie_embeddings:
        slots.append(Slot("lm_head.weight", "head/kernel", embedding[::-1], True))
    return slots


def _bert_slots(c: BertConfig) -> list[Slot]:
    linears = {
        "attention/query": ("attention.self.query", c.hidden_size, c.hidden_size),
        "attention/key": ("attention.self.key", c.hidden_size, c.hidden_size),
        "attention/value": ("attention.self.value", c.hidden_size, c.hidden_size),
        "attention/output": ("attention.output.dense", c.hidden_size, c.hidden_size),
        "ffn/up": ("intermediate.dense", c.hidden_size, c.ffn_size),
        "ffn/down": ("output.dense", c.ffn_size, c.hidden_size),
    }
    norms = {"attention_norm": "attention.output.LayerNorm", "ffn_norm": "output.LayerNorm"}
    tables = {
        "word": ("word_embeddings", c.vocab_size),
        "position": ("position_embeddings", c.max_length),
        "type": ("token_type_embeddings", c.num_types),
    }
    side = {None: "", "question": "question_encoder.", "context": "ctx_encoder."}[c.dpr_role]
    bert = f"{side}bert_model." if side else ""
    slots = [
        Slot(f"{bert}embeddings.{name}.weight", f"embed/{path}/embedding", (rows, c.hidden_size))
        for path, (name, rows) in tables.items()
    ]
    slots += _norm_slots(f"{bert}embeddings.LayerNorm", "embed/norm", c.hidden_size)
    for i in range(c.num_layers):
        theirs, ours = f"{bert}encoder.layer.{i}", f"layers_{i}"
        for path, (name, *shape) in linears.items():
            slots += _linear_slots(f"{theirs}.{name}", f"{ours}/{path}", *shape)
        for path, name in norms.items():
            slots += _norm_slots(f"{theirs}.{name}", f"{ours}/{path}", c.hidden_size)
    if c.projection_size:
        slots += _linear_slots(f"{side}encode_proj", "projection", c.hidden_size, c.projection_size)
    return slots


def _bart_slots(c: BartConfig) -> list[Slot]:
    width = c.hidden_size
    parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
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
        slots += _norm_slots(f"model.{side}.layernorm_embedding", f"{side}_norm", width)
        for i in range(num_layers):
            theirs, ours = f"model.{side}.layers.{i}", f"{side}_layers_{i}"
            for path, name in attentions.items():
                for our_part, part in parts.items():
                    place = f"{ours}/{path}/{our_part}"
                    slots += _linear_slots(f"{theirs}.{name}.{part}", place, width, width)
                slots += _norm_slots(f"{theirs}.{name}_layer_norm", f"{ours}/{path}_norm", width)
            slots += _linear_slots(f"{theirs}.fc1", f"{ours}/ffn/up", width, ffn_size)
            slots += _linear_slots(f"{theirs}.fc2", f"{ours}/ffn/down", ffn_size, width)
            slots += _norm_slots(f"{theirs}.final_layer_norm", f"{ours}/ffn_norm", width)
    slots.append(Slot("final_logits_bias", "logits_bias", (1, c.vocab_size)))
    return slots


def _linear_slots(name: str, path: str, inputs: int, outputs: int) -> list[Slot]:
    return [
        Slot(f"{name}.weight", f"{path}/kernel", (inputs, outputs), True),
        Slot(f"{name}.bias", f"{path}/bias", (outputs,)),
    ]


def _scale_slots(name: str, path: str, width: int) -> list[Slot]:
    return [Slot(f"{name}.weight", f"{path}/scale", (width,))]


def _norm_slots(name: str, path: str, width: int) -> list[Slot]:
    return [
        Slot(f"{name}.weight", f"{path}/scale", (width,)),
        Slot(f"{name}.bias", f"{path}/bias", (width,)),
    ]
