"""Estimates of what stages write, in bytes: trained trees, checkpoints, embeddings, adapters.

A stage's estimate is a pair: bytes that it leaves on the disk, and bytes that it needs beside those
while it is made. Small files, such as records of questions, are not counted.
"""

import math
import re
from collections.abc import Iterable, Sequence

from rag_jax.config import TuningConfig
from rag_jax.models.io.architectures import Config
from rag_jax.models.io.load import load_config
from rag_jax.models.io.weights import list_slots
from rag_jax.runtime.checkpoint import KEEP

Room = tuple[int, int]
_FLOAT = 4  # bytes of a float32, in which trained parameters and embeddings are kept
# Times that checkpoints hold the trained tree: parameters and AdamW's two moments, in those that
# are kept and in the one that is being written.
_CHECKPOINTS = 3 * (KEEP + 1)
# Bytes of a saved tree's description: of each array, and of the tree.
_ARRAY, _TREE = 2048, 8192


def weigh_arrays(shapes: Iterable[Sequence[int]]) -> int:
    """Bytes of saved arrays of float32, with their description."""
    return sum(math.prod(shape) * _FLOAT + _ARRAY for shape in shapes)


def weigh_params(config: Config) -> int:
    """Bytes of a model's parameters."""
    return weigh_arrays(slot.shape for slot in list_slots(config))


def list_trained(tuning: TuningConfig, config: Config) -> list[tuple[int, ...]]:
    """The shapes of the parameters that a language model's training updates."""
    slots = list_slots(config)
    if tuning.mode == "full":
        return [slot.shape for slot in slots]
    targets, rank = f".*({tuning.targets})/kernel", tuning.rank
    adapted = [slot.shape for slot in slots if re.fullmatch(targets, slot.path)]
    return [factor for i, *o in adapted for factor in ((i, rank), (rank, *o))]


def weigh_trained(tuning: TuningConfig, config: Config) -> int:
    """Bytes of the parameters that a language model's training updates."""
    return weigh_arrays(list_trained(tuning, config))


def train_room(trained: int, *, saved: int | None = None) -> Room:
    """Of a training that updates `trained` bytes of parameters and leaves `saved`, or those."""
    return (trained if saved is None else saved) + _TREE, trained * _CHECKPOINTS


def tuning_room(tuning: TuningConfig, name: str) -> Room:
    """Of the training of a language model by its name."""
    return train_room(weigh_trained(tuning, load_config(name)))


def encoder_room(
    name: str, *, sides: int = 1, shared: bool = True, validated: bool = False
) -> Room:
    """Of the training of an encoder, or two, of which `sides` are saved as models.

    Args:
        validated: whether the best epoch's tree is kept during the training.
    """
    size = weigh_params(load_config(name))
    trained = size if shared else 2 * size
    keeps, passing = train_room(trained, saved=sides * size)
    return keeps, passing + 2 * trained * validated


def index_room(name: str, passages: int, *, indexed: int | None = None) -> Room:
    """Of the embeddings of passages by an encoder, and of the indices over them.

    Args:
        indexed: number of passages of all indices together, if other than `passages`.
    """
    rows = passages + (passages if indexed is None else indexed)
    return rows * load_config(name).hidden_size * _FLOAT + _TREE, 0


def adapters_room(adapters: int, tuning: TuningConfig, config: Config) -> Room:
    """Of adapters that are saved one by one, each as one array."""
    size = sum(math.prod(shape) for shape in list_trained(tuning, config))
    return adapters * (size * _FLOAT + _TREE), 0
