"""What a run of RAG has open: the generator, both sides of the retriever, the index."""

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.decoding.beams import BeamConfig
from rag_jax.models import Pretrained
from rag_jax.models.io.architectures import Encoder, get_rules
from rag_jax.models.io.load import load_config
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.stack import stack_layers
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval import Index, fingerprint_corpus
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import BART_RULES, DECODER_RULES, prefix_rules
from rag_jax.systems import session
from rag_jax.systems.rag.config import RAGConfig
from rag_jax.systems.rag.data import Format, make_format
from rag_jax.systems.rag.infer import Engine
from rag_jax.systems.rag.lookup import load_refreshed
from rag_jax.systems.rag.loss import rag_loss, score_passages
from rag_jax.systems.rag.train import list_rows
from rag_jax.systems.room import Room, index_room, train_room, weigh_params, weigh_trained
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable, cast, init_trained, merge_trained, set_passes

MAX_LABELS = 100  # every label is scored under every passage


class Session(session.Session):
    """The models, corpus and mesh of a run."""

    config: RAGConfig
    batch_sizes = ("decode.batch_size",)
    model_field = "generator"
    encoder_field = "retriever"
    train_count = "train.questions"
    question_count = "decode.questions"

    @property
    def has_revisions(self) -> bool:
        """Whether the corpus is the built-in world, which has another revision of its facts."""
        return self.config.data.path is None

    @property
    def ranked_questions(self) -> Sequence[Question]:
        """The questions for which the retrievers alone are compared."""
        return self._choose_questions(self.config.evaluate_on, "ranked_questions")

    # Models.

    @cached_property
    def generator(self) -> Pretrained:
        """The generator before training."""
        name = self.config.generator.name
        loaded = self.load_model(name, dtype=self.dtype, int8=self.config.generator.int8)
        if isinstance(loaded.model, Encoder):
            raise RagJaxError(f"config.generator.name={name}: is no generator but an encoder")
        return loaded

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

        Of the encoder alone if the generator is not trained. The merged parameters are
        `{"generator": ..., "query": ...}`.
        """
        c, generator, query = self.config, self.generator.params, self.encoder.params
        trains = c.train.generator
        is_seq2seq = isinstance(self.generator.model, Bart)
        rules = prefix_rules("generator", BART_RULES if is_seq2seq else DECODER_RULES)

        def init(base: PyTree) -> PyTree[Array]:
            trained = {"query": cast(base["query"], jnp.float32)} if joint else {}
            if trains:
                trained["generator"] = init_trained(c.tuning, base["generator"], seed=c.seed)
            return trained

        def merge(trained: PyTree, base: PyTree) -> PyTree[Array]:
            params = base["generator"]
            if trains:
                params = merge_trained(c.tuning, trained["generator"], params, dtype=self.dtype)
            return {"generator": params, "query": trained["query"] if joint else base["query"]}

        frozen = {"generator": None if trains and c.tuning.mode == "full" else generator}
        return Trainable(
            base={"generator": generator, "query": query},
            frozen=frozen if joint else {**frozen, "query": query},
            init=init,
            merge=merge,
            rules=(*rules, *prefix_rules("query", get_rules(self.encoder.config))),
            mesh=self.mesh,
            rates={"query": c.train.retriever_rate},
        )

    def make_loss(self, *, joint: bool) -> LossFunction:
        """The loss by the trained tree; passages are constants, as their encoder is not trained.

        A batch with `doc_scores`, of passages that are fixed, needs no encoder.
        """
        c, trainable = self.config, self.make_trainable(joint=joint)
        model = set_passes(self.generator.model, c.tuning)
        encoder, scale = self.encoder.model, c.retriever.scale
        scans = c.tuning.scan_layers and isinstance(encoder, Bert)
        marginal = {"marginal": c.marginal, "smoothing": c.train.smoothing}

        def loss(trained, frozen, batch):
            params = trainable.merge(trained, frozen)
            scores = batch.get("doc_scores")
            if scores is None:
                query = stack_layers(params["query"]) if scans else params["query"]
                scores = score_passages(encoder, query, batch, scale=scale)
            return rag_loss(model, params["generator"], scores, batch, **marginal)

        return loss

    def load_trained(self, context: StageContext, stage: str) -> PyTree[Array]:
        """The merged parameters after a stage that trained them.

        They are as loaded if the context does not need the stage: "frozen" where the generator is
        not trained, and both trainings for models as loaded.
        """
        trainable = self.make_trainable(joint=stage == "joint")
        if not context.needs(stage):
            return trainable.base
        return trainable.load_merged(context.path(stage, "params"))

    def estimate_training(self, *, joint: bool) -> Room:
        """What a training writes; of a joint one also the embeddings of each refreshed index."""
        c, train = self.config, self.config.train
        generator, encoder = (load_config(n) for n in (c.generator.name, c.retriever.name))
        trained = weigh_trained(c.tuning, generator) * train.generator
        trained += weigh_params(encoder) * joint
        keeps, passing = train_room(trained)
        if joint and train.refresh_every:
            rows = len(list_rows(self.train_questions, train.answers))
            steps = train.epochs * math.ceil(rows / train.batch_size)
            refreshed = steps // train.refresh_every + 1
            embedded, _ = index_room(c.retriever.name, len(self.passages), indexed=0)
            keeps += refreshed * embedded
        return keeps, passing

    # Inference.

    def make_engine(self, params: PyTree) -> Engine:
        """The generator with some parameters, ready to answer."""
        c = self.config.decode
        return Engine(
            model=self.generator.model,
            params=params,
            format=self.format,
            max_tokens=c.max_tokens,
            beams=BeamConfig(c.beams, c.length_penalty, c.early_stopping),
            batch_size=c.batch_size,
        )

    def open_final_index(
        self, context: StageContext, trained: PyTree[Array]
    ) -> tuple[Index, Pretrained]:
        """The index of the trained question encoder, and the encoder that embedded its passages.

        The index is as it was before training, unless training refreshed it. What training
        refreshed is of the passages that it read: for others there is the stage "refreshed".

        Args:
            context: of a stage that needs the stages "index" and "joint"; the latter not for models
                as loaded.
        """
        steps, embedder = self._list_refreshed(context), self.passage_encoder
        if steps:
            embedder = replace(self.encoder, params=trained["query"])
        if context.needs("refreshed"):
            return self.load_index(context.path("refreshed", "index")), embedder
        index = self.load_index(context.path("index", "index"))
        if steps:
            index = load_refreshed(context.path("joint", ""), max(steps), index)
        return index, embedder

    def load_embedder(self, context: StageContext) -> Pretrained:
        """The encoder of passages after the stage "joint", which the context's stage needs."""
        if not self._list_refreshed(context):
            return self.passage_encoder
        return replace(self.encoder, params=self.load_trained(context, "joint")["query"])

    def _list_refreshed(self, context: StageContext) -> list[int]:
        """The steps at which the stage "joint" refreshed the index; none without the stage."""
        if not context.needs("joint"):
            return []
        files = context.path("joint", "").glob("passages-*.npy")
        return [int(path.stem.removeprefix("passages-")) for path in files]

    # Passages and questions.

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if there are no questions or labels; says if passages are few."""
        super().check_corpus(corpus)
        c, size = self.config, len(corpus.passages)
        curve = max(c.decode.curve, default=0)
        numbers = {"passages": c.passages, "decode.passages": c.decode.passages}
        for name, number in {**numbers, "decode.curve": curve}.items():
            if number > size:
                self.note(f"config.{name}={number}: the corpus has only {size}, and all are read")
        self.list_labels(corpus)

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
        if not corpus.questions.get("train"):
            raise RagJaxError(
                "config.task='classification': the labels are the answers of 'train' questions, "
                "which the data do not have"
            )
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
        return self.encode_queries(replace(self.encoder, params=params), questions)

    def load_index(self, folder: Path) -> Index:
        """The index over the corpus as it was before any training."""
        encoder, corpus = self.passage_encoder.fingerprint, fingerprint_corpus(self.passages)
        return Index.load(folder, encoder=encoder, corpus=corpus)

    def build_corpus_index(
        self, embeddings: Float[np.ndarray, "N E"], passages: Sequence[Passage]
    ) -> Index:
        """An index over passages that the passages' encoder embedded."""
        return self.build_index(self.passage_encoder, embeddings, passages)
