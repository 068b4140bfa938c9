"""What a run of Parametric RAG has open: the language model, the encoder, the prompt format."""

from functools import cached_property, partial
from pathlib import Path

import jax
import jax.numpy as jnp

from rag_jax.config import EncoderConfig
from rag_jax.data.questions import Collection, Question
from rag_jax.lora.store import AdapterStore
from rag_jax.models import Pretrained
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import DECODER_RULES
from rag_jax.systems import session
from rag_jax.systems.prag.config import PRAGConfig
from rag_jax.systems.prag.data import Format, Variant
from rag_jax.systems.prag.infer import Search, make_search
from rag_jax.training.trainable import Trainable, init_trained, make_trainable


class Session(session.Session):
    """The models, corpus and mesh of a run."""

    config: PRAGConfig
    batch_sizes = ("answer.batch_size", "augment.batch_size")

    @property
    def encoding(self) -> EncoderConfig:
        """The settings by which texts are encoded."""
        return self.config.retrieve.encoder

    @property
    def dtype(self) -> jnp.dtype:
        """Of the model's weights and activations."""
        return jnp.dtype(self.config.model.dtype)

    @cached_property
    def base(self) -> Pretrained:
        """The language model, which is never changed."""
        return self.load_language_model("model.name", dtype=self.dtype)

    @cached_property
    def encoder(self) -> Pretrained:
        """The encoder of dense retrieval."""
        return self.load_encoder("retrieve.encoder.name")

    @cached_property
    def format(self) -> Format:
        """How questions, passages and answers become tokens."""
        c = self.config.model
        return Format(self.base.tokenizer, c.chat, c.max_text)

    @property
    def trainable(self) -> Trainable:
        """An adapter over the language model."""
        c = self.config
        return make_trainable(
            c.tuning,
            self.base.params,
            rules=DECODER_RULES,
            mesh=self.mesh,
            seed=c.seed,
            dtype=self.dtype,
        )

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The ways to encode documents, by stage: the method's own and its ablations."""
        start = self.config.encode.start
        variants = {"encode": Variant(start)}
        if self.config.ablations:
            other = {"random": "warm", "warm": "random"}[start]
            variants["without_rewrites"] = Variant(start, rewrites=False)
            variants["without_questions"] = Variant(start, questions=False)
            variants[f"{other}_start"] = Variant(other)
        return variants

    def open_store(self, folder: Path, variant: Variant) -> AdapterStore:
        """The adapters of one way to encode documents.

        Raises:
            RagJaxError: the folder has adapters of another kind.
        """
        c = self.config
        template = jax.eval_shape(partial(init_trained, c.tuning, seed=c.seed), self.base.params)
        settings = {
            "tuning": c.tuning,
            "encode": c.encode,
            "augment": c.augment,
            "variant": variant,
            "seed": c.seed,
        }
        return AdapterStore(folder, template, base=self.base.fingerprint, settings=settings)

    def make_search(self, passages, embed=None) -> Search:
        """A search among passages by the run's settings; see `infer.make_search`."""
        return make_search(
            passages,
            self.config.retrieve,
            load_encoder=lambda: self.encoder,
            encode=self.encode,
            embed=embed,
        )

    def check_length(self, tokens: int) -> None:
        """Raises a RagJaxError if a text of that many tokens exceeds the model's context."""
        limit = self.base.config.max_length
        if tokens > limit:
            raise RagJaxError(
                f"config.model.max_text={self.config.model.max_text}: a text has {tokens} tokens, "
                f"over the model's context of {limit}; lower it"
            )

    # Questions.

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if there is no question to evaluate."""
        self.choose_questions(corpus, self.config.evaluate_on)

    @property
    def train_questions(self) -> list[Question]:
        """The questions of the warm-up."""
        return self.choose_questions(self.corpus, "train", self.config.warm_up.questions)

    @property
    def questions(self) -> list[Question]:
        """The questions to evaluate."""
        return self.choose_questions(self.corpus, self.config.evaluate_on, self.config.questions)
