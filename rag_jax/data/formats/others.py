"""What a folder contains beside its data files: it is named, or an error if it looks like data."""

from collections.abc import Sequence
from pathlib import Path

from rag_jax.data.formats import tfds
from rag_jax.data.formats.files import SUFFIXES, list_others, looks_like_data
from rag_jax.data.formats.ledger import Ledger
from rag_jax.runtime.errors import RagJaxError


def check_others(folder: Path, files: Sequence[Path], ledger: Ledger) -> None:
    """Accounts for what a folder contains beside its data files.

    Raises:
        RagJaxError: if a file at the top looks like data.
    """
    known = {*files}
    for path in list_others(folder, known):
        if path.is_dir():
            if path.name != "qrels":
                ledger.leave_out(path, "is a folder: move its files up, if they are data")
        elif tfds.is_of_hugging_face(path):
            ledger.leave_out(path, "describes a dataset of Hugging Face's `datasets`")
        elif path.suffix == ".arrow" and path.parent / "state.json" in known:
            ledger.leave_out(path, "is no part of the saved dataset")
        elif Path(path.parent, path.stem) in known:
            ledger.leave_out(path, f"lies beside {path.stem}, which is read")
        elif not looks_like_data(path):
            ledger.leave_out(path, "is neither JSON nor a table")
        elif path.parent != folder:
            ledger.leave_out(path, "lies in a folder: move it up, if it is data")
        else:
            raise RagJaxError(
                f"{path}: looks like data, but has no suffix of {', '.join(SUFFIXES)}, plain or "
                "with .gz, .bz2, .xz or .zst: convert or unpack the file, or move it away"
            )
