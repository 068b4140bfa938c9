"""The names of a model's linear layers in PEFT's files."""

import re
from collections.abc import Iterable, Mapping

from rag_jax.models.io.load import Pretrained
from rag_jax.models.io.weights import Slot, list_slots
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig

WHOLE = "base_model.model."  # before every name
# BERT's layer over its first state, which no embedding has, and which is not read.
POOLER = "pooler.dense"
# What stands before a decoder's layers: `model.` where the model has a head, and maybe
# `language_model.` in a model that reads images, in older versions of transformers the other way.
_DECODERS = re.compile(r"((?:model\.)?(?:language_model\.)?(?:model\.)?)layers\.")
# Before an encoder's, where the model that was adapted has a head.
_ENCODERS = re.compile(r"((?:bert|roberta|distilbert|mpnet|model)\.)")


def find_start(tensors: Iterable[str], pretrained: Pretrained) -> str:
    """What stands before a model's layers in the names of an adapter's tensors."""
    if isinstance(pretrained.config, BartConfig):
        return "model."
    names = (name.removeprefix(WHOLE) for name in tensors)
    if isinstance(pretrained.config, DecoderConfig):
        found, usual = (_DECODERS.match(name) for name in names), "model."
    else:
        found, usual = (_ENCODERS.match(name) for name in names), ""
    return next((match[1] for match in found if match), usual)


def list_named(pretrained: Pretrained, start: str) -> list[tuple[str, Slot]]:
    """All slots with their names in PEFT's model, with `start` before the layers."""
    slots = list_slots(pretrained.config)
    if isinstance(pretrained.config, BartConfig | DecoderConfig):
        return [(re.sub(r"^model\.", start, slot.name), slot) for slot in slots]
    return [(start + slot.name, slot) for slot in slots]


def list_modules(pretrained: Pretrained, start: str) -> dict[str, list[Slot]]:
    """The slots of all kernels, grouped by the name of their linear layer in PEFT's model."""
    modules: dict[str, list[Slot]] = {}
    for name, slot in list_named(pretrained, start):
        if slot.transposed:
            modules.setdefault(name.removesuffix(".weight"), []).append(slot)
    return modules


def name_targets(
    targeted: Iterable[str], modules: Mapping[str, list[Slot]], pretrained: Pretrained
) -> list[str]:
    """Short names such as `gate_proj` if no other module has such a name, else full names.

    They are full for a model that reads images, whose layers over images have the short names too.
    """
    targeted = set(targeted)
    known = [*modules, POOLER] if isinstance(pretrained.config, BertConfig) else [*modules]
    names = sorted({module.rpartition(".")[2] for module in targeted})
    matched = {module for module in known if module.rpartition(".")[2] in names}
    return names if not pretrained.reads_images and matched == targeted else sorted(targeted)
