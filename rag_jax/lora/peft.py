"""Adapters in PEFT's format, which PEFT and vLLM load: `rag_jax.lora.save_peft`, `load_peft`.

`weights.list_slots` maps kernels to Hugging Face names, for adapters as for weights. PEFT's
`lora_A` is our `a` transposed, and PEFT's `lora_B` is our `b` transposed.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from rag_jax.lora.core import Tree, compute_scale, list_kernels
from rag_jax.lora.peft_names import (
    POOLER,
    WHOLE,
    find_start,
    list_modules,
    list_named,
    name_targets,
)
from rag_jax.lora.targets import read_ranks, read_targets
from rag_jax.models.io.fields import Fields, read_fields
from rag_jax.models.io.load import Pretrained
from rag_jax.models.io.save import check_replaceable
from rag_jax.models.io.tensors import (
    StoredTensor,
    check_finite,
    read_metadata,
    read_safetensors,
)
from rag_jax.models.io.weights import Slot, get_leaf, list_differences, set_leaf
from rag_jax.models.nn.bart_config import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.models.nn.modern_bert import ModernBertConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import replace_folder, write_json
from rag_jax.runtime.outside import is_there, parsing, show
from rag_jax.runtime.paths import expand_path

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE = "base_fingerprint"  # field of the weights' metadata, which PEFT ignores
_EMBEDS = "FEATURE_EXTRACTION"
_TASKS = {
    DecoderConfig: "CAUSAL_LM",
    BartConfig: "SEQ_2_SEQ_LM",
    BertConfig: _EMBEDS,
    ModernBertConfig: _EMBEDS,
}
# Options that do not change what the adapter computes (how its training started, for instance), or
# that this module implements. All other options, including future ones of PEFT, must be off.
_KNOWN = {
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
_OFF = (None, False, "none", [], {})
# Other initialisations (PiSSA, OLoRA, CorDA, LoftQ) change the base weights, which the files lack.
_PLAIN_STARTS = (True, False, "gaussian", "eva", "orthogonal")


def save_peft(
    adapter: Tree,
    path: str | os.PathLike,
    pretrained: Pretrained,
    *,
    alpha: float,
    rank_stabilized: bool = False,
    base_model: str | None = None,
) -> None:
    """Writes an adapter as a folder that PEFT's `PeftModel.from_pretrained` and vLLM load.

    The saved adapter computes the same as `apply` and `fold` with `compute_scale(alpha, rank)`;
    for the result of `merge`, `alpha` equals the rank. An adapter in the folder is replaced.

    Kernels that the base model stores as one tensor, as in Phi-3, share one adapter in PEFT: their
    ranks are concatenated, all other kernels are padded to that rank, and `alpha` grows with it.

    Args:
        alpha: LoRA's `alpha`, for a scale of `alpha / rank`.
        rank_stabilized: whether the scale is `alpha / sqrt(rank)`.
        base_model: name or folder from which PEFT can load the base model.

    Raises:
        RagJaxError: the adapter does not fit the base model or has several ranks, or the folder
            holds other files.
        OSError: the disk is full or not writable.
    """
    folder = expand_path(path).absolute()
    check_replaceable(folder, (_CONFIG, _WEIGHTS, "README.md"), "an adapter")
    kernels = {"/".join(keys): factors for keys, factors in list_kernels(adapter)}
    config = pretrained.config
    embeds = isinstance(config, DecoderConfig) and pretrained.model.pooling is not None
    has_head = _TASKS[type(config)] != _EMBEDS and not embeds
    start = f"{'model.' * has_head}{'language_model.' * pretrained.reads_images}"
    modules = list_modules(pretrained, start)
    rank = _check_kernels(kernels, modules)
    targeted = {}  # slots and distinct `a` of every module with an adapter
    for module, slots in modules.items():
        adapted = [kernels[slot.path]["a"] for slot in slots if slot.path in kernels]
        if adapted:
            targeted[module] = slots, _list_distinct(adapted)
    times = max(len(distinct) for _, distinct in targeted.values())
    tensors = {}
    for module, (slots, distinct) in targeted.items():
        a, b = _join_kernels(kernels, slots, distinct, rank * times)
        tensors[f"{WHOLE}{module}.lora_A.weight"] = a
        tensors[f"{WHOLE}{module}.lora_B.weight"] = b
    alpha = alpha * (times**0.5 if rank_stabilized else times)
    fields = {
        "peft_type": "LORA",
        "task_type": _EMBEDS if embeds else _TASKS[type(config)],
        "base_model_name_or_path": base_model,
        "r": rank * times,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": rank_stabilized,
        "target_modules": name_targets(targeted, modules, pretrained),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
        "inference_mode": True,
    }
    with replace_folder(folder) as new:
        write_json(new / _CONFIG, fields)
        metadata = {"format": "pt", _BASE: pretrained.fingerprint}
        save_file(tensors, new / _WEIGHTS, metadata=metadata)


def load_peft(
    path: str | os.PathLike, pretrained: Pretrained, *, dtype: Any = jnp.float32
) -> tuple[Tree, float]:
    """Reads a LoRA adapter that PEFT or `save_peft` wrote.

    Args:
        pretrained: the base model. An adapter from PEFT must fit the kernels; an adapter from
            `save_peft` must belong to a model with the same fingerprint.

    Returns:
        The adapter, and its scale for `apply` or `fold`. Where layers have ranks and scales of
        their own, as of EVA, all are padded to the largest rank, and the scales are in `b`.

    Raises:
        RagJaxError: a file is missing or damaged, the adapter belongs to another model, tensors do
            not match the config (all are listed), or an option is beyond plain LoRA (DoRA, ...).
    """
    folder = expand_path(path)
    fields = _read_config(folder)
    tensors = _read_weights(folder, pretrained)
    start = find_start(tensors, pretrained)
    modules = list_modules(pretrained, start)
    rank, alpha = fields.size("r"), fields.number("lora_alpha")
    stabilized = bool(fields.raw.get("use_rslora"))
    for name in _find_unread(tensors, pretrained, start):
        del tensors[name]
    with parsing(fields.source):
        find_rank = read_ranks(fields)
        _check_tensors(fields, find_rank, tensors, modules)
    names = {module: f"{WHOLE}{module}.lora_A.weight" for module in modules}
    names = {module: name for module, name in names.items() if name in tensors}
    ranks = {module: find_rank(module) for module in names}
    most = max(own for own, _ in ranks.values())
    scale = compute_scale(alpha, rank, rank_stabilized=stabilized)
    adapter: dict = {}
    for module, name in names.items():
        a, b = (
            _read_finite(folder, name.replace("lora_A", f"lora_{side}"), tensors, dtype).T
            for side in "AB"
        )
        if ranks[module] != (rank, alpha) or most > rank:
            # One rank and one scale for all: further ranks are zeros, and the scale is in `b`.
            own, own_alpha = ranks[module]
            own_scale = compute_scale(own_alpha, own, rank_stabilized=stabilized)
            a, b = np.pad(a, ((0, 0), (0, most - own))), np.pad(b, ((0, most - own), (0, 0)))
            b = b * np.asarray(own_scale / scale, b.dtype)
        for slot in modules[module]:
            outputs = b[:, slice(*slot.rows)] if slot.rows else b
            factors = {"a": jnp.asarray(a, dtype), "b": jnp.asarray(outputs, dtype)}
            set_leaf(adapter, slot.path, factors)
    return adapter, scale


def _check_kernels(kernels: Mapping[str, Any], modules: Mapping[str, Sequence[Slot]]) -> int:
    """The common rank of the kernels; a RagJaxError if the kernels do not fit the base model."""
    if not kernels:
        raise RagJaxError("adapter: it has no kernels, so there is nothing to save")
    shapes = {slot.path: slot.shape for slots in modules.values() for slot in slots}
    ranks = set()
    for path, factors in kernels.items():
        a, b = factors["a"].shape, factors["b"].shape
        if path not in shapes:
            raise RagJaxError(f"adapter: {path} is no kernel of a linear layer of the base model")
        inputs, outputs = shapes[path]
        if len(a) != 2 or len(b) != 2 or a[0] != inputs or b[1] != outputs or a[1] != b[0]:
            raise RagJaxError(
                f"adapter: {path} has {list(a)} and {list(b)}, the base model's kernel is "
                f"[{inputs}, {outputs}] (of a bank, save one adapter at a time)"
            )
        ranks.add(a[1])
    if len(ranks) > 1:
        raise RagJaxError(f"adapter: its ranks {sorted(ranks)} differ; PEFT needs a single rank")
    return ranks.pop()


def _list_distinct(arrays: Iterable[Any]) -> list[np.ndarray]:
    """The arrays without duplicates, in order."""
    distinct: list[np.ndarray] = []
    for array in map(np.asarray, arrays):
        if not any(np.array_equal(array, other) for other in distinct):
            distinct.append(array)
    return distinct


def _join_kernels(
    kernels: Mapping[str, Any], slots: Sequence[Slot], distinct: Sequence[np.ndarray], rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's `lora_A` `[rank, in]` and `lora_B` `[out, rank]` of the module with these slots."""
    inputs, r = distinct[0].shape
    a = np.zeros((rank, inputs), distinct[0].dtype)
    a[: r * len(distinct)] = np.concatenate(distinct, axis=1).T  # [in, n * r] -> [n * r, in]
    b = np.zeros((sum(slot.shape[1] for slot in slots), rank), a.dtype)
    for slot in slots:
        if slot.path in kernels:
            factors = kernels[slot.path]
            i = next(i for i, other in enumerate(distinct) if np.array_equal(other, factors["a"]))
            rows = slice(*slot.rows) if slot.rows else slice(None)
            b[rows, i * r : (i + 1) * r] = np.asarray(factors["b"]).T  # [r, out] -> [out, r]
    return a, b


