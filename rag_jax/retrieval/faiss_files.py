"""FAISS's indices as NumPy arrays: FAISS's own reader trusts a file, and this one does not.

FAISS is in C++ and reads beyond its arrays if a file is wrong. Only arrays are written, whose
shapes, kinds and ranges are looked at before FAISS gets them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rag_jax.retrieval import faiss_index
from rag_jax.retrieval.faiss_index import Faiss, make_part
from rag_jax.retrieval.storage import Stored, load_array, save_stored
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import save_array

_PARTS, _ROTATION = "faiss_parts.npy", "faiss_rotation.npy"
_GRAPH = ("levels", "neighbours", "entry")
_CODES = ("centres", "sizes", "rows", "codes", "codebooks")


def name_file(part: int, array: str) -> str:
    """The name of a part's array."""
    return f"faiss_{part}_{array}.npy"


def list_files(arrays: tuple[str, ...]) -> frozenset[str]:
    """Names of all files that an index with these arrays may have."""
    parts = range(faiss_index.MOST_PARTS)
    return frozenset({_PARTS, _ROTATION, *(name_file(i, array) for i in parts for array in arrays)})


GRAPH_FILES, CODE_FILES = list_files(_GRAPH), list_files(_CODES)


def save_faiss(searcher: Faiss, stored: Stored, folder: Path) -> None:
    """Writes embeddings and FAISS's arrays into a folder."""
    save_stored(stored, folder)
    if not searcher.parts:
        return
    numbers = np.empty(len(searcher.embeddings), np.uint8)
    for number, part in enumerate(searcher.parts):
        numbers[part.rows] = number
        if part.index is not None:
            for name, array in _read_index(part.index).items():
                save_array(folder / name_file(number, name), array)
    save_array(folder / _PARTS, numbers)
    if searcher.rotation is not None:
        matrix = faiss_index.read_rotation(searcher.rotation)
        save_array(folder / _ROTATION, matrix)


def _read_index(index: Any) -> dict[str, np.ndarray]:
    import faiss

    if isinstance(index, faiss.IndexHNSW):
        read = faiss.vector_to_array
        entry = np.asarray([index.hnsw.entry_point], np.int32)
        graph = read(index.hnsw.levels), read(index.hnsw.neighbors), entry
        return dict(zip(_GRAPH, graph, strict=True))
    lists, width = index.invlists, index.code_size
    sizes = [lists.list_size(i) for i in range(index.nlist)]
    full = [(i, size) for i, size in enumerate(sizes) if size]
    rows = [faiss.rev_swig_ptr(lists.get_ids(i), size) for i, size in full]
    codes = [faiss.rev_swig_ptr(lists.get_codes(i), size * width) for i, size in full]
    arrays = {
        "centres": index.quantizer.reconstruct_n(0, index.nlist),
        "sizes": np.asarray(sizes, np.int32),
        "rows": np.concatenate(rows).astype(np.int32),
        "codes": np.concatenate(codes).reshape(-1, width),
    }
    if isinstance(index, faiss.IndexIVFPQ):
        arrays["codebooks"] = faiss.vector_to_array(index.pq.centroids)
    return arrays


def load_flat(folder: Path, stored: Stored) -> Faiss:
    """A search over the embeddings alone."""
    del folder
    return Faiss(stored.values)


def load_hnsw(folder: Path, stored: Stored) -> Faiss:
    """Reads a graph that `save_faiss` wrote.

    Raises:
        RagJaxError: an array is missing or damaged, or leads beyond its end.
    """
    parts = []
    for number, rows in enumerate(_load_parts(folder, len(stored.values))):
        index = None
        if not faiss_index.is_small(rows):
            index = faiss_index.make_hnsw(stored.values.shape[1])
            _fill_graph(index, folder, number, faiss_index.take_rows(stored.values, rows))
        parts.append(make_part(stored.values, rows, index))
    return Faiss(stored.values, tuple(parts))


def load_ivfpq(folder: Path, stored: Stored) -> Faiss:
    """Reads partitions that `save_faiss` wrote; raises as `load_hnsw`."""
    return Faiss(stored.values, _load_ivf(folder, stored, faiss_index.make_ivfpq))


def load_ivfrabitq(folder: Path, stored: Stored) -> Faiss:
    """Reads partitions and the rotation that `save_faiss` wrote; raises as `load_hnsw`."""
    width = stored.values.shape[1]
    rotation = faiss_index.make_rotation(load_array(folder / _ROTATION, "float32", (width, width)))
    parts = _load_ivf(folder, stored, faiss_index.make_ivfrabitq)
    return Faiss(stored.values, parts, rotation)


