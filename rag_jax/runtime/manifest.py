"""The folder of a saved index: its files, and a manifest with the SHA-256 of every other file."""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, replace_folder, write_json
from rag_jax.runtime.outside import is_there, require_file, show

_MANIFEST, _FORMAT = "index.json", 2


def write_folder(
    folder: str | os.PathLike, manifest: Mapping[str, Any], write: Callable[[Path], None]
) -> None:
    """Writes an index as a folder, atomically, and replaces an older index.

    Args:
        manifest: description of the index that is needed before its files are read, with a key
            `backend`.
        write: writes the files of the index into the folder that is its argument.

    Raises:
        RagJaxError: the folder holds something other than an index.
    """
    folder = Path(folder)
    is_empty = folder.is_dir() and not any(folder.iterdir())
    if folder.exists() and not is_empty and not (folder / _MANIFEST).is_file():
        raise RagJaxError(f"{folder} exists and is not an index: save into another folder")
    with replace_folder(folder) as temporary:
        write(temporary)
        files = {path.name: hash_file(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / _MANIFEST, {"format": _FORMAT, **manifest, "sha256": files})


def read_manifest(
    folder: Path, kinds: Mapping[str, type], backends: Collection[str]
) -> dict[str, Any]:
    """Reads the manifest of an index that `write_folder` wrote.

    Args:
        kinds: types of the manifest's fields, `backend` excluded.
        backends: the backends that the caller can read.

    Raises:
        RagJaxError: the folder holds no index, a damaged index or an index of another kind.
    """
    path = folder / _MANIFEST
    if not is_there(path):
        raise RagJaxError(f"{path} is missing: build the index first")
    manifest = read_json(path, problem="is damaged", advice="build the index again")
    if not isinstance(manifest, dict) or not _has_kinds(manifest, {"format": int, "backend": str}):
        raise RagJaxError(f"{path} is damaged: build the index again")
    if manifest["format"] != _FORMAT or manifest["backend"] not in backends:
        raise RagJaxError(
            f"{path} has format {show(manifest['format'])} and backend "
            f"{show(manifest['backend'])}, which this version does not read here: build the index "
            "again"
        )
    hashes = manifest.get("sha256")
    is_listed = isinstance(hashes, dict) and all(isinstance(h, str) for h in hashes.values())
    if not _has_kinds(manifest, kinds) or not is_listed:
        raise RagJaxError(f"{path} is damaged: build the index again")
    return manifest


def check_encoder(folder: Path, manifest: Mapping[str, Any], encoder: str) -> None:
    """Raises a RagJaxError if the manifest's encoder is not the queries', by its fingerprint."""
    if manifest["encoder"] != encoder:
        raise RagJaxError(
            f"{folder} was made by encoder {manifest['encoder'][:16]}, not {encoder[:16]}: "
            "build the index again with the encoder in use"
        )


def check_files(
    folder: Path,
    listed: Mapping[str, str],
    known: Collection[str],
    *,
    largest_array: int | None = None,
) -> None:
    """Compares the files of an index with the manifest and with the files its backend may write.

    Args:
        listed: SHA-256 by file name, from the manifest's `sha256`.
        known: names of the files that the backend may write.
        largest_array: the most bytes that a `.npy` file may have, which is looked at before it is
            read; None for any number.

    Raises:
        RagJaxError: a file is missing, unexpected, too large or altered.
    """
    present = {path.name for path in folder.iterdir()} - {_MANIFEST}
    for name in sorted((present | set(listed)) - (set(known) & set(listed))):
        raise RagJaxError(
            f"{folder / name} is not part of an index: delete it or build the index again"
        )
    for name, expected in sorted(listed.items()):
        if name not in present:
            raise RagJaxError(f"{folder / name} is missing: build the index again")
        if name.endswith(".npy") and largest_array is not None:
            require_file(folder / name, "build the index again", largest=largest_array)
        if hash_file(folder / name) != expected:
            raise RagJaxError(f"{folder / name} was altered or cut short: build the index again")


def hash_file(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; a RagJaxError for a named pipe or the like."""
    if is_there(path):
        require_file(path)
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_kinds(manifest: Mapping[str, Any], kinds: Mapping[str, type]) -> bool:
    # A bool is an int in Python, but no number of rows.
    found = {key: manifest.get(key) for key in kinds}
    return all(isinstance(found[k], kind) and found[k] is not True for k, kind in kinds.items())
