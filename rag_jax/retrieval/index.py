"""Index of a corpus: search by dot product of embeddings, exactly or approximately."""

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.retrieval.backends import BACKENDS, find_backend
from rag_jax.retrieval.matrices import check_matrix, score_rows
from rag_jax.retrieval.row_ids import check_ids, read_ids, write_ids
from rag_jax.retrieval.storage import STORAGES, Stored, limit_array, load_stored, store
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import check_encoder, check_files, read_manifest, write_folder
from rag_jax.runtime.outside import show

_IDS = "ids.json"


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """Embeddings of a corpus, searchable by dot product.

    The backends:

    - `exact`: a matrix product and a top-k on the devices (`exact.find_top`, which may also be
      called within `jax.jit`). The embeddings are split over the mesh in effect when the index is
      built or loaded. Programs are compiled for the rounded-up size (`exact.place_exact`), so
      most indices of a similar size share a program. It can keep the embeddings as float16 or int8
      (`storage`), which is less memory; scores are then those of the embeddings as they are kept.
    - `scann` (Guo et al. 2020): approximate search, set up by size according to the rules of thumb
      in ScaNN's guide. Below 20,000 rows: brute force, which is exact. Below 100,000 rows:
      asymmetric hashing over blocks of two dimensions, then rescoring. For more rows: the same
      within about sqrt(N) partitions. The guide does not fix the shares: a tenth of the partitions
      is searched, and 10 times `k` candidates, at least 100, are rescored. A few rows that are far
      longer than the others are compared with every query (`scann_index.Scann`).
    - `faiss_flat`, `faiss_hnsw`, `faiss_ivfpq`, `faiss_ivfrabitq`: FAISS's exhaustive search, its
      graph, and its partitions with two kinds of codes, the last three exhaustive below 10,000
      rows. Rows of very different lengths are in indices of their own (`faiss_index.Faiss`).

    The same embeddings give the same index to the bit, whatever the backend.

    Indices are made by `build` or `load` and are immutable: `add` and `remove` return a new index.

    Attributes:
        stored: the embeddings as they are kept.
        encoder: fingerprint of the encoder that made the embeddings.
        searcher: what the backend searches: arrays on the devices, or another library's index.
        ids: id of the passage of each row, or None. Rows are positions, which move when an earlier
            row is removed; ids do not change.
        corpus: `fingerprint_corpus` of the passages, or "" if unknown.
    """

    stored: Stored
    backend: str
    encoder: str
    searcher: Any = dataclasses.field(repr=False)
    ids: tuple[str, ...] | None = dataclasses.field(default=None, repr=False)
    corpus: str = ""

    @property
    def embeddings(self) -> Float[np.ndarray, "N D"]:
        """The embeddings as float32: a copy, unless they are kept so."""
        return self.stored.read()

    @property
    def storage(self) -> str:
        """How the embeddings are kept: one of `storage.STORAGES`."""
        return self.stored.kind

    @property
    def size(self) -> int:
        """Number of rows, N."""
        return self.stored.values.shape[0]

    @property
    def width(self) -> int:
        """Length of an embedding, D."""
        return self.stored.values.shape[1]

    @classmethod
    def build(
        cls,
        embeddings: Float[np.ndarray, "N D"],
        *,
        backend: str,
        encoder: str,
        storage: str = "float32",
        ids: Sequence[str] | None = None,
        corpus: str = "",
    ) -> "Index":
        """Builds an index; arguments as the attributes of the class.

        Contiguous float32 embeddings are not copied.

        Raises:
            RagJaxError: the embeddings are empty, not two-dimensional, not finite or too large for
                the storage, the backend is unknown, not installed or has no such storage, or the
                ids are not distinct strings, one per passage.
        """
        embeddings = check_matrix(embeddings, "embeddings")
        if embeddings.size == 0:
            raise RagJaxError(f"embeddings have shape {embeddings.shape}: the corpus is empty")
        ids = None if ids is None else check_ids(ids, len(embeddings))
        find_backend(backend, storage, "use the backend 'exact'")
        return cls._make(store(embeddings, storage), backend, encoder, ids, corpus)

    @classmethod
    def _make(
        cls,
        stored: Stored,
        backend: str,
        encoder: str,
        ids: tuple[str, ...] | None,
        corpus: str,
    ) -> "Index":
        return cls(stored, backend, encoder, BACKENDS[backend].build(stored), ids, corpus)

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
            ids = (*self.ids, *check_ids(ids, len(embeddings)))
            check_ids(ids, len(ids))
        stored = self.stored.join(store(embeddings, self.storage))
        return self._make(stored, self.backend, self.encoder, ids, corpus)

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
        stored = self.stored.keep(np.flatnonzero(keep))
        return self._make(stored, self.backend, self.encoder, ids, corpus)

    def _find_rows(self, which: Sequence[str] | Sequence[int]) -> list[int]:
        if isinstance(which, str):
            raise RagJaxError(f"{which!r} is one string: pass a list of ids")
        which = list(which)  # of an iterator
        if self.ids is None:
            rows = np.asarray(which)
            if rows.size and (rows.ndim != 1 or rows.dtype.kind not in "iu"):
                raise RagJaxError("rows must be a list of integers: of a mask take np.flatnonzero")
            for row in rows.tolist():
                if not 0 <= row < self.size:
                    raise RagJaxError(f"row {row} is not in the index")
            return list(map(int, rows))
        places = {id: row for row, id in enumerate(self.ids)}
        for id in which:
            if id not in places:
                raise RagJaxError(f"id {id!r} is not in the index")
        return [places[id] for id in which]

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

        An approximate backend may miss some of these rows. The scores are float32 dot products for
        all backends, because they are computed after the search from the embeddings as they are
        kept. Equal scores are in the order of the rows.

        Returns:
            Scores, and rows as positions in `embeddings` and in `ids`.

        Raises:
            RagJaxError: `k` is out of range, or the queries are not `[Q, D]` or not finite.
        """
        queries = check_matrix(queries, "queries")
        self._check_width(queries, "queries")
        is_number = isinstance(k, int | np.integer) and not isinstance(k, bool)
        if not is_number or not 1 <= k <= self.size:
            raise RagJaxError(f"k is {k}: it must be from 1 to {self.size}, the index's size")
        k = int(k)
        if len(queries) == 0:
            return np.zeros((0, k), np.float32), np.zeros((0, k), np.int32)
        rows = BACKENDS[self.backend].search(self.searcher, queries, k, self.size)
        return score_rows(self.stored, queries, rows)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the index as a folder, whole or not at all, and replaces an older index.

        See `rag_jax.runtime.files.replace_folder`. No pickle is written.

        Raises:
            RagJaxError: the folder holds something other than an index.
        """
        fields = ("backend", "storage", "encoder", "corpus", "size", "width")
        write_folder(folder, {name: getattr(self, name) for name in fields}, self._write_files)

    def _write_files(self, folder: Path) -> None:
        BACKENDS[self.backend].save(self.searcher, self.stored, folder)
        if self.ids is not None:
            write_ids(folder / _IDS, self.ids)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike,
        *,
        encoder: str,
        corpus: str | None = None,
        backend: str | None = None,
        storage: str | None = None,
    ) -> "Index":
        """Reads an index that `save` wrote.

        Every file is compared with its SHA-256 before it is parsed. A file that `save` does not
        write, such as the pickle that ScaNN's loader looks for, is refused.

        Args:
            encoder: fingerprint of the encoder of the queries.
            corpus: `fingerprint_corpus` of the passages that rows refer to; None to accept any.
            backend: the one that the index has to have; None to accept any. So for `storage`.

        Raises:
            RagJaxError: the folder holds no index, a file is missing, unexpected or altered, the
                encoder, corpus, backend or storage differs, or the backend is not installed.
        """
        folder = Path(folder)
        kinds = {"encoder": str, "corpus": str, "size": int, "width": int}
        manifest = {"storage": "float32"} | read_manifest(folder, kinds, BACKENDS)
        check_encoder(folder, manifest, encoder)
        if corpus is not None and manifest["corpus"] != corpus:
            raise RagJaxError(
                f"{folder} was made over corpus {manifest['corpus'][:16] or 'unknown'}, not "
                f"{corpus[:16]}: build the index again over the passages in use"
            )
        _check_asked(folder, manifest, backend=backend, storage=storage)
        remedy = f"build the index in {folder} again with the backend 'exact'"
        found = find_backend(manifest["backend"], manifest["storage"], remedy)
        shape = manifest["size"], manifest["width"]
        limits = {"largest_array": limit_array(*shape)}
        check_files(folder, manifest["sha256"], found.files | {_IDS}, **limits)
        stored = load_stored(folder, manifest["storage"], shape)
        has_ids = _IDS in manifest["sha256"]
        ids = read_ids(folder / _IDS, manifest["size"]) if has_ids else None
        made = found.load(folder, stored)
        return cls(stored, manifest["backend"], encoder, made, ids, manifest["corpus"])


def _check_asked(folder: Path, manifest: Mapping[str, Any], **asked: str | None) -> None:
    if manifest["storage"] not in STORAGES:
        raise RagJaxError(
            f"{folder} has the storage {show(manifest['storage'])}, which this version does not "
            "read: build the index again"
        )
    for name, wanted in asked.items():
        if wanted is not None and manifest[name] != wanted:
            raise RagJaxError(
                f"{folder} was built with {name} {manifest[name]!r}, not {wanted!r}: build the "
                "index again"
            )
