"""Which source to ask: the vote of a datastore of earlier questions, and the decision."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rag_jax.systems.srrag.config import Decision, Metric


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Datastore:
    """The policy datastore: hidden states at `<EOQ>` and the source that then worked better.

    Attributes:
        keys: `[N, D]`, as `scale_keys` gives them.
        labels: `[N]`, source numbers.
        metric: how near a key is. The paper leaves it open; dot products are ruled by the few
            large features that such states have.
    """

    keys: Float[Array, "N D"]
    labels: Int[Array, "N"]
    metric: Metric = field(default="cosine", metadata={"static": True})


def scale_keys(keys: Float[Array, "N D"], metric: Metric) -> Float[Array, "N D"]:
    """Hidden states whose product is the metric: of length one for a cosine."""
    keys = keys.astype(jnp.float32)
    if metric == "dot":
        return keys
    return keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames="k")
def find_nearest(
    datastore: Datastore, queries: Float[Array, "B D"], itself: Int[Array, "B"], *, k: int
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The similarities and rows of a question's `k` nearest entries, nearest first.

    Args:
        itself: the row of each query's own entry, which is left out; -1 where it has none.
    """
    scores = scale_keys(queries, datastore.metric) @ datastore.keys.T
    own = jnp.arange(datastore.keys.shape[0])[None, :] == itself[:, None]
    return jax.lax.top_k(jnp.where(own, -jnp.inf, scores), k)


@partial(jax.jit, static_argnames=("k", "num_sources"))
def vote(
    datastore: Datastore,
    queries: Float[Array, "B D"],
    itself: Int[Array, "B"],
    *,
    k: int,
    num_sources: int,
) -> Float[Array, "B S"]:
    """`p_D(s | q)`: the share of each source among a question's `k` nearest entries.

    Args:
        itself: as for `find_nearest`; an entry must not vote on itself.
    """
    _, nearest = find_nearest(datastore, queries, itself, k=k)
    labels = jax.nn.one_hot(datastore.labels[nearest], num_sources)
    return labels.mean(axis=1)


def decide(
    probabilities: Float[np.ndarray, "B S"],
    votes: Float[np.ndarray, "B S"],
    kinds: Sequence[str],
    *,
    tau: float,
    decision: Decision = "threshold",
) -> Int[np.ndarray, "B"]:
    """The source of each question, by the products `p_M(s) p_D(s)` (paper, section 3.4).

    Args:
        decision: "threshold" searches if and only if a searched source's product is above `tau`
            (the paper's text); of several such sources it takes the one with the largest.
            "argmax_product" takes the largest product of all (the paper's figures).
    """
    external = np.asarray([kind == "search" for kind in kinds])
    products = probabilities * votes
    if decision == "argmax_product":
        return products.argmax(axis=1)
    products = np.where(external, products, -1.0)
    internal = int(np.flatnonzero(~external)[0])
    return np.where(products.max(axis=1) > tau, products.argmax(axis=1), internal)
