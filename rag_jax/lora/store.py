"""Adapters on disk, one Orbax checkpoint per passage.

All adapters of a store are of one kind, described in a manifest: base model, settings, shapes.
Separate checkpoints let a reader load any subset, confine damage to one adapter, and let the store
grow. A checkpoint holds the adapter flattened to one array, because Orbax takes ten times as long
to read or write the many small arrays of an adapter.
"""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from rag_jax.models.io.tensors import check_finite
from rag_jax.runtime.checkpoint import is_whole, load_tree, save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, to_json, write_json
from rag_jax.runtime.hosts import is_first, wait_for_all
from rag_jax.runtime.outside import is_there, parsing

_MANIFEST, _FORMAT = "adapters.json", 1


class AdapterStore:
    """Folder of adapters, indexed by passage id."""

    def __init__(
        self, folder: str | os.PathLike, template: PyTree, *, base: str, settings: Mapping[str, Any]
    ):
        """Opens a store, or creates one.

        Args:
            template: one adapter, or its `jax.ShapeDtypeStruct`s, with a single dtype.
            base: fingerprint of the base model, see `Pretrained.fingerprint`.
            settings: all other settings that determine an adapter, such as rank, targets and
                training; JSON values by name.

        Raises:
            RagJaxError: the folder holds other adapters or files, or its manifest is damaged.
        """
        self._folder = Path(folder).absolute()
        self._template = template
        leaves = jax.tree_util.tree_leaves_with_path(template)
        self._shapes = {
            jax.tree_util.keystr(path, simple=True, separator="/"): list(leaf.shape)
            for path, leaf in leaves
        }
        (self._dtype,) = {leaf.dtype for _, leaf in leaves}
        kind = {
            "format": _FORMAT,
            "base": base,
            "settings": dict(settings),
            "dtype": self._dtype.name,
            "shapes": self._shapes,
        }
        kind = json.loads(to_json(kind))  # comparable with a manifest: JSON has no tuples
        self._check(kind)
        wait_for_all(f"{self._folder} was checked")
        if is_first() and not (self._folder / _MANIFEST).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / _MANIFEST, kind)

    def __contains__(self, passage: str) -> bool:
        """Whether the store has an adapter of the passage, intact or damaged."""
        return self._place(passage).exists()

    def is_whole(self, passage: str) -> bool:
        """Whether the store has an intact adapter of the passage, by its checksums."""
        return is_whole(self._place(passage))

    def save(self, passages: Sequence[str], bank: PyTree) -> None:
        """Saves the adapters `[len(passages), ...]` of passage ids; replaces those that exist.

        Raises:
            TypeError: `passages` is one string.
            ValueError: the bank does not hold `len(passages)` adapters of the store's shapes.
            OSError: with its errno, if the disk is full or not writable.
        """
        _check_passages(passages)
        count = len(passages)
        expected = jax.tree.map(lambda leaf: (count, *leaf.shape), self._template)
        if jax.tree.map(np.shape, bank) != expected:
            raise ValueError(f"bank: not {count} adapters of the store's kind")
        # Each leaf [count, ...] -> [count, size of the leaf], then one vector per adapter.
        leaves = [np.asarray(leaf).reshape(count, -1) for leaf in jax.tree.leaves(bank)]
        for passage, vector in zip(passages, np.concatenate(leaves, axis=1), strict=True):
            save_tree(self._place(passage), {"adapter": vector.astype(self._dtype)})

    def load(
        self, passages: Sequence[str], *, rows: int | None = None
    ) -> tuple[PyTree, dict[str, str]]:
        """Reads the adapters of passage ids.

        Args:
            rows: size of the bank, at least `len(passages)`, by default equal. A fixed size avoids
                recompilation.

        Returns:
            A bank with the passages' adapters in order, and the reasons for missing or damaged
            adapters by passage id. Rows of missing adapters and padding rows are zeros, which
            leave the model unchanged.

        Raises:
            TypeError: `passages` is one string.
        """
        _check_passages(passages)
        size = sum(map(math.prod, self._shapes.values()))
        abstract = {"adapter": jax.ShapeDtypeStruct((size,), self._dtype)}
        count = len(passages) if rows is None else rows
        vectors = np.zeros((count, size), self._dtype)
        lost = {}
        for row, passage in enumerate(passages):
            if passage not in self:
                lost[passage] = f"passage {passage!r} has no adapter in {self._folder}"
                continue
            try:
                vector = load_tree(self._place(passage), abstract)["adapter"]
                check_finite(np.asarray(vector), self._dtype, str(self._place(passage)))
                vectors[row] = vector
            except RagJaxError as error:
                lost[passage] = f"passage {passage!r}: its adapter is lost: {error}"
        leaves, start = [], 0
        for leaf in jax.tree.leaves(self._template):
            end = start + math.prod(leaf.shape)
            leaves.append(vectors[:, start:end].reshape(count, *leaf.shape))
            start = end
        return jax.device_put(jax.tree.unflatten(jax.tree.structure(self._template), leaves)), lost

    def count_bytes(self, passage: str) -> int:
        """Size of a passage's adapter on disk in bytes, 0 for a missing adapter."""
        files = (path for path in self._place(passage).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    def _place(self, passage: str) -> Path:
        # Hashed, because an id may contain any character, for instance "/".
        name = hashlib.sha256(passage.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / name[:2] / name[2:]

    def _check(self, kind: Mapping[str, Any]) -> None:
        """Raises a RagJaxError unless the folder is empty or has a manifest of this kind."""
        path = self._folder / _MANIFEST
        if not is_there(path):
            if self._folder.exists() and any(self._folder.iterdir()):
                raise RagJaxError(f"{self._folder} is no store of adapters: choose another folder")
            return
        damage = "is damaged", f"delete {self._folder} and train the adapters again"
        with parsing(path, *damage):
            manifest = dict(read_json(path, problem=damage[0], advice=damage[1]))
        for field, value in kind.items():
            stored = manifest.get(field)
            if stored != value:
                detail = ""
                if field == "settings" and isinstance(stored, dict):
                    equal = {name for name in value if stored.get(name) == value[name]}
                    detail = f" ({', '.join(sorted((stored.keys() | value.keys()) - equal))})"
                raise RagJaxError(
                    f"{self._folder} holds adapters of another {field}{detail}: choose another "
                    "folder, or delete this one and train the adapters again"
                )


def _check_passages(passages: Sequence[str]) -> None:
    if isinstance(passages, str):
        raise TypeError(f"passages={passages!r}: one string; give a list of ids")
