"""The stages of dense passage retrieval, from an empty folder to the report."""

import dataclasses
import shutil
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jaxtyping import Float, Int

from rag_jax.config import build
from rag_jax.data.formats import copy_collection, describe_source
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, load_collection
from rag_jax.evaluation.rankings import write_run
from rag_jax.models import Pretrained, load, save
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.models.nn.bert import Bert
from rag_jax.pipeline.run import run_session
from rag_jax.pipeline.stage import Shard, Stage, StageContext
from rag_jax.retrieval import (
    BM25,
    Index,
    encode_texts,
    fingerprint_corpus,
    list_texts,
    make_text,
)
from rag_jax.retrieval.contrastive import Encoders, list_pairs, make_batches, train_encoders
from rag_jax.retrieval.encode import PIECE
from rag_jax.retrieval.negatives import mine_negatives
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl, write_jsonl
from rag_jax.runtime.hosts import fetch, is_first
from rag_jax.runtime.sharding import check_batches, make_mesh
from rag_jax.systems.dpr.config import DPRConfig
from rag_jax.systems.dpr.evaluate import COLUMNS, score_ranking, summarize

METHODS = ("bm25", "untrained", "trained")
Ranking = tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]


def run(
    config: ml_collections.ConfigDict, workdir: Path, *, shard: Shard | None = None
) -> dict[str, Any]:
    """Runs every stage that isn't made yet, or a shard of them, and writes the report.

    Raises:
        RagJaxError: whatever of the settings, the data, the models or the disk the user can mend.
    """
    session = Session(build(DPRConfig, config))
    return run_session(
        session,
        workdir,
        shard=shard,
        model=session.config.encoder.name,
        methods=METHODS,
        summarize=summarize,
        columns=COLUMNS,
    )


