"""The scores by which candidates are ranked (Tang et al. 2024, section 3.4)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rag_jax.systems.self_retrieval.config import SearchConfig


class Candidate(NamedTuple):
    """A passage that was generated for a question.

    Attributes:
        rows: of the corpus; several if passages have equal texts.
        title: probability of the passage's title, 1 without titles.
        passage: log-probability in nats of the passage's text, up to the trie's leaf.
        reject: probability of the rejection.
    """

    rows: list[int]
    title: float
    passage: float
    reject: float


def to_probability(logprob: float, length: int, settings: SearchConfig) -> float:
    """The probability of a text, or the geometric mean of its tokens' probabilities.

    Args:
        logprob: the sum of the tokens' log-probabilities, in nats.
    """
    return float(np.exp(logprob / max(length, 1) if settings.lengths == "mean" else logprob))


def score(groups: Sequence[Sequence[Candidate]], settings: SearchConfig) -> list[list[float]]:
    """`S = Softmax(P(t|q) / tau) Softmax((1 - P(reject|q,t,p)) / delta)`."""
    trust = [np.asarray([1 - c.reject for c in group]) for group in groups]
    return _weigh(groups, trust, settings.delta, settings)


def find_best(groups: Sequence[Sequence[Candidate]], settings: SearchConfig) -> tuple[int, float]:
    """The candidate with the best score, of several the first: its number among all, its score."""
    scores = np.concatenate(score(groups, settings))
    best = int(np.argmax(scores))
    return best, float(scores[best])


def score_unassessed(
    groups: Sequence[Sequence[Candidate]], settings: SearchConfig
) -> list[list[float]]:
    """Scores without self-assessment: passages of a title by their own probabilities."""
    own = [np.asarray([c.passage for c in group]) for group in groups]
    return _weigh(groups, own, 1.0, settings)


def _weigh(
    groups: Sequence[Sequence[Candidate]],
    values: Sequence[Float[np.ndarray, "n"]],
    temperature: float,
    settings: SearchConfig,
) -> list[list[float]]:
    of_title = _softmax(np.asarray([group[0].title for group in groups]), settings.tau)
    if settings.over == "all":
        sizes = np.cumsum([len(group) for group in groups])[:-1]
        parts = np.split(_softmax(np.concatenate(values), temperature), sizes)
    else:
        parts = [_softmax(own, temperature) for own in values]
    return [(weight * part).tolist() for weight, part in zip(of_title, parts, strict=True)]


def _softmax(values: Float[np.ndarray, "n"], temperature: float) -> Float[np.ndarray, "n"]:
    powers = np.exp((values - values.max()) / temperature)
    return powers / powers.sum()
