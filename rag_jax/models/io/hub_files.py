"""A model's files on the Hugging Face hub: listed with their sizes, then downloaded within limits.

huggingface_hub does both. It ends a connection on which nothing comes for 10 seconds (or as long
as `HF_HUB_DOWNLOAD_TIMEOUT` says) and tries a few times more.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.runtime.downloads import ANSWER, LARGEST_MODEL, Meter
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import LARGEST_SETTINGS


class HubModel:
    """A model on the hub, at the commit that its revision names now.

    If the hub cannot be reached or refuses an answer, the files are those in the library's cache.
    """

    def __init__(self, repository: str, revision: str | None):
        """Lists the files of `owner/name`.

        Raises:
            Exception: of the library, of any class: there is no such model or revision, or no
                answer and nothing in the cache.
        """
        # Slow to import and rarely needed.
        from huggingface_hub import HfApi, errors

        self._repository, self._revision = repository, revision
        self._sizes: Mapping[str, int | None] = {}
        self._commit: str | None = None
        options = {"revision": revision, "files_metadata": True, "timeout": ANSWER}
        try:
            info = HfApi().model_info(repository, **options)
        except errors.RevisionNotFoundError:
            raise
        except Exception as error:
            if not self._is_cached():
                raise error from None
            return
        self._commit = info.sha
        self._sizes = {file.rfilename: file.size for file in info.siblings or ()}

    def fetch(self, patterns: Sequence[str], *, pinned: bool, subfolders: bool = False) -> Path:
        """Downloads the files that match one of `patterns`; the snapshot's folder.

        Args:
            pinned: whether files are those of the listed commit. Otherwise the library looks the
                revision up again, and remembers its commit for when the hub is out of reach.
            subfolders: whether files in subfolders are meant too.

        Raises:
            RagJaxError: the files are too large.
            Exception: of the library, of any class.
        """
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import filter_repo_objects

        chosen = {"allow_patterns": list(patterns)}
        chosen |= {} if subfolders else {"ignore_patterns": ["*/*"]}
        options: dict[str, Any] = {**chosen, "etag_timeout": ANSWER}
        if self._commit is None:
            options |= {"revision": self._revision, "local_files_only": True}
        else:
            names = filter_repo_objects(self._sizes, **chosen)
            room = self._measure({name: self._sizes[name] for name in names})
            options["revision"] = self._commit if pinned else self._revision
            options["tqdm_class"] = _make_bar(room)
        return Path(snapshot_download(self._repository, **options))

    def lists(self, pattern: str) -> bool:
        """Whether the hub's list has a file of that name, in subfolders too; False without it."""
        from huggingface_hub.utils import filter_repo_objects

        return any(filter_repo_objects(self._sizes, allow_patterns=[pattern]))

    def _is_cached(self) -> bool:
        from huggingface_hub import snapshot_download

        try:
            options = {"revision": self._revision, "allow_patterns": ["config.json"]}
            snapshot_download(self._repository, local_files_only=True, **options)
        except Exception:
            return False
        return True

    def _measure(self, sizes: Mapping[str, int | None]) -> int:
        """The most bytes that the files may have: their sum, or the limit if a size is not known.

        Raises:
            RagJaxError: a file or all of them have more than their limit.
        """
        known = {name: size for name, size in sizes.items() if type(size) is int and size >= 0}
        for name, size in known.items():
            largest = LARGEST_MODEL if name.endswith(".safetensors") else LARGEST_SETTINGS
            if size > largest:
                raise self._refuse(f"{name} has {size:,} bytes", largest)
        total = sum(known.values())
        if total > LARGEST_MODEL:
            raise self._refuse(f"its files have {total:,} bytes", LARGEST_MODEL)
        return total if len(known) == len(sizes) else LARGEST_MODEL

    def _refuse(self, what: str, limit: int) -> RagJaxError:
        return RagJaxError(
            f"{self._repository} is not downloaded: {what}, more than the limit of {limit:,}: give "
            "a folder with its files"
        )


def _make_bar(room: int) -> type:
    """A class of progress bars that end a download of more than `room` bytes, or a slow one."""
    from huggingface_hub.utils import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any):
            # The library's other bars count files.
            self._meter = Meter(room) if kwargs.get("unit") == "B" else None
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            if self._meter is not None:
                self._meter.add(int(n or 0))
            return super().update(n)

    return Bar
