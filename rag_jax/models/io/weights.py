"""Conversion of Hugging Face tensors to the parameter trees of this package's models."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from rag_jax.models.io.architectures import Config, EncoderConfig, get_rules
from rag_jax.models.io.gguf_names import ROPE_DIVISORS
from rag_jax.models.io.slots import Slot, list_slots, stored_shapes
from rag_jax.models.io.tensors import StoredTensor, check_finite
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.nn.modern_bert import ModernBertConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import (
    Rules,
    choose_spec,
    shard_array,
)

# Tensors in some checkpoints that are not parameters of these models: rotary tables, position ids,
# the pooling layer over [CLS], the format version in early BART checkpoints, and what says in GGUF
# files how rotary frequencies are scaled.
_NOT_PARAMETERS = re.compile(
    r".*rotary_emb\.inv_freq|(.*\.)?embeddings\.position_ids|(.*\.)?pooler\..*"
    r"|(.*\.)?(en|de)coder\.version" + f"|{re.escape(ROPE_DIVISORS)}"
)
# Of masked tokens, beside an encoder.
_HEADS = re.compile(
    r"lm_head\..*|head\..*|decoder\..*|cls\..*|vocab_(transform|layer_norm|projector)\..*"
)
# Gemma 3 with images keeps the language model beside these.
_OF_IMAGES = re.compile(r"(model\.)?(vision_tower|multi_modal_projector)\..*")
# The vocabulary embedding, then the tensors tied to the embedding, which a file may repeat.
_TIED = {
    DecoderConfig: ("model.embed_tokens.weight", "lm_head.weight"),
    BartConfig: (
        "model.shared.weight",
        "model.encoder.embed_tokens.weight",
        "model.decoder.embed_tokens.weight",
        "lm_head.weight",
    ),
}


def build_params(
    config: Config,
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
    rules: Rules | None = None,
    source: str = "the weights",
) -> dict:
    """Reads the stored tensors into a parameter tree, one tensor at a time.

    Names, shapes and dtypes are checked before the first parameter is created.

    Args:
        tensors: stored tensors by Hugging Face name. Older names are accepted too: the prefix
            `bert.`, `gamma` and `beta` for the parameters of a layer norm, and the names of a BART
            without its language-model head.
        dtype: dtype of the parameters, float32 by default.
        mesh: devices to shard each tensor over, right after it is read; None for one device.
        rules: sharding rules; by default the rules of the model's family.
        source: name of the weights in error messages.

    Raises:
        RagJaxError: tensors are missing, unexpected, not float or of the wrong shape (one message
            lists all of them), a number is NaN or infinite, or a parameter does not match exactly
            one sharding rule.
    """
    slots, tied = list_slots(config), _TIED.get(type(config), ("",))
    rules = get_rules(config) if rules is None else rules
    options = {"dtype": dtype, "mesh": mesh, "rules": rules, "source": source, "tied": tied}
    return build_slots(slots, select_parameters(config, tensors), **options)


def build_slots(
    slots: list[Slot],
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: Any,
    mesh: Mesh | None,
    rules: Rules,
    source: str,
    tied: Sequence[str] = ("",),
) -> dict:
    """As `build_params`, of tensors that are named as in `slots`.

    Args:
        tied: the name of an embedding, and those of tensors that may repeat it.
    """
    _check(slots, tensors, tied, source)
    dtype = dtype or jnp.float32
    shardings = {}
    if mesh is not None:
        for slot in slots:
            spec = choose_spec(slot.path, slot.shape, mesh, rules)
            shardings[slot.path] = NamedSharding(mesh, spec)
    params: dict = {}
    for slot in slots:
        array = tensors[slot.name].read()
        check_finite(array, dtype, f"{source}: {slot.name}")
        array = array[slice(*slot.rows)] if slot.rows else array
        array = array.T if slot.transposed else array
        if mesh is None:
            leaf = jnp.asarray(array, dtype)
        else:
            # Without the wait, the host would hold every tensor with a pending transfer.
            leaf = shard_array(array, shardings[slot.path], dtype).block_until_ready()
        set_leaf(params, slot.path, leaf)
    return params


def get_leaf(tree: Mapping, path: str) -> Any:
    """The leaf of nested dicts at a path joined by `/`."""
    for name in path.split("/"):
        tree = tree[name]
    return tree


def set_leaf(tree: dict, path: str, leaf: Any) -> None:
    """Puts a leaf into nested dicts at a path joined by `/`; missing dicts are created."""
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = leaf


def select_parameters(
    config: Config, tensors: Mapping[str, StoredTensor]
) -> dict[str, StoredTensor]:
    """The tensors that are a model's parameters, under their current names."""
    is_encoder = isinstance(config, EncoderConfig)
    renamed = {
        name: tensor
        for name, tensor in rename(config, tensors).items()
        if not (_NOT_PARAMETERS.fullmatch(name) or (is_encoder and _HEADS.fullmatch(name)))
    }
    if isinstance(config, BartConfig):
        return _complete_bart(config, renamed)
    if isinstance(config, DecoderConfig) and config.tie_embeddings:
        embedding, head = _TIED[DecoderConfig]
        if head in renamed:  # safetensors keeps one name of a tensor
            renamed.setdefault(embedding, renamed[head])
    return renamed