def _load_parts(folder: Path, size: int) -> list[Int[np.ndarray, "n"]]:
    numbers = load_array(folder / _PARTS, "uint8", (size,))
    count = int(numbers.max()) + 1
    _require(count <= faiss_index.MOST_PARTS, folder / _PARTS, "names a part that there is not")
    return [np.flatnonzero(numbers == number).astype(np.int32) for number in range(count)]


def _load_ivf(folder: Path, stored: Stored, make: Any) -> tuple[faiss_index.Part, ...]:
    parts = []
    for number, rows in enumerate(_load_parts(folder, len(stored.values))):
        index = None
        if not faiss_index.is_small(rows):
            index = make(stored.values.shape[1], len(rows))
            _fill_partitions(index, folder, number, len(rows))
        parts.append(make_part(stored.values, rows, index))
    return tuple(parts)


def _fill_graph(index: Any, folder: Path, number: int, embeddings: np.ndarray) -> None:
    import faiss

    size, graph = len(embeddings), index.hnsw
    ends = faiss.vector_to_array(graph.cum_nneighbor_per_level).astype(np.int64)
    path = folder / name_file(number, "levels")
    levels = load_array(path, "int32", (size,))
    _require(levels.min() >= 1 and levels.max() < len(ends), path, "has levels out of range")
    offsets = np.concatenate([[0], np.cumsum(ends[levels])])
    path = folder / name_file(number, "neighbours")
    neighbours = load_array(path, "int32", (int(offsets[-1]),))
    _require(_are_within(neighbours, levels, offsets, ends), path, "leads to rows out of range")
    path = folder / name_file(number, "entry")
    entry = int(load_array(path, "int32", (1,))[0])
    _require(0 <= entry < size and levels[entry] == levels.max(), path, "is no row at the top")
    for name, array in (("levels", levels), ("neighbors", neighbours)):
        faiss.copy_array_to_vector(np.ascontiguousarray(array), getattr(graph, name))
    faiss.copy_array_to_vector(offsets.astype(np.uint64), graph.offsets)
    graph.entry_point, graph.max_level = entry, int(levels.max()) - 1
    index.storage.add(embeddings)
    index.ntotal = size


def _are_within(
    neighbours: Int[np.ndarray, "L"],
    levels: Int[np.ndarray, "n"],
    offsets: Int[np.ndarray, "n+1"],
    ends: Int[np.ndarray, "l"],
) -> bool:
    """Whether all neighbours are rows, or -1 for none, that have the level that leads to them."""
    if neighbours.min() < -1 or neighbours.max() >= len(levels):
        return False
    for level in range(1, int(levels.max())):
        starts = offsets[:-1][levels > level]
        found = neighbours[starts[:, None] + np.arange(ends[level], ends[level + 1])]
        if (levels[found[found >= 0]] <= level).any():
            return False
    return True


def _fill_partitions(index: Any, folder: Path, number: int, size: int) -> None:
    import faiss

    def load(name: str, dtype: str, *shape: int) -> tuple[Path, np.ndarray]:
        path = folder / name_file(number, name)
        return path, load_array(path, dtype, shape)

    centres = load("centres", "float32", index.nlist, index.d)[1]
    path, sizes = load("sizes", "int32", index.nlist)
    fits = sizes.min() >= 0 and sizes.sum(dtype=np.int64) == size
    _require(fits, path, f"has other sizes than those of {size} rows")
    path, rows = load("rows", "int32", size)
    _require(
        np.array_equal(np.sort(rows), np.arange(size)), path, "has a row twice or out of range"
    )
    codes = load("codes", "uint8", size, index.code_size)[1]
    if isinstance(index, faiss.IndexIVFPQ):
        books = load("codebooks", "float32", index.pq.centroids.size())[1]
        faiss.copy_array_to_vector(np.ascontiguousarray(books), index.pq.centroids)
    index.quantizer.add(np.ascontiguousarray(centres))
    ends = np.cumsum(sizes)
    for i, (start, end) in enumerate(zip(ends - sizes, ends, strict=True)):
        if start < end:
            ids, block = rows[start:end].astype(np.int64), np.ascontiguousarray(codes[start:end])
            add = index.invlists.add_entries
            add(i, len(ids), faiss.swig_ptr(ids), faiss.swig_ptr(block))
    index.ntotal, index.is_trained = size, True


def _require(fits: bool, path: Path, problem: str) -> None:
    if not fits:
        raise RagJaxError(f"{path} {problem}: build the index again")
