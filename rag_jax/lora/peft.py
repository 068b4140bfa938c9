"""Adapters as PEFT's folders, which PEFT and vLLM load: `rag_jax.lora.save_peft`, `load_peft`.

Kernels have the names that `weights.list_slots` gives them, so what holds for a family's weights
holds for its adapters. PEFT's `lora_A` is our `a` transposed, its `lora_B` our `b`.
"""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from rag_jax.lora.core import Tree, compute_scale, list_kernels
from rag_jax.models.io.fields import Fields
from rag_jax.models.io.load import Pretrained
from rag_jax.models.io.save import check_replaceable
from rag_jax.models.io.tensors import StoredTensor, read_metadata, read_safetensors
from rag_jax.models.io.weights import Slot, list_slots
from rag_jax.models.nn.bart import BartConfig
from rag_jax.models.nn.bert import BertConfig
from rag_jax.models.nn.decoder import DecoderConfig
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, replace_folder, write_json

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_BASE = "base_fingerprint"  # in the weights' metadata, where PEFT minds no field of ours
_TASKS = {
    DecoderConfig: "CAUSAL_LM",
    BartConfig: "SEQ_2_SEQ_LM",
    BertConfig: "FEATURE_EXTRACTION",
}
# The options of a config that say nothing of what the adapter computes, or that are minded here.
# Any other one, whatever PEFT may add, has to be off.
_KNOWN = {
    "auto_mapping",
    "base_model_name_or_path",
    "exclude_modules",
    "inference_mode",
    "init_lora_weights",
    "layers_to_transform",
    "lora_alpha",
    "lora_dropout",
    "megatron_core",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "revision",
    "runtime_config",
    "target_modules",
    "task_type",
    "use_rslora",
}
_OFF = (None, False, "none", [], {})
# Others (PiSSA, OLoRA, CorDA, LoftQ) change the base weights, and are not what the files say.
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

    It computes there what `apply` and `fold` do with `compute_scale(alpha, rank)`; what `merge`
    gave has `alpha` equal to its rank. Kernels that the base model stores as one tensor, as Phi-3
    does, share an adapter there: their ranks then stand beside each other, all others are filled
    up with zeros to the same rank, and `alpha` grows with it. An adapter already there is replaced.

    Args:
        path: the folder.
        pretrained: the base model.
        alpha: of which the scale is `alpha / rank`, or `alpha / sqrt(rank)` if `rank_stabilized`.
        base_model: the base model's name or folder, for PEFT to load it from by itself.

    Raises:
        RagJaxError: the adapter is not one of this model's, its ranks differ, or there is something
            else in the folder.
        OSError: the disk is full or cannot be written.
    """
    folder = Path(path).expanduser().absolute()
    check_replaceable(folder, (_CONFIG, _WEIGHTS, "README.md"), "an adapter")
    kernels = {"/".join(path): patch for path, patch in list_kernels(adapter)}
    modules = _list_modules(pretrained)
    parts = {slot.path: slot for slots in modules.values() for slot in slots}
    if not kernels:
        raise RagJaxError("adapter: it has no kernels, so there is nothing to save")
    ranks = set()
    for place, patch in kernels.items():
        a, b = patch["a"].shape, patch["b"].shape
        if place not in parts:
            raise RagJaxError(f"adapter: {place} is no kernel of a linear layer of the base model")
        inputs, outputs = parts[place].shape
        if len(a) != 2 or len(b) != 2 or a[0] != inputs or b[1] != outputs or a[1] != b[0]:
            raise RagJaxError(
                f"adapter: {place} has {list(a)} and {list(b)}, the base model's kernel is "
                f"[{inputs}, {outputs}] (of a bank, save one adapter at a time)"
            )
        ranks.add(a[1])
    if len(ranks) > 1:
        raise RagJaxError(f"adapter: its ranks {sorted(ranks)} differ, PEFT's files have one")

    targeted = {}
    for module, slots in modules.items():
        found = [slot for slot in slots if slot.path in kernels]
        if found:
            targeted[module] = slots, _share(kernels[slot.path]["a"] for slot in found)
    (rank,) = ranks
    times = max(len(factors) for _, factors in targeted.values())
    tensors = {}
    for module, (slots, factors) in targeted.items():
        a, b = _join_parts(kernels, slots, factors, rank * times)
        tensors[f"base_model.model.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.{module}.lora_B.weight"] = b
    alpha = alpha * (times**0.5 if rank_stabilized else times)
    fields = {
        "peft_type": "LORA",
        "task_type": _TASKS[type(pretrained.config)],
        "base_model_name_or_path": base_model,
        "r": rank * times,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "use_rslora": rank_stabilized,
        "target_modules": _name_targets(targeted, modules),
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
        path: the folder.
        pretrained: the base model. PEFT's files only name theirs, so any with the same kernels is
            taken; one that was written here must be for the very same files.

    Returns:
        The adapter, and the scale to use it with.

    Raises:
        RagJaxError: a file is missing or damaged, the adapter is for another model, its tensors are
            not those that its config tells of (all of them listed), or the config asks for what a
            plain adapter does not have (DoRA, biases, whole modules, a rank for each layer, ...).
    """
    folder = Path(path).expanduser()
    fields = _read_config(folder)
    tensors = _read_weights(folder, pretrained)
    modules = _list_modules(pretrained)
    rank, alpha = fields.size("r"), fields.number("lora_alpha")
    for name in _find_copies(tensors, pretrained):
        del tensors[name]
    _check_tensors(fields, rank, tensors, modules)
    adapter: dict = {}
    for module, slots in modules.items():
        name = f"base_model.model.{module}.lora_A.weight"
        if name not in tensors:
            continue
        a, b = (tensors[name.replace("lora_A", f"lora_{side}")].read().T for side in "AB")
        for slot in slots:
            *parents, leaf = slot.path.split("/")
            node = adapter
            for parent in parents:
                node = node.setdefault(parent, {})
            own = b[:, slice(*slot.rows)] if slot.rows else b
            node[leaf] = {"a": jnp.asarray(a, dtype), "b": jnp.asarray(own, dtype)}
    stabilized = fields.raw.get("use_rslora") is True
    return adapter, compute_scale(alpha, rank, rank_stabilized=stabilized)


