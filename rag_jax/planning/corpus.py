"""What a planned run would read: how many questions and passages, and how long they are."""

from typing import Any

from rag_jax.data.formats import read_collection
from rag_jax.planning.batches import Corpus
from rag_jax.planning.lengths import Lengths
from rag_jax.runtime.errors import RagJaxError


def count_corpus(
    config: Any,
    lengths: Lengths,
    limits: dict[str, int],
    *,
    questions: int | None = None,
    passages: int | None = None,
) -> Corpus:
    """The numbers of questions and passages of a run.

    Args:
        config: the run's settings, which name its data.
        limits: largest numbers of questions that are trained on, `trained`, and evaluated, `asked`;
            0 for all.
        questions: number of questions that are trained on, and of those evaluated, and `passages`
            that of passages, in the place of those of the data, which are read if one is None.

    Raises:
        RagJaxError: a number is 0, or the data cannot be read or have no questions.
    """
    for name, number in (("questions", questions), ("passages", passages)):
        if number == 0:
            raise RagJaxError(f"--{name}=0: must be at least 1")
    numbers = {"trained": questions, "asked": questions}
    if questions is None or passages is None:
        read = read_collection(config.data, config.world)
        splits = {"trained": "train", "asked": config.evaluate_on}
        passages = len(read.passages) if passages is None else passages
        for name, split in splits.items():
            if questions is None:
                numbers[name] = sum(bool(q.answers) for q in read.questions.get(split, []))
    for name, number in numbers.items():
        if not number:
            split = "train" if name == "trained" else config.evaluate_on
            raise RagJaxError(f"config.data: there are no {split!r} questions; give --questions=N")
        numbers[name] = min(number, limits[name] or number)
    return Corpus(numbers["trained"], numbers["asked"], passages, lengths)
