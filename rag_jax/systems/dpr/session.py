"""What a run of dense passage retrieval has open: both encoders, before and after training."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from rag_jax.data.questions import Collection, Question
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.pooling import MEAN
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.retrieval.validation import Pool, make_pool
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import session
from rag_jax.systems.dpr.config import DPRConfig
from rag_jax.systems.dpr.data import make_pairs


class Session(session.Session):
    """The encoders, corpus and mesh of a run."""

    config: DPRConfig
    batch_sizes = ("train.batch_size",)

    @cached_property
    def untrained(self) -> Encoders:
        """Both sides before training."""
        loaded, c = self.encoder, self.config.encoder
        question, passage = loaded, loaded
        if c.pooling != "files" and not isinstance(loaded.model, Bert):
            kind = type(loaded.model).__name__
            raise RagJaxError(
                f"config.encoder.pooling={c.pooling!r}: is for BERT, and the encoder is a {kind}: "
                "leave it out"
            )
        if c.pooling == "mean" and loaded.config.dpr_role is None:
            question = passage = replace(loaded, model=loaded.model.clone(pooling=MEAN))
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
        """Raises a RagJaxError if there are no questions to train, validate or evaluate on."""
        split = self.config.evaluate_on
        if not corpus.questions.get(split):
            has = ", ".join(name for name, questions in corpus.questions.items() if questions)
            raise RagJaxError(
                f"config.evaluate_on={split!r}: the data has no such questions, but {has or 'none'}"
            )
        if not self.trains:
            return
        trained = self.config.train.epochs > 0
        if trained and not any(q.relevant for q in corpus.questions.get("train", [])):
            raise RagJaxError(
                "config.data: there are no 'train' questions with their passages to train on; set "
                "train.epochs=0 to evaluate the encoder as it is"
            )
        validated = self.config.validation.after is not None
        if validated and not any(q.relevant for q in corpus.questions.get("dev", [])):
            raise RagJaxError(
                f"config.validation.after={self.config.validation.after}: the data has no 'dev' "
                "questions with their passages to validate on; set data.held_out, or leave it out"
            )

    @property
    def dev_questions(self) -> Sequence[Question]:
        """The questions to validate on: the first ones of "dev" that have a relevant passage."""
        asked = [question for question in self.corpus.questions["dev"] if question.relevant]
        return asked[: self.config.validation.questions]

    def load_pool(self, context: StageContext) -> Pool:
        """The pool in which the average rank is taken; for a stage that needs "dev_negatives"."""
        mined = context.path("dev_negatives", "negatives.jsonl")
        asked = self.dev_questions
        return make_pool(make_pairs(asked, self.passages, mined, "first"), asked)

    @property
    def train_questions(self) -> Sequence[Question]:
        """The questions to train on; those without a relevant passage give no example."""
        return self.corpus.questions.get("train", [])

    @property
    def questions(self) -> Sequence[Question]:
        """The questions to evaluate."""
        return self.corpus.questions[self.config.evaluate_on]
