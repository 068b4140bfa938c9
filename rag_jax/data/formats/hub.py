"""Datasets of the Hugging Face hub, fetched by `datasets` and saved once as a folder to read.

The saved folder lies beside the library's own cache and is not fetched again, so the data of a run
stays as it is. Deleting the folder fetches the dataset anew.
"""

import re
from pathlib import Path

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import explain_disk_errors, replace_folder
from rag_jax.runtime.outside import parsing

# `owner/name`, or `owner/name/configuration`.
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w-][\w.-]*){1,2}", re.ASCII)
_FIRST_SAFE = 4  # the version of `datasets` from which on it runs no code of a dataset


def is_hub_name(name: str) -> bool:
    """Returns whether a name that is no folder may be that of a dataset on the hub.

    It is not where its first part is a folder: then a folder's name is misspelt.
    """
    return bool(_NAME.fullmatch(name)) and not Path(name.split("/")[0]).exists()


def fetch_dataset(name: str) -> Path:
    """Returns the folder of a dataset of the hub, which is fetched if it is not there yet.

    Args:
        name: `owner/name`, or `owner/name/configuration` for a dataset that has several.

    Raises:
        RagJaxError: if `datasets` is missing or too old, the dataset cannot be fetched, or the
            disk is full.
    """
    place = f"config.data.path={name}"
    try:
        import datasets  # slow to import, and few runs need the package
    except ImportError:
        raise RagJaxError(
            f"{place}: no such folder; for a dataset of the Hugging Face hub, pip install "
            "'rag_jax[datasets]'"
        ) from None
    if int(datasets.__version__.split(".")[0]) < _FIRST_SAFE:
        raise RagJaxError(
            f"{place}: datasets {datasets.__version__} may run a dataset's code: install "
            f"datasets>={_FIRST_SAFE}"
        )
    owner, repository, *configuration = name.split("/")
    folder = Path(datasets.config.HF_DATASETS_CACHE, "rag_jax", name.replace("/", "--"))
    if folder.is_dir():
        return folder
    advice = "check the name and the network, or give a folder that `save_to_disk` wrote"
    problem = "is no folder, and no dataset that can be fetched from the Hugging Face hub"
    with parsing(place, problem, advice), explain_disk_errors(folder):
        fetched = datasets.load_dataset(f"{owner}/{repository}", *configuration)
        with replace_folder(folder) as new:
            fetched.save_to_disk(new)
    return folder
