"""LoRA adapters as plain trees: initialisation, merging, application, and files in PEFT's format.

`core` imports only JAX, so the file can be copied into another project; so does this package, as
long as no files in PEFT's format are read or written. `flax_layers` makes unfused adapters work in
models of other projects.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from rag_jax.lora.core import (
    AdaptedKernel,
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


def _make_refusal(missing: str) -> Callable[..., NoReturn]:
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise ModuleNotFoundError(
            f"files in PEFT's format need {missing}, which is not installed: install rag_jax with "
            "all of its requirements"
        )

    return refuse


try:
    from rag_jax.lora.peft import load_peft, save_peft
except ModuleNotFoundError as error:
    load_peft = save_peft = _make_refusal(error.name)

__all__ = [
    "AdaptedKernel",
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
