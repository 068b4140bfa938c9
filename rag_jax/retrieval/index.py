"""BeamConfig for the embeddings with the largest dot products, exact on the device or by ScaNN."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.data.passages import Passage
from rag_jax.retrieval.searchers import (
    build_scann,
    load_scann,
    place_exact,
    search_exact,
    search_scann,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, read_json
from rag_jax.runtime.manifest import check_files, read_manifest, write_folder

# Queries whose rows are gathered together when scores are computed, and rows that are looked at
# together for a NaN: both bound the memory.
_SCORED_TOGETHER, _CHECKED_TOGETHER = 64, 1 << 16

_EMBEDDINGS, _IDS = "dataset.npy", "ids.json"
_FILES = {
    "exact": {_EMBEDDINGS, _IDS},
    "scann": {
        _EMBEDDINGS,
        _IDS,
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
      Programs are compiled for the size rounded up (`searchers.place_exact`), so that most
      indices a little smaller or larger share them.
    - `scann` (Guo et al. 2020), set up by size after the rules of thumb in ScaNN's own guide:
      brute force below 20,000 rows (exact too); below 100,000 asymmetric hashing over blocks of
      two dimensions, then rescoring; from there on about sqrt(N) partitions before that. The
      guide leaves the shares open: a tenth of the partitions is searched, and 10 times `k`
      candidates, at least 100, are rescored. Training it is not repeatable to the bit.

    Made by `build` or `load`, and never changed: `add` and `remove` make another.

    Attributes:
        embeddings: float32 `[N, D]`.
        backend: "scann" or "exact".
        encoder: fingerprint of the encoder that made the embeddings.
        searcher: what the backend searches in: an array on the device, or a ScaNN searcher.
        ids: the passages' names by row, or None. A row is a position and moves when a row before
            it is removed; an id stays.
        corpus: `fingerprint_corpus` of the passages, or "" where nobody gave it.
    """

    embeddings: Float[np.ndarray, "N D"]
    backend: str
    encoder: str
    searcher: Any = dataclasses.field(repr=False)
    ids: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)
    corpus: str = ""

    @property
    def size(self) -> int:
        """Number of rows, N."""
        return self.embeddings.shape[0]

    @property
    def width(self) -> int:
        """Length of an embedding, D."""
        return self.embeddings.shape[1]

    @classmethod
    def build(
        cls,
        embeddings: Float[np.ndarray, "N D"],
        *,
        backend: str,
        encoder: str,
        ids: Sequence[str] | None = None,
        corpus: str = "",
    ) -> "Index":
        """Makes an index.

        Args:
            embeddings: one row a passage; kept, not copied, where they are float32 already.
            backend: "scann" or "exact".
            encoder: fingerprint of the encoder that made them.
            ids: the passages' names, all different.
            corpus: `fingerprint_corpus` of the passages.

        Raises:
            RagJaxError: no rows, not two dimensions, a NaN or infinity, an unknown or missing
                backend, or ids that are too many, too few, no strings or not all different.
        """
        embeddings = _check_matrix(embeddings, "embeddings")
        if embeddings.size == 0:
            raise RagJaxError(f"embeddings have shape {embeddings.shape}: the corpus is empty")
        ids = None if ids is None else _check_ids(ids, len(embeddings))
        _check_backend(backend, "use the backend 'exact'")
        make = place_exact if backend == "exact" else build_scann
        return cls(embeddings, backend, encoder, make(embeddings), ids, corpus)

    def add(
        self,
        embeddings: Float[np.ndarray, "M D"],
        *,
        ids: Sequence[str] | None = None,
        corpus: str = "",
    ) -> "Index":
        """An index with further rows behind this one's: the one `build` makes of all of them.

        It costs what building costs: ScaNN could take rows in only if it kept the ids itself,
        which it pickles, and would keep the settings of its old size.

        Args:
            embeddings: by the same encoder.
            ids: their names, if this index has ids; none of them its own.
            corpus: `fingerprint_corpus` of all passages, old and new.

        Raises:
            RagJaxError: embeddings of another width, or not finite; ids missing, not wanted or
                taken.
        """
        more = _check_matrix(embeddings, "embeddings")
        self._check_width(more, "embeddings")
        if (ids is None) != (self.ids is None):
            state = "has no ids: leave them out" if self.ids is None else "has ids: give some"
            raise RagJaxError(f"the index {state}")
        if ids is not None:
            ids = (*self.ids, *_check_ids(ids, len(more)))
        return self._rebuild(np.concatenate([self.embeddings, more]), ids, corpus)

    def remove(self, which: Sequence[str] | Sequence[int], *, corpus: str = "") -> "Index":
        """An index without some rows: the one `build` makes of the others, in their order.

        Args:
            which: ids if the index has ids, otherwise rows.
            corpus: `fingerprint_corpus` of the passages that stay.

        Raises:
            RagJaxError: one that is not there, or none would stay.
        """
        keep = np.ones(self.size, bool)
        keep[self._find_rows(which)] = False
        if not keep.any():
            raise RagJaxError(f"removing all {self.size} rows leaves no index: delete it instead")
        ids = self.ids and tuple(self.ids[row] for row in np.flatnonzero(keep))
        return self._rebuild(self.embeddings[keep], ids, corpus)

    def _rebuild(
        self, embeddings: Float[np.ndarray, "N D"], ids: tuple[str, ...] | None, corpus: str
    ) -> "Index":
        return Index.build(
            embeddings, backend=self.backend, encoder=self.encoder, ids=ids, corpus=corpus
        )

    def _find_rows(self, which: Sequence[str] | Sequence[int]) -> list[int]:
        if isinstance(which, str):
            raise RagJaxError(f"{which!r} is one string: pass a list of ids")
        if self.ids is None:
            known, kind = range(self.size), "row"
        else:
            known, kind = {name: row for row, name in enumerate(self.ids)}, "id"
        for name in which:
            if name not in known:
                raise RagJaxError(f"{kind} {name!r} is not in the index")
        return [known[name] for name in which]

    def _check_width(self, matrix: Float[np.ndarray, "M D"], name: str) -> None:
        if matrix.shape[1] != self.width:
            raise RagJaxError(
                f"{name} have {matrix.shape[1]} dimensions, but the index has {self.width}: "
                "encode them with the index's encoder"
            )

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
            rows: int32, positions in the embeddings and in `ids`.

        Raises:
            RagJaxError: `k` is out of range, or the queries are not `[Q, D]` or not finite.
        """
        queries = _check_matrix(queries, "queries")
        self._check_width(queries, "queries")
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
        manifest = {
            "backend": self.backend,
            "encoder": self.encoder,
            "corpus": self.corpus,
            "size": self.size,
            "width": self.width,
        }
        write_folder(folder, manifest, self._write_files)

    def _write_files(self, folder: Path) -> None:
        if self.backend == "exact":
            np.save(folder / _EMBEDDINGS, self.embeddings, allow_pickle=False)
        else:
            self.searcher.serialize(str(folder), relative_path=True)
        if self.ids is not None:
            # In ASCII: a JSON corpus may hold half a surrogate pair, which UTF-8 cannot.
            (folder / _IDS).write_text(json.dumps(self.ids), "ascii")

    @classmethod
    def load(cls, folder: str | os.PathLike, *, encoder: str, corpus: str | None = None) -> "Index":
        """Reads what `save` wrote.

        Every file is compared with its SHA-256 before anything reads it, and a file that `save`
        does not write, such as the pickle ScaNN's own loader would look for, is refused.

        Args:
            folder: the index's folder.
            encoder: fingerprint of the encoder that the queries will come from.
            corpus: `fingerprint_corpus` of the passages that its rows will be taken for; None
                takes any.

        Raises:
            RagJaxError: no index there, a missing, additional or altered file, another encoder's
                or another corpus's index, or a backend that is not installed here.
        """
        folder = Path(folder)
        kinds = {"encoder": str, "corpus": str, "size": int, "width": int}
        manifest = read_manifest(folder, kinds, _FILES)
        if manifest["encoder"] != encoder:
            raise RagJaxError(
                f"{folder} was made by encoder {manifest['encoder'][:16]}, not {encoder[:16]}: "
                "build the index again with the encoder in use"
            )
        if corpus is not None and manifest["corpus"] != corpus:
            raise RagJaxError(
                f"{folder} was made over corpus {manifest['corpus'][:16] or 'unknown'}, not "
                f"{corpus[:16]}: build the index again over the passages in use"
            )
        backend = manifest["backend"]
        _check_backend(backend, f"build the index in {folder} again with the backend 'exact'")
        check_files(folder, manifest["sha256"], _FILES[backend])
        try:
            embeddings = map_array(folder / _EMBEDDINGS)
        except ValueError as error:
            raise RagJaxError(f"{folder / _EMBEDDINGS} cannot be read: {error}") from None
        embeddings = _check_matrix(embeddings, str(folder / _EMBEDDINGS))
        if embeddings.shape != (manifest["size"], manifest["width"]):
            raise RagJaxError(
                f"{folder / _EMBEDDINGS} has shape {embeddings.shape}, not the size and width in "
                "its manifest: build the index again"
            )
        ids = None
        if _IDS in manifest["sha256"]:
            ids = _check_ids(read_json(folder / _IDS), len(embeddings))
        searcher = place_exact(embeddings) if backend == "exact" else load_scann(folder)
        return cls(embeddings, backend, encoder, searcher, ids, manifest["corpus"])


def fingerprint_corpus(passages: Iterable[Passage]) -> str:
    """SHA-256 over the passages, their order and their ids, in hexadecimal."""
    digest = hashlib.sha256()
    for passage in passages:
        entry = passage.id, passage.title, passage.text
        digest.update(json.dumps(entry).encode() + b"\n")
    return digest.hexdigest()


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
    for start in range(0, len(matrix), _CHECKED_TOGETHER):
        finite = np.isfinite(matrix[start : start + _CHECKED_TOGETHER]).all(axis=1)
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise RagJaxError(f"{name}: row {row} has a NaN or an infinity")
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


def _check_ids(ids: Sequence[str], size: int) -> tuple[str, ...]:
    if isinstance(ids, str):
        raise RagJaxError("ids are one string: pass a list of them")
    if len(ids) != size:
        raise RagJaxError(f"ids are {len(ids)} for {size} embeddings: give one for each")
    seen: set[str] = set()
    for i, name in enumerate(ids):
        if not isinstance(name, str):
            raise RagJaxError(f"ids: entry {i} is {name!r}, no string")
        if name in seen:
            raise RagJaxError(f"ids: {name!r} comes twice")
        seen.add(name)
    return tuple(ids)
