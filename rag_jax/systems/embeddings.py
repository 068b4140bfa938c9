"""The embeddings of a run's corpus: made by the first stage that needs them, linked by the others.

A work folder has them as `embeddings/KEY`, where the key says of which passages, which encoder and
which sizes they are. Runs that have this folder in common embed a corpus once.
"""

import contextlib
import hashlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from rag_jax.config import EncoderConfig
from rag_jax.data.passages import Passage, fingerprint_corpus
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.encode import PIECE, plan_widths
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import link_or_copy, read_json, to_json, write_json
from rag_jax.runtime.hosts import fetch, is_first, wait_for_all
from rag_jax.runtime.manifest import check_files, read_manifest, write_folder
from rag_jax.runtime.progress import log

FOLDER = "embeddings"  # in a work folder
_FILE, _BACKEND = "embeddings.npy", "embeddings"
_TAKEN = ".taken.json"  # beside embeddings that were taken: what it took to make them


def embed_corpus(
    context: StageContext,
    passages: Sequence[Passage],
    encoder: Pretrained,
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    encoding: EncoderConfig,
    *,
    file: str = _FILE,
) -> Float[np.ndarray, "N E"]:
    """Embeddings of all passages, as a memory map of a file in the stage's folder.

    They are taken from the work folder if an earlier stage has made them; see `count_spared`.
    """
    path = context.folder / file
    folder = context.workdir / FOLDER
    kept = folder / _make_key(passages, encoder, encoding)
    if is_first() and folder.is_symlink() and not folder.exists():
        folder.unlink()  # of a system's run that was taken out of its comparison
    if is_first() and not path.exists():
        _take(kept, path)
    start = time.monotonic()

    @cache
    def plan() -> list[int]:  # only where something is encoded
        worth = {"program_tokens": encoding.program_tokens}
        return plan_widths(encoder, passages, encoding.max_length, **worth)

    def encode(part: Sequence[Passage]) -> Float[np.ndarray, "n E"]:
        return encode_passages(encoder, part, widths=plan())

    embeddings = context.map(file, passages, encode, batch_size=PIECE, unit="passages")
    if is_first() and not kept.exists():
        made = {"backend": _BACKEND, "seconds": time.monotonic() - start}
        write_folder(kept, made, lambda folder: link_or_copy(path, folder / _FILE))
    return embeddings


@contextlib.contextmanager
def embedding(
    context: StageContext,
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    encoding: EncoderConfig,
    *,
    file: str = _FILE,
) -> Iterator[Callable[[Pretrained, Sequence[Passage]], Float[np.ndarray, "N E"]]]:
    """Yields `embed_corpus` for a stage whose folder needs no embeddings once the block ends."""

    def embed(encoder: Pretrained, passages: Sequence[Passage]) -> Float[np.ndarray, "N E"]:
        return embed_corpus(context, passages, encoder, encode_passages, encoding, file=file)

    yield embed
    wait_for_all("the embeddings were read")
    if is_first():
        (context.folder / file).unlink(missing_ok=True)


def count_spared(stage: Path) -> float:
    """The seconds that a stage would have taken more, had it embedded what it has taken."""
    return sum(read_json(path)["seconds"] for path in stage.glob(f"*{_TAKEN}"))


def _make_key(passages: Sequence[Passage], encoder: Pretrained, encoding: EncoderConfig) -> str:
    """What embeddings are of. An encoder's weights may have been trained since it was loaded."""
    sizes = [encoding.max_length, encoding.batch_size, encoding.program_tokens]
    # The module has the pooling, which settings may change.
    made_of = [fingerprint_corpus(passages), encoder.fingerprint, repr(encoder.model), sizes]
    key = hashlib.sha256(to_json(made_of).encode())
    for leaf in jax.tree.leaves(encoder.params):
        key.update(np.asarray(fetch(leaf)).tobytes())
    return key.hexdigest()[:16]


def _take(kept: Path, path: Path) -> None:
    """Links kept embeddings as `path`; damaged ones are removed, to be made anew."""
    if not kept.exists():
        return
    try:
        manifest = read_manifest(kept, {"seconds": float}, [_BACKEND])
        check_files(kept, manifest["sha256"], [_FILE])
    except RagJaxError as error:
        log(f"{error}; they are made anew")
        shutil.rmtree(kept)
        return
    log(f"embeddings of the passages: those of {kept}")
    write_json(path.with_suffix(_TAKEN), {"seconds": manifest["seconds"]})
    link_or_copy(kept / _FILE, path)
