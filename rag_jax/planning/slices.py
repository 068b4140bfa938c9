"""Slices of TPUs by their names, such as v5e:8x8, and the mesh of one that need not be there."""

import math
import re
from dataclasses import dataclass

from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from rag_jax.runtime.errors import RagJaxError
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

    def make_mesh(self, config: MeshConfig) -> AbstractMesh:
        """The mesh that a run would make of the devices, of their platform but without them.

        Raises:
            RagJaxError: as `choose_axes`.
        """
        axes = choose_axes(config, self.devices)
        types = (AxisType.Auto,) * len(axes)
        platform = "cpu" if self.name == "cpu" else "tpu"
        device = AbstractDevice(device_kind=self.name, num_cores=None, platform=platform)
        names = tuple(axes)
        return AbstractMesh(tuple(axes.values()), names, axis_types=types, abstract_device=device)


_CUBES = ("v4", "v5p")  # chips whose slices have three sides


def read_slice(topology: str | None) -> Slice:
    """The slice of a name, CHIP:AxB or CHIP:AxBxC; without a name one CPU.

    Raises:
        RagJaxError: the name is malformed, or of a chip that is not known.
    """
    if topology is None:
        return Slice("cpu", 1)
    found = re.fullmatch(r"(\w+):([1-9]\d{0,3}(?:x[1-9]\d{0,3}){1,2})", topology)
    if not found or found[1] not in CHIPS or (topology.count("x") == 2 and found[1] not in _CUBES):
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
