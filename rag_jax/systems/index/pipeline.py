"""An index from files of passages, in stages: copy, encode, index, measure."""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.data.formats import BadLines, stream_passages
from rag_jax.data.passages import PassageFile, write_passages
from rag_jax.models import load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.pipeline.maps import Worker
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval.encode import encode_texts, list_texts
from rag_jax.retrieval.index import Index, fingerprint_corpus
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, read_json, write_json
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.manifest import hash_file
from rag_jax.systems.stages import embed_corpus

# Number of queries that recall is measured with, and of passages found for each.
_QUERIES, _DEPTH = 256, 10


def build_index(
    files: Sequence[str],
    workdir: str | os.PathLike,
    *,
    encoder: str,
    backend: str,
    max_length: int,
    bad_lines: int = 0,
    worker: Worker | None = None,
) -> dict[str, Any]:
    """Encodes passages and writes an index over them, continuing what an earlier call began.

    The index is then in `workdir/stages/index/index`, with the passages' ids and the corpus's
    fingerprint, and the passages in the order of its rows in `workdir/stages/passages`. At most one
    piece of 1,024 passages' texts is in memory at a time.

    Args:
        files: as for `stream_passages`.
        workdir: a work folder, as for `run_stages`.
        encoder: name or folder of an encoder.
        backend: "scann" or "exact".
        max_length: number of tokens that are read of a passage.
        bad_lines: number of lines of the files that may be skipped, each with a warning.
        worker: the worker that this process is, if several divide the encoding.

    Returns:
        `{"folder", "backend", "passages", "width", "bytes", "encode_seconds", "build_seconds"}`
        and, unless the backend is exact, `"recall"`: the share of the exact ten best passages that
        the index finds for 256 evenly spaced passages. Bytes are those on disk.

    Raises:
        RagJaxError: as `stream_passages`, `encode_texts`, `Index.build` and `run_stages` do.
    """
    settings = {"encoder": fingerprint(resolve(encoder))}
    stages = [
        Stage(
            "passages",
            partial(_copy, files=files, bad_lines=bad_lines),
            settings={"files": _hash_files(files), "bad_lines": bad_lines},
            version=2,
        ),
        Stage(
            "embeddings",
            partial(_encode, encoder=encoder, max_length=max_length),
            settings={**settings, "max_length": max_length},
            needs=("passages",),
            shardable=("embeddings.npy",),
        ),
        Stage(
            "index",
            partial(_index, backend=backend, encoder=settings["encoder"]),
            settings={**settings, "backend": backend},
            needs=("passages", "embeddings"),
        ),
    ]
    config = {"files": files, "encoder": encoder, "backend": backend, "max_length": max_length}
    config |= {"bad_lines": bad_lines}
    made = {s["name"]: s for s in run_stages(stages, workdir, config=config, worker=worker)}
    folder = Path(workdir) / "stages" / "index"
    seconds = made["embeddings"]["seconds"]
    facts = {"folder": str(folder / "index"), "encode_seconds": seconds}
    return facts | read_json(folder / "facts.json")


def _copy(context: StageContext, *, files: Sequence[str], bad_lines: int) -> None:
    if not is_first():
        return
    path = context.folder / "passages.jsonl"
    passages = write_passages(path, stream_passages(files, BadLines(bad_lines, "--bad_lines")))
    write_json(context.folder / "corpus.json", fingerprint_corpus(passages))


def _encode(context: StageContext, *, encoder: str, max_length: int) -> None:
    pretrained = load(encoder)
    embed_corpus(
        context,
        _open_passages(context),
        lambda part: encode_texts(pretrained, list_texts(part), max_length=max_length),
    )


def _index(context: StageContext, *, backend: str, encoder: str) -> None:
    embeddings = map_array(context.path("embeddings", "embeddings.npy"))
    start = time.monotonic()
    built = Index.build(
        embeddings,
        backend=backend,
        encoder=encoder,
        ids=[passage.id for passage in _open_passages(context)],
        corpus=read_json(context.path("passages", "corpus.json")),
    )
    facts = {"passages": built.size, "width": built.width, "backend": backend}
    facts["build_seconds"] = time.monotonic() - start
    folder = context.folder / "index"
    built.save(folder)
    facts["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
    if backend != "exact":
        facts["recall"] = _measure_recall(built)
    write_json(context.folder / "facts.json", facts)


def _open_passages(context: StageContext) -> PassageFile:
    return PassageFile(context.path("passages", "passages.jsonl"))


def _hash_files(files: Sequence[str]) -> list[str]:
    try:
        return [hash_file(Path(name)) for name in files]
    except OSError as error:
        raise RagJaxError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _measure_recall(index: Index) -> float:
    rows = np.linspace(0, index.size - 1, min(_QUERIES, index.size), dtype=int)
    exact = Index.build(index.embeddings, backend="exact", encoder=index.encoder)
    queries, k = index.embeddings[rows], min(_DEPTH, index.size)
    pairs = zip(index.search(queries, k)[1].tolist(), exact.search(queries, k)[1], strict=True)
    return float(np.mean([len({*found} & {*wanted.tolist()}) / k for found, wanted in pairs]))