class Session:
    """The stages of a run, and the encoders that they load."""

    def __init__(self, config: DPRConfig):
        self.config = config
        self.mesh = make_mesh(config.mesh)
        check_batches(self.mesh, {"config.train.batch_size": config.train.batch_size})
        self.fingerprint = fingerprint(resolve(config.encoder.name))

    def stages(self) -> list[Stage]:
        """Every stage with what it depends on."""
        c = self.config
        source = describe_source(c.data, c.world)
        encoder = {"weights": self.fingerprint, "encoder": c.encoder}
        searched = {**encoder, "index": c.index}
        return [
            Stage(
                "corpus", self.make_corpus, settings={"source": source, "seed": c.seed}, version=2
            ),
            Stage(
                "negatives",
                self.mine_negatives,
                needs=("corpus",),
                settings={"negatives": c.negatives},
            ),
            Stage(
                "untrained",
                self.index_untrained,
                needs=("corpus",),
                settings=searched,
                shardable=("embeddings.npy",),
            ),
            Stage(
                "train",
                self.train,
                needs=("corpus", "negatives"),
                settings={**encoder, "train": c.train, "seed": c.seed},
            ),
            Stage(
                "trained",
                self.index_trained,
                needs=("corpus", "train"),
                settings=searched,
                shardable=("embeddings.npy",),
            ),
            Stage(
                "evaluate",
                self.evaluate,
                needs=("corpus", "untrained", "train", "trained"),
                settings={**encoder, "on": c.evaluate_on, "depth": c.depth},
            ),
        ]

    # Encoders.

    @cached_property
    def untrained(self) -> Encoders:
        """Both sides before training."""
        loaded = self._load(self.config.encoder.name)
        question, passage = loaded, loaded
        if self.config.encoder.pooling == "cls" and loaded.config.dpr_role is None:
            question, passage = (
                dataclasses.replace(loaded, config=config, model=Bert(config))
                for config in (
                    dataclasses.replace(loaded.config, dpr_role=role)
                    for role in ("question", "context")
                )
            )
        return Encoders(question, passage, shared=self.config.encoder.shared)

    def load_trained(self, context: StageContext) -> Encoders:
        """Both sides after training."""
        question, passage = (
            self._load(context.path("train", side)) for side in ("question", "passage")
        )
        return Encoders(question, passage, shared=self.config.encoder.shared)

    def _load(self, name: str | Path) -> Pretrained:
        loaded = load(name, mesh=self.mesh)
        if not isinstance(loaded.model, Bert):
            raise RagJaxError(f"config.encoder.name={name}: is no encoder")
        return loaded

    def encode(
        self, encoder: Pretrained, texts: Sequence[str | tuple[str, str]], **options: Any
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings with the run's settings; further `options` of `encode_texts`."""
        c = self.config.encoder
        sizes = {"max_length": c.max_length, "batch_size": c.batch_size}
        return encode_texts(encoder, texts, **sizes, **options)

    # Stages.

    def make_corpus(self, context: StageContext) -> None:
        """Copies the passages and questions, whatever their format, into one."""
        c = self.config
        copy_collection(context.folder, c.data, c.world, seed=c.seed, check=self._check)

    def read_corpus(self, context: StageContext) -> Collection:
        """Reads them back."""
        collection = load_collection(context.path("corpus", ""))
        self._check(collection)
        return collection

    def _check(self, collection: Collection) -> None:
        on = self.config.evaluate_on
        if not collection.questions.get(on):
            has = ", ".join(split for split, some in collection.questions.items() if some)
            raise RagJaxError(
                f"config.evaluate_on={on!r}: the data has no such questions, but {has or 'none'}"
            )

    def mine_negatives(self, context: StageContext) -> None:
        """What BM25 takes for answers to the training questions."""
        c, corpus = self.config.negatives, self.read_corpus(context)
        train = corpus.questions.get("train", [])
        mine_negatives(context, train, corpus.passages, depth=c.depth, count=c.kept)

    def index_untrained(self, context: StageContext) -> None:
        """Indexes the passages with the encoder as it was."""
        self._index(context, self.untrained.passage)

    def index_trained(self, context: StageContext) -> None:
        """Indexes them with the trained one."""
        self._index(context, self.load_trained(context).passage)

    def _index(self, context: StageContext, encoder: Pretrained) -> None:
        passages = self.read_corpus(context).passages
        embeddings = context.map_arrays(
            "embeddings.npy",
            len(passages),
            lambda rows: self.encode(encoder, list_texts(passages[rows])),
            batch_size=PIECE,
            unit="passages",
        )
        if is_first():
            self.build_index(encoder, embeddings, passages).save(context.folder / "index")

    def build_index(
        self, encoder: Pretrained, embeddings: Float[np.ndarray, "N E"], passages: Sequence[Passage]
    ) -> Index:
        """An index over passages that an encoder embedded."""
        return Index.build(
            embeddings,
            backend=self.config.index.backend,
            encoder=encoder.fingerprint,
            ids=[passage.id for passage in passages],
            corpus=fingerprint_corpus(passages),
        )

    def train(self, context: StageContext) -> None:
        """Trains the encoders and saves them as models, `question` and `passage`."""
        c, corpus, encoders = self.config, self.read_corpus(context), self.untrained
        mined = read_jsonl(context.path("negatives", "negatives.jsonl"))
        questions = corpus.questions.get("train", [])
        pairs = list_pairs(questions, [m["rows"] for m in mined], corpus.passages)
        if c.train.epochs and not pairs:
            raise RagJaxError("config.data: the data has no training questions with their passages")
        if c.train.epochs:
            encoders = train_encoders(
                encoders,
                make_batches(
                    encoders,
                    pairs,
                    questions,
                    corpus.passages,
                    c.train,
                    max_length=c.encoder.max_length,
                    seed=c.seed,
                ),
                folder=context.folder,
                progress=context.progress,
            )
        for side in ("question", "passage"):
            encoder = getattr(encoders, side)
            whole = dataclasses.replace(encoder, params=fetch(encoder.params))
            if is_first():
                save(whole, context.folder / side)
        if is_first():
            shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)

    def evaluate(self, context: StageContext) -> None:
        """Ranks passages by BM25 and by both encoders, and scores the rankings."""
        corpus = self.read_corpus(context)
        questions = corpus.questions[self.config.evaluate_on]
        asked = [question.question for question in questions]
        k = min(self.config.depth, len(corpus.passages))

        def search(encoders: Encoders, stage: str) -> Ranking:
            encoder = encoders.passage.fingerprint
            index = Index.load(context.path(stage, "index"), encoder=encoder)
            return index.search(self.encode(encoders.question, asked), k)

        rankings = {
            "bm25": BM25.build(map(make_text, corpus.passages)).search(asked, k),
            "untrained": search(self.untrained, "untrained"),
            "trained": search(self.load_trained(context), "trained"),
        }
        for name, (scores, rows) in rankings.items():
            ranked = [
                [(corpus.passages[row].id, value) for value, row in zip(*found, strict=True)]
                for found in zip(scores.tolist(), rows.tolist(), strict=True)
            ]
            asked_ids = [question.id for question in questions]
            write_run(context.folder / f"{name}.trec", name, asked_ids, ranked)
            records = map(partial(score_ranking, passages=corpus.passages), questions, scores, rows)
            write_jsonl(context.folder / f"{name}.jsonl", records)
