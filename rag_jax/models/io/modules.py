"""The modules that sentence-transformers lists in an encoder's folder, and their dense layers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from rag_jax.models.io.fields import Fields, read_fields
from rag_jax.models.io.tensors import check_finite, read_safetensors
from rag_jax.models.io.weight_files import explain_pickled
from rag_jax.models.nn.pooling import ACTIVATIONS, Dense
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.outside import is_there, parsing, show
from rag_jax.runtime.sharding import shard_array

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
# Its names, of which the first that a folder has counts.
TRANSFORMER_NAMES = (
    TRANSFORMER,
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
COPY = "copy the encoder's file there"
CONVERT = (
    "load it by the MultiVectorEncoder of sentence-transformers 6, save it there, and give that "
    "folder to rag_jax.models.load_multi_vector"
)
# The modules of each kind of encoder that are read.
_KNOWN = {
    "dense": ("Transformer", "Pooling", "Dense", "Normalize", "Dropout"),
    "sparse": ("Transformer", "MLMTransformer", "SpladePooling"),
    "late-interaction": ("Transformer", "Dense", "MultiVectorMask", "Normalize"),
}
_ASKED = ["Transformer", "LogitScore"]
# What tells a kind, and the function of `rag_jax.models` that loads it.
_TOLD = {
    "Pooling": ("dense", "load"),
    "SpladePooling": ("sparse", "load_sparse"),
    "MultiVectorMask": ("late-interaction", "load_multi_vector"),
}


def read_modules(path: Path, encoder: str) -> list[tuple[str, Path]]:
    """Class and folder of each module, in the order of `modules.json`.

    Args:
        encoder: the kind of encoder that is loaded: "dense", "sparse" or "late-interaction".

    Raises:
        RagJaxError: the file is damaged or missing, lists a module that is not supported or lies
            elsewhere, or is of an encoder of another kind.
    """
    found = _list_modules(path)
    kinds = [kind.rpartition(".")[2] for kind, _ in found]
    if any(kind.startswith("pylate.") for kind, _ in found):
        raise RagJaxError(f"{path} is of a late-interaction encoder in PyLate's form: {CONVERT}")
    told = [_TOLD[kind] for kind in kinds if kind in _TOLD]
    if other := [named for named in told if named[0] != encoder]:
        kind, loader = other[0]
        raise RagJaxError(
            f"{path} is of a {kind} encoder, not a {encoder} one: load it by "
            f"rag_jax.models.{loader}"
        )
    for kind, place in found:
        _check_place(path, kind, place)
        own = kind.startswith("sentence_transformers.")
        if not own or kind.rpartition(".")[2] not in _KNOWN[encoder]:
            names = ", ".join(_KNOWN[encoder])
            raise RagJaxError(
                f"{path}: module {show(kind)} is not supported; supported are {names}"
            )
    return [(kind, path.parent / place) for kind, (_, place) in zip(kinds, found, strict=True)]


def _list_modules(path: Path) -> list[tuple[str, Any]]:
    """The full class and the path of each module, in the order of `modules.json`."""
    problem = "is no list of modules"
    with parsing(path, problem):
        found = [(entry["type"], entry["path"]) for entry in read_json(path, problem=problem)]
        if not all(isinstance(kind, str) for kind, _ in found):
            raise ValueError("a module's type is no text")
    return found


def _check_place(path: Path, kind: str, place: Any) -> None:
    """Raises a RagJaxError unless a module's place is within the folder of `modules.json`."""
    if not isinstance(place, str) or {"..", "/"} & {*Path(place).parts}:
        raise RagJaxError(f"{path}: module {show(kind)} lies outside its folder: {show(place)}")


def stands_alone(folder: Path) -> bool:
    """Whether `modules.json` lists a model alone, as sentence-transformers has it for rerankers.

    What reads the answers of a language model that is asked counts as its part.
    """
    return list_kinds(folder) in (["Transformer"], _ASKED)


def find_answers(folder: Path) -> Fields | None:
    """What sentence-transformers keeps of a language model that is asked; None of other models.

    Its `true_token_id` and `false_token_id` are the tokens whose log odds are the score.
    """
    if list_kinds(folder) != _ASKED:
        return None
    kind, place = _list_modules(folder / MODULES)[1]
    _check_place(folder / MODULES, kind, place)
    return read_fields(folder / place / "config.json", COPY)


def list_kinds(folder: Path) -> list[str]:
    """The class of each module in `modules.json`, without its package; none without the file."""
    return [kind for kind, _ in list_places(folder)]


def list_places(folder: Path) -> list[tuple[str, str]]:
    """The class of each module in `modules.json`, and its place; none without the file.

    Raises:
        RagJaxError: the file is damaged, or a module lies outside its folder.
    """
    path = folder / MODULES
    found = _list_modules(path) if is_there(path) else []
    for kind, place in found:
        _check_place(path, kind, place)
    return [(kind.rpartition(".")[2], place) for kind, place in found]