def _list_modules(pretrained: Pretrained) -> dict[str, list[Slot]]:
    """The linear layers by Hugging Face's names, each with our kernels that it is made of."""
    modules: dict[str, list[Slot]] = {}
    for slot in list_slots(pretrained.config):
        if slot.transposed:
            modules.setdefault(slot.name.removesuffix(".weight"), []).append(slot)
    return modules


def _share(factors: Iterable[Any]) -> list[np.ndarray]:
    """The `a` of one module's kernels, each only once."""
    distinct: list[np.ndarray] = []
    for factor in map(np.asarray, factors):
        if not any(np.array_equal(factor, other) for other in distinct):
            distinct.append(factor)
    return distinct


def _join_parts(
    kernels: Mapping[str, Any], slots: Sequence[Slot], factors: Sequence[np.ndarray], rank: int
) -> tuple[np.ndarray, np.ndarray]:
    """PEFT's `lora_A` `[rank, in]` and `lora_B` `[out, rank]` of a module, from its kernels'."""
    inputs, own = factors[0].shape
    a = np.zeros((rank, inputs), factors[0].dtype)
    a[: own * len(factors)] = np.concatenate(factors, axis=1).T
    b = np.zeros((sum(slot.shape[1] for slot in slots), rank), a.dtype)
    for slot in slots:
        if slot.path in kernels:
            patch = kernels[slot.path]
            i = next(i for i, f in enumerate(factors) if np.array_equal(f, patch["a"]))
            rows = slice(*slot.rows) if slot.rows else slice(None)
            b[rows, i * own : (i + 1) * own] = np.asarray(patch["b"]).T
    return a, b


def _name_targets(targeted: Iterable[str], modules: Iterable[str]) -> list[str]:
    """Short names such as `gate_proj`, if just the targeted modules have them; else full ones."""
    targeted = set(targeted)
    short = sorted({module.rpartition(".")[2] for module in targeted})
    meant = {module for module in modules if module.rpartition(".")[2] in short}
    return short if meant == targeted else sorted(targeted)


def _read_config(folder: Path) -> Fields:
    path = folder / _CONFIG
    try:
        raw = read_json(path)
    except OSError:
        raise RagJaxError(f"{path} is missing: name a folder that PEFT saved") from None
    except ValueError as error:
        raise RagJaxError(f"{path} is not valid JSON: {error}") from None
    fields = Fields(raw if isinstance(raw, dict) else {}, str(path))
    if fields.raw.get("peft_type") != "LORA":
        kind = fields.raw.get("peft_type")
        raise RagJaxError(f"{path}: peft_type {kind!r} is not supported; LORA is")
    fields.refuse_unless("init_lora_weights", *_PLAIN_STARTS)
    fields.refuse_unless("use_rslora", True, False)
    for name in fields.raw.keys() - _KNOWN:
        fields.refuse_unless(name, *_OFF)
    return fields


