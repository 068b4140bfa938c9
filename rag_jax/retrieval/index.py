"""Index of a corpus: search by dot product of embeddings, exactly on the devices or by ScaNN."""

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.retrieval.matrices import check_matrix, score_rows
from rag_jax.retrieval.searchers import (
    build_scann,
    load_scann,
    place_exact,
    search_exact,
    search_scann,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, read_json
from rag_jax.runtime.manifest import check_encoder, check_files, read_manifest, write_folder
from rag_jax.runtime.outside import parsing, show

_EMBEDDINGS, _IDS = "dataset.npy", "ids.json"
_LARGEST_IDS = 4 << 30  # bytes
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

    There are two backends:

    - `exact`: a matrix product and a top-k on the devices (`searchers.find_top`, which may also be
      called within `jax.jit`). The embeddings are split over the mesh in effect when the index is
      built or loaded. Programs are compiled for the rounded-up size (`searchers.place_exact`), so
      most indices of a similar size share a program.
    - `scann` (Guo et al. 2020): approximate search, set up by size according to the rules of thumb
      in ScaNN's guide. Below 20,000 rows: brute force, which is exact. Below 100,000 rows:
      asymmetric hashing over blocks of two dimensions, then rescoring. For more rows: the same
      within about sqrt(N) partitions. The guide does not fix the shares: a tenth of the partitions
      is searched, and 10 times `k` candidates, at least 100, are rescored. A few rows that are far
      longer than the others are compared with every query (`searchers.Scann`). The same embeddings
      give the same partitions and codes to the bit.

    Indices are made by `build` or `load` and are immutable: `add` and `remove` return a new index.

    Attributes:
        encoder: fingerprint of the encoder that made the embeddings.
        searcher: data structure of the backend: an array on the devices, or a ScaNN searcher.
        ids: id of the passage of each row, or None. Rows are positions, which move when an earlier
            row is removed; ids do not change.
        corpus: `fingerprint_corpus` of the passages, or "" if unknown.
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
        """Builds an index; arguments as the attributes of the class.

        Contiguous float32 embeddings are not copied.

        Raises:
            RagJaxError: the embeddings are empty, not two-dimensional or not finite, the backend is
                unknown or not installed, or the ids are not distinct strings, one per passage.
        """
        embeddings = check_matrix(embeddings, "embeddings")
        if embeddings.size == 0:
            raise RagJaxError(f"embeddings have shape {embeddings.shape}: the corpus is empty")
        ids = None if ids is None else _check_ids(ids, len(embeddings))
        _check_backend(backend, "use the backend 'exact'")
        make_searcher = place_exact if backend == "exact" else build_scann
        return cls(embeddings, backend, encoder, make_searcher(embeddings), ids, corpus)

    def add(
        self,
        embeddings: Float[np.ndarray, "M D"],
        *,
        ids: Sequence[str] | None = None,
        corpus: str = "",
    ) -> "Index":
        """A new index with further rows after the rows of this index, as `build` would make it.

        The cost is that of building the whole index. ScaNN can add rows to a searcher only if the
        searcher stores the ids, which it pickles, and it would keep the settings of the old size.

        Args:
            embeddings: of the new passages, by the same encoder.
            ids: of the new passages; required if this index has ids, else not allowed.
            corpus: `fingerprint_corpus` of all passages, old and new.

        Raises:
            RagJaxError: the embeddings have another width or are not finite, or the ids are
                missing, not allowed or not distinct from each other and the old ids.
        """
        embeddings = check_matrix(embeddings, "embeddings")
        self._check_width(embeddings, "embeddings")
        if (ids is None) != (self.ids is None):
            advice = "no ids: leave ids out" if self.ids is None else "ids: pass ids for all rows"
            raise RagJaxError(f"the index has {advice}")
        if ids is not None:
            ids = (*self.ids, *_check_ids(ids, len(embeddings)))
        return self._rebuild(np.concatenate([self.embeddings, embeddings]), ids, corpus)

    def remove(self, which: Sequence[str] | Sequence[int], *, corpus: str = "") -> "Index":
        """A new index without the given rows, as `build` would make it. The order does not change.

        Args:
            which: ids to remove if the index has ids, else rows to remove.
            corpus: `fingerprint_corpus` of the remaining passages.

        Raises:
            RagJaxError: an id or row is not in the index, or no row would remain.
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
            rows, kind = range(self.size), "row"
        else:
            rows, kind = {id: row for row, id in enumerate(self.ids)}, "id"
        for key in which:
            if key not in rows:
                raise RagJaxError(f"{kind} {key!r} is not in the index")
        return [rows[key] for key in which]

    def _check_width(self, matrix: Float[np.ndarray, "M D"], name: str) -> None:
        if matrix.shape[1] != self.width:
            raise RagJaxError(
                f"{name} have {matrix.shape[1]} dimensions, but the index has {self.width}: "
                "encode them with the index's encoder"
            )

    def search(
        self, queries: Float[np.ndarray, "Q D"], k: int
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """The `k` rows with the largest dot products with each query, largest first.

        ScaNN may miss some of these rows. The scores are float32 dot products for both backends,
        because they are computed from the embeddings after the search. Equal scores are in the
        order of the rows.

        Returns:
            Scores, and rows as positions in `embeddings` and in `ids`.

        Raises:
            RagJaxError: `k` is out of range, or the queries are not `[Q, D]` or not finite.
        """
        queries = check_matrix(queries, "queries")
        self._check_width(queries, "queries")
        if not isinstance(k, int | np.integer) or not 1 <= k <= self.size:
            raise RagJaxError(f"k is {k}: it must be from 1 to {self.size}, the index's size")
        if len(queries) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
        search = search_exact if self.backend == "exact" else search_scann
        return score_rows(self.embeddings, queries, search(self.searcher, queries, k, self.size))

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index as a folder, atomically, and replaces an older index.

        See `rag_jax.runtime.files.replace_folder`. No pickle is written, because the ScaNN searcher
        stores no ids.

        Raises:
            RagJaxError: the folder holds something other than an index.
        """
        fields = ("backend", "encoder", "corpus", "size", "width")
        write_folder(folder, {name: getattr(self, name) for name in fields}, self._write_files)

    def _write_files(self, folder: Path) -> None:
        if self.backend == "exact":
            np.save(folder / _EMBEDDINGS, self.embeddings, allow_pickle=False)
        else:
            self.searcher.searcher.serialize(str(folder), relative_path=True)
            if len(self.searcher.long_rows):  # which ScaNN has at another length
                np.save(folder / _EMBEDDINGS, self.embeddings, allow_pickle=False)
        if self.ids is not None:
            # ASCII, because ids may hold half a surrogate pair, which UTF-8 cannot encode.
            (folder / _IDS).write_text(json.dumps(self.ids), "ascii")

    @classmethod
    def load(cls, folder: str | os.PathLike, *, encoder: str, corpus: str | None = None) -> "Index":
        """Reads an index that `save` wrote.

        Every file is compared with its SHA-256 before it is parsed. A file that `save` does not
        write, such as the pickle that ScaNN's loader looks for, is refused.

        Args:
            encoder: fingerprint of the encoder of the queries.
            corpus: `fingerprint_corpus` of the passages that rows refer to; None to accept any.

        Raises:
            RagJaxError: the folder holds no index, a file is missing, unexpected or altered, the
                encoder or corpus differs, or the backend is not installed.
        """
        folder = Path(folder)
        kinds = {"encoder": str, "corpus": str, "size": int, "width": int}
        manifest = read_manifest(folder, kinds, _FILES)
        check_encoder(folder, manifest, encoder)
        if corpus is not None and manifest["corpus"] != corpus:
            raise RagJaxError(
                f"{folder} was made over corpus {manifest['corpus'][:16] or 'unknown'}, not "
                f"{corpus[:16]}: build the index again over the passages in use"
            )
        backend, path = manifest["backend"], folder / _EMBEDDINGS
        _check_backend(backend, f"build the index in {folder} again with the backend 'exact'")
        check_files(folder, manifest["sha256"], _FILES[backend])
        embeddings = map_array(path)
        if embeddings.dtype != np.float32:
            raise RagJaxError(
                f"{path} holds {embeddings.dtype}, not float32: build the index again"
            )
        embeddings = check_matrix(embeddings, str(path))
        if embeddings.shape != (manifest["size"], manifest["width"]) or not embeddings.size:
            raise RagJaxError(
                f"{path} has shape {embeddings.shape}, not the size and width in its manifest: "
                "build the index again"
            )
        has_ids = _IDS in manifest["sha256"]
        ids = _read_ids(folder / _IDS, len(embeddings)) if has_ids else None
        searcher = place_exact(embeddings) if backend == "exact" else load_scann(folder, embeddings)
        return cls(embeddings, backend, encoder, searcher, ids, manifest["corpus"])


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


def _read_ids(path: Path, size: int) -> tuple[str, ...]:
    with parsing(path):
        ids = read_json(path, largest=_LARGEST_IDS)
        if not isinstance(ids, list):
            raise TypeError("it must hold a list")
        return _check_ids(ids, size)


def _check_ids(ids: Sequence[str], size: int) -> tuple[str, ...]:
    if isinstance(ids, str):
        raise RagJaxError("ids are one string: pass a list of them")
    if len(ids) != size:
        raise RagJaxError(f"ids are {len(ids)} for {size} embeddings: pass one id per embedding")
    known: set[str] = set()
    for i, id in enumerate(ids):
        if not isinstance(id, str):
            raise RagJaxError(f"ids: entry {i} is {show(id)}, not a string")
        if id in known:
            raise RagJaxError(f"ids: {id!r} is not unique")
        known.add(id)
    return tuple(ids)
