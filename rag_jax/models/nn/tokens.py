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
        if (beside := _read_beside(self, "rows")) is None:
            return x
        rows, ids = beside
        found = tokens[..., None] == ids.reshape(*[1] * tokens.ndim, -1)  # [*batch, n]
        own = jnp.take(rows, jnp.argmax(found, axis=-1), axis=0)
        return jnp.where(found.any(axis=-1, keepdims=True), own, x)

    def score(self, hidden: Float[Array, "N D"]) -> Float[Array, "N V"]:
        """Products with all embeddings, the logits of a tied output layer."""
        scores = hidden @ self.embedding.T
        if (beside := _read_beside(self, "rows")) is None:
            return scores
        rows, ids = beside
        return scores.at[:, ids].set(hidden @ rows.T)


def score_by_head(head: nn.Module, hidden: Float[Array, "N D"]) -> Float[Array, "N V"]:
    """The logits of an output layer of its own, which may have `columns` `[D, n]` of some `ids`."""
    scores = head(hidden)
    if (beside := _read_beside(head, "columns")) is None:
        return scores
    columns, ids = beside
    return scores.at[:, ids].set(hidden @ columns)


def _read_beside(module: nn.Module, name: str) -> tuple[Array, Array] | None:
    """The vectors beside a module's table and their tokens' ids; None if there are none."""
    if not module.has_variable("params", name):
        return None
    return module.get_variable("params", name), module.get_variable("params", "ids")
