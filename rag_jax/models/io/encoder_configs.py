"""Encoders' configs from the fields of a `config.json`, and back.

Missing fields have the defaults of the models' configs in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rag_jax.models.io.architectures import EncoderConfig
from rag_jax.models.io.fields import MOST_LAYERS, Fields
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.modern_bert import ModernBertConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import show


@dataclass(frozen=True)
class _Family:
    """In what a family of BERT's kin differs.

    Attributes:
        architecture: the model class in transformers.
        types: default of `type_vocab_size`; 0 for a family without token types.
        eps: default of `layer_norm_eps`.
        padded: whether the table of positions begins with rows for padding, up to `pad_token_id`.
    """

    architecture: str
    types: int = 2
    eps: float = 1e-12
    padded: bool = False


_FAMILIES = {
    "bert": _Family("BertModel"),
    "roberta": _Family("RobertaModel", padded=True),
    "xlm-roberta": _Family("XLMRobertaModel", padded=True),
    "mpnet": _Family("MPNetModel", types=0, padded=True),
    "distilbert": _Family("DistilBertModel", types=0),
}
ENCODER_FAMILIES = (*_FAMILIES, "modernbert")
# What BERT's fields are called in DistilBERT.
_DISTILBERT = {
    "hidden_size": "dim",
    "intermediate_size": "hidden_dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "hidden_act": "activation",
}
_DPR_CLASSES = {"question": "DPRQuestionEncoder", "context": "DPRContextEncoder"}


def read_encoder(fields: Fields) -> EncoderConfig:
    """The config of an encoder, from the fields of a `config.json`.

    Raises:
        RagJaxError: a size is not valid, or an option is not supported.
    """
    name = fields.raw.get("model_type")
    if name == "modernbert":
        return _read_modern_bert(fields)
    return _read_bert(fields, name, _DISTILBERT if name == "distilbert" else {})


def read_dpr(fields: Fields) -> BertConfig:
    """The config of one of DPR's two encoders; raises as `read_encoder`."""
    architectures = fields.raw.get("architectures")
    role = next((role for role, name in _DPR_CLASSES.items() if architectures == [name]), None)
    if role is None:
        raise RagJaxError(
            f"{fields.source}: architectures {show(architectures)} is not supported; for DPR, "
            f"supported are {' and '.join(_DPR_CLASSES.values())}"
        )
    projection = fields.size("projection_dim") if fields.raw.get("projection_dim") else None
    return replace(_read_bert(fields, "bert", {}), dpr_role=role, projection_size=projection)


def describe_encoder(config: EncoderConfig) -> dict[str, Any]:
    """The fields of a `config.json` that describe an encoder to transformers and `read_encoder`."""
    if isinstance(config, ModernBertConfig):
        return _describe_modern_bert(config)
    family, offset = _FAMILIES[config.family], config.position_offset
    dpr = {"model_type": "dpr", "projection_dim": config.projection_size or 0}
    names = _DISTILBERT if config.family == "distilbert" else {}
    fields = {
        "architectures": [_DPR_CLASSES.get(config.dpr_role, family.architecture)],
        **(dpr if config.dpr_role else {"model_type": config.family}),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        **({"type_vocab_size": config.num_types} if config.num_types else {}),
        **({"relative_attention_num_buckets": 32} if config.position_buckets else {}),
        **({"pad_token_id": offset - 1} if family.padded else {}),
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length + offset,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
    return {names.get(field, field): value for field, value in fields.items()}


def _read_bert(fields: Fields, name: str, names: Mapping[str, str]) -> BertConfig:
    """The config of one of BERT's kin; `names` are those of fields that it calls otherwise."""
    family = _FAMILIES[name]
    fields.refuse_unless(names.get("hidden_act", "hidden_act"), "gelu")
    fields.refuse_unless("position_embedding_type", "absolute")
    fields.refuse_unless("is_decoder", False)
    hidden, heads = _read_width(fields, names)
    positions, offset, buckets = fields.size("max_position_embeddings", 512), 0, 0
    if family.padded:
        # MPNet counts from 1, whatever its padding.
        padding = 1 if name == "mpnet" else fields.size("pad_token_id", 1, least=0)
        offset = padding + 1
        if positions <= offset:
            raise RagJaxError(
                f"{fields.source}: max_position_embeddings {positions} leaves no position after "
                f"those of padding, {offset}"
            )
    if name == "mpnet":
        # transformers has 32 whatever the field says.
        fields.refuse_unless("relative_attention_num_buckets", 32)
        buckets = 32
    return BertConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        ffn_size=fields.size(names.get("intermediate_size", "intermediate_size")),
        num_layers=fields.size(
            names.get("num_hidden_layers", "num_hidden_layers"), most=MOST_LAYERS
        ),
        num_heads=heads,
        num_types=fields.size("type_vocab_size", family.types) if family.types else 0,
        # transformers has this one whatever DistilBERT's field says.
        norm_eps=family.eps if names else fields.number("layer_norm_eps", family.eps),
        max_length=positions - offset,
        family=name,
        position_offset=offset,
        position_buckets=buckets,
    )


