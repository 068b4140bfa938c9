"""The meshes of the cases."""

import jax
import pytest
from on_mesh.common import SIZES

from rag_jax.config import MeshConfig
from rag_jax.runtime.sharding import make_mesh


@pytest.fixture(params=SIZES, ids=lambda sizes: "x".join(map(str, sizes)))
def mesh(request):
    mesh = make_mesh(MeshConfig(*request.param))
    with jax.set_mesh(mesh):
        yield mesh
