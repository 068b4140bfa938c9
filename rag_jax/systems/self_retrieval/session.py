"""What a run of Self-Retrieval has open: the language model, the tries, the dense encoder."""

from functools import cached_property
from pathlib import Path

import jax.numpy as jnp

from rag_jax.config import EncoderConfig
from rag_jax.data.questions import Collection, Question
from rag_jax.models import Pretrained
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import DECODER_RULES
from rag_jax.systems import session
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.training.trainable import Trainable, make_trainable


class Session(session.Session):
    """The models, corpus and mesh of a run."""

    config: SelfRetrievalConfig
    batch_sizes = ("search.batch_size", "dense.train.batch_size")

    @property
    def encoding(self) -> EncoderConfig:
        """The settings by which texts are encoded."""
        return self.config.dense.encoder

    @property
    def dtype(self) -> jnp.dtype:
        """Of the model's weights and activations."""
        return jnp.dtype(self.config.model.dtype)

    @cached_property
    def base(self) -> Pretrained:
        """The language model before training."""
        return self.load_language_model("model.name", dtype=self.dtype)

    def load_base(self) -> Pretrained:
        """The language model before training, opened only when called."""
        return self.base

    @property
    def trainable(self) -> Trainable:
        """What is trained of the language model."""
        c = self.config
        return make_trainable(
            c.tuning,
            self.base.params,
            rules=DECODER_RULES,
            mesh=self.mesh,
            seed=c.seed,
            dtype=self.dtype,
        )

    def make_format(self, *, titled: bool) -> Format:
        """How questions, passages and assessments become tokens."""
        c = self.config
        return Format(self.base.tokenizer, titled, c.examples.assessment, c.model.max_text)

    def load_encoders(self, trained: Path | None = None) -> Encoders:
        """One encoder for both sides, before training or from the folder `trained`."""
        loaded = self.load_encoder("dense.encoder.name", trained)
        return Encoders(loaded, loaded, shared=True)

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if there are no questions to train on or to evaluate."""
        for split in ("train", self.config.evaluate_on):
            self.choose_questions(corpus, split)

    def choose_questions(self, corpus: Collection, split: str, count: int = 0) -> list[Question]:
        """The split's questions that have an answer and a relevant passage.

        Raises:
            RagJaxError: there is none.
        """
        questions = [q for q in corpus.questions.get(split, []) if q.answers and q.relevant]
        if not questions:
            raise RagJaxError(
                f"config.data: there are no {split!r} questions with answers and passages"
            )
        return questions

    @property
    def train_questions(self) -> list[Question]:
        """The questions to train on."""
        return self.choose_questions(self.corpus, "train")

    @property
    def questions(self) -> list[Question]:
        """The questions to evaluate."""
        return self.choose_questions(self.corpus, self.config.evaluate_on)
