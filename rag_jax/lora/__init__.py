"""LoRA adapters as plain trees: initialisation, merging, application, and files in PEFT's format.

`core` imports only JAX and jaxtyping, so the file can be copied into another project.
"""

from rag_jax.lora.core import (
    apply,
    compute_scale,
    fold,
    init,
    init_bank,
    list_kernels,
    merge,
    select,
    stack,
)
from rag_jax.lora.peft import load_peft, save_peft

__all__ = [
    "apply",
    "compute_scale",
    "fold",
    "init",
    "init_bank",
    "list_kernels",
    "load_peft",
    "merge",
    "save_peft",
    "select",
    "stack",
]
