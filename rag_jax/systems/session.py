"""What a run has open: mesh, models, corpus; and stage functions bound to what they need of it."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from rag_jax.config import EncoderConfig
from rag_jax.data.formats import describe_source
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question, choose_questions, load_collection
from rag_jax.models import Pretrained, load
from rag_jax.models.int8 import quantize_layers
from rag_jax.models.io.architectures import Config, embeds_texts, get_rules
from rag_jax.models.io.hub import fingerprint, resolve
from rag_jax.models.io.load import load_config
from rag_jax.models.nn.decoder import Decoder
from rag_jax.pipeline.own_corpus import read_corpus
from rag_jax.pipeline.stage import Stage, StageContext
from rag_jax.retrieval import Index, encode_texts, fingerprint_corpus, list_texts
from rag_jax.retrieval.texts import Role, configure_encoder, extend_fingerprint
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import (
    DECODER_RULES,
    Rules,
    check_batches,
    keep_over_data,
    make_mesh,
    shard_params,
)
from rag_jax.systems.reranking import Reranking, open_reranking
from rag_jax.training.trainable import Trainable, make_trainable


class Session:
    """The mesh, models and corpus of a run, each opened when it is first needed.

    A session knows no stage: `bind` gives stage functions the attributes that they name.

    Args:
        devices: to run on; all devices if None.
        trains: whether the run trains, for which the data need questions to train on.
    """

    # Paths of settings: batch sizes that the mesh's data rows must divide, the language model, the
    # sentence encoder, and the number of questions to train on and to evaluate (None: all).
    batch_sizes: tuple[str, ...] = ()
    model_field = "model"
    encoder_field = "encoder"
    train_count: str | None = None
    question_count: str | None = None
    # Numbers of tokens that questions are padded to; without them they are chosen for each call.
    query_widths: Sequence[int] = ()

    def __init__(
        self, config: Any, devices: Sequence[jax.Device] | None = None, *, trains: bool = True
    ):
        self.config, self.trains = config, trains
        self.mesh = make_mesh(config.mesh, devices)
        sizes = {f"config.{path}": self._get_setting(path) for path in self.batch_sizes}
        check_batches(self.mesh, sizes)
        self._corpus: tuple[Path, Collection] | None = None
        self.corpus_declared = True  # unless a stage runs that does not declare its need
        self._noted: set[str] = set()

    def note(self, line: str) -> None:
        """Logs a line, unless the session has logged it before."""
        if line not in self._noted:
            self._noted.add(line)
            log(line)

    def _get_setting(self, path: str) -> Any:
        value = self.config
        for name in path.split("."):
            value = getattr(value, name)
        return value

    # Models.

    def load_model(self, name: str | Path, *, dtype: Any = None, int8: bool = False) -> Pretrained:
        """A model on the mesh, its weights where `mesh.weights` has them; `int8` as a setting."""
        moved = self.config.mesh.weights == "model"
        rules = self.choose_rules(load_config(name)) if moved else None
        loaded = load(name, dtype=dtype, mesh=self.mesh, rules=rules)
        if not int8:
            return loaded
        rules, params = self.choose_rules(loaded.config), quantize_layers(loaded.params)
        return replace(loaded, params=shard_params(params, self.mesh, rules))

    def choose_rules(self, config: Config) -> Rules:
        """How the weights of a model lie that are not being trained."""
        rules = get_rules(config)
        return keep_over_data(rules) if self.config.mesh.weights == "model" else rules

    def load_language_model(
        self, field: str, *, dtype: Any = None, int8: bool = False
    ) -> Pretrained:
        """The decoder that a setting names.

        Args:
            field: path of the setting, such as "model.name".
            int8: as in `ModelConfig`.

        Raises:
            RagJaxError: the model is no decoder, or as `load`.
        """
        name = self._get_setting(field)
        loaded = self.load_model(name, dtype=dtype, int8=int8)
        if not isinstance(loaded.model, Decoder) or loaded.config.bidirectional:
            raise RagJaxError(f"config.{field}={name}: is no language model")
        return loaded

    def load_encoder(self, field: str, name: str | Path | None = None) -> Pretrained:
        """The encoder that a setting names.

        Args:
            field: path of the setting, such as "encoder.name".
            name: of another encoder in its place, such as the trained one.

        Raises:
            RagJaxError: the model is no encoder, or as `load`.
        """
        name = self._get_setting(field) if name is None else name
        loaded = self.load_model(name)
        if not embeds_texts(loaded.model):
            raise RagJaxError(f"config.{field}={name}: is no encoder")
        return configure_encoder(loaded, self.encoding)

    def fingerprint(self, field: str) -> str:
        """SHA-256 of the files of the model that a setting names, and of an encoder's settings."""
        found = fingerprint(resolve(self._get_setting(field)))
        is_encoder = field.startswith(f"{self.encoder_field}.")
        return extend_fingerprint(found, self.encoding) if is_encoder else found

    @property
    def dtype(self) -> jnp.dtype:
        """The type of the language model's weights and activations."""
        return jnp.dtype(self._get_setting(f"{self.model_field}.dtype"))

    @cached_property
    def base(self) -> Pretrained:
        """The language model before training."""
        int8 = self._get_setting(f"{self.model_field}.int8")
        return self.load_language_model(f"{self.model_field}.name", dtype=self.dtype, int8=int8)

    @cached_property
    def reranking(self) -> Reranking | None:
        """The reranker of what is found; None if there is none."""
        return open_reranking(self.config.retrieve.rerank, self.mesh)

    @property
    def trainable(self) -> Trainable:
        """The language model's weights, or an adapter, by the run's tuning settings."""
        c, params = self.config, self.base.params
        sharding = {"rules": DECODER_RULES, "mesh": self.mesh}
        return make_trainable(c.tuning, params, **sharding, seed=c.seed, dtype=self.dtype)

    # Embeddings.

    @property
    def encoding(self) -> EncoderConfig:
        """The settings by which texts are encoded."""
        return self._get_setting(self.encoder_field)

    @cached_property
    def encoder(self) -> Pretrained:
        """The sentence encoder before training."""
        return self.load_encoder(f"{self.encoder_field}.name")

    def encode(
        self,
        encoder: Pretrained,
        texts: Sequence[str | tuple[str, str]],
        role: Role | None,
        **options: Any,
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings by the run's settings; `role` and further `options` of `encode_texts`."""
        c = self.encoding
        sizes = {"max_length": c.max_length, "batch_size": c.batch_size}
        options = {"program_tokens": c.program_tokens, **options}
        return encode_texts(encoder, texts, role=role, **sizes, **options)

    def encode_queries(
        self, encoder: Pretrained, questions: Sequence[str], **options: Any
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings of questions; further `options` of `encode_texts`."""
        return self.encode(encoder, questions, "query", widths=self.query_widths, **options)

    def encode_passages(
        self, encoder: Pretrained, passages: Sequence[Passage], **options: Any
    ) -> Float[np.ndarray, "N E"]:
        """Embeddings of passages; further `options` of `encode_texts`."""
        return self.encode(encoder, list_texts(passages), "document", **options)

    def build_index(
        self,
        encoder: Pretrained,
        embeddings: Float[np.ndarray, "N E"],
        passages: Sequence[Passage],
        *,
        ids: bool = False,
    ) -> Index:
        """An index over passages that an encoder embedded.

        Args:
            ids: whether the index keeps the passages' ids.
        """
        own = [passage.id for passage in passages] if ids else None
        settings = {**vars(self.config.index), "encoder": encoder.fingerprint}
        return Index.build(embeddings, **settings, ids=own, corpus=fingerprint_corpus(passages))

    def read_corpus(
        self, path: Path, encoder: Pretrained
    ) -> tuple[Sequence[Passage], Float[np.ndarray, "N E"]]:
        """Passages in place of the run's and their embeddings; see `own_corpus.read_corpus`."""
        limit = self.encoding.max_length
        made_by = {"encoder": encoder.fingerprint, "max_length": limit}
        made_by["words"] = self.config.data.passage_words
        return read_corpus(path, partial(self.encode, encoder, role="document"), **made_by)

    # Passages and questions.

    @cached_property
    def source(self) -> dict[str, Any]:
        """What the corpus depends on, for the settings of the stage that copies it."""
        c = self.config
        return {"source": describe_source(c.data, c.world), "seed": c.data.seed}

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if there are no questions to train on or to evaluate."""
        for split in (*["train"] * self.trains, self.config.evaluate_on):
            self.choose_questions(corpus, split)

    def open_corpus(self, folder: Path) -> None:
        """Opens the corpus that `copy_collection` wrote, unless it is open.

        The corpus is checked again: the settings may have changed since it was copied.

        Raises:
            RagJaxError: as `check_corpus`.
        """
        if self._corpus is None or self._corpus[0] != folder:
            corpus = load_collection(folder)
            self.check_corpus(corpus)
            self._corpus = folder, corpus

    def check_stage(self, context: StageContext) -> None:
        """Checks the corpus of a finished stage; raises a RagJaxError as `check_corpus`."""
        self.open_corpus(context.path("corpus", ""))

    @property
    def corpus(self) -> Collection:
        """The passages and questions of the run.

        Raises:
            ValueError: the corpus is not open.
        """
        if self._corpus is None or not self.corpus_declared:
            raise ValueError("the corpus is not open: the stage does not declare that it needs it")
        return self._corpus[1]

    @property
    def passages(self) -> Sequence[Passage]:
        """The passages of the run."""
        return self.corpus.passages

    @property
    def train_questions(self) -> Sequence[Question]:
        """The questions to train on."""
        return self._choose_questions("train", self.train_count)

    @property
    def questions(self) -> Sequence[Question]:
        """The questions to evaluate."""
        return self._choose_questions(self.config.evaluate_on, self.question_count)

    def _choose_questions(self, split: str, path: str | None) -> list[Question]:
        return self.choose_questions(self.corpus, split, self._get_setting(path) if path else 0)

    def choose_questions(self, corpus: Collection, split: str, count: int = 0) -> list[Question]:
        """The split's questions that have an answer: all, or `count` of them.

        Raises:
            RagJaxError: there is none.
        """
        return choose_questions(corpus, split, count=count, seed=self.config.data.seed)


def bind(
    session: Session, function: Callable[..., None], **given: Any
) -> Callable[[StageContext], None]:
    """A stage function with its keyword arguments taken from the session when the stage runs.

    Args:
        session: each keyword-only argument without a default is the session's attribute of that
            name or, failing that, the setting of that name. The corpus is opened for a stage that
            needs it.
        function: `function(context, *, ...)`.
        given: arguments with other values, and optional ones.

    Raises:
        TypeError: an argument is neither given nor an attribute nor a setting.
    """
    wanted = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY
        and parameter.default is parameter.empty
        and name not in given
    ]
    attributes = {*dir(type(session)), *vars(session)}
    unknown = [n for n in wanted if n not in attributes and not hasattr(session.config, n)]
    if unknown:
        raise TypeError(f"{function.__name__}: the session has no {', '.join(unknown)}")

    def run(context: StageContext) -> None:
        session.corpus_declared = context.needs("corpus")
        try:
            if session.corpus_declared:
                session.open_corpus(context.path("corpus", ""))
            found = {n: getattr(session if n in attributes else session.config, n) for n in wanted}
            function(context, **found, **given)
        finally:
            session.corpus_declared = True

    return run


def make_stage(
    session: Session,
    name: str,
    function: Callable[..., None],
    settings: Mapping[str, Any],
    *needs: str,
    divisible: tuple[str, ...] = (),
    version: int = 1,
    room: Callable[[], tuple[int, int]] = lambda: (0, 0),
    **given: Any,
) -> Stage:
    """A stage with its function bound to a session; see `Stage` and `bind`."""
    run = bind(session, function, **given)
    return Stage(name, run, settings, needs, version=version, divisible=divisible, room=room)
