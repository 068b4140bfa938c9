"""Hard negatives: passages that look right and are not."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from rag_jax.data.formats import Passage, Question
from rag_jax.ranking import has_answer


def choose_negatives(
    question: Question,
    ranked: Int[np.ndarray, "k"],
    passages: Sequence[Passage],
    *,
    count: int,
) -> list[int]:
    """The first `count` passages of a ranking that answer nothing, as rows of `passages`.

    Left out are those known to be relevant and, as in DPR (Karpukhin et al. 2020, section 3.2),
    those that hold an answer; a title counts too, for the encoder reads it. Fewer where the
    ranking has no more.
    """
    chosen = []
    for row in ranked.tolist():
        if len(chosen) == count:
            break
        passage = passages[row]
        answered = has_answer(f"{passage.title} {passage.text}", question.answers)
        if passage.id not in question.relevant and not answered:
            chosen.append(row)
    return chosen
