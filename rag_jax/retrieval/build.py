"""An index from files of passages, made in stages: encode, index, measure."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.data.formats import read_passages
from rag_jax.files import read_json, write_json, write_jsonl
from rag_jax.models import load
from rag_jax.models.hub import fingerprint, resolve
from rag_jax.pipeline import Stage, StageContext, run_stages
from rag_jax.retrieval.encode import encode_texts, list_texts
from rag_jax.retrieval.index import Index, fingerprint_corpus

# Passages that an interrupted run may lose; how many queries recall is measured with, and how deep.
_SHARD, _QUERIES, _DEPTH = 1024, 256, 10


def build_index(
    files: Sequence[str], workdir: str | os.PathLike, *, encoder: str, backend: str, max_length: int
) -> dict[str, Any]:
    """Encodes passages and writes an index over them, continuing what an earlier call began.

    The index is then in `workdir/stages/index/index`, with the passages' ids and their corpus's
    fingerprint, and the passages in the order of its rows in `passages.jsonl` beside it.

    Args:
        files: by `read_passages`.
        workdir: a run's work folder, as `run_stages` keeps it.
        encoder: name or folder of an encoder.
        backend: "scann" or "exact".
        max_length: tokens of a passage, the rest of which is cut off.

    Returns:
        `{"folder", "backend", "passages", "width", "bytes", "encode_seconds", "build_seconds"}`
        and, unless the backend is exact, `"recall"`: the share of the exact ten best passages that
        it finds for 256 of the passages, taken evenly. Bytes are those on disk.

    Raises:
        RagJaxError: as `read_passages`, `encode_texts`, `Index.build` and `run_stages` do.
    """
    passages = read_passages(files)
    texts, ids = list_texts(passages), [passage.id for passage in passages]
    corpus, encoder_fingerprint = fingerprint_corpus(texts, ids), fingerprint(resolve(encoder))

    def encode(context: StageContext) -> None:
        pretrained = load(encoder)
        context.map_arrays(
            "embeddings.npy",
            len(texts),
            lambda rows: encode_texts(pretrained, texts[rows], max_length=max_length),
            batch_size=_SHARD,
            unit="passages",
        )

    def index(context: StageContext) -> None:
        embeddings = np.load(context.path("embeddings", "embeddings.npy"))
        start = time.monotonic()
        built = Index.build(
            embeddings, backend=backend, encoder=encoder_fingerprint, ids=ids, corpus=corpus
        )
        facts = {"passages": built.size, "width": built.width, "backend": backend}
        facts["build_seconds"] = time.monotonic() - start
        folder = context.folder / "index"
        built.save(folder)
        facts["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
        if backend != "exact":
            facts["recall"] = _measure_recall(built)
        write_jsonl(context.folder / "passages.jsonl", passages)
        write_json(context.folder / "facts.json", facts)

    settings = {"corpus": corpus, "encoder": encoder_fingerprint}
    stages = [
        Stage("embeddings", encode, settings={**settings, "max_length": max_length}),
        Stage("index", index, settings={**settings, "backend": backend}, needs=("embeddings",)),
    ]
    config = {"files": files, "encoder": encoder, "backend": backend, "max_length": max_length}
    made = run_stages(stages, workdir, config=config)
    folder = Path(workdir) / "stages" / "index"
    facts = {"folder": str(folder / "index"), "encode_seconds": made[0]["seconds"]}
    return facts | read_json(folder / "facts.json")


def _measure_recall(index: Index) -> float:
    rows = np.linspace(0, index.size - 1, min(_QUERIES, index.size), dtype=int)
    exact = Index.build(index.embeddings, backend="exact", encoder=index.encoder)
    queries, k = index.embeddings[rows], min(_DEPTH, index.size)
    pairs = zip(index.search(queries, k)[1].tolist(), exact.search(queries, k)[1], strict=True)
    return float(np.mean([len({*found} & {*wanted.tolist()}) / k for found, wanted in pairs]))
