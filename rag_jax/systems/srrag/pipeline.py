"""The stages of Self-Routing RAG, from an empty folder to the report."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from rag_jax.config import build
from rag_jax.data.formats import copy_collection, describe_source
from rag_jax.data.questions import Collection, Question, choose_questions, load_collection
from rag_jax.decoding import Sampling, generate
from rag_jax.evaluation import routing as analysis
from rag_jax.evaluation.report import write_report
from rag_jax.models import Pretrained, load
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.models.nn.bert import Bert
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.vocabulary import grow_vocabulary
from rag_jax.pipeline.runner import Shard, Stage, StageContext, run_stages
from rag_jax.retrieval.encode import encode_texts
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json
from rag_jax.runtime.hosts import is_first
from rag_jax.runtime.sharding import DECODER_RULES, check_batches, make_mesh, shard_params
from rag_jax.systems.srrag import compare, contexts, evaluate, labels, sources, tune
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import Format, special_tokens


def run(
    config: ml_collections.ConfigDict, workdir: Path, *, shard: Shard | None = None
) -> dict[str, Any]:
    """Runs every stage that isn't made yet, or a shard of them, and writes the report.

    Raises:
        RagJaxError: whatever of the settings, the models or the disk the user can mend.
    """
    settings = build(SRRAGConfig, config)
    session = Session(settings)
    with jax.set_mesh(session.mesh):
        records = run_stages(session.stages(), workdir, config=settings, shard=shard)
    if not is_first():
        return {}
    stages = Path(workdir) / "stages"
    made = ("evaluate", "compare") if settings.ablations else ("evaluate",)
    predictions = {}
    for stage in made:
        predictions |= read_json(stages / stage / "predictions.json")
    statistics = {
        stage: read_json(stages / stage / "statistics.json") for stage in ("labels", "datastore")
    }
    return report_run(settings, workdir, predictions, statistics=statistics, stages=records)


def report_run(
    settings: SRRAGConfig,
    folder: Path,
    predictions: Mapping[str, Any],
    *,
    statistics: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Writes the report on every method's predictions.

    Args:
        statistics: of the labels and the datastore.
        stages: what `run_stages` gave.
    """
    methods = {method: evaluate.summarize(rows) for method, rows in predictions.items()}
    routing = analysis.analyse(predictions, settings.sources)
    return write_report(
        folder,
        system="srrag",
        config=settings,
        model=settings.model.name,
        dataset=f"{settings.data.path or 'gazetteer'}, {settings.evaluate_on} questions",
        methods=methods,
        stages=stages,
        predictions=predictions,
        columns=evaluate.COLUMNS,
        tables=analysis.list_tables(
            routing, **statistics, predictions=predictions, sources=settings.sources
        ),
        analysis={"routing": routing, **statistics},
        figures=analysis.draw_figures(routing, methods),
    )


