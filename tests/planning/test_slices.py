"""Slices by their names, and what a mesh on one must divide."""

import jax
import pytest

from rag_jax.config import MeshConfig
from rag_jax.planning.slices import check_mesh, read_slice
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.platforms import ACCELERATOR_TOKENS, count_program_tokens


def test_devices_are_counted():
    assert [read_slice(name).devices for name in ("v5e:8x8", "v5p:2x2x4", None)] == [64, 16, 1]
    assert dict(read_slice("v5e:8x8").make_mesh(MeshConfig(model=4)).shape) == {
        "data": 16,
        "model": 4,
    }


@pytest.mark.parametrize(
    "name", ["h200:8x8", "v5e", "v5e:8", "v5e:0x4", "v5e:4x4 ", "v9:4x4", "v5e:8x8x8", ""]
)
def test_a_slice_that_is_not_known(name):
    with pytest.raises(RagJaxError, match=f"^--topology={name}: no such slice; write CHIP:AxB"):
        read_slice(name)


def test_a_mesh_that_does_not_divide():
    mesh = read_slice("v5e:4x4").make_mesh(MeshConfig(model=8))
    check_mesh(mesh, {"config.model.name": 32}, {"config.answer.batch_size": 4})
    with pytest.raises(RagJaxError, match="config.mesh.model=8: does not divide the 28 attention"):
        check_mesh(mesh, {"config.model.name": 28}, {})
    with pytest.raises(RagJaxError, match="config.answer.batch_size=3 does not fit the mesh"):
        check_mesh(mesh, {}, {"config.answer.batch_size": 3})
    with pytest.raises(RagJaxError, match="config.mesh.data=3 by config.mesh.model=1 does not fit"):
        read_slice("v5e:4x4").make_mesh(MeshConfig(data=3))


def test_what_a_program_is_worth_is_the_platforms():
    for name, wanted in (("v5e:4x4", ACCELERATOR_TOKENS), (None, 1600)):
        with jax.sharding.use_abstract_mesh(read_slice(name).make_mesh(MeshConfig())):
            assert count_program_tokens(None, on_cpu=1600) == wanted
            assert count_program_tokens(7, on_cpu=1600) == 7
