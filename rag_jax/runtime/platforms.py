"""What depends on the kind of machine: the platform of the mesh, and what a program is worth."""

import jax

# A minute of compiling at 170,000 tokens a second, a v5e 8x8's on a model of 7B with adapters.
ACCELERATOR_TOKENS = 10_000_000


def count_program_tokens(setting: int | None, *, on_cpu: int) -> int:
    """Number of tokens that could be computed while one program compiles.

    Args:
        setting: the number, or None for the default of the platform of the mesh in effect.
        on_cpu: the default on CPU; on accelerators it is 10 million.
    """
    if setting is not None:
        return setting
    return on_cpu if find_platform() == "cpu" else ACCELERATOR_TOKENS


def find_platform() -> str:
    """The platform of the mesh in effect, such as "tpu", also within `jax.jit`."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
