"""What an encoder reads of texts beside their tokens, by a tokenizer's files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import show

# The classes of transformers 5 whose models have no types of tokens.
_WITHOUT_TYPES = (
    "BartTokenizer",
    "DistilBertTokenizer",
    "MPNetTokenizer",
    "RobertaTokenizer",
    "XLMRobertaTokenizer",
)
_TYPES = "token_type_ids"


class Inputs(NamedTuple):
    """What an encoder reads of texts.

    Attributes:
        has_types: whether the tokens of two texts have types, 0 and 1, where the model has types.
        cuts_start: whether a long text loses its start and not its end.
    """

    has_types: bool = True
    cuts_start: bool = False


USUAL_INPUTS = Inputs()


def read_inputs(
    core: tokenizers.Tokenizer, settings: Mapping[str, Any], kind: str, folder: Path
) -> Inputs:
    """What the settings of `tokenizer_config.json` say, or else the tokenizer's class, `kind`.

    Without either, a BERT reads types, as with transformers 4, where most such files are from.

    Raises:
        RagJaxError: a setting is of the wrong type.
    """
    listed = settings.get("model_input_names")
    if not isinstance(listed, list | None):
        raise RagJaxError(f"{folder}: model_input_names must be a list, not {show(listed)}")
    has_types = kind not in _WITHOUT_TYPES if listed is None else _TYPES in listed
    stored = (core.truncation or {}).get("direction", "right").lower()
    side = settings.get("truncation_side") or stored
    if side not in ("left", "right"):
        raise RagJaxError(f"{folder}: truncation_side must be left or right, not {show(side)}")
    return Inputs(has_types, side == "left")


def describe_inputs(inputs: Inputs) -> dict[str, Any]:
    """The settings that `read_inputs` and transformers read."""
    types = [_TYPES] if inputs.has_types else []
    return {
        "model_input_names": ["input_ids", *types, "attention_mask"],
        "truncation_side": "left" if inputs.cuts_start else "right",
    }
