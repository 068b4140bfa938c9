"""Search for the embeddings with the largest dot products, exact on the device or by ScaNN."""

import dataclasses
import hashlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.errors import RagJaxError
from rag_jax.files import read_json, write_json
from rag_jax.retrieval.searchers import (
    build_scann,
    load_scann,
    place_exact,
    search_exact,
    search_scann,
)

# Queries whose rows are gathered together when scores are computed: bounds the memory.
_SCORED_TOGETHER = 64

_MANIFEST, _EMBEDDINGS, _FORMAT = "index.json", "dataset.npy", 1
_FILES = {
    "exact": {_EMBEDDINGS},
    "scann": {
        _EMBEDDINGS,
        "scann_assets.pbtxt",
        "scann_config.pb",
        "ah_codebook.pb",
        "hashed_dataset.npy",
        "serialized_partitioner.pb",
        "datapoint_to_token.npy",
    },
}


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Embeddings of a corpus, searchable by dot product.

    Two backends give the same results up to the approximation of the second:

    - `exact`: a matrix product and a top-k on the devices, over which the mesh in effect when the
      index is made or loaded splits it (`searchers.find_top`, to be called within `jax.jit` too).
    - `scann` (Guo et al. 2020), set up by size after the rules of thumb in ScaNN's own guide:
      brute force below 20,000 rows (exact too); below 100,000 asymmetric hashing over blocks of
      two dimensions, then rescoring; from there on about sqrt(N) partitions before that. The
      guide leaves the shares open: a tenth of the partitions is searched, and 10 times `k`
      candidates, at least 100, are rescored. Training it is not repeatable to the bit.

    Made by `build` or `load`.

    Attributes:
        embeddings: float32 `[N, D]`.
        backend: "scann" or "exact".
        encoder: fingerprint of the encoder that made the embeddings.
        searcher: what the backend searches in: an array on the device, or a ScaNN searcher.
    """

    embeddings: Float[np.ndarray, "N D"]
    backend: str
    encoder: str
    searcher: Any = dataclasses.field(repr=False)

    @property
    def size(self) -> int:
        """Number of rows, N."""
        return self.embeddings.shape[0]

    @property
    def width(self) -> int:
        """Length of an embedding, D."""
        return self.embeddings.shape[1]

    @classmethod
    def build(cls, embeddings: Float[np.ndarray, "N D"], *, backend: str, encoder: str) -> "Index":
        """Makes an index.

        Args:
            embeddings: one row a passage; kept, not copied, where they are float32 already.
            backend: "scann" or "exact".
            encoder: fingerprint of the encoder that made them.

        Raises:
            RagJaxError: no rows, not two dimensions, a NaN or infinity, or an unknown or missing
                backend.
        """
        embeddings = _check_matrix(embeddings, "embeddings")
        if embeddings.size == 0:
            raise RagJaxError(f"embeddings have shape {embeddings.shape}: the corpus is empty")
        _check_backend(backend, "use the backend 'exact'")
        if backend == "exact":
            return cls(embeddings, backend, encoder, place_exact(embeddings))
        return cls(embeddings, backend, encoder, build_scann(embeddings))

    def search(
        self, queries: Float[np.ndarray, "Q D"], k: int
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """The `k` rows with the largest dot product with each query, largest first.

        ScaNN may miss some of them; the scores of those it finds are computed afresh from the
        embeddings, so they are float32 dot products whatever the backend. Equal scores come in
        the order of their rows.

        Args:
            queries: embeddings by the same encoder.
            k: from 1 to the index's size.

        Returns:
            scores: float32.
            rows: int32, positions in the embeddings.

        Raises:
            RagJaxError: `k` is out of range, or the queries are not `[Q, D]` or not finite.
        """
        queries = _check_matrix(queries, "queries")
        if queries.shape[1] != self.width:
            raise RagJaxError(
                f"queries have {queries.shape[1]} dimensions, but the index has {self.width}: "
                "encode them with the index's encoder"
            )
        if not 1 <= k <= self.size:
            raise RagJaxError(f"k is {k}: it must be from 1 to {self.size}, the index's size")
        if len(queries) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
        search = search_exact if self.backend == "exact" else search_scann
        return _score_rows(self.embeddings, queries, search(self.searcher, queries, k, self.size))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index into a folder of its own, whole or not at all.

        The files are written into a hidden folder beside it, which then takes its name. An index
        already there is replaced; a process that dies between the two renames leaves the old one
        under a hidden name. No pickle is written: ScaNN keeps no ids.

        Raises:
            RagJaxError: there is something else in the folder.
        """
        folder = Path(folder)
        _check_replaceable(folder)
        temporary, old = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex}") for _ in "ab")
        temporary.mkdir(parents=True)
        try:
            if self.backend == "exact":
                np.save(temporary / _EMBEDDINGS, self.embeddings, allow_pickle=False)
            else:
                self.searcher.serialize(str(temporary), relative_path=True)
            files = {path.name: _hash_file(path) for path in sorted(temporary.iterdir())}
            manifest = {
                "format": _FORMAT,
                "backend": self.backend,
                "encoder": self.encoder,
                "size": self.size,
                "width": self.width,
                "sha256": files,
            }
            write_json(temporary / _MANIFEST, manifest)
            if folder.exists():
                os.rename(folder, old)
            os.rename(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)

    @classmethod
    def load(cls, folder: str | os.PathLike, *, encoder: str) -> "Index":
        """Reads what `save` wrote.

        Every file is compared with its SHA-256 before anything reads it, and a file that `save`
        does not write, such as the pickle ScaNN's own loader would look for, is refused.

        Args:
            folder: the index's folder.
            encoder: fingerprint of the encoder that the queries will come from.

        Raises:
            RagJaxError: no index there, a missing, additional or altered file, another encoder's
                index, or a backend that is not installed here.
        """
        folder = Path(folder)
        manifest = _read_manifest(folder)
        if manifest["encoder"] != encoder:
            raise RagJaxError(
                f"{folder} was made by encoder {manifest['encoder'][:16]}, not {encoder[:16]}: "
                "build the index again with the encoder in use"
            )
        backend = manifest["backend"]
        _check_backend(backend, f"build the index in {folder} again with the backend 'exact'")
        _check_files(folder, manifest)
        try:
            embeddings = np.load(folder / _EMBEDDINGS, allow_pickle=False)
        except ValueError as error:
            raise RagJaxError(f"{folder / _EMBEDDINGS} cannot be read: {error}") from None
        embeddings = _check_matrix(embeddings, str(folder / _EMBEDDINGS))
        if embeddings.shape != (manifest["size"], manifest["width"]):
            raise RagJaxError(
                f"{folder / _EMBEDDINGS} has shape {embeddings.shape}, not the size and width in "
                f"{_MANIFEST}: build the index again"
            )
        if backend == "exact":
            return cls(embeddings, backend, encoder, place_exact(embeddings))
        return cls(embeddings, backend, encoder, load_scann(folder))


