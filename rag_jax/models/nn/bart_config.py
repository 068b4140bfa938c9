"""The sizes of BART."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BartConfig:
    """Sizes and token ids of an encoder-decoder; the defaults are those of BART-large.

    Attributes:
        vocab_size: number of token ids.
        hidden_size: features of a hidden state (`D`).
        encoder_ffn_size: features of the hidden layer of the encoder's FFNs.
        max_length: number of learned positions of encoder and decoder each, in tokens.
        scale_embedding: whether word vectors are multiplied by `sqrt(hidden_size)`.
        start_id: first token of every decoder row.
        forced_bos_id: token that transformers' `generate` forces after `start_id`, or None.
        forced_eos_id: token that transformers' `generate` forces at the length limit, or None.
    """

    vocab_size: int = 50265
    hidden_size: int = 1024
    encoder_layers: int = 12
    decoder_layers: int = 12
    encoder_heads: int = 16
    decoder_heads: int = 16
    encoder_ffn_size: int = 4096
    decoder_ffn_size: int = 4096
    max_length: int = 1024
    scale_embedding: bool = False
    bos_id: int = 0
    pad_id: int = 1
    eos_id: int = 2
    start_id: int = 2
    forced_bos_id: int | None = None
    forced_eos_id: int | None = 2

    @property
    def start_ids(self) -> tuple[int, ...]:
        """Fixed tokens at the start of every decoder row."""
        return tuple(i for i in (self.start_id, self.forced_bos_id) if i is not None)

    def count_flops(self, tokens: int, targets: int) -> float:
        """Floating-point operations of a forward pass: the matrix products with the weights.

        The products of attention (queries with keys, weights with values) are not counted.
        `tokens` are the encoder's, `targets` the decoder's, all with logits.
        """
        d, square = self.hidden_size, self.hidden_size**2
        encoder = self.encoder_layers * (4 * square + 2 * d * self.encoder_ffn_size)
        read = self.decoder_layers * 2 * square  # keys and values of the sources
        decoder = self.decoder_layers * (6 * square + 2 * d * self.decoder_ffn_size)
        return 2.0 * (tokens * (encoder + read) + targets * (decoder + d * self.vocab_size))

    @property
    def slot_flops(self) -> float:
        """Operations of an encoder token's attention to one slot; `count_flops` leaves them out."""
        return 4.0 * self.hidden_size * self.encoder_layers

    # Sizes of the cache of the decoder's self-attention, under the names of `DecoderConfig`.

    @property
    def num_layers(self) -> int:
        """Number of layers with a cache, the decoder's."""
        return self.decoder_layers

    @property
    def num_kv_heads(self) -> int:
        """Number of key heads of a decoder layer."""
        return self.decoder_heads

    @property
    def head_dim(self) -> int:
        """Number of features of a decoder layer's head."""
        return self.hidden_size // self.decoder_heads
