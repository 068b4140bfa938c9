"""The decoder of every family: pre-norm, rotary positions, grouped-query attention, gated FFN."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.layers import (
    MASKED,
    GatedFFN,
    LayerNorm,
    Linear,
    RMSNorm,
    attend,
    check_adapters,
)
from rag_jax.models.nn.rope import LlamaScaling, LongScaling, rotary_angles, rotate
from rag_jax.runtime.sharding import constrain_rows

# One layer's keys `[B, K, d, S]` and values `[B, K, S, d]`.
LayerCache = tuple[Float[Array, "B K d S"], Float[Array, "B K S d"]]


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder, and what sets the families apart.

    Attributes:
        vocab_size: rows of the embedding, padding among them.
        max_length: the longest context it was trained for, in tokens.
        family: Hugging Face's `model_type`, which says how the weights are named on disk.
        layer_norm: whether the norms are layer norms with a bias, in place of RMS norms.
        qkv_bias: whether queries, keys and values have a bias.
        rotary_fraction: the part of each head's features that positions turn.
        rope_scaling: how the rotary positions were stretched for a longer context.
        vocab_padding: how many of the last rows belong to no token; they are never generated.
    """

    vocab_size: int
    hidden_size: int
    ffn_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float
    norm_eps: float
    tie_embeddings: bool
    max_length: int
    family: str = "llama"
    layer_norm: bool = False
    qkv_bias: bool = False
    rotary_fraction: float = 1.0
    rope_scaling: LlamaScaling | LongScaling | None = None
    vocab_padding: int = 0

    @property
    def rotary_dim(self) -> int:
        """How many features of a head positions turn."""
        return int(self.head_dim * self.rotary_fraction)

    def count_flops(self, tokens: int, targets: int) -> float:
        """Operations of a forward pass: its matrix products, those within attention left out.

        Args:
            tokens: that run through the layers.
            targets: positions that get logits.
        """
        heads = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        layer = self.hidden_size * (heads + 3 * self.ffn_size)
        head = self.hidden_size * self.vocab_size
        return 2.0 * (tokens * self.num_layers * layer + targets * head)


class Output(NamedTuple):
    """What a pass over some tokens returns.

    Attributes:
        hidden: `[B, T, D]`, after the final norm; `Decoder.logits` takes it from there.
        cache: the layers' keys and values with this chunk written in, or None.
        layer_output: `[B, T, D]`, the residual stream after the layer asked for, or None.
    """

    hidden: Float[Array, "B T D"]
    cache: tuple[LayerCache, ...] | None
    layer_output: Float[Array, "B T D"] | None


def _norm(config: DecoderConfig, **options) -> nn.Module:
    return (LayerNorm if config.layer_norm else RMSNorm)(config.norm_eps, **options)


