"""Whole plans: the table, and the advice where a program does not fit."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from rag_jax.config import MeshConfig
from rag_jax.planning import run as planning
from rag_jax.planning.abstract import split_rows
from rag_jax.planning.batches import Corpus, Drawn
from rag_jax.planning.planner import Planner
from rag_jax.runtime import chips
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import make_mesh

CHIP = chips.Chip(flops=1e9, bandwidth=1e8, memory=3e6, links=1e7)


@pytest.fixture(autouse=True)
def cpu_is_a_chip(monkeypatch):
    monkeypatch.setitem(chips._CHIPS, jax.devices()[0].device_kind, CHIP)
    monkeypatch.setattr(planning, "find_devices", lambda topology: jax.devices()[:1])


def make_system(sizes):
    """A system of one program whose square of `sizes[config]` rows needs that much memory."""

    def plan(config, devices, drawn, **options):
        assert drawn.stages == {"config": config}
        planner = Planner(make_mesh(MeshConfig(), devices), **options)
        if sizes[config] is None:
            raise RagJaxError("does not divide")
        a = jax.ShapeDtypeStruct((sizes[config], sizes[config]), jnp.float32)
        a = split_rows(a, planner.mesh)
        planner.compile("square", jax.jit(lambda a: a @ a), a)
        return planner

    remedies = [(f"--config.x={name}", name) for name in sizes if name != "first"]
    return SimpleNamespace(plan=plan, list_remedies=lambda config, name: iter(remedies))


CORPUS = Corpus(1, 1, 1, None)


def draw(config):
    return Drawn(CORPUS, {"config": config})


def test_what_fits_is_a_table(capsys):
    programs = planning.plan_run(make_system({"first": 256}), "first", "v5e:1x1", draw)
    assert [program.name for program in programs] == ["square"]
    printed = capsys.readouterr().out
    assert "square" in printed
    assert "compute" in printed


def test_what_does_not_fit_is_told_with_what_would(capsys):
    system = make_system({"first": 1024, "odd": None, "half": 512, "small": 256})
    with pytest.raises(RagJaxError, match="square needs .* v5e:1x1; with --config.x=half it needs"):
        planning.plan_run(system, "first", "v5e:1x1", draw)
    assert "does not fit" in capsys.readouterr().out


def test_where_nothing_helps_all_that_was_tried_is_named():
    system = make_system({"first": 1024, "odd": None, "half": 900})
    with pytest.raises(RagJaxError, match="no single change is enough, tried .*odd .*half"):
        planning.plan_run(system, "first", "v5e:1x1", draw)
