"""Slots: where a parameter of a tree lies among the stored tensors."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Slot:
    """One parameter of a model, and the stored tensor that holds the parameter.

    Attributes:
        name: Hugging Face name of the stored tensor.
        path: path of the parameter in the tree, joined by `/`.
        shape: shape of the parameter in the tree.
        transposed: True for kernels of linear layers, which Hugging Face stores as `[out, in]` and
            the tree as `[in, out]`.
        rows: first and last (exclusive) row of the stored tensor, if several parameters are stored
            as one tensor; None if the parameter is the whole tensor.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    transposed: bool = False
    rows: tuple[int, int] | None = None


def linear_slots(name: str, path: str, inputs: int, outputs: int) -> list[Slot]:
    """A linear layer with a bias."""
    return [
        Slot(f"{name}.weight", f"{path}/kernel", (inputs, outputs), True),
        Slot(f"{name}.bias", f"{path}/bias", (outputs,)),
    ]


def scale_slots(name: str, path: str, width: int) -> list[Slot]:
    """A norm without a bias."""
    return [Slot(f"{name}.weight", f"{path}/scale", (width,))]


def norm_slots(name: str, path: str, width: int) -> list[Slot]:
    """A norm with a bias."""
    return [
        Slot(f"{name}.weight", f"{path}/scale", (width,)),
        Slot(f"{name}.bias", f"{path}/bias", (width,)),
    ]