class Attention(nn.Module):
    """Self-attention of one layer, with or without a cache."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, shape, angles, mask, cache, slot, prefix, prefix_mask):
        c, (rows, width) = self.config, shape
        groups = c.num_heads // c.num_kv_heads

        def project(name, heads):
            y = Linear(heads * c.head_dim, use_bias=c.qkv_bias, name=name)(x)
            return y.reshape(rows, width, heads, c.head_dim).swapaxes(1, 2)

        query = rotate(project("query", c.num_heads), angles)
        query = query.reshape(rows, c.num_kv_heads, groups * width, c.head_dim)
        keys = rotate(project("key", c.num_kv_heads), angles).swapaxes(2, 3)
        values = project("value", c.num_kv_heads)
        if cache is not None:
            keys = jax.lax.dynamic_update_slice(cache[0], keys, (0, 0, 0, slot))
            values = jax.lax.dynamic_update_slice(cache[1], values, (0, 0, slot, 0))
        y = attend(
            query,
            keys,
            values,
            jnp.tile(mask, (1, 1, groups, 1)),
            prefix=prefix,
            prefix_mask=prefix_mask,
        )
        y = y.reshape(rows, c.num_heads, width, c.head_dim).swapaxes(1, 2)
        y = Linear(c.hidden_size, name="output")(y.reshape(rows * width, -1))
        return y, (keys, values)


class Layer(nn.Module):
    """Attention and FFN, each behind its norm and added to the residual stream."""

    config: DecoderConfig

    @nn.compact
    def __call__(self, x, *rest):
        c = self.config
        y, cache = Attention(c, name="attention")(_norm(c, name="attention_norm")(x), *rest)
        x = x + y
        return x + GatedFFN(c.ffn_size, name="ffn")(_norm(c, name="ffn_norm")(x)), cache


class Decoder(nn.Module):
    """The decoder; `apply({"params": params}, tokens)` gives logits `[B, T, V]`.

    Layers are a plain list: scanning over stacked layers copies each layer's weights at every
    step, which makes decoding on CPU twice as slow.

    Attributes:
        config: its sizes.
        remat: what a gradient computes twice in place of keeping it: "none" of the activations,
            "full" all within a layer, "dots" all but the results of its projections.
    """

    config: DecoderConfig
    remat: str = "none"

    def setup(self):
        c = self.config
        self.embed = nn.Embed(c.vocab_size, c.hidden_size)
        self.layers = [Layer(c) for _ in range(c.num_layers)]
        self.final_norm = _norm(c)
        if not c.tie_embeddings:
            self.head = Linear(c.vocab_size)

    def __call__(
        self, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"] | None = None
    ) -> Float[Array, "B T V"]:
        """Logits of every position; `mask` is False on padding, which may stand anywhere."""
        return self.logits(self.hidden(tokens, mask=mask).hidden)

    def hidden(
        self,
        tokens: Int[Array, "B T"],
        *,
        mask: Bool[Array, "B T"] | Bool[Array, "B T S"] | None = None,
        positions: Int[Array, "B T"] | None = None,
        cache: Sequence[LayerCache] | None = None,
        slot: Int[Array, ""] | int = 0,
        length: int | None = None,
        prefix: Sequence[LayerCache] | None = None,
        prefix_mask: Bool[Array, "P L"] | None = None,
        return_layer: int | None = None,
    ) -> Output:
        """Runs the layers over a chunk of tokens.

        Args:
            tokens: one chunk for each row.
            mask: without a cache, `[B, T]`, True on real tokens (causality is added here). With
                one, `[B, T, S]`, True where a token may look among the cache's slots.
            positions: rotary positions; by default the count of real tokens before each.
            cache: the layers' keys and values; the chunk is written at `slot` and returned.
            slot: where the chunk starts on the cache's slot axis, the same for every row.
            length: how many of the slots one text may take, where several lie in them; by default
                all.
            prefix: the layers' keys and values of `P` prefixes, each shared by `B / P`
                consecutive rows.
            prefix_mask: True on the prefixes' real tokens.
            return_layer: number of the layer whose output is wanted as well, counted as Hugging Face's
                `hidden_states` are: 0 is the embedding, `num_layers` the last layer's output
                before the final norm. None for none.

        Raises:
            RagJaxError: the cache is longer than the model's rotary positions allow.
            ValueError: the rows don't divide among the adapters in the parameters.
        """
        c, (rows, width) = self.config, tokens.shape
        check_adapters(self.variables.get("params", {}), rows)
        if cache is None:
            real = jnp.ones(tokens.shape, bool) if mask is None else mask
            mask = real[:, None, :] & jnp.tril(jnp.ones((1, width, width), bool))
            if positions is None:
                positions = jnp.maximum(jnp.cumsum(real, axis=1) - 1, 0)
        if cache is not None and isinstance(c.rope_scaling, LongScaling):
            own = mask.shape[-1] if length is None else length
            c.rope_scaling.check_cache(own + (prefix[0][0].shape[-1] if prefix else 0))
        angles = rotary_angles(
            positions, rotary_dim=c.rotary_dim, theta=c.rope_theta, scaling=c.rope_scaling
        )
        x = constrain_rows(self.embed(tokens).reshape(rows * width, c.hidden_size), rows)
        layer_output, written = (x if return_layer == 0 else None), []
        for i, layer in enumerate(self.layers):
            rest = (
                (rows, width),
                angles,
                mask[:, None],
                cache and cache[i],
                slot,
                prefix and prefix[i],
                prefix_mask,
            )

            def run(x, layer=layer, rest=rest):
                y, layer_cache = layer(x, *rest)
                return constrain_rows(y, rows), layer_cache

            x, layer_cache = self._rematerialize(run)(x)
            written.append(layer_cache)
            if return_layer == i + 1:
                layer_output = x
        x = self.final_norm(x).reshape(rows, width, c.hidden_size)
        if layer_output is not None:
            layer_output = layer_output.reshape(rows, width, c.hidden_size)
        return Output(x, tuple(written) if cache is not None else None, layer_output)

    def logits(self, hidden: Float[Array, "*batch D"]) -> Float[Array, "*batch V"]:
        """Scores over the vocabulary, only for the hidden states given."""
        c, rows = self.config, hidden.shape[0]
        flat = constrain_rows(hidden.reshape(-1, c.hidden_size), rows)
        if c.tie_embeddings:
            scores = flat @ self.embed.embedding.T
        else:
            scores = self.head(flat)
        if c.vocab_padding:
            is_token = jnp.arange(c.vocab_size) < c.vocab_size - c.vocab_padding
            # float16 ends before MASKED does.
            masked = max(MASKED, float(jnp.finfo(scores.dtype).min))
            scores = jnp.where(is_token[None], scores, jnp.asarray(masked, scores.dtype))
        scores = constrain_rows(scores, rows, free=True)
        return scores.reshape(*hidden.shape[:-1], -1)

    def _rematerialize(self, run):
        if self.remat == "none":
            return run
        # `jax.checkpoint` rather than Flax's: there is nothing but parameters to be read within.
        policies = {"full": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
        return jax.checkpoint(run, policy=policies[self.remat])