class Session:
    """The models of a run, loaded when a stage first needs them, and the stages themselves.

    Args:
        devices: to run on; all there are if None.
    """

    def __init__(self, config: SRRAGConfig, devices: Sequence[jax.Device] | None = None):
        self.config = config
        self.mesh = make_mesh(config.mesh, devices)
        check_batches(
            self.mesh,
            {
                "config.verbalise.batch_size": config.verbalise.batch_size,
                "config.label.batch_size": config.label.batch_size,
                "config.answer.batch_size": config.answer.batch_size,
            },
        )

    @cached_property
    def model_fingerprint(self) -> str:
        """Of the files that the language model comes from."""
        return fingerprint(resolve(self.config.model.name))

    @cached_property
    def encoder_fingerprint(self) -> str:
        """Of the files that the encoder comes from."""
        return fingerprint(resolve(self.config.encoder.name))

    @cached_property
    def base(self) -> Pretrained:
        """The language model with the special tokens added, not yet trained."""
        dtype = jnp.dtype(self.config.model.dtype)
        loaded = load(self.config.model.name, dtype=dtype, mesh=self.mesh)
        if not isinstance(loaded.model, Decoder):
            raise RagJaxError(f"config.model.name={self.config.model.name}: is no language model")
        self.check_layer(loaded.config.num_layers)
        names = special_tokens(self.config.sources)
        grown = grow_vocabulary(loaded, names, multiple=self.config.model.vocab_multiple)
        return dataclasses.replace(
            grown, params=shard_params(grown.params, self.mesh, DECODER_RULES)
        )

    def check_layer(self, num_layers: int) -> None:
        """Raises a RagJaxError if the datastore's layer is none of the model's."""
        layer = self.config.datastore.layer
        if layer > num_layers:
            raise RagJaxError(f"config.datastore.layer={layer}: the model has {num_layers} layers")

    @cached_property
    def encoder(self) -> Pretrained:
        """The sentence encoder behind the index and the clusters."""
        loaded = load(self.config.encoder.name, mesh=self.mesh)
        if not isinstance(loaded.model, Bert):
            raise RagJaxError(f"config.encoder.name={self.config.encoder.name}: is no encoder")
        return loaded

    @property
    def new_ids(self) -> list[int]:
        """The ids of the tokens that the method added."""
        return [self.base.tokenizer.token_id(name) for name in special_tokens(self.config.sources)]

    @cached_property
    def losses(self) -> dict[str, Callable[..., Any]]:
        """The training losses."""
        return tune.make_losses(self)

    @cached_property
    def form(self) -> Format:
        """The packed sequence's pieces."""
        c = self.config
        return Format(self.base.tokenizer, c.sources, c.model.max_text)

    def stages(self) -> list[Stage]:
        """Every stage with what it depends on."""
        c = self.config
        common = {
            "model": self.model_fingerprint,
            "dtype": c.model.dtype,
            "sources": c.sources,  # their tokens are part of the vocabulary
            "seed": c.seed,
            "train_questions": c.train_questions,
        }
        encoder = {"encoder": self.encoder_fingerprint, **dataclasses.asdict(c.encoder)}
        rows = {"extra_mean": c.extra_mean, "loss_reduction": c.loss_reduction}
        tuning = {"tuning": c.tuning, **rows, **common}
        read = {"max_text": c.model.max_text}
        passes = {
            "answer": c.answer,
            "layer": c.datastore.layer,
            "metric": c.datastore.metric,
            "max_knowledge": c.verbalise.max_tokens,
            **read,
        }
        asking = {**common, **encoder, **passes}
        evaluation = {
            **asking,
            "k": c.datastore.k,
            "route": c.route,
            "on": c.evaluate_on,
            "questions": c.questions,
        }
        stages = [
            Stage(
                "corpus",
                self.make_corpus,
                settings={"source": describe_source(c.data, c.world), "seed": c.seed},
                version=2,
            ),
            Stage(
                "index",
                partial(sources.run_index, self),
                needs=("corpus",),
                settings={
                    **encoder,
                    "index": c.index,
                    "sources": [s for s in c.sources if s.kind == "search"],
                },
                version=3,
                shardable=("embeddings.npy",),
            ),
            Stage(
                "demonstrations",
                partial(contexts.run_demonstrations, self),
                needs=("corpus",),
                settings={**common, **encoder, "verbalise": c.verbalise, "contexts": c.contexts},
                shardable=("documents.jsonl",),
            ),
            Stage(
                "contexts",
                partial(contexts.run_contexts, self),
                needs=("corpus", "index", "demonstrations"),
                settings={
                    **common,
                    **encoder,
                    **read,
                    "verbalise": c.verbalise,
                    "contexts": c.contexts,
                },
                shardable=("verbalised.jsonl",),
            ),
            Stage(
                "labels",
                partial(labels.run_labels, self),
                needs=("corpus", "contexts"),
                settings={**common, "label": c.label},
                version=2,
                shardable=("scores.jsonl", "closed_book.jsonl"),
            ),
            Stage(
                "stage1",
                partial(tune.run_stage1, self),
                version=2,
                settings={**tuning, "stage1": c.stage1},
                needs=("corpus", "contexts", "labels"),
            ),
            Stage(
                "reference",
                partial(tune.run_reference, self),
                settings={**tuning, "microbatch_tokens": c.stage2.microbatch_tokens},
                needs=("corpus", "contexts", "labels", "stage1"),
                shardable=("reference.jsonl",),
            ),
            Stage(
                "stage2",
                partial(tune.run_stage2, self),
                version=2,
                settings={**tuning, "stage2": c.stage2},
                needs=("corpus", "contexts", "labels", "stage1", "reference"),
            ),
            Stage(
                "datastore",
                partial(evaluate.run_datastore, self),
                needs=("corpus", "index", "stage2"),
                settings=asking,
                shardable=("datastore.jsonl",),
            ),
            Stage(
                "evaluate",
                partial(evaluate.run_evaluation, self),
                version=2,
                needs=("corpus", "index", "stage2", "datastore"),
                settings=evaluation,
                shardable=("direct.jsonl", "passes.jsonl"),
            ),
        ]
        if c.ablations:
            stages += compare.list_stages(self, tuning=tuning, passes=asking, evaluation=evaluation)
        return stages

    def make_corpus(self, context: StageContext) -> None:
        """Copies the passages and questions, whatever their format, into one."""
        c = self.config
        copy_collection(context.folder, c.data, c.world, seed=c.seed, check=self._check)

    def _check(self, corpus: Collection) -> None:
        self.list_training(corpus)
        self.list_questions(corpus)

    def read_corpus(self, context: StageContext) -> Collection:
        """Reads them back."""
        return load_collection(context.path("corpus", ""))

    def list_training(self, corpus: Collection) -> list[Question]:
        """The questions that are trained on."""
        c = self.config
        questions = choose_questions(corpus, "train", count=c.train_questions, seed=c.seed)
        self.check_size(len(questions))
        return questions

    def list_questions(self, corpus: Collection) -> list[Question]:
        """The questions that are evaluated."""
        c = self.config
        return choose_questions(corpus, c.evaluate_on, count=c.questions, seed=c.seed)

    def check_size(self, count: int) -> None:
        """Raises a RagJaxError if `count` training questions are too few for the settings."""
        c = self.config
        for name, wanted in (("datastore.k", c.datastore.k), ("contexts", c.contexts)):
            if wanted > count:
                raise RagJaxError(
                    f"config.{name}={wanted}: is above the {count} training questions; lower it"
                )

    def encode(self, texts: Sequence[Any], **options: Any) -> np.ndarray:
        """Sentence embeddings with the run's settings; further `options` of `encode_texts`."""
        c = self.config.encoder
        sizes = {"max_length": c.max_length, "batch_size": c.batch_size}
        return encode_texts(self.encoder, texts, **sizes, **options)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_tokens: int,
        batch_size: int,
        temperature: float = 0.0,
    ) -> list[list[int]]:
        """What the model as it was, before any training, writes after prompts."""
        prefix, rests = contexts.split_prefix(prompts)
        return generate(
            self.base.model,
            self.base.params,
            rests,
            prefix=prefix,
            max_tokens=max_tokens,
            stop_ids=(self.base.tokenizer.eos_id,),
            batch_size=batch_size,
            seed=self.config.seed,
            sampling=Sampling(temperature=temperature),
        )

    def write_documents(
        self, questions: Sequence[str], demonstrations: Sequence[tuple[str, str]]
    ) -> list[str]:
        """Background documents by the model as it was, before any training."""
        c, tokenizer = self.config.verbalise, self.base.tokenizer
        prompts = [
            contexts.encode_document_prompt(tokenizer, question, demonstrations)
            for question in questions
        ]
        written = self.generate(
            prompts, max_tokens=c.max_tokens, batch_size=c.batch_size, temperature=c.temperature
        )
        return [
            contexts.clean_document(tokenizer.decode(tokens), finished=len(tokens) < c.max_tokens)
            for tokens in written
        ]