def _read_weights(folder: Path, pretrained: Pretrained) -> dict[str, StoredTensor]:
    path = folder / _WEIGHTS
    if not path.is_file():
        hint = ""
        if (folder / "adapter_model.bin").exists():
            hint = "; pickled .bin weights are not read: save it again as safetensors"
        raise RagJaxError(f"{path} is missing{hint}")
    base = read_metadata(path).get(_BASE)
    if base and pretrained.fingerprint and base != pretrained.fingerprint:
        raise RagJaxError(
            f"{path} is an adapter for another base model: its files' fingerprint is {base[:12]}, "
            f"this one's is {pretrained.fingerprint[:12]}"
        )
    return read_safetensors([path])


def _find_copies(tensors: Mapping[str, StoredTensor], pretrained: Pretrained) -> list[str]:
    """Tensors that are the base model's own: beside an adapter of the head PEFT stores the head."""
    slots = {slot.name: slot for slot in list_slots(pretrained.config)}
    copies = []
    for name, tensor in tensors.items():
        slot = slots.get(name.removeprefix("base_model.model.").replace(".base_layer.", "."))
        if slot is None or tensor.fault:
            continue
        own = pretrained.params
        for part in slot.path.split("/"):
            own = own[part]
        own = np.asarray(own.T if slot.transposed else own)
        if np.array_equal(tensor.read().astype(own.dtype), own):
            copies.append(name)
    return copies


def _check_tensors(
    fields: Fields,
    rank: int,
    tensors: Mapping[str, StoredTensor],
    modules: Mapping[str, Sequence[Slot]],
) -> None:
    """Compares the tensors with those that the config and the base model ask for."""
    expected = {}
    for module, slots in modules.items():
        if _is_target(module, fields):
            outputs = sum(slot.shape[1] for slot in slots)
            expected[f"base_model.model.{module}.lora_A.weight"] = (rank, slots[0].shape[0])
            expected[f"base_model.model.{module}.lora_B.weight"] = (outputs, rank)
    problems = []
    for name, shape in expected.items():
        if name not in tensors:
            problems.append(f"missing {name} {list(shape)}")
        elif tensors[name].shape != shape:
            found = list(tensors[name].shape)
            problems.append(f"{name} has shape {found}, not {list(shape)}")
        elif tensors[name].fault:
            problems.append(f"{name} {tensors[name].fault}")
    for name in tensors.keys() - expected.keys():
        problems.append(f"no place for {name} {list(tensors[name].shape)}")
    if not expected:
        problems.append(f"no linear layer is one of {fields.raw.get('target_modules')!r}")
    if problems:
        raise RagJaxError(
            f"the adapter that {fields.source} tells of does not fit its tensors and the base "
            f"model: {'; '.join(sorted(problems))}"
        )


def _is_target(module: str, fields: Fields) -> bool:
    layers = fields.raw.get("layers_to_transform")
    if layers is not None:
        layers = [layers] if isinstance(layers, int) else _list(fields, "layers_to_transform", int)
        number = re.search(r"\.(\d+)\.", module)
        if number is None or int(number[1]) not in layers:
            return False
    named = (_matches(module, fields, name) for name in ("target_modules", "exclude_modules"))
    return tuple(named) == (True, False)


def _matches(module: str, fields: Fields, name: str) -> bool:
    """PEFT's rule: a pattern for the whole name, or a list of names or of their last parts."""
    wanted = fields.raw.get(name)
    if isinstance(wanted, str):
        try:
            return re.fullmatch(wanted, module) is not None
        except re.error as error:
            raise RagJaxError(f"{fields.source}: {name} {wanted!r}: {error}") from None
    return any(module == one or module.endswith(f".{one}") for one in _list(fields, name, str))


def _list(fields: Fields, name: str, kind: type) -> list:
    value = fields.raw.get(name) or []
    if not isinstance(value, list) or not all(isinstance(one, kind) for one in value):
        raise RagJaxError(
            f"{fields.source}: {name} must be a list of {kind.__name__}s, not {value!r}"
        )
    return value