def _read_width(fields: Fields, names: Mapping[str, str]) -> tuple[int, int]:
    """The features of a state and the number of heads, which divides them."""
    width, count = (names.get(name, name) for name in ("hidden_size", "num_attention_heads"))
    hidden, heads = fields.size(width), fields.size(count)
    if hidden % heads:
        raise RagJaxError(f"{fields.source}: {width} {hidden} is not a multiple of {count} {heads}")
    return hidden, heads


_LOCAL, _GLOBAL = "sliding_attention", "full_attention"


def _read_modern_bert(fields: Fields) -> ModernBertConfig:
    fields.refuse_unless("hidden_activation", "gelu")
    for name in ("norm_bias", "attention_bias", "mlp_bias"):
        fields.refuse_unless(name, False)
    hidden, heads = _read_width(fields, {})
    layers = fields.size("num_hidden_layers", 22, most=MOST_LAYERS)
    kinds = fields.raw.get("layer_types")
    if kinds is None:
        every = fields.size("global_attn_every_n_layers", 3)
        kinds = [_LOCAL if i % every else _GLOBAL for i in range(layers)]
    known = isinstance(kinds, list) and all(kind in (_LOCAL, _GLOBAL) for kind in kinds)
    if not known or len(kinds) != layers:
        raise RagJaxError(f"{fields.source}: layer_types {show(kinds)} must name {layers} layers")
    rope = Fields(fields.section("rope_parameters"), fields.source)
    unscaled = {"type": "default"}, {"rope_type": "default"}
    fields.refuse_unless("rope_scaling", {}, *unscaled)
    thetas = {}
    for kind, old, default in ((_GLOBAL, "global", 160_000.0), (_LOCAL, "local", 10_000.0)):
        section = Fields(rope.section(kind), fields.source)
        for name in ("rope_type", "type"):
            section.refuse_unless(name, "default")
        theta = fields.number(f"{old}_rope_theta", default)
        thetas[kind] = section.number("rope_theta", theta)
    window = fields.size("local_attention", 128) // 2
    fields.refuse_unless("sliding_window", window)
    return ModernBertConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        ffn_size=fields.size("intermediate_size"),
        num_heads=heads,
        is_local=tuple(kind == _LOCAL for kind in kinds),
        window=window,
        global_theta=thetas[_GLOBAL],
        local_theta=thetas[_LOCAL],
        norm_eps=fields.number("norm_eps", 1e-5),
        max_length=fields.size("max_position_embeddings", 8192),
    )


def _describe_modern_bert(config: ModernBertConfig) -> dict[str, Any]:
    thetas = {_GLOBAL: config.global_theta, _LOCAL: config.local_theta}
    return {
        "architectures": ["ModernBertModel"],
        "model_type": "modernbert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "layer_types": [_LOCAL if local else _GLOBAL for local in config.is_local],
        "local_attention": 2 * config.window,
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()
        },
        "norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
        "hidden_activation": "gelu",
    }
