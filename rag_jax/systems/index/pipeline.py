"""An index from files of passages, in stages: copy, encode, index, measure."""

import os
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.config import EncoderConfig, IndexConfig
from rag_jax.data.formats import BadLines, stream_passages
from rag_jax.data.passages import Passage, PassageFile, fingerprint_corpus, write_passages
from rag_jax.models import Pretrained, load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.pipeline.protect import INDEX
from rag_jax.pipeline.runner import run_stages
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.pipeline.workers import Executor, Opener
from rag_jax.retrieval import encode_texts, list_texts
from rag_jax.retrieval.index import Index
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, read_json, write_json
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.manifest import hash_file
from rag_jax.systems.embeddings import embed_corpus

# Number of queries that recall is measured with, and of passages found for each.
_QUERIES, _DEPTH = 256, 10


def build_index(
    files: Sequence[str],
    workdir: str | os.PathLike,
    *,
    encoder: str,
    backend: str,
    storage: str = "float32",
    max_length: int,
    bad_lines: int = 0,
    executor: Executor | None = None,
) -> dict[str, Any]:
    """Encodes passages and writes an index over them, continuing what an earlier call began.

    The index is then in `workdir/stages/index/index`, with the passages' ids and the corpus's
    fingerprint, and the passages in the order of its rows in `workdir/stages/passages`. At most one
    piece of 1,024 passages' texts is in memory at a time.

    Args:
        encoder: name or folder of an encoder.
        backend: as for `Index`, as is `storage`.
        max_length: number of tokens that are read of a passage.
        bad_lines: number of lines of the files that may be skipped, each with a warning.
        executor: its workers encode the passages.

    Returns:
        `{"folder", "backend", "passages", "width", "bytes", "encode_seconds", "build_seconds"}`
        and, unless the search is exact, `"recall"`: the share of the exact ten best passages that
        the index finds for 256 evenly spaced passages; and `"storage"` unless it is float32. Bytes
        are those on disk.

    Raises:
        RagJaxError: as `stream_passages`, `encode_texts`, `Index.build` and `run_stages` do, or the
            folder is that of a finished run.
    """
    config = IndexConfig(backend, storage)
    config.check("index")
    given = {"files": list(files), "encoder": encoder, **config.describe()}
    given |= {"max_length": max_length, "bad_lines": bad_lines}
    divide = executor and partial(executor.divide, Opener(open_index, given))
    stages = open_index(**given)[1]
    config = {"system": INDEX, **given}
    made = {s["name"]: s for s in run_stages(stages, workdir, config=config, divide=divide)}
    folder = Path(workdir) / "stages" / "index"
    facts = {"folder": str(folder / "index"), "encode_seconds": made["embeddings"]["seconds"]}
    return facts | read_json(folder / "facts.json")


def open_index(
    files: Sequence[str],
    encoder: str,
    backend: str,
    max_length: int,
    bad_lines: int,
    storage: str = "float32",
) -> tuple[None, list[Stage]]:
    """The stages of an index; arguments as for `build_index`. They need no mesh."""
    copied = {"files": files, "bad_lines": bad_lines}
    encoded = {"encoder": encoder, "max_length": max_length}
    weights = {"encoder": fingerprint(resolve(encoder))}
    read = {**copied, "files": _hash_files(files)}
    return None, [
        Stage("passages", partial(_copy, **copied), read, version=2),
        Stage(
            "embeddings",
            partial(_encode, **encoded),
            {**encoded, **weights},
            needs=("passages",),
            divisible=("embeddings.npy",),
        ),
        Stage(
            "index",
            partial(_index, kept=IndexConfig(backend, storage), **weights),
            {**weights, **IndexConfig(backend, storage).describe()},
            needs=("passages", "embeddings"),
        ),
    ]


def _copy(context: StageContext, *, files: Sequence[str], bad_lines: int) -> None:
    if not is_first():
        return
    path = context.folder / "passages.jsonl"
    passages = write_passages(path, stream_passages(files, BadLines(bad_lines, "--bad_lines")))
    write_json(context.folder / "corpus.json", fingerprint_corpus(passages))


def _encode(context: StageContext, *, encoder: str, max_length: int) -> None:

    def encode(
        encoder: Pretrained, part: Sequence[Passage], **options: Any
    ) -> Float[np.ndarray, "n E"]:
        sizes = {"max_length": max_length, **options}
        return encode_texts(encoder, list_texts(part), role="document", **sizes)

    settings = EncoderConfig(max_length=max_length)
    embed_corpus(context, _open_passages(context), load(encoder), encode, settings)


def _index(context: StageContext, *, kept: IndexConfig, encoder: str) -> None:
    embeddings = map_array(context.path("embeddings", "embeddings.npy"))
    start = time.monotonic()
    ids = [passage.id for passage in _open_passages(context)]
    corpus = read_json(context.path("passages", "corpus.json"))
    built = Index.build(embeddings, **vars(kept), encoder=encoder, ids=ids, corpus=corpus)
    facts = {"passages": built.size, "width": built.width, **kept.describe()}
    facts["build_seconds"] = time.monotonic() - start
    folder = context.folder / "index"
    built.save(folder)
    facts["bytes"] = sum(path.stat().st_size for path in folder.iterdir())
    if kept != IndexConfig("exact"):
        facts["recall"] = _measure_recall(built, embeddings)
    write_json(context.folder / "facts.json", facts)


def _open_passages(context: StageContext) -> PassageFile:
    return PassageFile(context.path("passages", "passages.jsonl"))


def _hash_files(files: Sequence[str]) -> list[str]:
    try:
        return [hash_file(Path(name)) for name in files]
    except OSError as error:
        raise RagJaxError(f"{error.filename}: cannot be read ({error.strerror})") from None


def _measure_recall(index: Index, embeddings: Float[np.ndarray, "N D"]) -> float:
    rows = np.linspace(0, index.size - 1, min(_QUERIES, index.size), dtype=int)
    exact = Index.build(embeddings, backend="exact", encoder=index.encoder)
    queries, k = embeddings[rows], min(_DEPTH, index.size)
    pairs = zip(index.search(queries, k)[1].tolist(), exact.search(queries, k)[1], strict=True)
    return float(np.mean([len({*found} & {*wanted.tolist()}) / k for found, wanted in pairs]))