def _score_rows(
    embeddings: Float[np.ndarray, "N D"],
    queries: Float[np.ndarray, "Q D"],
    rows: Int[np.ndarray, "Q k"],
) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
    scores = np.empty(rows.shape, np.float32)
    for start in range(0, len(rows), _SCORED_TOGETHER):
        part = slice(start, start + _SCORED_TOGETHER)
        scores[part] = np.einsum("qd,qkd->qk", queries[part], embeddings[rows[part]])
    order = np.lexsort((rows, -scores))
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


def _check_matrix(values: Any, name: str) -> Float[np.ndarray, "N D"]:
    with np.errstate(over="ignore"):
        matrix = np.ascontiguousarray(values, np.float32)
    if np.ndim(values) != 2:
        raise RagJaxError(f"{name} have shape {np.shape(values)}: expected [rows, dimensions]")
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        raise RagJaxError(f"{name}: row {int(np.argmin(finite))} has a NaN or an infinity")
    return matrix


def _check_backend(backend: str, remedy: str) -> None:
    if backend not in _FILES:
        raise RagJaxError(f"index backend {backend!r} is unknown: choose from {sorted(_FILES)}")
    if backend == "scann":
        try:
            import scann  # noqa: F401
        except ImportError:
            raise RagJaxError(
                f"ScaNN is not installed here (it exists for Linux on x86-64 only): {remedy}"
            ) from None


def _check_replaceable(folder: Path) -> None:
    if folder.is_dir():
        taken = any(folder.iterdir()) and not (folder / _MANIFEST).is_file()
    else:
        taken = folder.exists()
    if taken:
        raise RagJaxError(f"{folder} exists and is no index: save into another folder")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / _MANIFEST
    try:
        manifest = read_json(path)
    except OSError:
        raise RagJaxError(f"{path} is missing: build the index first") from None
    except ValueError:
        raise RagJaxError(f"{path} is damaged: build the index again") from None
    kinds = {"format": int, "backend": str, "encoder": str, "size": int, "width": int}
    if not isinstance(manifest, dict) or not all(
        isinstance(manifest.get(key), kind) for key, kind in {**kinds, "sha256": dict}.items()
    ):
        raise RagJaxError(f"{path} is damaged: build the index again")
    if manifest["format"] != _FORMAT or manifest["backend"] not in _FILES:
        raise RagJaxError(
            f"{path} has format {manifest['format']} and backend {manifest['backend']!r}, which "
            "this version does not read: build the index again"
        )
    return manifest


def _check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Compares a folder with its manifest, and both with what `save` writes."""
    listed = manifest["sha256"]
    present = {path.name for path in folder.iterdir()} - {_MANIFEST}
    for name in sorted((present | set(listed)) - (_FILES[manifest["backend"]] & set(listed))):
        raise RagJaxError(f"{folder / name} is no part of an index: remove it or build it again")
    for name, expected in sorted(listed.items()):
        if name not in present:
            raise RagJaxError(f"{folder / name} is missing: build the index again")
        if _hash_file(folder / name) != expected:
            raise RagJaxError(f"{folder / name} was altered or cut short: build the index again")


def _hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
