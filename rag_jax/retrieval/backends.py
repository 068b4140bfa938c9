"""The backends of an index by name: how each builds, searches, saves and loads.

Every backend returns rows without scores, in any order. `Index` computes the scores.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from rag_jax.retrieval import exact, faiss_files, faiss_index, scann_index
from rag_jax.retrieval.storage import SCALES, STORAGES, VALUES, Stored, save_stored
from rag_jax.runtime.errors import RagJaxError


@dataclass(frozen=True)
class Backend:
    """One way to search embeddings.

    Attributes:
        build: makes what searches the embeddings.
        search: of what `build` made, queries, `k` and the number of embeddings, gives `k` different
            rows for each query.
        save: writes the embeddings and what `build` made into a folder.
        load: gives what `build` made, of a folder that `save` wrote and of its embeddings.
        files: names that `save` may write.
        storages: how it can keep embeddings.
        find_package: imports what it needs beside this library.
        absence: what to know if that is not installed.
    """

    build: Callable[[Stored], Any]
    search: Callable[[Any, Float[np.ndarray, "Q D"], int, int], Int[np.ndarray, "Q k"]]
    save: Callable[[Any, Stored, Path], None]
    load: Callable[[Path, Stored], Any]
    files: frozenset[str] = frozenset()
    storages: tuple[str, ...] = ("float32",)
    find_package: Callable[[], None] = lambda: None
    absence: str = ""


def _place(stored: Stored) -> exact.Shards:
    return exact.place_exact(stored.values, stored.scales)


def _find_faiss() -> None:
    import faiss  # noqa: F401


def _find_scann() -> None:
    import scann  # noqa: F401


def _make_faiss(
    build: Callable[[Stored], faiss_index.Faiss],
    load: Callable[[Path, Stored], faiss_index.Faiss],
    files: frozenset[str] = frozenset(),
) -> Backend:
    return Backend(
        build=build,
        search=faiss_index.search_faiss,
        save=faiss_files.save_faiss,
        load=load,
        files=files | {VALUES},
        find_package=_find_faiss,
        absence="FAISS is not installed here (pip install 'rag_jax[faiss]')",
    )


BACKENDS = {
    "exact": Backend(
        build=_place,
        search=exact.search_exact,
        save=lambda _, stored, folder: save_stored(stored, folder),
        load=lambda _, stored: _place(stored),
        files=frozenset({VALUES, SCALES}),
        storages=STORAGES,
    ),
    "scann": Backend(
        build=lambda stored: scann_index.build_scann(stored.values),
        search=scann_index.search_scann,
        save=scann_index.save_scann,
        load=lambda folder, stored: scann_index.load_scann(folder, stored.values),
        files=scann_index.FILES | {VALUES},
        find_package=_find_scann,
        absence="ScaNN is not installed here (it exists for Linux on x86-64 only; FAISS's backends "
        "are elsewhere too)",
    ),
    "faiss_flat": _make_faiss(faiss_index.build_flat, faiss_files.load_flat),
    "faiss_hnsw": _make_faiss(
        faiss_index.build_hnsw, faiss_files.load_hnsw, faiss_files.GRAPH_FILES
    ),
    "faiss_ivfpq": _make_faiss(
        faiss_index.build_ivfpq, faiss_files.load_ivfpq, faiss_files.CODE_FILES
    ),
    "faiss_ivfrabitq": _make_faiss(
        faiss_index.build_ivfrabitq, faiss_files.load_ivfrabitq, faiss_files.CODE_FILES
    ),
}


def find_backend(name: str, storage: str, remedy: str) -> Backend:
    """The backend of a name, if it is installed here and can keep embeddings in this way.

    Args:
        remedy: what to do if it is not installed.

    Raises:
        RagJaxError: it is unknown, not installed or keeps embeddings in other ways.
    """
    if name not in BACKENDS:
        raise RagJaxError(f"index backend {name!r} is unknown: choose from {sorted(BACKENDS)}")
    backend = BACKENDS[name]
    if storage not in STORAGES:
        raise RagJaxError(f"storage {storage!r} is unknown: choose from {list(STORAGES)}")
    if storage not in backend.storages:
        raise RagJaxError(
            f"storage {storage!r} is not for the backend {name!r}: use the storage 'float32', or "
            "the backend 'exact'"
        )
    try:
        backend.find_package()
    except ImportError:
        raise RagJaxError(f"{backend.absence}: {remedy}") from None
    return backend
