"""The folder an index is kept in: a manifest with the SHA-256 of every other file, no pickle."""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, replace_folder, write_json

_MANIFEST, _FORMAT = "index.json", 2


def write_folder(
    folder: str | os.PathLike, manifest: Mapping[str, Any], write: Callable[[Path], None]
) -> None:
    """Writes an index into a folder of its own, whole or not at all.

    An index already there is replaced.

    Args:
        manifest: what to know of the index before its files are read, `backend` among it.
        write: writes the files into the folder it is given.

    Raises:
        RagJaxError: there is something else in the folder.
    """
    folder = Path(folder)
    _check_replaceable(folder)
    with replace_folder(folder) as new:
        write(new)
        files = {path.name: hash_file(path) for path in sorted(new.iterdir())}
        write_json(new / _MANIFEST, {"format": _FORMAT, **manifest, "sha256": files})


def read_manifest(
    folder: Path, kinds: Mapping[str, type], backends: Collection[str]
) -> dict[str, Any]:
    """The manifest of an index that `write_folder` wrote.

    Args:
        kinds: its fields beside `backend`, with their types.
        backends: those the caller reads.

    Raises:
        RagJaxError: no index there, a damaged manifest, or another format or backend.
    """
    path = folder / _MANIFEST
    try:
        manifest = read_json(path)
    except OSError:
        raise RagJaxError(f"{path} is missing: build the index first") from None
    except ValueError:
        raise RagJaxError(f"{path} is damaged: build the index again") from None
    if not isinstance(manifest, dict) or not _has_kinds(manifest, {"format": int, "backend": str}):
        raise RagJaxError(f"{path} is damaged: build the index again")
    if manifest["format"] != _FORMAT or manifest["backend"] not in backends:
        raise RagJaxError(
            f"{path} has format {manifest['format']} and backend {manifest['backend']!r}, which "
            "this version does not read here: build the index again"
        )
    if not _has_kinds(manifest, {**kinds, "sha256": dict}):
        raise RagJaxError(f"{path} is damaged: build the index again")
    return manifest


def check_files(folder: Path, listed: Mapping[str, str], known: Collection[str]) -> None:
    """Compares a folder with its manifest, and both with what its backend writes.

    Args:
        listed: the manifest's `sha256`.
        known: names of the files that the backend may write.

    Raises:
        RagJaxError: a missing, additional or altered file.
    """
    present = {path.name for path in folder.iterdir()} - {_MANIFEST}
    for name in sorted((present | set(listed)) - (set(known) & set(listed))):
        raise RagJaxError(f"{folder / name} is no part of an index: remove it or build it again")
    for name, expected in sorted(listed.items()):
        if name not in present:
            raise RagJaxError(f"{folder / name} is missing: build the index again")
        if hash_file(folder / name) != expected:
            raise RagJaxError(f"{folder / name} was altered or cut short: build the index again")


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _has_kinds(manifest: Mapping[str, Any], kinds: Mapping[str, type]) -> bool:
    return all(isinstance(manifest.get(key), kind) for key, kind in kinds.items())


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir():
        taken = any(folder.iterdir()) and not (folder / _MANIFEST).is_file()
    else:
        taken = folder.exists()
    if taken:
        raise RagJaxError(f"{folder} exists and is no index: save into another folder")
