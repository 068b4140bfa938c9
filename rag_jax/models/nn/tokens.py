"""The table of a decoder's token embeddings, and tokens whose vectors lie beside it."""

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int


class TokenTable(nn.Embed):
    """Embeddings of tokens, which a tied output layer shares.

    `vocabulary.overlay_tokens` puts vectors `rows` `[n, D]` of the tokens `ids` `[n]` next to the
    table. They take the place of the table's own, which stays as it is and gets no gradient: that
    of a whole table is larger than all else that trains a few tokens.
    """

    def __call__(self, tokens: Int[Array, "*batch"]) -> Float[Array, "*batch D"]:
        """The tokens' embeddings."""
        x = super().__call__(tokens)
        if not self.has_variable("params", "rows"):
            return x
        rows, ids = (self.get_variable("params", name) for name in ("rows", "ids"))
        found = tokens[..., None] == ids.reshape(*[1] * tokens.ndim, -1)  # [*batch, n]
        own = jnp.take(rows, jnp.argmax(found, axis=-1), axis=0)
        return jnp.where(found.any(axis=-1, keepdims=True), own, x)

    def score(self, hidden: Float[Array, "N D"]) -> Float[Array, "N V"]:
        """Products with all embeddings, the logits of a tied output layer."""
        scores = hidden @ self.embedding.T
        if not self.has_variable("params", "rows"):
            return scores
        rows, ids = (self.get_variable("params", name) for name in ("rows", "ids"))
        return scores.at[:, ids].set(hidden @ rows.T)


def score_by_head(head: nn.Module, hidden: Float[Array, "N D"]) -> Float[Array, "N V"]:
    """The logits of an output layer of its own, which may have `columns` `[D, n]` of some `ids`."""
    scores = head(hidden)
    if not head.has_variable("params", "columns"):
        return scores
    columns, ids = (head.get_variable("params", name) for name in ("columns", "ids"))
    return scores.at[:, ids].set(hidden @ columns)
