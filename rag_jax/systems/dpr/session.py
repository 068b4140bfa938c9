"""What a run of dense passage retrieval has open: both encoders, before and after training."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from rag_jax.data.questions import Collection, Question
from rag_jax.models.nn.bert import Bert
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import session
from rag_jax.systems.dpr.config import DPRConfig


class Session(session.Session):
    """The encoders, corpus and mesh of a run."""

    config: DPRConfig
    batch_sizes = ("train.batch_size",)

    @cached_property
    def untrained(self) -> Encoders:
        """Both sides before training."""
        loaded, c = self.encoder, self.config.encoder
        question, passage = loaded, loaded
        if c.pooling == "cls" and loaded.config.dpr_role is None:
            roles = (replace(loaded.config, dpr_role=role) for role in ("question", "context"))
            question, passage = (replace(loaded, config=r, model=Bert(r)) for r in roles)
        return Encoders(question, passage, shared=c.shared)

    def load_trained(self, folder: Path) -> Encoders:
        """Both sides after training, from the folder of the stage that trained them."""
        question, passage = (
            self.load_encoder("encoder.name", folder / side) for side in ("question", "passage")
        )
        return Encoders(question, passage, shared=self.config.encoder.shared)

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if there is no question to evaluate."""
        split = self.config.evaluate_on
        if not corpus.questions.get(split):
            has = ", ".join(name for name, questions in corpus.questions.items() if questions)
            raise RagJaxError(
                f"config.evaluate_on={split!r}: the data has no such questions, but {has or 'none'}"
            )

    @property
    def train_questions(self) -> Sequence[Question]:
        """The questions to train on; those without a relevant passage give no example."""
        return self.corpus.questions.get("train", [])

    @property
    def questions(self) -> Sequence[Question]:
        """The questions to evaluate."""
        return self.corpus.questions[self.config.evaluate_on]
