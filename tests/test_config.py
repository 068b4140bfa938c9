"""Settings: defaults, overrides and what is refused, with its message."""

import dataclasses
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.config import IndexConfig, WorldConfig, build, to_config_dict
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems.dpr.config import DPRConfig
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.srrag.config import SRRAGConfig

SYSTEMS = (DPRConfig, PRAGConfig, RAGConfig, SelfRetrievalConfig, SRRAGConfig)


def test_defaults_survive_the_way_through_a_config_dict():
    assert build(SRRAGConfig, to_config_dict(SRRAGConfig())) == SRRAGConfig()


def test_missing_fields_take_their_defaults():
    assert build(SRRAGConfig, {}) == SRRAGConfig()
    assert build(SRRAGConfig, {"stage2": {"beta": 1}}).stage2.beta == 1.0


def test_every_leaf_can_be_overridden_in_the_config_dict():
    config = to_config_dict(SRRAGConfig()).lock()
    config.route.tau = 0.5
    config.sources[1].token = "<Web>"
    built = build(SRRAGConfig, config)
    assert built.route.tau == 0.5
    assert built.sources[1].token == "<Web>"


def test_three_sources():
    sources = [
        {"name": "Self", "token": "<Self>", "kind": "verbalise"},
        {"name": "Wiki", "token": "<Wiki>", "kind": "search"},
        {"name": "News", "token": "<News>", "kind": "search"},
    ]
    assert [s.name for s in build(SRRAGConfig, {"sources": sources}).sources] == [
        "Self",
        "Wiki",
        "News",
    ]


SELF = {"name": "Self", "token": "<Self>", "kind": "verbalise"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"stage1": {"lrr": 1}},
            "config.stage1.lrr: no such field; did you mean config.stage1.learning_rate?",
        ),
        (
            {"stage1": {"lr": 1}},
            "config.stage1.lr: no such field; did you mean config.stage1.learning_rate?",
        ),
        ({"rout": {}}, "config.rout: no such field; did you mean config.route?"),
        (
            {"route": {"zzz": 1}},
            "config.route.zzz: no such field; the fields are decision, tau, rate",
        ),
        ({"route": {"tau": 1.5}}, "config.route.tau=1.5: must be from 0 to 1"),
        ({"route": {"tau": -0.1}}, "config.route.tau=-0.1: must be from 0 to 1"),
        ({"route": {"tau": float("nan")}}, "config.route.tau=nan: must be from 0 to 1"),
        ({"route": {"tau": "0.5"}}, "config.route.tau='0.5': must be a number, not str"),
        ({"route": 3}, "config.route=3: must be a group of fields (RouteConfig)"),
        ({"stage1": {"epochs": -1}}, "config.stage1.epochs=-1: must be at least 0"),
        ({"stage1": {"learning_rate": 0}}, "config.stage1.learning_rate=0.0: must be above 0"),
        ({"seed": 1 << 32}, "config.seed=4294967296: must be from 0 to 4294967295"),
        ({"seed": True}, "config.seed=True: must be a whole number, not bool"),
        ({"datastore": {"k": 0}}, "config.datastore.k=0: must be at least 1"),
        ({"contexts": 4}, "config.contexts=4: must be odd"),
        ({"verbalise": {"pool": 2}}, "config.verbalise.pool=2 is below config.contexts=3"),
        ({"index": {"backend": "faiss"}}, "must be one of 'scann', 'exact', 'faiss_flat', 'faiss_"),
        ({"index": {"storage": "int4"}}, "must be one of 'float32', 'float16', 'int8'"),
        (
            {"index": {"storage": "int8"}},
            "config.index.storage='int8': config.index.backend='scann' keeps float32; set",
        ),
        ({"tuning": {"targets": "("}}, "config.tuning.targets='(': not a regular expression"),
        ({"sources": [SELF]}, "config.sources: routing needs at least two sources"),
        ({"sources": [SELF, SELF]}, "config.sources[1].name='Self': another source has it"),
        ({"sources": [{"name": "Self"}]}, "config.sources[0].token: missing"),
        ({"sources": [{**SELF, "token": "Self"}]}, "config.sources[0].token='Self': must look"),
        ({"sources": "Self"}, "config.sources='Self': must be a list"),
    ],
)
def test_refused(values, message):
    with pytest.raises(RagJaxError) as caught:
        build(SRRAGConfig, values)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_stage_depends_on_a_storage_that_is_set():
    """Fingerprints of stages that are older than the field stay as they were."""
    assert IndexConfig("exact").describe() == {"backend": "exact"}
    assert IndexConfig("exact", "int8").describe() == {"backend": "exact", "storage": "int8"}


@dataclass(frozen=True)
class Optional:
    limit: int | None = None


def test_an_optional_field_keeps_its_type_on_the_command_line():
    config = to_config_dict(Optional())
    assert build(Optional, config) == Optional()
    with pytest.raises(TypeError):
        config.limit = "many"
    config.limit = 3
    assert build(Optional, config) == Optional(3)
    with pytest.raises(RagJaxError, match=r"config\.limit='many': must be a whole number"):
        build(Optional, {"limit": "many"})


WILD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(SRRAGConfig)]), WILD))
def test_wild_values_are_built_or_refused_in_one_line(values):
    try:
        built = build(SRRAGConfig, values)
    except RagJaxError as error:
        assert str(error).startswith("config")
        assert len(str(error).splitlines()) == 1
    else:
        assert build(SRRAGConfig, to_config_dict(built)) == built


def list_leaves(group, path=()):
    for name, value in group.items():
        if isinstance(value, dict):
            yield from list_leaves(value, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("system", SYSTEMS)
@settings(max_examples=40)
@given(data=st.data())
def test_a_wild_leaf_is_taken_or_refused_by_its_name(system, data):
    """Whatever one setting of any system is set to; others may be named beside it."""
    path = data.draw(st.sampled_from(list(list_leaves(to_config_dict(system()).to_dict()))))
    value = data.draw(WILD | st.sampled_from([-1, 2**70, True, 0.0, float("inf"), "", "auto", ()]))
    values = value
    for name in reversed(path):
        values = {name: values}
    try:
        built = build(system, values)
    except RagJaxError as error:
        assert str(error).startswith("config.")
        assert len(str(error).splitlines()) == 1 and path[-1] in str(error)
    else:
        assert build(system, to_config_dict(built)) == built


@given(st.sampled_from([f.name for f in dataclasses.fields(WorldConfig)]), st.data())
def test_one_typo_is_traced_to_its_field(name, data):
    at = data.draw(st.integers(1, len(name) - 1))
    typo = name[:at] + data.draw(st.characters(categories=["Ll"])) + name[at:]
    if typo in (f.name for f in dataclasses.fields(WorldConfig)):
        return
    with pytest.raises(RagJaxError, match=f"did you mean config.world.{name}"):
        build(SRRAGConfig, {"world": {typo: 1}})
