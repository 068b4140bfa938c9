"""What a decoder's layers read of a chunk of tokens beside their states, and what a pass gives."""

from typing import NamedTuple

from jaxtyping import Array, Bool, Float, Int

from rag_jax.models.nn.attention import SegmentMask
from rag_jax.models.nn.rope import Angles
from rag_jax.models.nn.window_slots import WindowSlots
from rag_jax.models.nn.windows import WindowBlocks

# Keys and values of one layer.
LayerCache = tuple[Float[Array, "B K d S"], Float[Array, "B K S d"]]


class Output(NamedTuple):
    """Result of a pass over a chunk of tokens.

    Attributes:
        hidden: hidden states after the final norm, the input of `Decoder.logits`.
        cache: keys and values of every layer, this chunk included; None without a cache.
        layer_output: residual stream after the layer named by `return_layer`, or None.
    """

    hidden: Float[Array, "B T D"]
    cache: tuple[LayerCache, ...] | None
    layer_output: Float[Array, "B T D"] | None


class Chunk(NamedTuple):
    """Inputs of a layer besides the residual stream of a chunk of tokens.

    Attributes:
        angles: cosines and sines of the tokens' positions; None for layers that do not rotate.
        attention_mask: True where a query may look; or what `mask_rows` makes for whole rows, or
            `limit_to_window` for sliding layers.
        cache: keys and values of the row's earlier tokens; None if the chunk is the whole row.
        slot: first slot of the chunk in the cache.
        prefix: keys and values of `P` prefixes, each shared by `B / P` consecutive rows.
        prefix_mask: token mask of the prefixes, or the attention mask of each query.
    """

    angles: Angles | None
    attention_mask: Bool[Array, "B 1 T S"] | SegmentMask | WindowBlocks | WindowSlots
    cache: LayerCache | None
    slot: Int[Array, ""] | int
    prefix: LayerCache | None
    prefix_mask: Bool[Array, "P L"] | Bool[Array, "B 1 T L"] | None

    @property
    def batch_shape(self) -> tuple[int, int]:
        """`(B, T)`, for the unflattening of `N = B * T`."""
        if isinstance(self.attention_mask, SegmentMask):
            return self.attention_mask.segments.shape
        if isinstance(self.attention_mask, WindowBlocks):
            return self.attention_mask.places.shape
        if isinstance(self.attention_mask, WindowSlots):
            return self.attention_mask.mask.shape[:2]
        rows, _, width, _ = self.attention_mask.shape
        return rows, width
