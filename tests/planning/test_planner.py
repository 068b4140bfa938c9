"""Plans: what is counted, what is added up, what is advised. A CPU stands in for the slice."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from rag_jax.config import MeshConfig
from rag_jax.planning import planner as planning
from rag_jax.planning.collectives import count_collectives
from rag_jax.runtime import chips
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import make_mesh

CHIP = chips.Chip(flops=1e9, bandwidth=1e8, memory=3e6, links=1e7)


@pytest.fixture(autouse=True)
def cpu_is_a_chip(monkeypatch):
    monkeypatch.setitem(chips._CHIPS, jax.devices()[0].device_kind, CHIP)
    monkeypatch.setattr(planning, "find_devices", lambda topology: jax.devices()[:1])


@pytest.fixture
def planner():
    return planning.Planner(make_mesh(MeshConfig(), jax.devices()[:1]))


def multiply(a, b):
    return a @ b


def test_a_program_is_counted(planner):
    a, b = planner.rows((64, 128), jnp.float32), planner.whole((128, 32), jnp.float32)
    result = planner.compile("multiply", jax.jit(multiply), a, b)
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
    a, b = planner.rows((64, 128), jnp.float32), planner.whole((128, 32), jnp.float32)
    other = {"x": planner.whole((10, 10), jnp.bfloat16)}
    planner.hold({"a": a}, other)
    planner.compile("multiply", jax.jit(multiply), a, b)
    assert planner.programs[0].resident == 200
    p = planner.programs[0]
    assert p.needed == p.arguments + p.temporaries + 200


def test_a_donated_argument_is_counted_once(planner):
    a = planner.rows((256, 256), jnp.float32)
    planner.compile("in place", jax.jit(lambda a: a + 1, donate_argnums=0), a)
    assert planner.programs[0].needed < 1.5 * 4 * 256 * 256


def test_a_loop_costs_its_turns(planner):
    a = planner.rows((64, 64), jnp.float32)
    planner.compile("one", jax.jit(lambda a: a @ a), a)
    planner.compile("all", jax.jit(lambda a: a @ a), a, loop=("one", 9))
    one, whole = (program.cost for program in planner.programs)
    assert whole.flops == pytest.approx(10 * one.flops)
    assert whole.moved == pytest.approx(10 * one.moved)


def test_programs_can_be_passed_over():
    planner = planning.Planner(make_mesh(MeshConfig(), jax.devices()[:1]), only="sec")
    a = planner.rows((64, 64), jnp.float32)
    b = planner.compile("first", jax.jit(lambda a: a @ a), a)
    planner.compile("second", jax.jit(lambda a: a + 1), b)
    assert [program.name for program in planner.programs] == ["second"]


def test_collectives_are_read_in_every_notation():
    text = """
      %a = bf16[4096,512]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups=[8,4]<=[32], dim={0}
      %b = f32[1024]{0} all-reduce(%x), replica_groups=mesh['axis_0'=4,'axis_1'=8] {'axis_1'}, to
      %c = (f32[16]{0}, f32[4]{0}) all-reduce(%x, %y), replica_groups={{0,1},{2,3}}, to_apply=%add
      %d = f32[128]{0} reduce-scatter(%x), replica_groups={{0,1,2,3}}, dimensions={0}
      %e = (f32[8]{0}, f32[32]{0}) all-gather-start(%x), replica_groups=[1,4]<=[4]
      %f = f32[32]{0} all-gather-done(%e)
      %g = s8[100]{0} collective-permute(%x), source_target_pairs={{0,1},{1,0}}
      %h = f32[10]{0} all-to-all(%x), replica_groups={}, dimensions={0}
      %i = f32[10]{0} fusion(%x), kind=kLoop, calls=%all-reduce.clone
    """
    sent, counts = count_collectives(text, 5)
    assert counts == {
        "all-gather": 2,
        "all-reduce": 2,
        "reduce-scatter": 1,
        "collective-permute": 1,
        "all-to-all": 1,
    }
    assert sent["all-gather"] == 2 * 4096 * 512 * 3 / 4 + 4 * 32 * 3 / 4
    assert sent["all-reduce"] == 2 * 4 * 1024 * 7 / 8 + 2 * 4 * 20 / 2
    assert sent["reduce-scatter"] == 4 * 128 * 3
    assert sent["collective-permute"] == 100
    assert sent["all-to-all"] == 4 * 10 * 4 / 5


def make_system(sizes):
    """A system of one program whose square of `sizes[config]` rows needs that much memory."""

    def plan(config, devices, **options):
        planner = planning.Planner(make_mesh(MeshConfig(), devices), **options)
        if sizes[config] is None:
            raise RagJaxError("does not divide")
        a = planner.rows((sizes[config], sizes[config]), jnp.float32)
        planner.compile("square", jax.jit(lambda a: a @ a), a)
        return planner

    remedies = [(f"--config.x={name}", name) for name in sizes if name != "first"]
    return SimpleNamespace(plan=plan, list_remedies=lambda config, name: iter(remedies))


def test_what_fits_is_a_table(capsys):
    programs = planning.plan_run(make_system({"first": 256}), "first", "v5e:1x1")
    assert [program.name for program in programs] == ["square"]
    printed = capsys.readouterr().out
    assert "square" in printed
    assert "compute" in printed


def test_what_does_not_fit_is_told_with_what_would(capsys):
    system = make_system({"first": 1024, "odd": None, "half": 512, "small": 256})
    with pytest.raises(RagJaxError, match="square needs .* v5e:1x1; with --config.x=half it needs"):
        planning.plan_run(system, "first", "v5e:1x1")
    assert "does not fit" in capsys.readouterr().out


def test_where_nothing_helps_all_that_was_tried_is_named():
    system = make_system({"first": 1024, "odd": None, "half": 900})
    with pytest.raises(RagJaxError, match="no single change is enough, tried .*odd .*half"):
        planning.plan_run(system, "first", "v5e:1x1")


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
