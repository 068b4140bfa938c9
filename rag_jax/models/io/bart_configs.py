"""BART's config from the fields of a `config.json`, and back.

Missing fields have the defaults of transformers' `BartConfig`.
"""

from pathlib import Path
from typing import Any

from rag_jax.models.io.fields import LARGEST, MOST_LAYERS, Fields, read_fields
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import is_there, show

# From the attributes of `BartConfig` to the fields of a `config.json`.
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "d_model",
    "encoder_layers": "encoder_layers",
    "decoder_layers": "decoder_layers",
    "encoder_heads": "encoder_attention_heads",
    "decoder_heads": "decoder_attention_heads",
    "encoder_ffn_size": "encoder_ffn_dim",
    "decoder_ffn_size": "decoder_ffn_dim",
    "max_length": "max_position_embeddings",
}
_IDS = {
    "bos_id": "bos_token_id",
    "pad_id": "pad_token_id",
    "eos_id": "eos_token_id",
    "start_id": "decoder_start_token_id",
}
_FORCED_IDS = {"forced_bos_id": "forced_bos_token_id", "forced_eos_id": "forced_eos_token_id"}


def read_bart(fields: Fields) -> BartConfig:
    """The config of a BART model, from the fields of a `config.json`.

    The forced tokens, and the one that an output starts with, come, as in transformers, from
    `generation_config.json` if that file exists and from `config.json` otherwise. Without its field
    no token is forced, and the output starts with that file's `bos_token_id`, if there is one, and
    else as `config.json` says. The other fields of `generation_config.json`, such as the number of
    beams, are left to the caller of the decoder.

    Raises:
        RagJaxError: a size or a token id is not valid, or the architecture differs from BART's.
    """
    fields.refuse_unless("activation_function", "gelu")
    fields.refuse_unless("tie_word_embeddings", True)
    sizes = {
        name: fields.size(
            hf_name,
            getattr(BartConfig, name),
            most=MOST_LAYERS if name.endswith("_layers") else LARGEST,
        )
        for name, hf_name in _SIZES.items()
    }
    hidden = sizes["hidden_size"]
    for side in ("encoder", "decoder"):
        if hidden % (heads := sizes[f"{side}_heads"]):
            raise RagJaxError(
                f"{fields.source}: d_model {hidden} is not a multiple of {side}_attention_heads "
                f"{heads}"
            )
    path = Path(fields.source).with_name("generation_config.json")
    generation = read_fields(path) if is_there(path) else fields
    vocab_size = sizes["vocab_size"]
    ids = {
        name: _read_id(fields, hf_name, vocab_size, default=getattr(BartConfig, name))
        for name, hf_name in _IDS.items()
    }
    start = ids["start_id"]
    if generation is not fields or _IDS["start_id"] in fields.raw:  # there, though maybe null
        bos = _read_id(generation, _IDS["bos_id"], vocab_size, default=start)
        ids["start_id"] = _read_id(generation, _IDS["start_id"], vocab_size, default=bos)
    ids |= {
        name: _read_id(generation, hf_name, vocab_size) for name, hf_name in _FORCED_IDS.items()
    }
    # What `forced_bos_token_id` was before 2021.
    if generation is fields and fields.raw.get("force_bos_token_to_be_generated") is True:
        ids["forced_bos_id"] = ids["bos_id"]
    return BartConfig(**sizes, **ids, scale_embedding=fields.raw.get("scale_embedding") is True)


def describe_bart(config: BartConfig) -> dict[str, Any]:
    """The fields of a `config.json` that describe a BART model to transformers and `read_bart`."""
    names = _SIZES | _IDS | _FORCED_IDS
    return {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "scale_embedding": config.scale_embedding,
        **{hf_name: getattr(config, name) for name, hf_name in names.items()},
    }


def _read_id(
    fields: Fields, name: str, vocab_size: int, *, default: int | None = None
) -> int | None:
    value = fields.raw.get(name)
    if isinstance(value, list) and value and (len(value) == 1 or name == _IDS["eos_id"]):
        value = value[0]  # all of several end tokens are the tokenizer's: `read_stop_ids`
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise RagJaxError(
            f"{fields.source}: {name} must be a token id below {vocab_size}, not {show(value)}"
        )
    return value
