"""The policy: the datastore of training questions, its vote, and the choice of a source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rag_jax.data.questions import Question
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.arguments import checked
from rag_jax.runtime.files import read_arrays, write_json
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import shard_over_devices
from rag_jax.systems.srrag.config import DatastoreConfig, Decision, Metric, SourceConfig
from rag_jax.systems.srrag.data import share_by_source
from rag_jax.systems.srrag.infer import Engine


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Datastore:
    """The policy datastore: hidden states at `<EOQ>`, and the source that worked better.

    Attributes:
        keys: `[N, D]`, from `scale_keys`.
        labels: `[N]`, numbers of sources.
        metric: of the similarity to a key. The paper leaves it open; dot products are dominated by
            the few large features of such states.
    """

    keys: Float[Array, "N D"]
    labels: Int[Array, "N"]
    metric: Metric = field(default="cosine", metadata={"static": True})


@checked
def scale_keys(keys: Float[Array, "N D"], metric: Metric) -> Float[Array, "N D"]:
    """Hidden states whose dot product is the metric: normalised for the cosine."""
    keys = keys.astype(jnp.float32)
    if metric == "dot":
        return keys
    return keys / jnp.maximum(jnp.linalg.norm(keys, axis=-1, keepdims=True), 1e-12)


@partial(jax.jit, static_argnames="k")
def find_nearest(
    datastore: Datastore, queries: Float[Array, "B D"], itself: Int[Array, "B"], *, k: int
) -> tuple[Float[Array, "B k"], Int[Array, "B k"]]:
    """The similarities and rows of each question's `k` nearest entries, nearest first.

    Args:
        itself: the row of each query's own entry, which is left out; -1 for none.
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

    All entries vote where there are no more than `k`; without any, the sources have equal shares.

    Args:
        itself: as for `find_nearest`: an entry must not vote for its own question.
    """
    size = datastore.keys.shape[0]
    scores, nearest = find_nearest(datastore, queries, itself, k=min(k, size))
    labels = jax.nn.one_hot(datastore.labels[nearest], num_sources)
    if k < size:
        return labels.mean(axis=1)
    # [B, k, 1]: an entry that is left out is among them, because there is no other.
    voting = jnp.isfinite(scores)[..., None]
    votes, voters = (labels * voting).sum(axis=1), voting.sum(axis=1)
    return jnp.where(voters > 0, votes / jnp.maximum(voters, 1), 1 / num_sources)


class Weights(NamedTuple):
    """What speaks for the sources of each question.

    Attributes:
        products: `[B, S]`, `p_M(s | q) p_D(s | q)`.
        mass: `[B]`, the same for the searched sources together: the sum of their `p_M` times the
            sum of their `p_D`. With one searched source it is that source's product.
        search: `[B]`, the score of a search, which is above the threshold where there is one: the
            mass, or for "argmax_product" the mass less the product of the model itself.
    """

    products: Float[np.ndarray, "B S"]
    mass: Float[np.ndarray, "B"]
    search: Float[np.ndarray, "B"]


@checked
def weigh(
    probabilities: Float[np.ndarray, "B S"],
    votes: Float[np.ndarray, "B S"] | None,
    kinds: Sequence[str],
    *,
    decision: Decision = "threshold",
) -> Weights:
    """Weighs the sources; see `decide`.

    The product of one of several searched sources falls with the square of their number, as their
    probability and their votes are divided among them. Their mass does not: an index that is split
    in two is searched for the same questions.

    Args:
        votes: None to weigh by the probabilities alone.
    """
    external = np.asarray([kind == "search" for kind in kinds])
    products = np.array(probabilities, float)
    mass = products[:, external].sum(axis=1)
    if votes is not None:
        votes = np.asarray(votes, float)
        products, mass = products * votes, mass * votes[:, external].sum(axis=1)
    internal = products[:, ~external][:, 0]
    return Weights(products, mass, mass - internal if decision == "argmax_product" else mass)


@checked
def decide(
    probabilities: Float[np.ndarray, "B S"],
    votes: Float[np.ndarray, "B S"] | None,
    kinds: Sequence[str],
    *,
    tau: float = 0.0,
    decision: Decision = "threshold",
) -> Int[np.ndarray, "B"]:
    """The source of each question, by the products `p_M(s) p_D(s)` (paper, section 3.4).

    First a search is decided on, by the mass of all searched sources together (see `Weights`). It
    is then of the searched source with the largest product.

    Args:
        probabilities: `p_M`, of the sources' tokens.
        votes: `p_D`; None to decide by the probabilities alone.
        tau: threshold of the decision "threshold".
        decision: "threshold" searches if and only if the mass is above `tau` (the paper's text);
            "argmax_product" if and only if it is above the product of the model itself (the paper's
            figures).
    """
    products, _, search = weigh(probabilities, votes, kinds, decision=decision)
    external = np.asarray([kind == "search" for kind in kinds])
    best = np.where(external, products, -1.0).argmax(axis=1)
    above = search > (tau if decision == "threshold" else 0.0)
    return np.where(above, best, int(np.flatnonzero(~external)[0]))


def run_datastore(
    context: StageContext,
    *,
    train_questions: Sequence[Question],
    sources: Sequence[SourceConfig],
    open_engine: Callable[[StageContext, Path], Engine],
    datastore: DatastoreConfig,
    after: str = "stage2",
) -> None:
    """Finds the source that works better for each training question, now that the model is tuned.

    Writes `datastore.npz`: the questions' `id`, `source`, `scores` `[N, S]` in nats and `key`
    `[N, D]`.

    Args:
        after: the stage that trained the model.
    """
    engine = open_engine(context, context.path(after, "params"))

    def roll_out(batch: Sequence[Question]) -> dict[str, np.ndarray]:
        asked = [question.question for question in batch]
        routed = engine.route(asked)
        scores = []
        for source in range(len(sources)):
            knowledge = engine.gather_knowledge(routed, range(len(batch)), source, asked)
            values = engine.score_answers(knowledge, [q.answers[0] for q in batch])
            # A source without a passage is never the better one.
            scores.append(np.where(knowledge.found, values, np.finfo(np.float32).min))
            del knowledge  # the next one needs its room
        keys = fetch(scale_keys(routed.key, datastore.metric))
        scores, ids = np.stack(scores, axis=1), np.asarray([question.id for question in batch])
        better = scores.argmax(axis=1).astype(np.int32)
        return {"id": ids, "source": better, "scores": scores, "key": keys[: len(batch)]}

    size = engine.batch_size
    arrays = context.map(
        "datastore.npz", train_questions, roll_out, batch_size=size, unit="questions"
    )
    shares = share_by_source(arrays["source"], sources)
    write_json(context.folder / "statistics.json", {"n": len(train_questions), "share": shares})
    best = max(shares, key=shares.__getitem__)
    if shares[best] == 1:
        log(
            f"stage {context.name}: {best} works better for every training question; the "
            "vote does not distinguish any two questions"
        )


def read_datastore(path: Path, settings: DatastoreConfig) -> Datastore:
    """Reads a datastore and puts it on the devices."""
    keys, labels = _read_entries(path)
    return Datastore(shard_over_devices(keys), jnp.asarray(labels), settings.metric)


def grow_datastore(datastore: Datastore, path: Path) -> Datastore:
    """A datastore with further entries, that `run_datastore` found with the same model."""
    keys, labels = _read_entries(path)
    keys = np.concatenate([fetch(datastore.keys), keys])
    labels = np.concatenate([fetch(datastore.labels), labels])
    return Datastore(shard_over_devices(keys), jnp.asarray(labels), datastore.metric)


def _read_entries(path: Path) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, "N"]]:
    """The keys and the sources of a datastore's file."""
    arrays = read_arrays(path)
    with parsing(path):
        return arrays["key"], arrays["source"]
