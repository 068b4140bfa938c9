"""Settings of every test."""

import gc
import os
import shutil
import tempfile
import uuid

import hypothesis
import jax
import pytest
from jaxtyping import install_import_hook

from rag_jax.runtime import memory

# Before the first import of any of them: their arguments' shapes are checked at every call.
CHECKED = (
    "rag_jax.losses",
    "rag_jax.lora.core",
    "rag_jax.evaluation.answers",
    "rag_jax.training.loop",
)
install_import_hook(CHECKED, "typechecker.check")

# Broadcasting between ranks hides mistakes: a [T] mask times [B, T, D] activations.
jax.config.update("jax_numpy_rank_promotion", "raise")

# How long an example takes says more about the machine than about the code. The examples are the
# same in every run; `pytest --hypothesis-profile=search` draws others.
SETTINGS = {"deadline": None, "suppress_health_check": [hypothesis.HealthCheck.too_slow]}
hypothesis.settings.register_profile("rag_jax", derandomize=True, **SETTINGS)
hypothesis.settings.register_profile("search", **SETTINGS)
hypothesis.settings.load_profile("rag_jax")

# Tiny programs that run a few times only: compiling them is most of the suite's time. What XLA on
# CPUs fuses with by default takes half as long again as what it had before, and a program cut into
# parts for as many threads half as long again as in one piece.
_FLAGS = ["--xla_cpu_parallel_codegen_split_count=1"]
if jax.__version_info__ < (0, 11):  # a flag that XLA does not know ends the process
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *_FLAGS]).strip()
_SETTINGS = {
    "jax_disable_most_optimizations": True,
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for _name, _value in _SETTINGS.items():
    jax.config.update(_name, _value)
    os.environ[_name.upper()] = str(_value)  # for launched commands

# Tracing makes many objects and drops few: looking for cycles at every 700th took a twentieth of
# the time.
gc.set_threshold(50_000, 20, 100)

# A process of many tests is large, whatever a run holds, and compiles the same programs for most.
memory.CROWDED = 1 << 50

# A program that several tests, workers or launched commands have is compiled once.
_COMPILED = "JAX_COMPILATION_CACHE_DIR"


# What takes the most time, which workers begin with so that they end together: files, and folders
# whose files share a run and its programs and are left to one worker.
LONGEST = (
    "tests/parity/test_plan.py",
    "tests/parity/test_live_families.py",
    "tests/parity/test_live_rag.py",
    "tests/systems/srrag",
    "tests/runtime/test_sharding.py",
    "tests/systems/rag",
    "tests/systems/prag",
    "tests/systems/self_retrieval",
    "tests/systems/dpr",
    "tests/runtime/test_hosts.py",
    "tests/pipeline",
    "tests/lora",
    "tests/retrieval",
    "tests/decoding",
    "tests/training",
)
TOGETHER = ("tests/systems/srrag",)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hands out files, those in `LONGEST` first, and the folders in `TOGETHER` whole."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class LongestFirst(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            path = nodeid.split("::")[0]
            return next((name for name in TOGETHER if path.startswith(name)), path)

    config.option.loadscopereorder = False  # the files with the most tests are not the longest
    return LongestFirst(config, log)


def pytest_collection_modifyitems(items):
    def rank(item):
        return next((i for i, x in enumerate(LONGEST) if item.nodeid.startswith(x)), len(LONGEST))

    items.sort(key=rank)


def pytest_configure(config):
    if _COMPILED not in os.environ:
        os.environ[_COMPILED] = tempfile.mkdtemp(prefix="rag_jax-compiled-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(_COMPILED)))
    jax.config.update("jax_compilation_cache_dir", os.environ[_COMPILED])


@pytest.fixture(autouse=True)
def own_embeddings(monkeypatch, tmp_path_factory):
    """Embeddings of asked passages are kept in a folder of the test's own, not in the user's."""
    folder = tmp_path_factory.getbasetemp() / f"cache-{uuid.uuid4().hex}"
    monkeypatch.setattr("rag_jax.pipeline.own_corpus.cache_folder", lambda: folder)
