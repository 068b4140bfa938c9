"""The settings of a sentence encoder: the files that sentence-transformers keeps beside a model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rag_jax.models.io.fields import read_fields
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.outside import is_there, parsing, show

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
_PACKAGE = "sentence_transformers."
_MODES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}


@dataclass(frozen=True)
class SentenceSettings:
    """How an encoder's authors make an embedding of a text.

    Attributes:
        source: the file that says so.
        pooling: what is taken of the tokens' states: "mean", "cls", ...; several joined by "+".
        normalized: whether embeddings are scaled to length 1; None if the files do not say.
        prompts: by name, what is put before a text; empty prompts are left out.
        lower_case: whether texts are put in lower case before they are tokenised.
    """

    source: str
    pooling: str
    normalized: bool | None
    prompts: Mapping[str, str]
    lower_case: bool


def read_sentence_settings(folder: Path) -> SentenceSettings | None:
    """The settings in an encoder's folder; None if there are none.

    Raises:
        RagJaxError: a file is damaged or missing, or the model has a module after its pooling that
            is not supported.
    """
    modules = _read_modules(folder / MODULES) if is_there(folder / MODULES) else None
    pooling = folder / (modules or {}).get("Pooling", "1_Pooling") / "config.json"
    if modules is None and not is_there(pooling) and not is_there(folder / PROMPTS):
        return None
    if modules is not None and "Pooling" not in modules:
        raise RagJaxError(f"{folder / MODULES} has no module Pooling: it makes no embeddings")
    transformer = folder / "sentence_bert_config.json"
    lower_case = is_there(transformer) and read_fields(transformer).raw.get("do_lower_case") is True
    return SentenceSettings(
        source=str(folder / MODULES if modules is not None else pooling),
        pooling=_read_pooling(pooling) if modules is not None or is_there(pooling) else "mean",
        normalized=None if modules is None else "Normalize" in modules,
        prompts=_read_prompts(folder / PROMPTS) if is_there(folder / PROMPTS) else {},
        lower_case=lower_case,
    )


def _read_modules(path: Path) -> dict[str, str]:
    """The folder of each module by its class, in the order of `modules.json`."""
    problem = "is no list of modules"
    with parsing(path, problem):
        found = [(entry["type"], entry["path"]) for entry in read_json(path, problem=problem)]
        modules = {kind.rpartition(".")[2]: folder for kind, folder in found}
    for kind, place in found:
        if not isinstance(place, str) or {"..", "/"} & {*Path(place).parts}:
            raise RagJaxError(f"{path}: module {kind} lies outside its folder: {show(place)}")
        known = {"Transformer", "Pooling", "Normalize", "Dropout"}
        if not kind.startswith(_PACKAGE) or kind.rpartition(".")[2] not in known:
            names = ", ".join(sorted(known))
            raise RagJaxError(f"{path}: module {kind} is not supported; supported are {names}")
    return modules


def _read_pooling(path: Path) -> str:
    fields = read_fields(path, "copy the encoder's file there")
    if isinstance(named := fields.raw.get("pooling_mode"), str):
        return named
    # The mean is what sentence-transformers adds to the modes unless the file turns it off.
    modes = {name: fields.raw.get(name) for name in _MODES}
    modes["pooling_mode_mean_tokens"] = fields.raw.get("pooling_mode_mean_tokens", True)
    return "+".join(_MODES[name] for name, on in modes.items() if on) or "none"


def _read_prompts(path: Path) -> dict[str, str]:
    prompts = read_fields(path).section("prompts")
    if wrong := [name for name, prompt in prompts.items() if not isinstance(prompt, str | None)]:
        raise RagJaxError(f"{path}: prompt {show(wrong[0])} must be a text")
    return {name: prompt for name, prompt in prompts.items() if prompt}
