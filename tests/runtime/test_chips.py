"""What devices can do at most."""

from types import SimpleNamespace

import jax
import pytest

from rag_jax.runtime import chips
from rag_jax.runtime.errors import RagJaxError


def describe(kind, count=1):
    return [SimpleNamespace(device_kind=kind)] * count


def test_known_devices_add_up():
    assert chips.find_peak(describe("TPU v5 lite", 4)) == 4 * 197e12
    assert chips.find_peak(describe("NVIDIA H200", 2)) == 2 * 989e12


def test_what_is_not_known_is_measured_once(monkeypatch):
    peak = chips.find_peak(jax.devices())
    assert 1e9 < peak < 1e15
    assert chips.find_peak(jax.devices()) == peak


def test_a_chip_without_known_limits_is_named():
    with pytest.raises(RagJaxError, match="limits of a TPU v99 are not known, only those of TPU"):
        chips.find_chip(describe("TPU v99")[0])
