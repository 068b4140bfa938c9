"""Rotary positions: how fast each pair of features turns, and the turning (Su et al. 2021)."""

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rag_jax.runtime.errors import RagJaxError

# Cosines and sines, of `E` pairs of features.
Angles = tuple[Float[Array, "B 1 T E"], Float[Array, "B 1 T E"]]


@dataclass(frozen=True)
class LlamaScaling:
    """Llama 3.1's longer context: pairs that turn slowly turn `factor` times slower still.

    With `n` the turns that a pair makes in `original_length` tokens, it turns `factor` times slower
    where `n <= low_turns`, as before where `n >= high_turns`, and linearly in between (the model's
    reference code, `apply_scaling`; Hugging Face's `rope_type` llama3).

    Attributes:
        low_turns: `low_freq_factor` in a `config.json`.
        high_turns: `high_freq_factor` there.
        original_length: the context before it was made longer, in tokens.
    """

    factor: float
    low_turns: float
    high_turns: float
    original_length: int


@dataclass(frozen=True)
class LongScaling:
    """Phi-3's longer context: a divisor of its own for each pair (LongRoPE, Ding et al. 2024).

    One set of divisors serves texts of up to `original_length` tokens and another the longer ones,
    in which all tokens, the first too, turn by the long set. Which one it is, each row decides by
    its own largest position: Hugging Face decides by the largest of the batch, so a row here has
    the logits that it has there alone, whatever stands beside it.

    A cache keeps keys already turned, and keys of both sets don't mix. It therefore ends at
    `original_length` slots, unless `always_long` has made the choice beforehand.

    Attributes:
        short_factors: `E` divisors of the speeds.
        long_factors: as many for long texts.
        attention_factor: multiplies cosines and sines in both.
        original_length: in tokens.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    attention_factor: float
    original_length: int

    def always_long(self) -> "LongScaling":
        """The long divisors for texts of every length, so that a cache may outgrow the short ones.

        Short texts then have other logits than in Hugging Face.
        """
        return replace(self, short_factors=self.long_factors)

    def check_cache(self, slots: int) -> None:
        """Refuses a cache in which keys of both sets could meet.

        Raises:
            RagJaxError: it has more than `original_length` slots.
        """
        if self.short_factors != self.long_factors and slots > self.original_length:
            raise RagJaxError(
                f"a cache of {slots} slots would mix keys for short texts, up to "
                f"{self.original_length} tokens, with keys for longer ones: give less text, or "
                "build Decoder(replace(config, rope_scaling=config.rope_scaling.always_long()))"
            )


def rotary_angles(
    positions: Int[Array, "B T"],
    *,
    rotary_dim: int,
    theta: float,
    scaling: LlamaScaling | LongScaling | None = None,
) -> Angles:
    """Cosines and sines of the rotary embedding, `E = rotary_dim / 2` (Su et al. 2021, eq. 15).

    Kept in float32: in bfloat16 position 257 would round to 256.
    """
    speeds = theta ** -(np.arange(0, rotary_dim, 2) / rotary_dim)  # radians a token
    if isinstance(scaling, LlamaScaling):
        turns = scaling.original_length * speeds / (2 * np.pi)
        kept = (turns - scaling.low_turns) / (scaling.high_turns - scaling.low_turns)
        kept = np.clip(kept, 0, 1)
        speeds = kept * speeds + (1 - kept) * speeds / scaling.factor
    scale, row_speeds = 1.0, jnp.asarray(speeds, jnp.float32)[None, None, None]
    if isinstance(scaling, LongScaling):
        scale = scaling.attention_factor
        short, long = (
            jnp.asarray(speeds / np.asarray(factors), jnp.float32)[None, None, None]
            for factors in (scaling.short_factors, scaling.long_factors)
        )
        is_long = jnp.max(positions, axis=1) >= scaling.original_length
        row_speeds = jnp.where(is_long[:, None, None, None], long, short)
    angles = positions[:, None, :, None].astype(jnp.float32) * row_speeds
    return scale * jnp.cos(angles), scale * jnp.sin(angles)


def rotate(x: Float[Array, "B H T d"], angles: Angles) -> Float[Array, "B H T d"]:
    """Turns the first `2 E` features of queries or keys, one half of them against the other."""
    cos, sin = angles
    pairs = cos.shape[-1]
    first, second = (x[..., i * pairs : (i + 1) * pairs].astype(jnp.float32) for i in range(2))
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    turned = turned.astype(x.dtype)
    if 2 * pairs == x.shape[-1]:
        return turned
    return jnp.concatenate([turned, x[..., 2 * pairs :]], axis=-1)