def _read_config(folder: Path) -> Fields:
    path = folder / _CONFIG
    fields = read_fields(path, "name a folder that PEFT saved")
    kind = fields.raw.get("peft_type")
    if kind != "LORA":
        raise RagJaxError(f"{path}: peft_type {show(kind)} is not supported; LORA is")
    fields.refuse_unless("init_lora_weights", *_PLAIN_STARTS)
    fields.refuse_unless("use_rslora", True, False)
    for name in fields.raw.keys() - _KNOWN:
        fields.refuse_unless(name, *_OFF)
    return fields


def _read_weights(folder: Path, pretrained: Pretrained) -> dict[str, StoredTensor]:
    path = folder / _WEIGHTS
    if not is_there(path):
        hint = "; pickled .bin weights are not read: save the adapter as safetensors"
        pickled = (folder / "adapter_model.bin").exists()
        raise RagJaxError(f"{path} is missing{hint if pickled else ''}")
    base = read_metadata(path).get(_BASE)
    if base and pretrained.fingerprint and base != pretrained.fingerprint:
        raise RagJaxError(
            f"{path} is an adapter for another base model: the adapter's base has fingerprint "
            f"{base[:12]}, the loaded model {pretrained.fingerprint[:12]}"
        )
    return read_safetensors([path])


