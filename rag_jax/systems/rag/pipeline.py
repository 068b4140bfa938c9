"""The stages of retrieval-augmented generation, from an empty folder to the report."""

import dataclasses
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float, Int

from rag_jax.config import build
from rag_jax.data.formats import copy_collection, describe_source
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question, choose_questions, load_collection
from rag_jax.models import Pretrained, load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.bert import Bert
from rag_jax.pipeline.run import run_session
from rag_jax.pipeline.stage import Shard, Stage, StageContext
from rag_jax.retrieval import Index, encode_texts, list_texts
from rag_jax.retrieval.encode import PIECE
from rag_jax.retrieval.index import fingerprint_corpus
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.sharding import check_batches, make_mesh
from rag_jax.systems.rag import data, evaluate, train
from rag_jax.systems.rag.config import RAGConfig

MAX_LABELS = 100  # all are scored under every passage


def run(
    config: ml_collections.ConfigDict, workdir: Path, *, shard: Shard | None = None
) -> dict[str, Any]:
    """Runs every stage that isn't made yet, or a shard of them, and writes the report.

    Raises:
        RagJaxError: whatever of the settings, the data, the models or the disk the user can mend.
    """
    session = Session(build(RAGConfig, config))
    settings = session.config

    def make_tables(stages: Path, _: Any) -> dict[str, Any]:
        if not session.has_revisions:
            return {}
        title = "exact match on the facts that the world's other revision changed"
        return {title: read_json(stages / "memory" / "memory.json")}

    return run_session(
        session,
        workdir,
        shard=shard,
        model=settings.generator.name,
        methods=evaluate.list_methods(settings.task),
        summarize=lambda rows: evaluate.summarize(rows, settings.task),
        columns=evaluate.list_columns(settings.task, settings.passages),
        make_tables=make_tables,
    )


