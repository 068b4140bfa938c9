"""Programs: what is counted and what is added up. A CPU stands in for the slice."""

import jax
import jax.numpy as jnp
import pytest

from rag_jax.config import MeshConfig
from rag_jax.planning import planner as planning
from rag_jax.planning.abstract import split_rows
from rag_jax.runtime import chips
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import make_mesh

CHIP = chips.Chip(flops=1e9, bandwidth=1e8, memory=3e6, links=1e7)


@pytest.fixture(autouse=True)
def cpu_is_a_chip(monkeypatch):
    monkeypatch.setitem(chips._CHIPS, jax.devices()[0].device_kind, CHIP)


@pytest.fixture
def planner():
    return planning.Planner(make_mesh(MeshConfig(), jax.devices()[:1]))


def array(planner, *shape, dtype=jnp.float32):
    return split_rows(jax.ShapeDtypeStruct(shape, dtype), planner.mesh)


def multiply(a, b):
    return a @ b


def test_a_program_is_counted(planner):
    a, b = array(planner, 64, 128), array(planner, 128, 32)
    result = planner.compile("multiply", jax.jit(multiply), a, b, describe=True)
    (program,) = planner.programs
    assert (result.shape, result.dtype) == ((64, 32), jnp.float32)
    assert program.arguments == 4 * (64 * 128 + 128 * 32)
    assert program.temporaries >= 4 * 64 * 32
    assert program.cost.flops == 2 * 64 * 128 * 32
    assert program.cost.counts == {}
    seconds, bound = program.estimate(CHIP)
    assert program.cost.moved == 4 * (64 * 128 + 128 * 32 + 64 * 32)
    assert (seconds, bound) == (program.cost.moved / 1e8, "memory")


def test_what_stays_in_memory_counts_unless_it_is_an_argument(planner):
    a, b = array(planner, 64, 128), array(planner, 128, 32)
    other = {"x": array(planner, 10, 10, dtype=jnp.bfloat16)}
    planner.hold({"a": a}, other)
    planner.compile("multiply", jax.jit(multiply), a, b)
    assert planner.programs[0].resident == 200
    p = planner.programs[0]
    assert p.needed == p.arguments + p.temporaries + 200


def test_a_donated_argument_is_counted_once(planner):
    a = array(planner, 256, 256)
    planner.compile("in place", jax.jit(lambda a: a + 1, donate_argnums=0), a)
    assert planner.programs[0].needed < 1.5 * 4 * 256 * 256


def test_a_loop_costs_its_turns(planner):
    a = array(planner, 64, 64)
    planner.compile("one", jax.jit(lambda a: a @ a), a)
    planner.compile("all", jax.jit(lambda a: a @ a), a, loop=("one", 9))
    one, whole = (program.cost for program in planner.programs)
    assert whole.flops == pytest.approx(10 * one.flops)
    assert whole.moved == pytest.approx(10 * one.moved)


def test_programs_can_be_passed_over():
    planner = planning.Planner(make_mesh(MeshConfig(), jax.devices()[:1]), only="sec")
    a = array(planner, 64, 64)
    b = planner.compile("first", jax.jit(lambda a: a @ a), a, describe=True)
    assert planner.compile("second", jax.jit(lambda a: a + 1), b) is None
    assert [program.name for program in planner.programs] == ["second"]


def test_a_shortage_is_read_from_the_compilers_message():
    used = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of 15.75G hbm."
    assert planning._read_shortage(used, 2**30) == 19.5 * 2**30
    temporaries = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (512.00M) exceeds available HBM (15.75G)."
    )
    assert planning._read_shortage(temporaries, 2**30) == 2**29
    with pytest.raises(RagJaxError, match="the TPU compiler failed: INTERNAL: no"):
        planning._read_shortage("INTERNAL: no\nmore", 0)
