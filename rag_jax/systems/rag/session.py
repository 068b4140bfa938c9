"""What a run of RAG has open: the generator, both sides of the retriever, the index."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rag_jax.config import EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.models import Pretrained
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bert import Bert
from rag_jax.retrieval import Index, fingerprint_corpus
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import BART_RULES, BERT_RULES, DECODER_RULES, prefix_rules
from rag_jax.systems import session
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import Format, make_format
from rag_jax.systems.rag.loss import rag_loss, score_passages
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable, cast, init_trained, merge_trained

MAX_LABELS = 100  # every label is scored under every passage


class Session(session.Session):
    """The models, corpus and mesh of a run."""

    config: RAGConfig
    batch_sizes = ("decode.batch_size",)

    @property
    def encoding(self) -> EncoderConfig:
        """The settings by which texts are encoded."""
        return self.config.retriever

    @property
    def has_revisions(self) -> bool:
        """Whether the corpus is the built-in world, which has another revision of its facts."""
        return self.config.data.path is None

    # Models.

    @property
    def dtype(self) -> jnp.dtype:
        """Of the generator's weights and activations."""
        return jnp.dtype(self.config.generator.dtype)

    @cached_property
    def generator(self) -> Pretrained:
        """The generator before training."""
        name = self.config.generator.name
        loaded = self.load_model(name, dtype=self.dtype)
        if isinstance(loaded.model, Bert):
            raise RagJaxError(f"config.generator.name={name}: is no generator but an encoder")
        return loaded

    @cached_property
    def encoder(self) -> Pretrained:
        """The question's encoder before training."""
        return self.load_encoder("retriever.name")

    @cached_property
    def passage_encoder(self) -> Pretrained:
        """The passages' encoder, which is never trained."""
        if self.config.retriever.passage_name is None:
            return self.encoder
        return self.load_encoder("retriever.passage_name")

    @cached_property
    def format(self) -> Format:
        """How questions, passages and answers become the generator's tokens."""
        c = self.config.generator
        return make_format(self.generator, max_length=c.max_length, chat=c.chat)

    # Training.

    def make_trainable(self, *, joint: bool) -> Trainable:
        """The trainable parameters of the generator and, if `joint`, of the question's encoder.

        The merged parameters are `{"generator": ..., "query": ...}`.
        """
        c = self.config
        generator, query = self.generator.params, self.encoder.params
        is_seq2seq = isinstance(self.generator.model, Bart)
        rules = prefix_rules("generator", BART_RULES if is_seq2seq else DECODER_RULES)

        def init(base: PyTree) -> PyTree[Array]:
            trained = {"generator": init_trained(c.tuning, base["generator"], seed=c.seed)}
            return trained | {"query": cast(base["query"], jnp.float32)} if joint else trained

        def merge(trained: PyTree, base: PyTree) -> PyTree[Array]:
            params = merge_trained(
                c.tuning, trained["generator"], base["generator"], dtype=self.dtype
            )
            return {"generator": params, "query": trained["query"] if joint else base["query"]}

        frozen = {"generator": None if c.tuning.mode == "full" else generator}
        return Trainable(
            base={"generator": generator, "query": query},
            frozen=frozen if joint else {**frozen, "query": query},
            init=init,
            merge=merge,
            rules=(*rules, *prefix_rules("query", BERT_RULES)),
            mesh=self.mesh,
            rates={"query": c.train.retriever_rate},
        )

    def make_loss(self, *, joint: bool) -> LossFunction:
        """The loss by the trained tree; passages are constants, as their encoder is not trained."""
        c, trainable, model = self.config, self.make_trainable(joint=joint), self.generator.model
        if not isinstance(model, Bart):
            model = model.clone(remat=c.tuning.remat)

        def loss(trained, frozen, batch):
            params = trainable.merge(trained, frozen)
            scores = score_passages(
                self.encoder.model, params["query"], batch, scale=c.retriever.scale
            )
            return rag_loss(
                model,
                params["generator"],
                scores,
                batch,
                marginal=c.marginal,
                smoothing=c.train.smoothing,
            )

        return loss

    # Passages and questions.

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if there are no questions to train on or to evaluate, or labels."""
        for split in ("train", self.config.evaluate_on):
            self.choose_questions(corpus, split)
        self.list_labels(corpus)

    @property
    def train_questions(self) -> list[Question]:
        """The questions to train on."""
        return self.choose_questions(self.corpus, "train", self.config.train.questions)

    @property
    def questions(self) -> list[Question]:
        """The questions to evaluate."""
        c = self.config
        return self.choose_questions(self.corpus, c.evaluate_on, c.decode.questions)

    @property
    def labels(self) -> list[str]:
        """The labels of a classification; none for another task."""
        return self.list_labels(self.corpus)

    def list_labels(self, corpus: Collection) -> list[str]:
        """The labels of a classification: the training questions' first answers.

        Raises:
            RagJaxError: there is only one, or too many to be labels.
        """
        if self.config.task != "classification":
            return []
        questions = self.choose_questions(corpus, "train")
        labels = sorted({question.answers[0] for question in questions})
        if not 2 <= len(labels) <= MAX_LABELS:
            raise RagJaxError(
                f"config.task='classification': the training answers are {len(labels)} different "
                f"ones, but labels are 2 to {MAX_LABELS}"
            )
        return labels

    def encode_questions(
        self, params: PyTree, questions: Sequence[str]
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings of questions by some parameters of their encoder."""
        return self.encode(replace(self.encoder, params=params), questions)

    def load_index(self, folder: Path) -> Index:
        """The index over the corpus as it was before any training."""
        return Index.load(
            folder,
            encoder=self.passage_encoder.fingerprint,
            corpus=fingerprint_corpus(self.passages),
        )

    def build_corpus_index(
        self, embeddings: Float[np.ndarray, "N E"], passages: Sequence[Passage]
    ) -> Index:
        """An index over passages that the passages' encoder embedded."""
        return self.build_index(self.passage_encoder, embeddings, passages)
