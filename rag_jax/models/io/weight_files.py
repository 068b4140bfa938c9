"""Which file, or files, of a folder hold a model's weights."""

import re
from pathlib import Path

from rag_jax.models.io.fields import read_fields
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.outside import is_there, parsing, show

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_FILES = 10_000
_SHOWN = 3  # names in an error
_ADAPTER = "adapter_config.json"
_PART = re.compile(r"(.*)-(\d+)-of-(\d+)\.(gguf|safetensors)")


def find_weights(path: Path) -> list[Path]:
    """The weights at a path: the file itself, or those of a folder.

    In a folder, the weights are, as in transformers, the file that `transformers_weights` in
    `config.json` names, or else `model.safetensors`, or else all files of its index. Without these,
    they are the folder's only safetensors file, or else its only GGUF file.

    A GGUF file whose name says that it is a part stands for all parts.

    Raises:
        RagJaxError: there are no weights, several candidates, or a part or a file of the index is
            missing; or the path is a part of safetensors, or a LoRA adapter.
    """
    if path.is_file():
        return list_parts(path)
    if is_there(path / _ADAPTER):
        base = read_fields(path / _ADAPTER).raw.get("base_model_name_or_path") or "its base model"
        base = base if isinstance(base, str) else show(base)
        raise RagJaxError(
            f"{path} is the folder of an adapter: load {base}, then the adapter with "
            f"rag_jax.lora.load_peft; if the folder holds a whole model, remove {_ADAPTER} from it"
        )
    name = _read_name(path / "config.json")
    names = [name] if name else [_WHOLE, _INDEX]
    found = next((path / name for name in names if is_there(path / name)), None)
    if name and found is None:
        raise RagJaxError(f"{path} lacks {name}, which config.json names as its weights")
    if found is not None:
        return _find_indexed_files(found) if found.suffix == ".json" else [found]
    return _find_only(path)


def list_parts(path: Path) -> list[Path]:
    """The files of a GGUF model that one of its parts belongs to, in order; or the file itself.

    Raises:
        RagJaxError: a part is missing, or the file is a part of safetensors.
    """
    match = _PART.fullmatch(path.name)
    if match is None or int(match[3]) < 2:
        return [path]
    if match[4] == "safetensors":
        _refuse_part(path, match)
    count = int(match[3])
    if count > _MOST_FILES:
        raise RagJaxError(f"{path} is one of {count:,} parts, the limit is {_MOST_FILES:,}")
    number, digits = len(match[2]), match[3]
    names = [f"{match[1]}-{i + 1:0{number}d}-of-{digits}.gguf" for i in range(count)]
    paths = [path.parent / name for name in names]
    if missing := [part.name for part in paths if not is_there(part)]:
        shown = ", ".join(missing[:_SHOWN]) + ", ..." * (len(missing) > _SHOWN)
        raise RagJaxError(f"{path.parent} lacks {shown}: copy all {count} parts of the model there")
    return paths


def _find_only(folder: Path) -> list[Path]:
    for pattern in ("*.safetensors", "*.gguf"):
        files = sorted(folder.glob(pattern))
        if len(files) > 1:
            matches = [_PART.fullmatch(path.name) for path in files]
            if all(matches) and len({(match[1], match[3]) for match in matches}) == 1:
                return list_parts(files[0])
            names = ", ".join(path.name for path in files)
            raise RagJaxError(
                f"{folder} contains several weight files ({names}): keep one, or give its path"
            )
        if files:
            return list_parts(files[0])
    raise RagJaxError(f"no .safetensors or .gguf weights in {folder}{explain_pickled(folder)}")


def explain_pickled(folder: Path) -> str:
    """What an error about a folder without weights adds if it has pickled ones; else nothing."""
    if any(folder.glob("*.bin")):
        return "; pickled .bin weights are not supported: save the model as safetensors"
    return ""


def _refuse_part(path: Path, match: re.Match) -> None:
    """Raises a RagJaxError about a part of safetensors, which an index belongs to."""
    advice = f"copy {_INDEX} and all parts into {path.parent}, and give the folder"
    if (path.parent / _INDEX).exists():
        advice = f"give the folder {path.parent}"
    raise RagJaxError(
        f"{path} is part {int(match[2])} of {int(match[3])} of a model's weights: {advice}"
    )


def _read_name(path: Path) -> str | None:
    """The file of weights that a `config.json` names."""
    name = read_fields(path).raw.get("transformers_weights") if is_there(path) else None
    if name is not None and (
        not isinstance(name, str)
        or Path(name).name != name
        or not name.endswith((".safetensors", ".safetensors.index.json"))
    ):
        raise RagJaxError(
            f"{path}: transformers_weights {show(name)} is no .safetensors file of the folder and "
            "no index of such files"
        )
    return name


def _find_indexed_files(index: Path) -> list[Path]:
    """The weight files that an index names."""
    problem = "is not an index of weight files"
    with parsing(index, problem):
        names = sorted(set(read_json(index, problem=problem)["weight_map"].values()))
        if not names:
            raise ValueError("it names none")
        if len(names) > _MOST_FILES:
            raise ValueError(f"it names {len(names):,} files, the limit is {_MOST_FILES:,}")
        if any(Path(name).name != name for name in names):
            raise RagJaxError(f"{index} names weight files outside its folder")
        missing = [name for name in names if not is_there(index.parent / name)]
    if missing:
        raise RagJaxError(
            f"{index.parent} lacks {', '.join(missing)}: copy the missing weight files there"
        )
    return [index.parent / name for name in names]
