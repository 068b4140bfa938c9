"""The tokens at which a model stops, from its `generation_config.json` or `config.json`."""

from pathlib import Path

from rag_jax.models.io.fields import LARGEST, read_fields
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import is_there, show


def read_stop_ids(folder: Path) -> tuple[int, ...]:
    """The ids in `eos_token_id`, one number or a list of them; none if the field is missing.

    As in transformers, `config.json` counts only without a `generation_config.json`.

    Raises:
        RagJaxError: the field is no token id and no list of them, or the file is not valid JSON.
    """
    paths = (folder / "generation_config.json", folder / "config.json")
    path = next((path for path in paths if is_there(path)), None)
    if path is None:
        return ()
    value = read_fields(path).raw.get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(i, int) or isinstance(i, bool) or not 0 <= i <= LARGEST for i in ids):
        raise RagJaxError(f"{path}: eos_token_id {show(value)} is no token id and no list of them")
    return tuple(ids)
