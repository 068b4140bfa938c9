"""The user's cache of compiled programs.

A compiled program is native code that JAX loads and runs without a look at it. So the cache is a
folder that nobody else can write, and every program has a checksum, which tells one that was cut
short or altered: loading it would end the process.
"""

import hashlib
import os
import stat
from pathlib import Path

import jax
from jax._src import compilation_cache  # JAX has no public way to wrap its cache
from jax._src.lru_cache import LRUCache

from rag_jax.runtime.files import open_atomic
from rag_jax.runtime.progress import log

_DIGEST = 32  # bytes of a SHA-256


class CheckedCache(LRUCache):
    """JAX's cache in a folder, with a checksum before every entry and no entry half written."""

    def get(self, key: str) -> bytes | None:
        """The entry, or None if there is none or it is damaged; a damaged one is removed."""
        stored = super().get(key)
        if stored is None:
            return None
        if hashlib.sha256(stored[_DIGEST:]).digest() == stored[:_DIGEST]:
            return stored[_DIGEST:]
        path = self._find(key)
        log(f"{path}: a compiled program is damaged and will be compiled again")
        path.unlink(missing_ok=True)
        return None

    def put(self, key: str, value: bytes) -> None:
        """Adds an entry, unless there is one."""
        if not self._find(key).exists():
            with open_atomic(self._find(key), "wb") as file:
                file.write(hashlib.sha256(value).digest() + value)

    def _find(self, key: str) -> Path:
        return Path(self.path) / f"{key}-cache"


def keep_programs(folder: Path) -> None:
    """Has JAX keep compiled programs in a folder, unless the user has set JAX's own cache.

    The folder is made for this user alone. If others can write it, or replace it by another, it is
    not used, and a line says so.
    """
    if jax.config.jax_compilation_cache_dir is not None:
        return
    try:
        if not folder.parent.exists():
            folder.parent.mkdir(parents=True)
            folder.parent.chmod(0o755)
        folder.mkdir(mode=0o700, exist_ok=True)
        reason = next(filter(None, map(_find_others, (folder, folder.parent))), "")
    except OSError as error:
        reason = f"{folder}: {error.strerror}"
    if reason:
        log(f"{reason}: compiled programs are not kept, and the next command compiles them again")
        return
    compilation_cache.get_file_cache = lambda path: (CheckedCache(path, max_size=-1), path)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # JAX keeps what took a second; reading a small program takes a tenth of compiling it.
    seconds = min(0.05, jax.config.jax_persistent_cache_min_compile_time_secs)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)


def _find_others(folder: Path) -> str:
    """Why others than this user can write a folder; empty if they cannot."""
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder}: is not a folder"
    if found.st_uid != os.getuid():
        return f"{folder}: belongs to another user"
    return f"{folder}: others can write it (chmod 755)" if found.st_mode & 0o022 else ""
