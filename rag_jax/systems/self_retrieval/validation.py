"""How well the model retrieves after each epoch of a training, on development questions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Array, PyTree

from rag_jax.data.questions import Question
from rag_jax.systems.self_retrieval.evaluate import VALIDATED, find_titles, grade, rank
from rag_jax.systems.self_retrieval.infer import Engine
from rag_jax.systems.self_retrieval.scores import score, score_unassessed
from rag_jax.systems.stages import order_found
from rag_jax.training.trainable import Trainable


@dataclass(frozen=True)
class Validation:
    """A hook of the training loop (see `fit`) that has the model retrieve after each epoch.

    Attributes:
        engine: with the parameters before training, which are replaced by the trained ones.
        steps: number of steps of an epoch.
        assessed: whether passages rank by the model's assessment too, or, where it has not been
            taught to assess, by their own probabilities.
    """

    engine: Engine
    trainable: Trainable
    questions: Sequence[Question]
    steps: int
    assessed: bool

    def before(self, step: int, params: PyTree[Array]) -> None:
        """Nothing is done before a step."""

    def after(self, step: int, params: PyTree[Array]) -> Mapping[str, Any]:
        """The means of the questions' measures after an epoch's last step."""
        if (step + 1) % self.steps:
            return {}
        merged = self.trainable.merge(params, self.trainable.base)
        return self._measure(replace(self.engine, params=merged))

    def _measure(self, engine: Engine) -> dict[str, float]:
        asked = [question.question for question in self.questions]
        if self.assessed:
            found, weigh = [groups for groups, _ in engine.retrieve(asked)], score
        else:
            found, weigh = engine.write_passages(asked), score_unassessed
        ranked = [rank(groups, weigh(groups, engine.settings)) for groups in found]
        ranked = order_found(self.questions, ranked, engine.passages)
        titles = find_titles(self.questions, engine.passages)
        records = [
            grade(
                question,
                {"ranked": own, "prediction": "", "seconds": 0.0},  # only its ranks are shown
                passages=engine.passages,
                titles=titles,
            )
            for question, own in zip(self.questions, ranked, strict=True)
        ]
        return {name: float(np.mean([record[name] for record in records])) for name in VALIDATED}
