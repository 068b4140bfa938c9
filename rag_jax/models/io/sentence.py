"""The files that sentence-transformers keeps beside an encoder: what an embedding of a text is."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
from safetensors.numpy import save_file

from rag_jax.models.io.fields import Fields, read_fields
from rag_jax.models.io.modules import (
    COPY,
    MODULES,
    PROMPTS,
    TRANSFORMER,
    check_layers,
    find_layer_weights,
    find_transformer,
    read_layer,
    read_modules,
    stands_alone,
)
from rag_jax.models.nn.pooling import ACTIVATIONS, MEAN, Dense, Mode, Pooling
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import write_json
from rag_jax.runtime.outside import is_there, show

# The folders that `write_sentence` makes.
FOLDERS = ("1_Pooling", "[2-9]_Dense", "[2-9]_Normalize")
_POOLING = "1_Pooling"
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_SIMILARITIES = ("cosine", "dot", "dot_score")
# What sentence-transformers passes to transformers, by its older and newer names.
_PASSED = (
    "model_args",
    "model_kwargs",
    "tokenizer_args",
    "processor_kwargs",
    "config_args",
    "config_kwargs",
    "processing_kwargs",
)
# Where sentence-transformers looks for the prompt of a role, in this order.
_ROLES = {"query": ("query",), "document": ("document", "passage", "corpus")}


@dataclass(frozen=True)
class Sentence:
    """What an encoder reads: a text's prompt and case.

    Attributes:
        prompts: by name, what is put before a text; empty ones are left out, unless they go before
            another of their role.
        default_prompt: name of the prompt of texts without a role; None for no prompt.
        lower_case: whether texts are put in lower case before they are tokenised.
        max_length: maximum number of tokens that the authors give it; None if they do not say.
        similarity: by which embeddings are compared: "cosine" or "dot"; for token embeddings
            "maxsim" or "meanmaxsim".
    """

    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    lower_case: bool = False
    max_length: int | None = None
    similarity: str = "cosine"

    def find_prompt(self, role: str | None) -> str:
        """The prompt of a role: "query", "document", or None for the default; "" for no prompt.

        Raises:
            RagJaxError: there is no such role.
        """
        if role is None:
            return self.prompts.get(self.default_prompt or "", "")
        if role not in _ROLES:
            raise RagJaxError(f"role={role!r}: must be 'query' or 'document'")
        return next((self.prompts[name] for name in _ROLES[role] if name in self.prompts), "")


@dataclass(frozen=True)
class SentenceFolder:
    """The settings in an encoder's folder.

    Attributes:
        dense: the folder of each dense layer, by its name.
    """

    pooling: Pooling
    sentence: Sentence
    dense: Mapping[str, Path]


def read_sentence(folder: Path) -> SentenceFolder | None:
    """The settings in an encoder's folder; None if there are none.

    Embeddings that the folder compares by cosines, as by default, are scaled to length 1, whether
    or not it has a module that does.

    Raises:
        RagJaxError: a file is damaged or missing, or asks for what is not supported.
    """
    names = (MODULES, _POOLING, PROMPTS)
    if not any(is_there(folder / name) for name in names):
        return None
    if is_there(folder / MODULES):
        modules = read_modules(folder / MODULES, "dense")
        kinds = [kind for kind, _ in modules]
        if kinds[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & {*kinds[2:]}:
            raise RagJaxError(
                f"{folder / MODULES} has no module Pooling after its Transformer: no embeddings"
            )
        pooling, dense = _read_pooling(modules)
    elif is_there(folder / _POOLING / "config.json"):
        pooling, dense = Pooling(*_read_modes(folder / _POOLING / "config.json")), {}
    else:
        pooling, dense = MEAN, {}
    transformer = find_transformer(folder)
    if is_there(transformer):
        fields = read_fields(transformer)
        for name in ("query_length", "document_length", "query_expansion"):
            fields.refuse_unless(name, False)
    sentence = read_text_settings(folder, *_SIMILARITIES)
    if sentence.similarity == "cosine" and not pooling.normalized:
        # Indices compare by dot products, which of vectors of length 1 are cosines.
        pooling = replace(pooling, steps=(*pooling.steps, "normalize"))
    return SentenceFolder(pooling, sentence, dense)


def describe_sentence(folder: Path, sum_file: Callable[[Path], str]) -> str:
    """What a fingerprint has of the settings; empty if embeddings are as without the files.

    Args:
        sum_file: the checksum of a dense layer's weights.

    Raises:
        RagJaxError: as `read_sentence`, or a file of a dense layer is missing.
    """
    found = None if stands_alone(folder) else read_sentence(folder)
    if found is None:
        return ""
    texts = found.sentence
    own = found.pooling, dict(texts.prompts), texts.default_prompt, texts.lower_case
    if own == (MEAN, {}, None, False):
        return ""
    weights = [sum_file(find_layer_weights(place)) for place in found.dense.values()]
    return repr((*own, weights))


def write_sentence(
    folder: Path, pooling: Pooling, sentence: Sentence, params: Mapping, *, width: int
) -> None:
    """Writes the files that `read_sentence` and sentence-transformers read.

    Args:
        params: the encoder's parameters, with those of the dense layers.
        width: number of features of a token's state.
    """
    modules = [("Transformer", ""), ("Pooling", _POOLING)]
    modules += [
        (kind, f"{number}_{kind}")
        for number, step in enumerate(pooling.steps, 2)
        for kind in ["Dense" if isinstance(step, Dense) else "Normalize"]
    ]
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(modules)
    ]
    write_json(folder / MODULES, entries)
    for _, path in modules[1:]:
        (folder / path).mkdir()
    modes = {name: mode in pooling.modes for name, mode in _MODES.items()}
    written = {"word_embedding_dimension": width, **modes}
    written["include_prompt"] = pooling.include_prompt
    write_json(folder / _POOLING / "config.json", written)
    for (_, path), step in zip(modules[2:], pooling.steps, strict=True):
        if isinstance(step, Dense):
            _write_dense(folder / path, step, params[step.name])
    texts = {
        "prompts": dict(sentence.prompts),
        "default_prompt_name": sentence.default_prompt,
        "similarity_fn_name": sentence.similarity,
    }
    write_json(folder / PROMPTS, texts)
    length = {} if sentence.max_length is None else {"max_seq_length": sentence.max_length}
    write_json(folder / TRANSFORMER, {**length, "do_lower_case": sentence.lower_case})


def _write_dense(folder: Path, layer: Dense, params: Mapping[str, Any]) -> None:
    activation = f"torch.nn.modules.{_TORCH[layer.activation]}.{layer.activation}"
    sizes = {"in_features": layer.inputs, "out_features": layer.outputs, "bias": layer.bias}
    write_json(folder / "config.json", {**sizes, "activation_function": activation})
    tensors = {"linear.weight": np.ascontiguousarray(np.asarray(params["kernel"]).T)}
    tensors |= {"linear.bias": np.asarray(params["bias"])} if layer.bias else {}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


_TORCH = dict.fromkeys(ACTIVATIONS, "activation") | {"Identity": "linear"}


def _read_pooling(modules: list[tuple[str, Path]]) -> tuple[Pooling, dict[str, Path]]:
    """The pooling, and the folders of its dense layers by their names."""
    modes, include_prompt = _read_modes(modules[1][1] / "config.json")
    steps, places = [], {}
    for kind, place in modules[2:]:
        if kind == "Normalize":
            steps.append("normalize")
        elif kind == "Dense":
            name = f"dense_{len(places)}"
            steps.append(read_layer(place / "config.json", name, reads="sentence_embedding"))
            places[name] = place
    pooling = Pooling(modes, include_prompt, tuple(steps))
    for before, after in itertools.pairwise(pooling.dense):
        check_layers([after], places, width=before.outputs)
    return pooling, places


def _read_modes(path: Path) -> tuple[tuple[Mode, ...], bool]:
    """What is taken of the tokens' states, and whether a prompt's tokens count."""
    fields = read_fields(path, COPY)
    named = fields.raw.get("pooling_mode")
    if named is None:
        # Without any mode the mean is taken, as in sentence-transformers.
        on = [mode for name, mode in _MODES.items() if fields.raw.get(name) is True]
        turned_off = fields.raw.get("pooling_mode_mean_tokens") is False
        named = on or ([] if turned_off else ["mean"])
    modes = tuple(named) if isinstance(named, list) else (named,)
    if unknown := [mode for mode in modes if mode not in get_args(Mode)]:
        names = ", ".join(get_args(Mode))
        raise RagJaxError(f"{path}: pooling_mode {show(unknown[0])} is none of {names}")
    if not modes or len({*modes}) < len(modes):
        raise RagJaxError(f"{path}: pooling_mode {show(modes)} must name each mode once")
    include_prompt = fields.raw.get("include_prompt", True)
    if not isinstance(include_prompt, bool):
        raise RagJaxError(f"{path}: include_prompt must be true or false")
    return modes, include_prompt


def read_text_settings(folder: Path, *similarities: str) -> Sentence:
    """What an encoder reads, by the files in its folder.

    Args:
        similarities: names of the similarities that the encoder may have, the default first.

    Raises:
        RagJaxError: a file is damaged, or asks for what is not supported.
    """
    path, prompts, default, similarity = folder / PROMPTS, {}, None, similarities[0]
    if is_there(path):
        fields = read_fields(path)
        prompts = _read_prompts(fields)
        default = fields.raw.get("default_prompt_name")
        if default is not None and default not in fields.section("prompts"):
            names = ", ".join(prompts) or "none"
            raise RagJaxError(f"{path}: default_prompt_name {show(default)}: there is {names}")
        if fields.raw.get("truncate_dim") is not None:
            raise RagJaxError(
                f"{fields.place('truncate_dim')} is not followed: remove it, and give as many "
                "`dimensions` instead"
            )
        fields.refuse_unless("similarity_fn_name", *similarities)
        similarity = (fields.raw.get("similarity_fn_name") or similarity).removesuffix("_score")
    transformer, lower_case, length = find_transformer(folder), False, None
    if is_there(transformer):
        fields = read_fields(transformer)
        for name in _PASSED:  # without trust_remote_code, which counts in no file
            fields.refuse_unless(name, {}, {"trust_remote_code": True})
        if "message" in fields.section("modality_config"):
            raise RagJaxError(
                f"{transformer}: modality_config has 'message', with which texts are read by the "
                "chat template, and this is not supported"
            )
        lower_case = fields.raw.get("do_lower_case") is True
        if fields.raw.get("max_seq_length") is not None:
            length = fields.size("max_seq_length")
    return Sentence(prompts, default, lower_case, length, similarity)


def _read_prompts(fields: Fields) -> dict[str, str]:
    prompts = fields.section("prompts")
    if wrong := [name for name, prompt in prompts.items() if not isinstance(prompt, str | None)]:
        raise RagJaxError(f"{fields.source}: prompt {show(wrong[0])} must be a text")
    texts = {name: prompt for name, prompt in prompts.items() if prompt}
    documents = [name for name in _ROLES["document"] if prompts.get(name) is not None]
    if any(name in texts for name in documents[1:]):
        texts[documents[0]] = prompts[documents[0]]
    return texts
