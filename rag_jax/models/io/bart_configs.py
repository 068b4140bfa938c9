"""BART's config from the fields of a `config.json`.

Values that may be left out have the defaults of transformers' `BartConfig`.
"""

import json
from pathlib import Path
from typing import Any

from rag_jax.models.io.fields import Fields
from rag_jax.models.nn.bart import BartConfig
from rag_jax.runtime.errors import RagJaxError

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
    """The config of a BART model.

    What `generate` forces comes, as in transformers, from `generation_config.json` where that file
    exists and from `config.json` where it does not; a value left out forces nothing. The other
    settings there, such as beams and banned repetitions, are choices of whoever decodes.

    Raises:
        RagJaxError: a field is no size or no token id, the sizes do not fit together, or the model
            is another than BART's own.
    """
    fields.refuse_unless("activation_function", "gelu")
    fields.refuse_unless("tie_word_embeddings", True)
    sizes = {
        ours: fields.size(theirs, getattr(BartConfig, ours)) for ours, theirs in _SIZES.items()
    }
    hidden = sizes["hidden_size"]
    for side in ("encoder", "decoder"):
        if hidden % (heads := sizes[f"{side}_heads"]):
            raise RagJaxError(
                f"{fields.source}: d_model {hidden} is no multiple of {heads} {side} heads"
            )
    forcing = _find_generation_config(fields)
    vocab_size = sizes["vocab_size"]
    ids = {
        ours: _read_id(fields, theirs, vocab_size, default=getattr(BartConfig, ours))
        for ours, theirs in _IDS.items()
    }
    ids |= {ours: _read_id(forcing, theirs, vocab_size) for ours, theirs in _FORCED_IDS.items()}
    return BartConfig(**sizes, **ids, scale_embedding=fields.raw.get("scale_embedding") is True)


def describe_bart(config: BartConfig) -> dict[str, Any]:
    """The fields of a `config.json` from which transformers, and `read_bart`, get the model."""
    names = _SIZES | _IDS | _FORCED_IDS
    return {
        "architectures": ["BartForConditionalGeneration"],
        "model_type": "bart",
        "is_encoder_decoder": True,
        "activation_function": "gelu",
        "scale_embedding": config.scale_embedding,
        **{theirs: getattr(config, ours) for ours, theirs in names.items()},
    }


def _find_generation_config(fields: Fields) -> Fields:
    path = Path(fields.source).with_name("generation_config.json")
    if not path.exists():
        return fields
    try:
        raw = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise RagJaxError(f"{path} is not valid JSON: {error}") from None
    return Fields(raw if isinstance(raw, dict) else {}, str(path))


def _read_id(
    fields: Fields, name: str, vocab_size: int, *, default: int | None = None
) -> int | None:
    value = fields.raw.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < vocab_size:
        raise RagJaxError(
            f"{fields.source}: {name} must be a token id below {vocab_size}, not {value!r}"
        )
    return value
