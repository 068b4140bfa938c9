"""Datasets that Hugging Face's `datasets` saved as Arrow, by `save_to_disk`: rows as records.

A saved `Dataset` is a folder with `state.json`, which lists its Arrow files, and
`dataset_info.json`, which has the names of classes. A saved `DatasetDict` is a folder with
`dataset_dict.json` and a folder for each split. A row is a record as a line of JSON would be, with
the names of classes for their numbers, as datasets have them in other formats.

Arrow is read with pyarrow and not with `datasets`: this takes no package but pyarrow, a batch of
rows at a time, leaves no cache files in the folder, and nothing in a folder names code to run.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.formats.lines import BadLines, Place
from rag_jax.data.formats.splits import find_named_split, find_split
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.outside import parsing, require_file, show

_STATE, _INFO, _SPLITS = "state.json", "dataset_info.json", "dataset_dict.json"
_END = b"\xff\xff\xff\xff\0\0\0\0"  # of a stream in Arrow's format
_MIXED = "Json"  # the type of a column
_AGAIN = "write the folder again with `save_to_disk`"


def list_datasets(folder: Path) -> list[Path]:
    """Returns the folders of the datasets that a folder is or contains, one for each split.

    Raises:
        RagJaxError: if a split is missing.
    """
    found = list_splits(folder)
    if not found and folder.is_dir():
        inner = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        found = [split for path in inner for split in list_splits(path)]
    return found


def list_splits(folder: Path) -> list[Path]:
    """Returns a folder that is a saved dataset, or the folder's splits if it is a `DatasetDict`.

    Raises:
        RagJaxError: if a split is missing.
    """
    if is_dataset(folder):
        return [folder]
    path = folder / _SPLITS
    if not path.is_file():
        return []
    listed = read_json(path, advice=_AGAIN)
    names = listed.get("splits") if isinstance(listed, dict) else None
    if not isinstance(names, list) or not all(map(_is_name, names)):
        raise RagJaxError(f"{path}: must have a list 'splits' of the splits' names: {_AGAIN}")
    for name in names:
        if not (folder / name).is_dir():
            raise RagJaxError(f"{path}: the split {name!r} has no folder: {_AGAIN}")
    return [folder / name for name in names]


def is_dataset(folder: Path) -> bool:
    """Returns whether a folder is a saved `Dataset`, complete or not."""
    if not folder.is_dir():
        return False
    if any(folder.glob("*.arrow")):
        return True
    state = folder / _STATE
    if not state.is_file():
        return False
    found = read_json(state, advice=_AGAIN)
    return isinstance(found, dict) and "_data_files" in found


def list_files(folder: Path) -> list[Path]:
    """Returns the files that the datasets of `list_datasets` consist of.

    Raises:
        RagJaxError: if one of the files is missing or damaged.
    """
    files: list[Path] = []
    for dataset in list_datasets(folder):
        _find_classes(dataset)
        files += [dataset / _STATE, dataset / _INFO, *_list_arrow(dataset)]
        if (splits := dataset.parent / _SPLITS).is_file():
            files.append(splits)
    return list(dict.fromkeys(files))


def list_sources(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Returns what holds records in a folder: those of its files that lie in it, and its datasets.

    Args:
        files: data files, with those of `list_files` among them.
    """
    parts = set(list_files(folder))
    direct = (path for path in files if path.parent == folder and path not in parts)
    return sorted([*direct, *list_datasets(folder)])


def find_dataset_split(dataset: Path) -> str:
    """Returns the split of a saved dataset's questions.

    The name of the folder tells the split, as the name of a file does. Where it does not, a
    `Dataset` may know its split. A part that `train_test_split` made has the split of the whole.

    Raises:
        RagJaxError: if a split of a `DatasetDict` is neither train nor dev nor test.
    """
    if (dataset.parent / _SPLITS).is_file():
        if found := find_named_split(dataset):
            return found
        raise RagJaxError(
            f"{dataset}: the split {dataset.name!r} of questions is unknown: rename it to train, "
            "validation or test, or leave it out"
        )
    known = _read_object(dataset, _STATE).get("_split")
    known = known if isinstance(known, str) and _is_name(known) else dataset.name
    return find_named_split(dataset) or find_split(dataset / known)


