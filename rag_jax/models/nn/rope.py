"""Rotary position embedding: frequencies, long-context scaling, rotation (Su et al. 2021)."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rag_jax.runtime.errors import RagJaxError

# Cosines and sines of the angles of `E` feature pairs.
Angles = tuple[Float[Array, "B 1 T E"], Float[Array, "B 1 T E"]]


@dataclass(frozen=True)
class LinearScaling:
    """Context extension by slower turns (Chen et al. 2023): `factor` divides all frequencies.

    It is Hugging Face's `rope_type` linear.
    """

    factor: float


@dataclass(frozen=True)
class LlamaScaling:
    """Llama 3.1's context extension: low frequencies are divided by `factor`.

    Let `n` be the number of full turns of a feature pair within `original_length` tokens. The
    pair's frequency is divided by `factor` if `n <= low_turns`, kept if `n >= high_turns`, and
    interpolated linearly in between (the model's reference code, `apply_scaling`; Hugging Face's
    `rope_type` llama3).

    Attributes:
        low_turns: `low_freq_factor` in a `config.json`; `high_turns` is `high_freq_factor`.
        original_length: context length before the extension, in tokens.
    """

    factor: float
    low_turns: float
    high_turns: float
    original_length: int


@dataclass(frozen=True)
class LongScaling:
    """Phi-3's context extension: one frequency divisor per pair (LongRoPE, Ding et al. 2024).

    There are two sets of divisors. The short set is for texts of up to `original_length` tokens.
    In a longer text, every token, including the first, is rotated with the long set. The largest
    position of a text decides for the text. Hugging Face decides by the largest position of the
    batch, so a text here has the same logits as in Hugging Face with a batch size of one.

    A cache holds rotated keys, and keys of the two sets must not mix. The cache is therefore
    limited to `original_length` slots, unless the config uses `always_long`.

    Attributes:
        short_factors: `E` frequency divisors for short texts.
        long_factors: `E` frequency divisors for long texts.
        attention_factor: multiplier of all cosines and sines.
        original_length: longest short text, in tokens.
    """

    short_factors: tuple[float, ...]
    long_factors: tuple[float, ...]
    attention_factor: float
    original_length: int

    def always_long(self) -> "LongScaling":
        """A scaling with the long divisors for texts of every length, so that caches may be long.

        Short texts then have different logits than in Hugging Face.
        """
        return replace(self, short_factors=self.long_factors)

    def check_cache(self, slots: int) -> None:
        """Checks that a cache of `slots` per text cannot hold keys rotated with both sets.

        Raises:
            RagJaxError: there are more than `original_length` slots.
        """
        if self.short_factors != self.long_factors and slots > self.original_length:
            raise RagJaxError(
                f"a cache of {slots} slots would mix keys for short texts, up to "
                f"{self.original_length} tokens, with keys for longer texts: shorten the text, or "
                "build Decoder(replace(config, rope_scaling=config.rope_scaling.always_long()))"
            )


RopeScaling = LinearScaling | LlamaScaling | LongScaling


def rotary_angles(
    positions: Int[Array, "B T"],
    *,
    rotary_dim: int,
    theta: float,
    scaling: RopeScaling | None = None,
    segments: Int[Array, "B T"] | None = None,
) -> Angles:
    """Cosines and sines of the rotary embedding, `E = rotary_dim / 2` (Su et al. 2021, eq. 15).

    The angles are float32: in bfloat16, position 257 would round to 256.

    Args:
        rotary_dim: number of features of a head that are rotated.
        theta: base of the frequencies; the slowest pair turns about `1 / theta` radians per token.
        scaling: context extension; None for the plain frequencies.
        segments: the number of each token's text, from 0 to T, where several texts share a row.
    """
    frequencies = scale_frequencies(theta ** -(np.arange(0, rotary_dim, 2) / rotary_dim), scaling)
    scale, row_frequencies = 1.0, jnp.asarray(frequencies, jnp.float32)[None, None, None]
    if isinstance(scaling, LongScaling):
        scale = scaling.attention_factor
        short, long = (
            jnp.asarray(frequencies / np.asarray(factors), jnp.float32)[None, None, None]
            for factors in (scaling.short_factors, scaling.long_factors)
        )
        last = jnp.max(positions, axis=1, keepdims=True)  # [B, 1]
        if segments is not None:
            last = jax.vmap(_find_last)(positions, segments)  # [B, T]
        is_long = last >= scaling.original_length
        row_frequencies = jnp.where(is_long[:, None, :, None], long, short)  # [B, 1, 1 or T, E]
    # [B, 1, T, 1] * [B or 1, 1, 1 or T, E] -> [B, 1, T, E]
    angles = positions[:, None, :, None].astype(jnp.float32) * row_frequencies
    return scale * jnp.cos(angles), scale * jnp.sin(angles)


def _find_last(positions: Int[Array, "T"], segments: Int[Array, "T"]) -> Int[Array, "T"]:
    """The last position of each token's text."""
    last = jax.ops.segment_max(positions, segments, num_segments=len(segments) + 1)
    return last[segments]


def scale_frequencies(
    frequencies: Float[np.ndarray, "E"], scaling: RopeScaling | None
) -> Float[np.ndarray, "E"]:
    """The frequencies in radians a token, scaled if that does not depend on the text."""
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if not isinstance(scaling, LlamaScaling):
        return frequencies
    turns = scaling.original_length * frequencies / (2 * np.pi)
    kept = (turns - scaling.low_turns) / (scaling.high_turns - scaling.low_turns)
    kept = np.clip(kept, 0, 1)
    return kept * frequencies + (1 - kept) * frequencies / scaling.factor


def rotate(x: Float[Array, "B H T d"], angles: Angles) -> Float[Array, "B H T d"]:
    """Rotates the first `2 E` features of queries or keys; features `i` and `i + E` are a pair."""
    cos, sin = angles
    pairs = cos.shape[-1]
    first, second = (x[..., i * pairs : (i + 1) * pairs].astype(jnp.float32) for i in range(2))
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    rotated = rotated.astype(x.dtype)
    if 2 * pairs == x.shape[-1]:
        return rotated
    return jnp.concatenate([rotated, x[..., 2 * pairs :]], axis=-1)
