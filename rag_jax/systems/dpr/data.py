"""What the encoders read, and the pairs of a question and a passage that they are trained on.

A question is read as `[CLS] question [SEP]`, a passage as `[CLS] title [SEP] text [SEP]` (Karpukhin
et al. 2020, section 5.1); `retrieval.encode` makes the tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.retrieval.pairs import Pair, list_pairs
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl


def make_pairs(
    questions: Sequence[Question],
    passages: Sequence[Passage],
    mined: Path,
    positives: Literal["all", "first"],
) -> list[Pair]:
    """The pairs of some questions and passages relevant to them; see `list_pairs`.

    Args:
        mined: `negatives.jsonl`, with hard negatives of each question.

    Raises:
        RagJaxError: no question has a relevant passage.
    """
    negatives = [record["rows"] for record in read_jsonl(mined)]
    pairs = list_pairs(questions, negatives, passages, positives=positives)
    if not pairs:
        raise RagJaxError("config.data: there are no questions with their passages")
    return pairs
