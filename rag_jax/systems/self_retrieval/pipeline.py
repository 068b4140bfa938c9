"""The stages of Self-Retrieval, from an empty folder to the report."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Float

from rag_jax.config import build
from rag_jax.data.formats import copy_collection, describe_source
from rag_jax.data.passages import Passage, write_passages
from rag_jax.data.questions import PASSAGES, Collection, Question, load_collection
from rag_jax.decoding import generate
from rag_jax.decoding.trie import Trie
from rag_jax.models import Pretrained, load, save
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.decoder import Decoder
from rag_jax.pipeline.run import run_session
from rag_jax.pipeline.stage import Shard, Stage, StageContext
from rag_jax.retrieval import encode_texts
from rag_jax.retrieval.contrastive import Encoders, list_pairs, make_batches, train_encoders
from rag_jax.retrieval.negatives import mine_negatives
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.hosts import fetch, is_first, wait_for_all
from rag_jax.runtime.sharding import check_batches, make_mesh
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.systems.self_retrieval.evaluate import COLUMNS, run_evaluation, summarize
from rag_jax.systems.self_retrieval.train import run_training

METHODS = ("bm25", "dense", "dense_tuned", "self_retrieval", "without_assessment")
ABLATIONS = ("without_indexing", "without_titles")
_DEPTH = 100  # passages in which BM25's negatives are looked for
_TITLE_TOKENS = 12


def run(
    config: ml_collections.ConfigDict, workdir: Path, *, shard: Shard | None = None
) -> dict[str, Any]:
    """Runs every stage that isn't made yet, or a shard of them, and writes the report.

    Raises:
        RagJaxError: whatever of the settings, the data, the models or the disk the user can mend.
    """
    session = Session(build(SelfRetrievalConfig, config))
    return run_session(
        session,
        workdir,
        shard=shard,
        model=session.config.model.name,
        methods=[*METHODS, *(ABLATIONS if session.config.ablations else ())],
        summarize=summarize,
        columns=COLUMNS,
    )


class Session:
    """The stages of a run, and its models, loaded when a stage first needs them."""

    def __init__(self, config: SelfRetrievalConfig):
        self.config = config
        self.mesh = make_mesh(config.mesh)
        batches = {
            "config.search.batch_size": config.search.batch_size,
            "config.dense.train.batch_size": config.dense.train.batch_size,
        }
        check_batches(self.mesh, batches)

    def stages(self) -> list[Stage]:
        """Every stage with what it depends on."""
        c = self.config
        model = {"weights": fingerprint(resolve(c.model.name)), "model": c.model}
        encoder = {"weights": fingerprint(resolve(c.dense.encoder.name))}
        source = {"source": describe_source(c.data, c.world), "seed": c.seed}
        training = {
            **model,
            "examples": c.examples,
            "train": c.train,
            "tuning": c.tuning,
            "seed": c.seed,
        }
        needs = ("corpus", "negatives")
        stages = [
            Stage("corpus", self.make_corpus, settings={**source, **model}, version=2),
            Stage(
                "negatives",
                self.mine_negatives,
                needs=("corpus",),
                settings={"kept": self._count_negatives()},
            ),
            Stage("trie", partial(self.make_trie, titled=True), needs=("corpus",), settings=model),
            Stage("train", partial(run_training, self), needs=needs, settings=training),
            Stage(
                "dense_tuned",
                self.train_dense,
                needs=needs,
                settings={**encoder, "dense": c.dense, "seed": c.seed},
            ),
        ]
        evaluated = ["corpus", "trie", "train", "dense_tuned"]
        if c.ablations:
            stages += [
                Stage(
                    "trie_untitled",
                    partial(self.make_trie, titled=False),
                    needs=("corpus",),
                    settings=model,
                ),
                Stage(
                    "without_indexing",
                    partial(run_training, self, indexing=False),
                    needs=needs,
                    settings=training,
                ),
                Stage(
                    "without_titles",
                    partial(run_training, self, titled=False),
                    needs=needs,
                    settings=training,
                ),
            ]
            evaluated += ["trie_untitled", *ABLATIONS]
        return [
            *stages,
            Stage(
                "evaluate",
                partial(run_evaluation, self),
                needs=tuple(evaluated),
                settings={"search": c.search, "on": c.evaluate_on, "examples": c.examples},
            ),
        ]

    # The language model.

    @cached_property
    def base(self) -> Pretrained:
        """The language model, not yet trained."""
        loaded = load(self.config.model.name, dtype=self.dtype, mesh=self.mesh)
        if not isinstance(loaded.model, Decoder):
            raise RagJaxError(f"config.model.name={self.config.model.name}: is no decoder")
        return loaded

    @property
    def dtype(self) -> jnp.dtype:
        """Of the model's weights and activations."""
        return jnp.dtype(self.config.model.dtype)

    def make_format(self, *, titled: bool) -> Format:
        """How questions, passages and judgements become tokens."""
        c = self.config
        return Format(self.base.tokenizer, titled, c.examples.assessment, c.model.max_text)

    # Passages and questions.

    def make_corpus(self, context: StageContext) -> None:
        """Copies the passages and questions; the model gives titles to passages without."""
        c = self.config
        copy_collection(context.folder, c.data, c.world, seed=c.seed, check=self._check)
        wait_for_all("the corpus was copied")
        self._give_titles(context, load_collection(context.folder).passages)

    def _check(self, corpus: Collection) -> None:
        self.list_training(corpus)
        self.list_questions(corpus, self.config.evaluate_on)

    def _give_titles(self, context: StageContext, passages: Sequence[Passage]) -> None:
        untitled = [row for row, passage in enumerate(passages) if not passage.title.strip()]
        if not untitled:
            return
        tokenizer = self.base.tokenizer

        def write(rows: Sequence[int]) -> list[dict[str, Any]]:
            batch = [passages[row] for row in rows]
            read = [tokenizer.encode(p.text)[: self.config.model.max_text] for p in batch]
            prompts = [
                tokenizer.encode(f'{tokenizer.decode(tokens)}\n\nThe title of this article is "')
                for tokens in read
            ]
            written = generate(
                self.base.model,
                self.base.params,
                prompts,
                max_tokens=_TITLE_TOKENS,
                stop_ids=[tokenizer.eos_id],
                batch_size=self.config.search.batch_size,
            )
            titles = [tokenizer.decode(tokens).split('"')[0] for tokens in written]
            return [
                {"id": p.id, "title": " ".join(title.split()) or p.id}
                for p, title in zip(batch, titles, strict=True)
            ]

        records = context.map_batches("titles.jsonl", untitled, write, batch_size=64, unit="titles")
        given = {record["id"]: record["title"] for record in records}
        if is_first():
            titled = (replace(p, title=given.get(p.id, p.title)) for p in passages)
            write_passages(context.folder / PASSAGES, titled)

    def read_corpus(self, context: StageContext) -> Collection:
        """Reads them back."""
        return load_collection(context.path("corpus", ""))

    def list_training(self, corpus: Collection) -> list[Question]:
        """The training questions that have an answer and a passage."""
        return self.list_questions(corpus, "train")

    def list_questions(self, corpus: Collection, split: str) -> list[Question]:
        """The split's questions that have an answer and a passage.

        Raises:
            RagJaxError: there is none.
        """
        questions = [q for q in corpus.questions.get(split, []) if q.answers and q.relevant]
        if not questions:
            raise RagJaxError(
                f"config.data: there are no {split!r} questions with answers and passages"
            )
        return questions

    def _count_negatives(self) -> int:
        # Some of those found may be of the relevant documents, which are asked for apart.
        return max(self.config.dense.hard, 4 * self.config.examples.other)

    def mine_negatives(self, context: StageContext) -> None:
        """What BM25 takes for answers to the training questions."""
        corpus = self.read_corpus(context)
        questions, count = self.list_training(corpus), self._count_negatives()
        mine_negatives(context, questions, corpus.passages, depth=_DEPTH, count=count)

    # Tries.

    def make_trie(self, context: StageContext, *, titled: bool) -> None:
        """Builds the trie of all passages."""
        form = self.make_format(titled=titled)
        sequences = [form.encode_sequence(p) for p in self.read_corpus(context).passages]
        trie = Trie.from_sequences(sequences, end_id=form.tokenizer.eos_id)
        if is_first():
            trie.save(context.folder / "trie")

    def load_trie(self, context: StageContext, *, titled: bool) -> Trie:
        """Reads it back."""
        return Trie.load(context.path("trie" if titled else "trie_untitled", "trie"))

    # The dense encoder that the method is compared with.

    def load_encoders(self, context: StageContext, name: str) -> Encoders:
        """One encoder for both sides: "dense" as it is, "dense_tuned" after training."""
        at = self.config.dense.encoder.name
        if name == "dense_tuned":
            at = context.path("dense_tuned", "encoder")
        loaded = load(at, mesh=self.mesh)
        if not isinstance(loaded.model, Bert):
            raise RagJaxError(f"config.dense.encoder.name={at}: is no encoder")
        return Encoders(loaded, loaded, shared=True)

    def encode(
        self, encoder: Pretrained, texts: Sequence[str | tuple[str, str]]
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings of texts."""
        c = self.config.dense.encoder
        return encode_texts(encoder, texts, max_length=c.max_length, batch_size=c.batch_size)

    def train_dense(self, context: StageContext) -> None:
        """Trains it on the same questions, with hard negatives by BM25."""
        c, corpus = self.config.dense, self.read_corpus(context)
        encoders, questions = self.load_encoders(context, "dense"), self.list_training(corpus)
        mined = read_jsonl(context.path("negatives", "negatives.jsonl"))
        hard = [record["rows"][: c.hard] for record in mined]
        pairs = list_pairs(questions, hard, corpus.passages)
        batches = make_batches(
            encoders,
            pairs,
            questions,
            corpus.passages,
            c.train,
            max_length=c.encoder.max_length,
            seed=self.config.seed,
        )
        if c.train.epochs:
            encoders = train_encoders(
                encoders, batches, folder=context.folder, progress=context.progress
            )
        whole = replace(encoders.passage, params=fetch(encoders.passage.params))
        if is_first():
            save(whole, context.folder / "encoder")
            shutil.rmtree(context.folder / "checkpoints", ignore_errors=True)
