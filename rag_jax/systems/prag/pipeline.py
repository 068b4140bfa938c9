"""The stages of Parametric RAG, from an empty folder to the report."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np

from rag_jax.config import build
from rag_jax.data.formats import copy_collection, describe_source
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question, choose_questions, load_collection
from rag_jax.models import Pretrained, load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.decoder import Decoder
from rag_jax.pipeline.run import run_session
from rag_jax.pipeline.stage import Shard, Stage, StageContext
from rag_jax.retrieval import BM25, Index, encode_texts, list_texts, make_text
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_jsonl
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.sharding import check_batches, make_mesh
from rag_jax.systems.prag.augment import run_augmentation
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.data import Format
from rag_jax.systems.prag.evaluate import (
    COLUMNS,
    METHODS,
    run_evaluation,
    summarize,
    tabulate_adapters,
    tabulate_types,
)
from rag_jax.systems.prag.train import Variant, run_encoding, run_warm_up


def run(
    config: ml_collections.ConfigDict, workdir: Path, *, shard: Shard | None = None
) -> dict[str, Any]:
    """Runs every stage that isn't made yet, or a shard of them, and writes the report.

    Raises:
        RagJaxError: whatever of the settings, the data, the models or the disk the user can mend.
    """
    session = Session(build(PRAGConfig, config))

    def make_tables(stages: Path, predictions: Mapping[str, Any]) -> dict[str, Any]:
        tables = {"the documents' adapters": tabulate_adapters(stages)}
        if any(row["type"] for rows in predictions.values() for row in rows):
            tables["F1 by type of question"] = tabulate_types(predictions)
        return tables

    return run_session(
        session,
        workdir,
        shard=shard,
        model=session.config.model.name,
        methods=[*METHODS, *session.list_ablations()],
        summarize=summarize,
        columns=COLUMNS,
        make_tables=make_tables,
    )


class Session:
    """The stages of a run, and its models, loaded when a stage first needs them."""

    def __init__(self, config: PRAGConfig):
        self.config = config
        self.mesh = make_mesh(config.mesh)
        batches = {
            "config.answer.batch_size": config.answer.batch_size,
            "config.augment.batch_size": config.augment.batch_size,
        }
        check_batches(self.mesh, batches)

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The ways in which documents are encoded, by their stage: the method and its ablations."""
        start = self.config.encode.start
        variants = {"encode": Variant(start)}
        if self.config.ablations:
            other = {"random": "warm", "warm": "random"}[start]
            variants["without_rewrites"] = Variant(start, rewrites=False)
            variants["without_questions"] = Variant(start, questions=False)
            variants[f"{other}_start"] = Variant(other)
        return variants

    def list_ablations(self) -> list[str]:
        """The ablations among them."""
        return [name for name in self.variants if name != "encode"]

    def stages(self) -> list[Stage]:
        """Every stage with what it depends on."""
        c = self.config
        model = {"weights": fingerprint(resolve(c.model.name)), "model": c.model}
        encoder = {}
        if c.retrieve.by == "dense":
            encoder = {"encoder": fingerprint(resolve(c.retrieve.encoder.name))}
        source = {"source": describe_source(c.data, c.world), "seed": c.seed}
        asked = {"on": c.evaluate_on, "questions": c.questions, "seed": c.seed}
        training = {**model, "tuning": c.tuning, "seed": c.seed}
        stages = [
            Stage("corpus", self.make_corpus, settings=source, version=2),
            Stage(
                "retrieve",
                self.retrieve,
                needs=("corpus",),
                settings={**asked, **encoder, "retrieve": c.retrieve},
            ),
            Stage(
                "augment",
                partial(run_augmentation, self),
                needs=("corpus", "retrieve"),
                settings={**model, "augment": c.augment, "seed": c.seed},
                shardable=("augmented.jsonl",),
            ),
        ]
        warm = any(variant.start == "warm" for variant in self.variants.values())
        if warm:
            stages.append(
                Stage(
                    "warm_up",
                    partial(run_warm_up, self),
                    needs=("corpus",),
                    settings={**training, "warm_up": c.warm_up},
                )
            )
        for name, variant in self.variants.items():
            needs = ("corpus", "retrieve", "augment")
            stages.append(
                Stage(
                    name,
                    partial(run_encoding, self, name=name),
                    needs=(*needs, "warm_up") if variant.start == "warm" else needs,
                    settings={
                        **training,
                        "variant": variant,
                        "encode": c.encode,
                        "augment": c.augment,
                    },
                    shardable=("encoded.jsonl",),
                    repairs=True,
                )
            )
        return [
            *stages,
            Stage(
                "evaluate",
                partial(run_evaluation, self),
                needs=("corpus", "retrieve", *self.variants),
                settings={**asked, **model, "answer": c.answer, "passages": c.retrieve.passages},
            ),
        ]

    # The language model.

    @cached_property
    def base(self) -> Pretrained:
        """The language model, which stays as it is."""
        loaded = load(self.config.model.name, dtype=self.dtype, mesh=self.mesh)
        if not isinstance(loaded.model, Decoder):
            raise RagJaxError(f"config.model.name={self.config.model.name}: is no decoder")
        return loaded

    @property
    def dtype(self) -> jnp.dtype:
        """Of the model's weights and activations."""
        return jnp.dtype(self.config.model.dtype)

    @cached_property
    def form(self) -> Format:
        """How questions, passages and answers become tokens."""
        c = self.config.model
        return Format(self.base.tokenizer, c.chat, c.max_text)

    def check_length(self, tokens: int) -> None:
        """Raises a RagJaxError if a text of so many tokens is longer than the model's context."""
        limit = self.base.config.max_length
        if tokens > limit:
            raise RagJaxError(
                f"config.model.max_text={self.config.model.max_text}: a text has {tokens} tokens, "
                f"over the model's context of {limit}; lower it"
            )

    # Passages and questions.

    def make_corpus(self, context: StageContext) -> None:
        """Copies the passages and questions, whatever their format, into one."""
        c = self.config
        copy_collection(context.folder, c.data, c.world, seed=c.seed, check=self._check)

    def _check(self, corpus: Collection) -> None:
        self.list_questions(corpus, self.config.evaluate_on, 0)

    def read_corpus(self, context: StageContext) -> Collection:
        """Reads them back."""
        return load_collection(context.path("corpus", ""))

    def list_questions(self, corpus: Collection, split: str, count: int) -> list[Question]:
        """The split's questions that have an answer: all, or `count` of them."""
        return choose_questions(corpus, split, count=count, seed=self.config.seed)

    # Documents.

    def retrieve(self, context: StageContext) -> None:
        """Finds the documents of every question that is to be answered.

        BM25 finds none for a question that shares no word with any.
        """
        c, corpus = self.config, self.read_corpus(context)
        questions = self.list_questions(corpus, c.evaluate_on, c.questions)
        found = self.make_search(corpus.passages)([question.question for question in questions])
        records = [
            {"id": question.id, "passages": [passage.id for passage in own]}
            for question, own in zip(questions, found, strict=True)
        ]
        if is_first():
            write_jsonl(context.folder / "found.jsonl", records)

    def make_search(
        self, passages: Sequence[Passage], embed: Callable[[Any], np.ndarray] | None = None
    ) -> Callable[[Sequence[str]], list[list[Passage]]]:
        """Finds the run's number of passages, best first, for each of some questions.

        Args:
            embed: gives the embeddings of the passages' texts; None for `encode`. BM25 needs none.
        """
        c = self.config.retrieve
        k = min(c.passages, len(passages))
        if c.by == "bm25":
            words = BM25.build(map(make_text, passages))
        else:
            embeddings = (embed or self.encode)(list_texts(passages))
            index = Index.build(embeddings, backend="exact", encoder=self.encoder.fingerprint)

        def search(asked: Sequence[str]) -> list[list[Passage]]:
            if c.by == "bm25":
                scores, rows = words.search(asked, k)
                kept = scores > 0
            else:
                rows = index.search(self.encode(asked), k)[1]
                kept = np.ones(rows.shape, bool)
            found = zip(rows, kept, strict=True)
            return [[passages[row] for row in own[good]] for own, good in found]

        return search

    @cached_property
    def encoder(self) -> Pretrained:
        """The encoder of dense retrieval."""
        name = self.config.retrieve.encoder.name
        loaded = load(name, mesh=self.mesh)
        if not isinstance(loaded.model, Bert):
            raise RagJaxError(f"config.retrieve.encoder.name={name}: is no encoder")
        return loaded

    def encode(self, texts: Sequence[Any], **options: Any) -> np.ndarray:
        """Embeddings with the run's settings; further `options` of `encode_texts`."""
        e = self.config.retrieve.encoder
        sizes = {"max_length": e.max_length, "batch_size": e.batch_size}
        return encode_texts(self.encoder, texts, **sizes, **options)

    def list_documents(self, context: StageContext) -> list[Passage]:
        """The passages found for any question, in the corpus's order: those that are encoded."""
        records = read_jsonl(context.path("retrieve", "found.jsonl"))
        found = {id for record in records for id in record["passages"]}
        return [p for p in self.read_corpus(context).passages if p.id in found]