def rename(config: Config, tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors under the names that current transformers versions use."""
    renamed = {}
    for name, tensor in tensors.items():
        if isinstance(config, ModernBertConfig):
            name = name.removeprefix("model.")
        if isinstance(config, BertConfig):
            name = re.sub(r"^(bert|roberta|mpnet|distilbert)\.", "", name)
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
            name = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
        if isinstance(config, DecoderConfig):  # an encoder's file has no head, and no prefix
            name = re.sub(r"^(?=(embed_tokens|layers|norm)\.)", "model.", name)
        if isinstance(config, DecoderConfig) and config.family == "gemma3_text":
            name = re.sub(r"^(model\.)?language_model\.(model\.)?(?!lm_head)", "model.", name)
            name = name.removeprefix("language_model.")
            if _OF_IMAGES.fullmatch(name):
                continue
        renamed[name] = tensor
    return renamed


def _complete_bart(config: BartConfig, tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """BART's tensors under the names of the model with its language-model head.

    A checkpoint of the model without the head lacks the prefix `model.` and the bias of the logits.
    A checkpoint may store the shared embedding under the name of any of the tied copies.
    """
    headless = re.compile(r"(shared|encoder|decoder)\.")
    tensors = {f"model.{n}" if headless.match(n) else n: tensor for n, tensor in tensors.items()}
    embedding, *copies = _TIED[BartConfig]
    for name in copies:
        if name in tensors:
            tensors.setdefault(embedding, tensors[name])
    shape = (1, config.vocab_size)
    zeros = StoredTensor(shape, lambda: np.zeros(shape, np.float32))
    return {"final_logits_bias": zeros, **tensors}


def _check(
    slots: list[Slot], tensors: dict[str, StoredTensor], tied: Sequence[str], source: str
) -> None:
    """Compares the stored tensors with a model's slots, and reports all differences at once."""
    expected = stored_shapes(slots)
    # A stored copy of a tied tensor is accepted if it equals the embedding.
    copies = (tensors.keys() & tied[1:]) - expected.keys()
    others = {name: tensor for name, tensor in tensors.items() if name not in copies}
    problems = list_differences(others, expected, "the config wants")
    embedding = tensors.get(tied[0])
    for name in copies:
        if embedding and not np.array_equal(tensors[name].read(), embedding.read()):
            problems.append(f"{name} differs from the embedding, the config says it is tied")
    if problems:
        raise RagJaxError(f"{source} do not fit the config: {'; '.join(sorted(problems))}")


def list_differences(
    tensors: Mapping[str, StoredTensor], expected: Mapping[str, tuple[int, ...]], contrast: str
) -> list[str]:
    """Texts about the tensors that are missing, not expected, of another shape, or at fault.

    Args:
        expected: shapes by name.
        contrast: words between the shape of a stored tensor and the expected shape.
    """
    problems = []
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"missing {name} {list(shape)}")
        elif tensors[name].shape != shape:
            stored = list(tensors[name].shape)
            problems.append(f"{name} has shape {stored}, {contrast} {list(shape)}")
        elif tensors[name].fault:
            problems.append(f"{name} {tensors[name].fault}")
    others = tensors.keys() - expected.keys()
    return problems + [f"no place for {name} {list(tensors[name].shape)}" for name in others]