def read_rows(dataset: Path, bad: BadLines) -> Iterator[tuple[Place, dict[str, Any]]]:
    """Yields the rows of a saved dataset, numbered from 1 over all files, a batch in memory.

    Raises:
        RagJaxError: if a file is missing, damaged or cut short, or pyarrow is missing.
    """
    del bad  # a damaged file has no rows to skip
    classes, mixed = _find_classes(dataset), _find_mixed(dataset)
    number = 0
    for path in _list_arrow(dataset):
        for row in _read_arrow(path):
            number += 1
            for name, names in classes.items():
                row[name] = _name_class(row.get(name), names)
            with parsing(path, "is damaged", _AGAIN):
                for name, feature in mixed.items():
                    row[name] = _parse_mixed(feature, row.get(name))
            yield Place(dataset, number, number), row


def _read_arrow(path: Path) -> Iterator[dict[str, Any]]:
    try:
        import pyarrow  # few runs need the package
    except ImportError:
        raise RagJaxError(f"{path}: is Arrow: pip install 'rag_jax[datasets]'") from None
    problem, advice = "is damaged or cut short", f"{_AGAIN}, or copy it again"
    with open(path, "rb") as file:
        with parsing(path, problem, advice):
            file.seek(-len(_END), 2)
            if file.read() != _END:  # a stream without its end would only have fewer rows
                raise ValueError("the end of the stream is missing")
            file.seek(0)
            batches = pyarrow.ipc.open_stream(file)
        while True:
            with parsing(path, problem, advice):
                try:
                    batch = batches.read_next_batch()
                except StopIteration:
                    return
                batch.validate(full=True)  # of damaged offsets a process would die
                rows = batch.to_pylist()
            yield from rows


def _list_arrow(dataset: Path) -> list[Path]:
    """Returns the Arrow files of a dataset in their order.

    `datasets` puts files of its own beside them, which hold the results of functions.
    """
    state = _read_object(dataset, _STATE)
    if state.get("_indices_data_files"):
        raise RagJaxError(f"{dataset / _STATE}: the rows are chosen by an index: {_AGAIN}")
    listed = state.get("_data_files")
    entries = listed if isinstance(listed, list) else [None]
    names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    for name in names:
        if not _is_name(name):
            raise RagJaxError(f"{dataset / _STATE}: {show(name)} is no file's name: {_AGAIN}")
        require_file(dataset / name, _AGAIN)
    return [dataset / name for name in names]


def _find_classes(dataset: Path) -> dict[str, list[str]]:
    """Returns the names of the classes of each column that has numbers of classes."""
    features = _read_object(dataset, _INFO).get("features")
    found = {}
    for name, feature in features.items() if isinstance(features, dict) else ():
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":
            names = feature.get("names")
            if isinstance(names, list) and all(isinstance(label, str) for label in names):
                found[name] = names
    return found


def _find_mixed(dataset: Path) -> dict[str, Any]:
    """Returns the types of the columns with JSON, as which values of mixed types are kept."""
    features = _read_object(dataset, _INFO).get("features")
    features = features if isinstance(features, dict) else {}
    return {name: own for name, own in features.items() if f'"{_MIXED}"' in json.dumps(own)}


def _parse_mixed(feature: Any, value: Any) -> Any:
    """Returns a value with the texts that are JSON by its type, or in it, as what they stand for.

    Raises:
        ValueError: if such a text is not JSON.
    """
    of = feature if isinstance(feature, dict) else {}
    if of.get("_type") == _MIXED and isinstance(value, str):
        return json.loads(value)
    if isinstance(value, list):
        return [_parse_mixed(of.get("feature"), one) for one in value]
    if isinstance(value, dict):
        return {name: _parse_mixed(of.get(name), one) for name, one in value.items()}
    return value


def _name_class(value: Any, names: list[str]) -> Any:
    is_number = type(value) is int and 0 <= value < len(names)
    return names[value] if is_number else None  # -1 is an unknown class


def _read_object(dataset: Path, name: str) -> Mapping[str, Any]:
    path = dataset / name
    if not path.exists():
        arrow = next(iter(sorted(dataset.glob("*.arrow"))), dataset)
        raise RagJaxError(
            f"{arrow}: looks like data, but {name} is missing beside it: {_AGAIN}, or move it away"
        )
    found = read_json(path, advice=_AGAIN)
    if not isinstance(found, dict):
        raise RagJaxError(f"{path}: must be an object, not {show(found)}: {_AGAIN}")
    return found


def _is_name(name: Any) -> bool:
    """Returns whether a value can be the name of a file in a folder."""
    if not isinstance(name, str) or not name.isprintable() or name in ("", ".", ".."):
        return False
    return not {"/", "\\"} & {*name} and len(name.encode()) < 256
