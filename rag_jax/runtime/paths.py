"""Paths as users write them."""

import os
from pathlib import Path

from rag_jax.runtime.errors import RagJaxError


def expand_path(path: str | os.PathLike) -> Path:
    """A path with the home folder in place of `~` or `~user`, which shells leave after an `=`.

    Raises:
        RagJaxError: there is no such home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise RagJaxError(
            f"{path}: no home folder is known for the ~: set HOME, or write the path in full"
        ) from None
