"""The wrapper for MTEB where that is not installed; the parity suite tries it where it is."""

import importlib
import sys

import pytest

from rag_jax.runtime.errors import RagJaxError


def test_without_the_library(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "mteb"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.delitem(sys.modules, "rag_jax.retrieval.mteb", raising=False)
    with pytest.raises(RagJaxError, match="mteb cannot be imported .*: pip install"):
        importlib.import_module("rag_jax.retrieval.mteb")
