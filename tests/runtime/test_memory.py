"""The peak of a part of a run, and what is let go of in a large process."""

import gc

import jax
import jax.numpy as jnp
import numpy as np

from rag_jax.runtime import memory


def test_a_peak_is_of_what_came_since():
    large = np.ones(300_000_000, np.int8)
    del large
    gc.collect()  # what is let go of later would make room
    memory.start_peak()
    before = memory.read_peak()
    large = np.ones(200_000_000, np.int8)
    assert memory.read_peak() - before > 150_000_000
    assert large.nbytes == 200_000_000


def test_programs_are_let_go_of_in_a_large_process(monkeypatch):
    double = jax.jit(lambda x: 2 * x)
    double(jnp.ones(3))
    monkeypatch.setattr(memory, "CROWDED", 1 << 50)
    memory.release_memory()
    assert double._cache_size() == 1
    monkeypatch.setattr(memory, "CROWDED", 0)
    memory.release_memory()
    assert double._cache_size() == 0
    assert double(jnp.ones(3)).tolist() == [2, 2, 2]