class Session:
    """The stages of a run, and its models, loaded when a stage first needs them.

    Args:
        devices: to run on; all there are if None.
    """

    def __init__(self, config: RAGConfig, devices: Sequence[jax.Device] | None = None):
        self.config = config
        self.mesh = make_mesh(config.mesh, devices)
        check_batches(self.mesh, {"config.decode.batch_size": config.decode.batch_size})

    @property
    def has_revisions(self) -> bool:
        """Whether there is another revision of the facts to swap in."""
        return self.config.data.path is None

    def stages(self) -> list[Stage]:
        """Every stage with what it depends on."""
        c = self.config
        source = describe_source(c.data, c.world)
        side = c.retriever
        weights = fingerprint(resolve(side.name))
        other = side.passage_name and fingerprint(resolve(side.passage_name))
        passages = {"weights": other or weights, "max_length": side.max_length}
        question = {"weights": weights, "retriever": side}
        generator = {"weights": fingerprint(resolve(c.generator.name)), "generator": c.generator}
        common = {"question": question, "generator": generator, "passages": c.passages}
        training = {
            **common,
            "train": c.train,
            "tuning": c.tuning,
            "marginal": c.marginal,
            "seed": c.seed,
        }
        # Whatever a retriever is trained by, one that is not trained stays the same.
        untrained = dataclasses.replace(c.train, refresh_every=0, retriever_rate=1.0)
        frozen = {**training, "train": untrained}
        tested = {**common, "decode": c.decode, "tuning": c.tuning}
        stages = [
            Stage(
                "corpus", self.make_corpus, settings={"source": source, "seed": c.seed}, version=2
            ),
            Stage(
                "index",
                self.make_index,
                needs=("corpus",),
                settings={"encoder": passages, "index": c.index},
                shardable=("embeddings.npy",),
            ),
            Stage(
                "frozen",
                partial(train.run_training, self, joint=False),
                needs=("corpus", "index"),
                settings=frozen,
            ),
            Stage(
                "joint",
                partial(train.run_training, self, joint=True),
                needs=("corpus", "index"),
                settings=training,
            ),
            Stage(
                "evaluate",
                partial(evaluate.run_evaluation, self),
                needs=("corpus", "index", "frozen", "joint"),
                settings={**tested, "on": c.evaluate_on, "task": c.task},
            ),
        ]
        if self.has_revisions:
            stages.append(
                Stage(
                    "memory",
                    partial(evaluate.run_memory, self),
                    needs=("corpus", "index", "joint"),
                    settings={**tested, "world": c.world},
                )
            )
        return stages

    # Models.

    def load_model(self, name: str, *, dtype: Any = None) -> Pretrained:
        """A model on the mesh."""
        return load(name, dtype=dtype, mesh=self.mesh)

    @cached_property
    def generator(self) -> Pretrained:
        """The generator, not yet trained."""
        c = self.config.generator
        loaded = self.load_model(c.name, dtype=self.dtype)
        if isinstance(loaded.model, Bert):
            raise RagJaxError(f"config.generator.name={c.name}: is no generator but an encoder")
        return loaded

    @property
    def is_seq2seq(self) -> bool:
        """Whether the generator is an encoder-decoder."""
        return isinstance(self.generator.model, Bart)

    @property
    def dtype(self) -> jnp.dtype:
        """Of the generator's weights and activations."""
        return jnp.dtype(self.config.generator.dtype)

    @cached_property
    def encoder(self) -> Pretrained:
        """The question's encoder, not yet trained."""
        return self._load_encoder("name", self.config.retriever.name)

    @cached_property
    def passage_encoder(self) -> Pretrained:
        """The passages' encoder, which is never trained."""
        name = self.config.retriever.passage_name
        return self.encoder if name is None else self._load_encoder("passage_name", name)

    def _load_encoder(self, field: str, name: str) -> Pretrained:
        loaded = self.load_model(name)
        if not isinstance(loaded.model, Bert):
            raise RagJaxError(f"config.retriever.{field}={name}: is no encoder")
        return loaded

    @cached_property
    def form(self) -> data.Format:
        """How questions, passages and answers become the generator's tokens."""
        c = self.config.generator
        return data.make_format(self.generator, max_length=c.max_length, chat=c.chat)

    # Passages and questions.

    def make_corpus(self, context: StageContext) -> None:
        """Copies the passages and questions, whatever their format, into one."""
        c = self.config
        copy_collection(context.folder, c.data, c.world, seed=c.seed, check=self._check)

    def _check(self, corpus: Collection) -> None:
        for split in ("train", self.config.evaluate_on):
            self.pick_questions(corpus, split, 0)
        if self.config.task == "classification":
            self.list_labels(corpus)

    def read_corpus(self, context: StageContext) -> Collection:
        """Reads them back."""
        return load_collection(context.path("corpus", ""))

    def pick_questions(self, corpus: Collection, split: str, count: int) -> list[Question]:
        """The split's questions that have an answer: all, or `count` of them."""
        return choose_questions(corpus, split, count=count, seed=self.config.seed)

    def list_labels(self, corpus: Collection) -> list[str]:
        """What questions are answered by where answers are labels: the training questions' first.

        Raises:
            RagJaxError: there is but one, or so many that they can't be labels.
        """
        questions = self.pick_questions(corpus, "train", 0)
        labels = sorted({question.answers[0] for question in questions})
        if not 2 <= len(labels) <= MAX_LABELS:
            raise RagJaxError(
                f"config.task='classification': the training answers are {len(labels)} different "
                f"ones, but labels are 2 to {MAX_LABELS}"
            )
        return labels

    def make_examples(
        self, corpus: Collection, questions: Sequence[Question], rows: Int[np.ndarray, "B K"]
    ) -> list[data.Example]:
        """Questions with the passages found for them and their first answer."""
        return data.make_examples(
            self.form,
            [question.question for question in questions],
            data.pick_passages(corpus.passages, rows),
            [question.answers[0] for question in questions],
        )

    def encode_passages(
        self, encoder: Pretrained, passages: Sequence[Passage]
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings of passages."""
        return self.encode(encoder, list_texts(passages))

    def encode_questions(self, params: Any, questions: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Embeddings of questions by some parameters of their encoder."""
        return self.encode(dataclasses.replace(self.encoder, params=params), questions)

    def encode(
        self, encoder: Pretrained, texts: Sequence[Any], **options: Any
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings with the run's settings; further `options` of `encode_texts`."""
        c = self.config.retriever
        sizes = {"max_length": c.max_length, "batch_size": c.batch_size}
        return encode_texts(encoder, texts, **sizes, **options)

    def make_index(self, context: StageContext) -> None:
        """Embeds the passages and indexes them."""
        corpus = self.read_corpus(context)
        embeddings = context.map_arrays(
            "embeddings.npy",
            len(corpus.passages),
            lambda rows: self.encode_passages(self.passage_encoder, corpus.passages[rows]),
            batch_size=PIECE,
            unit="passages",
        )
        if is_first():
            self.build_index(embeddings, corpus.passages).save(context.folder / "index")

    def build_index(
        self, embeddings: Float[np.ndarray, "N E"], passages: Sequence[Passage]
    ) -> Index:
        """An index over a corpus."""
        return Index.build(
            embeddings,
            backend=self.config.index.backend,
            encoder=self.passage_encoder.fingerprint,
            corpus=fingerprint_corpus(passages),
        )

    def load_index(self, context: StageContext, corpus: Collection) -> Index:
        """The index over the corpus as it was before any training."""
        return Index.load(
            context.path("index", "index"),
            encoder=self.passage_encoder.fingerprint,
            corpus=fingerprint_corpus(corpus.passages),
        )
