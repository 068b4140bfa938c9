"""The sizes of a decoder, and the options in which the model families differ."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from rag_jax.models.nn.rope import RopeScaling

Activation = Literal["silu", "gelu_tanh"]


class LayerKind(NamedTuple):
    """What sets a layer apart from others of the same model.

    Attributes:
        slides: whether its tokens attend to the window alone.
        rotates: whether it has rotary positions.
    """

    slides: bool
    rotates: bool


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes of a decoder and the options in which the model families differ.

    Attributes:
        vocab_size: number of rows of the embedding, padding rows included.
        hidden_size: features of the residual stream (`D`).
        ffn_size: features of the FFN's hidden layer.
        num_heads: query heads (`H`).
        num_kv_heads: key heads (`K`), a divisor of `num_heads`.
        head_dim: features of a head (`d`).
        rope_theta: base of the rotary frequencies.
        norm_eps: constant under the root of every norm.
        tie_embeddings: whether the output layer is the transposed embedding.
        max_length: longest context in training, in tokens.
        family: Hugging Face's `model_type`, which determines the names of the stored weights.
        layer_norm: True for layer norms with a bias, False for RMS norms.
        qkv_bias: whether the projections to queries, keys and values have a bias.
        rotary_fraction: fraction of each head's features that is rotated.
        rope_scaling: context extension of the rotary positions; None for none.
        vocab_padding: number of rows at the end of the embedding that belong to no token. Padding
            rows are never generated.
        query_key_norm: whether each head's queries and keys are normed before they are rotated.
        output_norms: whether results of attention and FFN are normed before they are added.
        offset_norms: whether RMS norms multiply by `1 + scale`.
        scale_embedding: whether embeddings are multiplied by `sqrt(hidden_size)`.
        activation: of the FFN's gate: "silu", or "gelu_tanh", GELU by its tanh approximation.
        query_scalar: attention scores are divided by its root; None for `head_dim`.
        window: number of tokens that a token of a sliding layer attends to, its own included; None
            for all.
        sliding_layers: numbers of the layers with the window.
        local_rope_theta: base of the sliding layers' rotary frequencies, which are then not scaled;
            None if all layers rotate alike.
        unrotated_layers: numbers of the layers without rotary positions.
        bidirectional: whether tokens attend to later ones too, and within the window to those that
            are less than it away. Such a model only embeds texts.
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
    rope_scaling: RopeScaling | None = None
    vocab_padding: int = 0
    query_key_norm: bool = False
    output_norms: bool = False
    offset_norms: bool = False
    scale_embedding: bool = False
    activation: Activation = "silu"
    query_scalar: int | None = None
    window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    local_rope_theta: float | None = None
    unrotated_layers: tuple[int, ...] = ()
    bidirectional: bool = False

    @property
    def rotary_dim(self) -> int:
        """Number of features of a head that are rotated."""
        return int(self.head_dim * self.rotary_fraction)

    @property
    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """What sets each layer apart, in order."""
        return tuple(
            LayerKind(
                slides=self.window is not None and i in self.sliding_layers,
                rotates=i not in self.unrotated_layers,
            )
            for i in range(self.num_layers)
        )

    def count_flops(self, tokens: int, targets: int) -> float:
        """Floating-point operations of a forward pass: the matrix products with the weights.

        The products of attention (queries with keys, weights with values) are not counted.
        `targets` is the number of positions with logits.
        """
        heads = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        layer = self.hidden_size * (heads + 3 * self.ffn_size)
        head = self.hidden_size * self.vocab_size
        return 2.0 * (tokens * self.num_layers * layer + targets * head)

    @property
    def slot_flops(self) -> float:
        """Operations of a token's attention to one slot, which `count_flops` leaves out.

        Sliding layers count like others, as they do for rows within the window.
        """
        return 4.0 * self.num_heads * self.head_dim * self.num_layers