def refuse_nested(folder: Path) -> None:
    """Raises a RagJaxError if `modules.json` has the encoder itself in a folder of its own.

    Older versions of sentence-transformers saved it in `0_Transformer`.
    """
    path = folder / MODULES
    for kind, place in _list_modules(path) if is_there(path) else []:
        if not kind.endswith("Transformer") or not isinstance(place, str) or not Path(place).parts:
            continue
        if is_there(folder / place / "config.json") or not is_there(folder / "config.json"):
            raise RagJaxError(
                f"{path} has the encoder in a folder of its own, {show(place)}: give a folder with "
                f"the files of {show(place)} beside {MODULES}, and there set this path to ''"
            )


def find_transformer(folder: Path) -> Path:
    """The settings of an encoder's module `Transformer`, by the first of their names there."""
    paths = [folder / name for name in TRANSFORMER_NAMES]
    return next(filter(is_there, paths), paths[0])


def read_layer(path: Path, name: str, *, reads: str) -> Dense:
    """The sizes of a dense layer, from its `config.json`.

    Args:
        name: of the layer's parameters in the encoder's tree.
        reads: what the layer must read and write: "sentence_embedding" or "token_embeddings".

    Raises:
        RagJaxError: the file is damaged or missing, or asks for what is not supported.
    """
    fields = read_fields(path, COPY)
    for end in ("input", "output"):
        fields.refuse_unless(f"module_{end}_name", reads)
    fields.refuse_unless("use_residual", False)
    activation = fields.raw.get("activation_function", "torch.nn.modules.activation.Tanh")
    short = activation.rpartition(".")[2] if isinstance(activation, str) else ""
    if short not in ACTIVATIONS or not activation.startswith("torch.nn."):
        raise RagJaxError(
            f"{path}: activation_function {show(activation)} is not supported; supported are "
            f"torch's {', '.join(ACTIVATIONS)}"
        )
    bias = fields.raw.get("bias", True)
    if not isinstance(bias, bool):
        raise RagJaxError(f"{path}: bias must be true or false")
    return Dense(name, fields.size("in_features"), fields.size("out_features"), bias, short)


def check_layers(layers: Sequence[Dense], places: Mapping[str, Path], *, width: int) -> None:
    """Raises a RagJaxError unless each layer reads as many features as it is given.

    Args:
        places: the folder of each layer, by its name.
        width: number of features that the first layer is given.
    """
    for layer in layers:
        if layer.inputs != width:
            raise RagJaxError(
                f"{places[layer.name] / 'config.json'}: in_features {layer.inputs}, but what is "
                f"before it gives {width}"
            )
        width = layer.outputs


def find_layer_weights(folder: Path) -> Path:
    """The file with a dense layer's weights; a RagJaxError if there is none."""
    path = folder / "model.safetensors"
    if not is_there(path):
        raise RagJaxError(f"{path} is missing{explain_pickled(folder) or f': {COPY}'}")
    return path


def read_dense(
    layers: Sequence[Dense],
    places: Mapping[str, Path],
    *,
    dtype: Any = None,
    mesh: Mesh | None = None,
) -> dict[str, dict[str, Array]]:
    """The parameters of dense layers by their names, kernels as `[inputs, outputs]`.

    Args:
        places: the folder of each layer, by its name.
        dtype: of the parameters, float32 by default.
        mesh: devices that have a copy each; None for one device.

    Raises:
        RagJaxError: a file is missing or damaged, a tensor has another shape, or a number is NaN
            or infinite.
    """
    params, dtype = {}, dtype or jnp.float32
    for layer in layers:
        path = find_layer_weights(places[layer.name])
        tensors, wanted = read_safetensors([path]), {"linear.weight": (layer.outputs, layer.inputs)}
        wanted |= {"linear.bias": (layer.outputs,)} if layer.bias else {}
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if shapes != wanted:
            raise RagJaxError(f"{path} has tensors {show(shapes)}, its config.json wants {wanted}")
        params[layer.name] = own = {}
        for name, tensor in tensors.items():
            if tensor.fault is not None:
                raise RagJaxError(f"{path}: {name} {tensor.fault}")
            array = tensor.read()
            check_finite(array, dtype, f"{path}: {name}")
            own["kernel" if array.ndim == 2 else "bias"] = _place(array.T, dtype, mesh)
    return params


def _place(array: np.ndarray, dtype: Any, mesh: Mesh | None) -> Array:
    if mesh is None:
        return jnp.asarray(array, dtype)
    return shard_array(array, NamedSharding(mesh, PartitionSpec()), dtype)
