"""The flags of an executor, from any text."""

import json
import signal
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.pipeline import ray_cluster
from rag_jax.pipeline.executors import FLAGS, open_executor, read_executor
from rag_jax.pipeline.ray_cluster import RaySettings
from rag_jax.runtime.errors import Preempted, RagJaxError

NONE = dict.fromkeys(FLAGS)
RAY = NONE | {"executor": "ray"}


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (NONE, None),
        (NONE | {"executor": "local"}, None),
        (RAY | {"workers": "3"}, RaySettings(None, 3, {"CPU": 1})),
        (RAY | {"worker_resources": '{"TPU": 4}'}, RaySettings(None, None, {"TPU": 4})),
        (
            RAY | {"workers": "1", "ray_address": "auto", "worker_resources": '{"GPU": 0.5}'},
            RaySettings("auto", 1, {"GPU": 0.5}),
        ),
    ],
)
def test_read(options, wanted):
    assert read_executor(options) == wanted


texts = st.one_of(
    st.none(),
    st.text(max_size=9),
    st.sampled_from(["ray", "local", "2"]),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=4,
    ).map(json.dumps),
)


@given(st.fixed_dictionaries({name: texts for name in FLAGS}))
def test_any_text_is_read_or_named(options):
    try:
        read = read_executor(options)
    except RagJaxError as error:
        assert str(error).startswith(tuple(f"--{name}=" for name in FLAGS))
    else:
        assert read is None or (read.workers != 0 and all(x > 0 for x in read.resources.values()))


def test_this_process_does_the_work_by_default():
    with open_executor(None) as executor:
        assert executor is None


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RagJaxError) as caught, open_executor(RaySettings(None, 1, {"CPU": 1})):
        pass
    assert str(caught.value) == (
        "--executor=ray: Ray is not installed; install rag_jax with the extra ray: "
        "pip install 'rag_jax[ray]'"
    )


NODES = [
    {"Alive": True, "Resources": {"CPU": 7.0, "GPU": 2.0, "node:a": 1.0}},
    {"Alive": True, "Resources": {"CPU": 3.0, "GPU": 1.0}},
    {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}},
    {"Alive": True, "Resources": {}},
]


@pytest.mark.parametrize(
    ("workers", "resources", "wanted"),
    [
        (None, {"CPU": 2}, 3 + 1),
        (None, {"GPU": 0.5}, 4 + 2),
        (None, {"CPU": 2, "GPU": 1}, 2 + 1),
        (5, {"CPU": 2}, 5),
        (None, {"TPU": 4}, 1),  # a machine that has them may join
    ],
)
def test_the_number_of_workers(monkeypatch, workers, resources, wanted):
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "nodes", lambda: NODES)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 10.0, "memory": 1.0})
    settings = RaySettings("auto", workers, resources)
    assert ray_cluster._count_workers(settings) == wanted
    if "TPU" in resources:
        with pytest.raises(RagJaxError) as caught:
            ray_cluster._count_workers(RaySettings(None, workers, resources))
        line = "--worker_resources: a worker takes 4 TPU, and this machine has 10 CPU"
        assert str(caught.value) == line


def test_a_signal_that_rays_handler_gets_is_this_process_own():
    def stop(*_):
        raise Preempted

    def leave(*_):
        sys.exit(15)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with pytest.raises(Preempted), ray_cluster._keep_handlers():
            signal.signal(signal.SIGTERM, leave)
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is stop
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "--executor=ray: Ray does not start here: no luck"),
        (
            "auto",
            "--ray_address=auto: cannot be used: no luck; if the cluster was started with a token, "
            "set RAY_AUTH_MODE=token",
        ),
    ],
)
def test_a_ray_that_fails(monkeypatch, address, message):
    ray = pytest.importorskip("ray")

    def init(**options):
        raise ConnectionError("no luck\nwith more lines")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(RagJaxError) as caught, open_executor(RaySettings(address, 1, {"CPU": 1})):
        pass
    assert str(caught.value) == message