def _read_finite(
    folder: Path, name: str, tensors: Mapping[str, StoredTensor], dtype: Any
) -> np.ndarray:
    array = tensors[name].read()
    check_finite(array, dtype, f"{folder / _WEIGHTS}: {name}")
    return array


def _find_unread(
    tensors: Mapping[str, StoredTensor], pretrained: Pretrained, start: str
) -> list[str]:
    """Names of tensors that change nothing.

    Those equal to base weights, as PEFT stores a head together with its adapter, and the adapter of
    BERT's pooler, which is part of no embedding.
    """
    slots = dict(list_named(pretrained, start))
    if getattr(pretrained.config, "tie_embeddings", False):
        embeddings = next(slot for name, slot in slots.items() if "embed_tokens" in name)
        slots.setdefault("lm_head.weight", embeddings)
    pooler = tuple(f"{WHOLE}{start}{POOLER}.lora_{side}." for side in "AB")
    copies = [name for name in tensors if name.startswith(pooler)]
    for name, tensor in tensors.items():
        slot = slots.get(name.removeprefix(WHOLE).replace(".base_layer.", "."))
        if slot is None or tensor.fault:
            continue
        param = get_leaf(pretrained.params, slot.path)
        param = np.asarray(param.T if slot.transposed else param)
        if np.array_equal(tensor.read().astype(param.dtype), param):
            copies.append(name)
    return copies


def _check_tensors(
    fields: Fields,
    find_rank: Callable[[str], tuple[int, float]],
    tensors: Mapping[str, StoredTensor],
    modules: dict[str, list[Slot]],
) -> None:
    """Raises a RagJaxError unless the tensors are those of the config and the base model."""
    expected, is_target = {}, read_targets(fields)
    for module, slots in modules.items():
        if is_target(module):
            outputs, (rank, _) = sum(slot.shape[1] for slot in slots), find_rank(module)
            expected[f"{WHOLE}{module}.lora_A.weight"] = (rank, slots[0].shape[0])
            expected[f"{WHOLE}{module}.lora_B.weight"] = (outputs, rank)
    problems = list_differences(tensors, expected, "not")
    if not expected:
        problems.append(f"no linear layer is one of {show(fields.raw.get('target_modules'))}")
    if problems:
        raise RagJaxError(
            f"the adapter described in {fields.source} does not fit its tensors and the base "
            f"model: {'; '.join(sorted(problems))}"
        )
