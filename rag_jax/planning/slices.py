"""Slices of TPUs by their names, such as v5e:8x8, and the mesh of one that need not be there."""

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from jax.sharding import AbstractMesh, AxisType

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.platforms import ACCELERATOR_TOKENS
from rag_jax.runtime.settings import MeshConfig
from rag_jax.runtime.sharding import check_batches, choose_axes

CHIPS = ("v4", "v5e", "v5p", "v6e")


@dataclass(frozen=True)
class Slice:
    """A number of devices of one kind.

    Attributes:
        name: such as "v5e:8x8"; "cpu" for one CPU.
    """

    name: str
    devices: int

    @property
    def is_cpu(self) -> bool:
        """Whether the devices are no accelerators."""
        return self.name == "cpu"

    def make_mesh(self, config: MeshConfig) -> AbstractMesh:
        """The mesh that a run would make of the devices, without these.

        Raises:
            RagJaxError: as `choose_axes`.
        """
        axes = choose_axes(config, self.devices)
        types = (AxisType.Auto,) * len(axes)
        return AbstractMesh(tuple(axes.values()), tuple(axes), axis_types=types)

    def fill_program_tokens(self, settings: Any) -> Any:
        """Settings, with the platform's default for every `program_tokens` that is None.

        A run takes that default from the devices of its mesh.
        """
        if self.is_cpu or not dataclasses.is_dataclass(settings):
            return settings
        changes: dict[str, Any] = {}
        for field in dataclasses.fields(settings):
            value = getattr(settings, field.name)
            if field.name == "program_tokens" and value is None:
                changes[field.name] = ACCELERATOR_TOKENS
            elif dataclasses.is_dataclass(value):
                changes[field.name] = self.fill_program_tokens(value)
        return dataclasses.replace(settings, **changes)


def read_slice(topology: str | None) -> Slice:
    """The slice of a name, CHIP:AxB or CHIP:AxBxC; without a name one CPU.

    Raises:
        RagJaxError: the name is malformed, or of a chip that is not known.
    """
    if topology is None:
        return Slice("cpu", 1)
    found = re.fullmatch(r"(\w+):([1-9]\d{0,3}(?:x[1-9]\d{0,3}){1,2})", topology)
    if not found or found[1] not in CHIPS:
        raise RagJaxError(
            f"--topology={topology}: no such slice; write CHIP:AxB such as v5e:8x8 or, for v4 and "
            f"v5p, CHIP:AxBxC (the chips are {', '.join(CHIPS)})"
        )
    return Slice(topology, math.prod(map(int, found[2].split("x"))))


def check_mesh(mesh: AbstractMesh, heads: dict[str, int], batches: dict[str, int]) -> None:
    """Checks that a mesh divides the heads of models and the rows of batches, by their settings.

    Raises:
        RagJaxError: naming the first setting that does not fit the mesh.
    """
    parts = mesh.shape["model"]
    for name, count in heads.items():
        if count % parts:
            raise RagJaxError(
                f"config.mesh.model={parts}: does not divide the {count} attention heads of {name}"
            )
    check_batches(mesh, batches)
