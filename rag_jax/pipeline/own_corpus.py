"""The passages that a question is asked over in place of the run's, and their embeddings.

Embeddings, and numbers that take a pass of the tokenizer, are kept in the user's cache by the
passages' content, so that a second start computes none of them.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.data.formats import BadLines, stream_passages
from rag_jax.data.passages import Passage, PassageFile, fingerprint_corpus
from rag_jax.models.io.hub import cache_folder
from rag_jax.retrieval import Index, list_texts
from rag_jax.retrieval.matrices import check_matrix
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, read_json, save_array, write_json
from rag_jax.runtime.outside import is_there, parsing
from rag_jax.runtime.progress import log, show_progress

Encode = Callable[..., Float[np.ndarray, "N E"]]


def read_corpus(
    path: Path, encode: Encode, *, encoder: str, max_length: int, words: int
) -> tuple[Sequence[Passage], Float[np.ndarray, "N E"]]:
    """The passages of a file or of documents, and their embeddings, or those of an index's folder.

    Args:
        encode: takes texts and a `progress`, as `encode_texts` does.
        encoder: fingerprint of the encoder.
        max_length: number of tokens that are read of a passage.
        words: the most words of a passage of a document.

    Raises:
        RagJaxError: the file or the index cannot be read, or another encoder made the index.
    """
    if (path / "stages").is_dir():
        return _open_index(path, encoder)
    passages = read_own(path, words=words)
    kept = {"name": str(path), "encoder": encoder, "max_length": max_length}
    return passages, embed_texts(list_texts(passages), encode, **kept)


def read_own(path: Path, *, words: int) -> list[Passage]:
    """The passages of a file or of documents.

    Raises:
        RagJaxError: one of them cannot be read.
    """
    return list(stream_passages([path], BadLines(setting=None), words=words))


def embed_texts(
    texts: Sequence[str | tuple[str, str]],
    encode: Encode,
    *,
    name: str,
    encoder: str,
    max_length: int,
) -> Float[np.ndarray, "N E"]:
    """Embeddings of passages' texts from the user's cache, or computed with a progress bar `name`.

    Args:
        encode: as for `read_corpus`, as are `encoder` and `max_length`.
    """
    digest = hashlib.sha256(json.dumps([encoder, max_length]).encode())
    for text in texts:
        digest.update(json.dumps(text).encode())
    path = cache_folder() / "embeddings" / f"{digest.hexdigest()}.npy"
    if (kept := _read_kept(path, len(texts))) is not None:
        return kept
    with show_progress(name, len(texts), unit="passages") as bar:
        embeddings = encode(texts, progress=lambda done, total: bar.update(done - bar.n))
    _keep(path, partial(save_array, path, embeddings))
    return embeddings


def _read_kept(path: Path, count: int) -> Float[np.ndarray, "N E"] | None:
    if not path.exists():
        return None
    with contextlib.suppress(RagJaxError):
        embeddings = check_matrix(map_array(path), str(path))
        if len(embeddings) == count:
            return embeddings
    log(f"{path}: is damaged, and the passages are embedded again")
    return None


def keep_measured(
    passages: Sequence[Passage], measure: Callable[[], dict[str, int]], **made_by: Any
) -> dict[str, int]:
    """What `measure` counts in the passages' tokens, from the user's cache if it is there.

    Args:
        made_by: JSON values of all that the numbers depend on beside the passages.
    """
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode())
    digest.update(fingerprint_corpus(passages).encode())
    path = cache_folder() / "measured" / f"{digest.hexdigest()}.json"
    if is_there(path):
        with contextlib.suppress(RagJaxError), parsing(path):
            kept = read_json(path)
            if all(type(number) is int and number >= 0 for number in kept.values()):
                return kept
        log(f"{path}: is damaged, and the passages are measured again")
    measured = measure()
    _keep(path, partial(write_json, path, measured))
    return measured


def _keep(path: Path, write: Callable[[], None]) -> None:
    """Writes a file of the user's cache; what cannot be kept is said, and computed again."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        log(f"{path} cannot be kept ({reason}): set RAG_JAX_CACHE to a folder with space")


def _open_index(folder: Path, encoder: str) -> tuple[Sequence[Passage], Float[np.ndarray, "N E"]]:
    stages = folder / "stages"
    if not (stages / "index" / "index").is_dir():
        raise RagJaxError(
            f"--corpus={folder}: is a work folder, but none that launch/build_index.py has finished"
        )
    passages = PassageFile(stages / "passages" / "passages.jsonl")
    corpus = read_json(stages / "passages" / "corpus.json")
    index = Index.load(stages / "index" / "index", encoder=encoder)
    if index.corpus != corpus:
        raise RagJaxError(
            f"--corpus={folder}: its index is of earlier passages, because it is being built again "
            "or that was stopped; finish launch/build_index.py"
        )
    return passages, index.embeddings
