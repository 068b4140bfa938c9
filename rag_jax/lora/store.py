"""Adapters on disk, one for each passage, in Orbax's checkpoints.

All of a store's adapters are of one kind, which its manifest tells: base model, settings, sizes.
Each has a checkpoint of its own, so one is read without the others, a damaged one spoils no other,
and the store grows by saving. There an adapter is one array: as the many that it is made of, Orbax
takes ten times as long to read or write it.
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

from rag_jax.runtime.checkpoint import is_whole, load_tree, save_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, to_json, write_json
from rag_jax.runtime.hosts import is_first, wait_for_all

_MANIFEST, _FORMAT = "adapters.json", 1


class AdapterStore:
    """The adapters of a folder, by passage id."""

    def __init__(
        self,
        folder: str | os.PathLike,
        template: PyTree,
        *,
        base: str,
        settings: Mapping[str, Any],
    ):
        """Opens a store, or makes one.

        Args:
            folder: where it is, or will be.
            template: one adapter of its kind, or what `jax.eval_shape` tells of one.
            base: fingerprint of the base model, as in `Pretrained.fingerprint`.
            settings: what else an adapter depends on, such as rank, targets and training; JSON
                values under names.

        Raises:
            RagJaxError: the folder holds adapters of another kind, or something else.
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
        kind = json.loads(to_json(kind))  # as it will be read back
        self._check(kind)
        wait_for_all(f"{self._folder} was looked at")
        if is_first() and not (self._folder / _MANIFEST).exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(self._folder / _MANIFEST, kind)

    def __contains__(self, passage: str) -> bool:
        """Whether there is an adapter of that passage, whole or not."""
        return self._place(passage).exists()

    def is_whole(self, passage: str) -> bool:
        """Whether a passage's adapter is there as it was saved."""
        return is_whole(self._place(passage))

    def save(self, passages: Sequence[str], bank: PyTree) -> None:
        """Keeps adapters, each in place of what the store had for its passage.

        Args:
            passages: their ids, any text.
            bank: their adapters, arrays `[len(passages), ...]`.

        Raises:
            ValueError: the bank has another number of adapters or another kind of them.
            OSError: with its errno, if the disk is full or cannot be written.
        """
        count = len(passages)
        wanted = jax.tree.map(lambda leaf: (count, *leaf.shape), self._template)
        if jax.tree.map(np.shape, bank) != wanted:
            raise ValueError(f"bank: not {count} adapters of the store's kind")
        leaves = [np.asarray(leaf).reshape(count, -1) for leaf in jax.tree.leaves(bank)]
        for passage, vector in zip(passages, np.concatenate(leaves, axis=1), strict=True):
            save_tree(self._place(passage), {"adapter": vector.astype(self._dtype)})

    def load(
        self, passages: Sequence[str], *, rows: int | None = None
    ) -> tuple[PyTree, dict[str, str]]:
        """Reads adapters.

        Args:
            passages: their ids.
            rows: of the bank, at least one for each; more, so that banks are of one size.

        Returns:
            A bank with one row for each passage, and why some are lost, by id. The row of a lost
            one is of zeros, and so are those that fill it up: such an adapter changes nothing.
        """
        size = sum(map(math.prod, self._shapes.values()))
        described = {"adapter": jax.ShapeDtypeStruct((size,), self._dtype)}
        count = len(passages) if rows is None else rows
        vectors = np.zeros((count, size), self._dtype)
        lost = {}
        for row, passage in enumerate(passages):
            if passage not in self:
                lost[passage] = f"passage {passage!r} has no adapter in {self._folder}"
                continue
            try:
                vectors[row] = load_tree(self._place(passage), described)["adapter"]
            except RagJaxError as error:
                lost[passage] = f"passage {passage!r}: its adapter is lost: {error}"
        leaves, start = [], 0
        for leaf in jax.tree.leaves(self._template):
            end = start + math.prod(leaf.shape)
            leaves.append(vectors[:, start:end].reshape(count, *leaf.shape))
            start = end
        return jax.device_put(jax.tree.unflatten(jax.tree.structure(self._template), leaves)), lost

    def count_bytes(self, passage: str) -> int:
        """What a passage's adapter takes on disk."""
        files = (path for path in self._place(passage).rglob("*") if path.is_file())
        return sum(path.stat().st_size for path in files)

    def _place(self, passage: str) -> Path:
        # A hash: an id may have any characters, those of other folders' paths among them.
        name = hashlib.sha256(passage.encode("utf-8", "surrogatepass")).hexdigest()
        return self._folder / name[:2] / name[2:]

    def _check(self, kind: Mapping[str, Any]) -> None:
        """Raises unless the folder is empty or has a manifest that tells of this kind."""
        path = self._folder / _MANIFEST
        if not path.exists():
            if self._folder.exists() and any(self._folder.iterdir()):
                raise RagJaxError(f"{self._folder} is no store of adapters: choose another folder")
            return
        try:
            found = dict(read_json(path))
        except (OSError, ValueError, TypeError):
            raise RagJaxError(f"{path} is damaged: train the adapters again") from None
        for field, value in kind.items():
            if found.get(field) != value:
                detail = ""
                if field == "settings" and isinstance(found.get(field), dict):
                    names = (found[field].keys() | value.keys()) - {
                        name for name in value if found[field].get(name) == value[name]
                    }
                    detail = f" ({', '.join(sorted(names))})"
                raise RagJaxError(
                    f"{self._folder} holds adapters of another {field}{detail}: choose another "
                    "folder, or train them again"
                )
