"""Settings of every test."""

import hypothesis
import jax
from jaxtyping import install_import_hook

# Before the first import of any of them: their arguments' shapes are checked at every call.
CHECKED = ("rag_jax.losses", "rag_jax.lora", "rag_jax.metrics", "rag_jax.training")
install_import_hook(CHECKED, "typechecker.check")

# Broadcasting between ranks hides mistakes: a [T] mask times [B, T, D] activations.
jax.config.update("jax_numpy_rank_promotion", "raise")

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile(
    "rag_jax", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("rag_jax")

# Tiny programs that run a few times only: what optimising them costs is most of the suite's time.
jax.config.update("jax_disable_most_optimizations", True)
