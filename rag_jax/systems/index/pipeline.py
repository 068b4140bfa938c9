"""An index from files of passages, made in stages: copy, encode, index, measure."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.data.formats import BadLines, stream_passages
from rag_jax.data.passages import PassageFile, write_passages
from rag_jax.models import load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.pipeline.runner import Shard, Stage, StageContext, run_stages
from rag_jax.retrieval.encode import PIECE, encode_texts, list_texts
from rag_jax.retrieval.index import Index, fingerprint_corpus
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, read_json, write_json
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.manifest import hash_file

# How many queries recall is measured with, and how deep.
_QUERIES, _DEPTH = 256, 10


def build_index(
    files: Sequence[str],
    workdir: str | os.PathLike,
    *,
    encoder: str,
    backend: str,
    max_length: int,
    bad_lines: int = 0,
    shard: Shard | None = None,
) -> dict[str, Any]:
    """Encodes passages and writes an index over them, continuing what an earlier call began.

    The index is then in `workdir/stages/index/index`, with the passages' ids and their corpus's
    fingerprint, and the passages in the order of its rows in `workdir/stages/passages`. Of their
    texts no more than a shard of 1,024 is in memory at a time.

    Args:
        files: by `stream_passages`.
        workdir: a run's work folder, as `run_stages` keeps it.
        encoder: name or folder of an encoder.
        backend: "scann" or "exact".
        max_length: tokens of a passage, the rest of which is cut off.
        bad_lines: so many lines of the files may be skipped, each with a warning.
        shard: of the encoding, as for `run_stages`.

    Returns:
        `{"folder", "backend", "passages", "width", "bytes", "encode_seconds", "build_seconds"}`
        and, unless the backend is exact, `"recall"`: the share of the exact ten best passages that
        it finds for 256 of the passages, taken evenly. Bytes are those on disk.

    Raises:
        RagJaxError: as `stream_passages`, `encode_texts`, `Index.build` and `run_stages` do.
    """
    encoder_fingerprint = fingerprint(resolve(encoder))

    def copy(context: StageContext) -> None:
        if not is_first():
            return
        path = context.folder / "passages.jsonl"
        passages = write_passages(path, stream_passages(files, BadLines(bad_lines, "--bad_lines")))
        write_json(context.folder / "corpus.json", fingerprint_corpus(passages))

    def encode(context: StageContext) -> None:
        pretrained, passages = load(encoder), _open_passages(context)

        def run(rows: slice) -> np.ndarray:
            return encode_texts(pretrained, list_texts(passages[rows]), max_length=max_length)

        context.map_arrays(
            "embeddings.npy",
            len(passages),
            run,
            batch_size=PIECE,
            unit="passages",
        )

    def index(context: StageContext) -> None:
        embeddings = map_array(context.path("embeddings", "embeddings.npy"))
        start = time.monotonic()
        built = Index.build(
            embeddings,
            backend=backend,
            encoder=encoder_fingerprint,
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

    source = {"files": _hash_files(files), "bad_lines": bad_lines}
    settings = {"encoder": encoder_fingerprint}
    stages = [
        Stage("passages", copy, settings=source, version=2),
        Stage(
            "embeddings",
            encode,
            settings={**settings, "max_length": max_length},
            needs=("passages",),
            shardable=("embeddings.npy",),
        ),
        Stage(
            "index",
            index,
            settings={**settings, "backend": backend},
            needs=("passages", "embeddings"),
        ),
    ]
    config = {"files": files, "encoder": encoder, "backend": backend, "max_length": max_length}
    config |= {"bad_lines": bad_lines}
    made = {s["name"]: s for s in run_stages(stages, workdir, config=config, shard=shard)}
    folder = Path(workdir) / "stages" / "index"
    seconds = made["embeddings"]["seconds"]
    facts = {"folder": str(folder / "index"), "encode_seconds": seconds}
    return facts | read_json(folder / "facts.json")


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
