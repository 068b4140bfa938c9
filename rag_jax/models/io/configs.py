"""Model configs from a Hugging Face `config.json`, and back.

Missing fields have the defaults of the models' configs in transformers.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rag_jax.models.io.architectures import Config
from rag_jax.models.io.bart_configs import describe_bart, read_bart
from rag_jax.models.io.decoder_configs import (
    DECODER_FAMILIES,
    describe_decoder,
    read_decoder,
)
from rag_jax.models.io.fields import MOST_LAYERS, Fields, read_fields
from rag_jax.models.nn.bart import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, show

# Names of the field with the number of experts, in the configs of mixtures of experts.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")
_DPR_CLASSES = {"question": "DPRQuestionEncoder", "context": "DPRContextEncoder"}


def read_config(path: Path) -> Config:
    """The config of the model that a `config.json` describes.

    Raises:
        RagJaxError: the file is missing or damaged, or the architecture or an option unsupported.
    """
    fields = read_fields(path, "copy the model's config.json there")
    with parsing(path):
        return _read_any(fields)


def _read_any(fields: Fields) -> Config:
    readers = {
        **dict.fromkeys(DECODER_FAMILIES, read_decoder),
        "gemma3": _read_gemma,
        "bert": _read_bert,
        "dpr": _read_dpr,
        "bart": read_bart,
    }
    if experts := next((name for name in _EXPERTS if fields.raw.get(name)), None):
        raise RagJaxError(
            f"{fields.source}: {experts} {show(fields.raw[experts])}: mixtures of experts are not "
            "supported"
        )
    model_type = fields.raw.get("model_type")
    if model_type not in tuple(readers):
        supported = ", ".join(sorted(readers))
        raise RagJaxError(
            f"{fields.source}: model_type {show(model_type)} is not supported; supported are "
            f"{supported}"
        )
    if quantisation := fields.section("quantization_config"):
        raise RagJaxError(
            f"{fields.source}: quantization_config {show(quantisation.get('quant_method'))} is not "
            "supported: use float weights or a GGUF file"
        )
    return readers[model_type](fields)


def describe_config(config: Config) -> dict[str, Any]:
    """The fields of a `config.json` that describe a model to transformers and `read_config`."""
    if isinstance(config, BartConfig):
        return describe_bart(config)
    return _describe_bert(config) if isinstance(config, BertConfig) else describe_decoder(config)


def _read_gemma(fields: Fields) -> DecoderConfig:
    """The language model of a Gemma 3 that reads images too."""
    text = {**fields.section("text_config"), "model_type": "gemma3_text"}
    return read_decoder(Fields(text, f"{fields.source}: text_config"))


def _read_bert(fields: Fields) -> BertConfig:
    fields.refuse_unless("hidden_act", "gelu")
    fields.refuse_unless("position_embedding_type", "absolute")
    fields.refuse_unless("is_decoder", False)
    hidden, heads = fields.size("hidden_size"), fields.size("num_attention_heads")
    if hidden % heads:
        raise RagJaxError(
            f"{fields.source}: hidden_size {hidden} is not a multiple of num_attention_heads "
            f"{heads}"
        )
    return BertConfig(
        vocab_size=fields.size("vocab_size"),
        hidden_size=hidden,
        ffn_size=fields.size("intermediate_size"),
        num_layers=fields.size("num_hidden_layers", most=MOST_LAYERS),
        num_heads=heads,
        num_types=fields.size("type_vocab_size", 2),
        norm_eps=fields.number("layer_norm_eps", 1e-12),
        max_length=fields.size("max_position_embeddings", 512),
    )


def _read_dpr(fields: Fields) -> BertConfig:
    architectures = fields.raw.get("architectures")
    role = next((role for role, name in _DPR_CLASSES.items() if architectures == [name]), None)
    if role is None:
        raise RagJaxError(
            f"{fields.source}: architectures {show(architectures)} is not supported; for DPR, "
            f"supported are {' and '.join(_DPR_CLASSES.values())}"
        )
    projection = fields.size("projection_dim") if fields.raw.get("projection_dim") else None
    return replace(_read_bert(fields), dpr_role=role, projection_size=projection)


def _describe_bert(config: BertConfig) -> dict[str, Any]:
    dpr = {"model_type": "dpr", "projection_dim": config.projection_size or 0}
    return {
        "architectures": [_DPR_CLASSES.get(config.dpr_role, "BertModel")],
        **(dpr if config.dpr_role else {"model_type": "bert"}),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.ffn_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "type_vocab_size": config.num_types,
        "layer_norm_eps": config.norm_eps,
        "max_position_embeddings": config.max_length,
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
    }
