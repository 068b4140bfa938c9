"""The head over masked tokens that is stored beside an encoder."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jax.sharding import Mesh

from rag_jax.models.io.architectures import EncoderConfig
from rag_jax.models.io.slot import Slot, linear_slots, norm_slots, scale_slots
from rag_jax.models.io.slots import list_slots
from rag_jax.models.io.tensors import StoredTensor
from rag_jax.models.io.weights import build_slots, rename
from rag_jax.models.nn.modern_bert import ModernBertConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import HEAD_RULES

# Names of the dense layer and the norm, of the bias of the logits (where the words' vectors are the
# embeddings, the second is a copy of the first; elsewhere the second alone counts), and of the
# words' vectors.
_BERT = (
    "cls.predictions.transform.dense",
    "cls.predictions.transform.LayerNorm",
    ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    "cls.predictions.decoder.weight",
)
_ROBERTA = (
    "lm_head.dense",
    "lm_head.layer_norm",
    ("lm_head.bias", "lm_head.decoder.bias"),
    "lm_head.decoder.weight",
)
_DISTILBERT = (
    "vocab_transform",
    "vocab_layer_norm",
    ("vocab_projector.bias",),
    "vocab_projector.weight",
)
_MODERN_BERT = ("head.dense", "head.norm", ("decoder.bias",), "decoder.weight")


def build_head(
    config: EncoderConfig,
    tensors: Mapping[str, StoredTensor],
    *,
    tied: bool,
    dtype: Any,
    mesh: Mesh | None,
    source: str,
) -> dict:
    """The parameters of a head over masked tokens, as `models.nn.masked_head.pool_words` has them.

    Args:
        tensors: stored tensors by their names in the file.
        tied: whether the words' vectors are the word embeddings.
        dtype: as for `build_params`.
        mesh: as for `build_params`.
        source: name of the weights in error messages.

    Raises:
        RagJaxError: there is no head, or as `build_params`.
    """
    dense, norm, biases, table = _name_tensors(config)
    tensors = rename(config, tensors)
    biases = biases if tied else biases[::-1]
    bias = next((name for name in biases if name in tensors), biases[0])
    slots = _list_slots(config, dense, norm)
    slots.append(Slot(bias, "head/bias", (config.vocab_size,)))
    if not tied:
        slots.append(Slot(table, "head/table", (config.vocab_size, config.hidden_size)))
    own = {slot.name: tensors[slot.name] for slot in slots if slot.name in tensors}
    if not own:
        raise RagJaxError(
            f"{source} have no head over masked tokens, which gives words their weights: a dense "
            "encoder is loaded by rag_jax.models.load"
        )
    embedding = tensors.get(list_slots(config)[0].name)
    is_copied = tied and table in tensors and embedding is not None
    if is_copied and not np.array_equal(tensors[table].read(), embedding.read()):
        raise RagJaxError(
            f"{source} do not fit the config: {table} differs from the embedding, the config says "
            "it is tied"
        )
    options = {"dtype": dtype, "mesh": mesh, "rules": HEAD_RULES, "source": source}
    return build_slots(slots, own, **options)["head"]


def _name_tensors(config: EncoderConfig) -> tuple[str, str, tuple[str, ...], str]:
    if isinstance(config, ModernBertConfig):
        return _MODERN_BERT
    return {"bert": _BERT, "distilbert": _DISTILBERT}.get(config.family, _ROBERTA)


def _list_slots(config: EncoderConfig, dense: str, norm: str) -> list[Slot]:
    """The slots of the dense layer and the norm."""
    width = config.hidden_size
    if isinstance(config, ModernBertConfig):
        kernel = Slot(f"{dense}.weight", "head/dense/kernel", (width, width), True)
        return [kernel, *scale_slots(norm, "head/norm", width)]
    return [
        *linear_slots(dense, "head/dense", width, width),
        *norm_slots(norm, "head/norm", width),
    ]
