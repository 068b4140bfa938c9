"""Model configs from a Hugging Face `config.json`, and back.

Missing fields have the defaults of the models' configs in transformers.
"""

from pathlib import Path
from typing import Any

from rag_jax.models.io.architectures import Config, EncoderConfig
from rag_jax.models.io.bart_configs import describe_bart, read_bart
from rag_jax.models.io.decoder_configs import (
    DECODER_FAMILIES,
    describe_decoder,
    read_decoder,
)
from rag_jax.models.io.encoder_configs import (
    ENCODER_FAMILIES,
    describe_encoder,
    read_dpr,
    read_encoder,
)
from rag_jax.models.io.fields import Fields, read_fields
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing, show

# Names of the field with the number of experts, in the configs of mixtures of experts.
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def read_config(path: Path) -> Config:
    """The config of the model that a `config.json` describes.

    Raises:
        RagJaxError: the file is missing or damaged, or the architecture or an option unsupported.
    """
    return open_config(path)[0]


def open_config(path: Path) -> tuple[Config, Fields]:
    """As `read_config`, with the file's fields, of which a config has those of the model alone."""
    fields = read_fields(path, "copy the model's config.json there")
    with parsing(path):
        return _read_any(fields), fields


def _read_any(fields: Fields) -> Config:
    readers = {
        **dict.fromkeys(DECODER_FAMILIES, read_decoder),
        "gemma3": _read_gemma,
        **dict.fromkeys(ENCODER_FAMILIES, read_encoder),
        "dpr": read_dpr,
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
    if isinstance(config, EncoderConfig):
        return describe_encoder(config)
    return describe_decoder(config)


def _read_gemma(fields: Fields) -> DecoderConfig:
    """The language model of a Gemma 3 that reads images too."""
    text = {**fields.section("text_config"), "model_type": "gemma3_text"}
    if (tied := fields.raw.get("tie_word_embeddings")) is not None:  # of the whole model
        text["tie_word_embeddings"] = tied
    return read_decoder(Fields(text, f"{fields.source}: text_config"))
