"""What a run of Parametric RAG has open: the language model, the prompt format, the adapters."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
from jaxtyping import PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection
from rag_jax.lora.store import AdapterStore
from rag_jax.models import Pretrained, load_tokenizer
from rag_jax.models.io.load import load_config
from rag_jax.retrieval import BM25, Dense, Fused, Index, make_text
from rag_jax.runtime.checkpoint import load_tree
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import session
from rag_jax.systems.prag.baselines import CORPUS, check_corpus_fits
from rag_jax.systems.prag.config import By, PRAGConfig
from rag_jax.systems.prag.data import Format, Variant, list_variants
from rag_jax.systems.prag.infer import Engine, Search
from rag_jax.systems.prag.translate import Translator
from rag_jax.systems.prag.translator import init_translator, list_adapted
from rag_jax.systems.reranking import describe_reranking
from rag_jax.systems.room import Room, adapters_room, tuning_room
from rag_jax.systems.stages import list_ranked
from rag_jax.training.trainable import init_trained


class Session(session.Session):
    """The models, corpus and mesh of a run."""

    config: PRAGConfig
    batch_sizes = ("answer.batch_size", "augment.batch_size")
    encoder_field = "retrieve.encoder"
    train_count = "warm_up.questions"
    question_count = "questions"

    @cached_property
    def format(self) -> Format:
        """How questions, passages and answers become tokens."""
        c = self.config
        tokenizer = load_tokenizer(c.model.name)  # without the model, where another one augments
        asked = c.model.chat, c.model.max_text, c.prompt.reasoning, c.prompt.demonstrations
        return Format(tokenizer, *asked)

    @property
    def augmenter(self) -> Pretrained:
        """The model that augments documents: another one is loaded, and not kept."""
        if self.config.augment.model is None:
            return self.base
        return self.load_language_model("augment.model", dtype=self.dtype)

    @cached_property
    def variants(self) -> dict[str, Variant]:
        """The ways to encode documents, by stage."""
        return list_variants(self.config)

    @cached_property
    def adapter_shapes(self) -> PyTree[jax.ShapeDtypeStruct]:
        """One adapter, described."""
        c = self.config
        return jax.eval_shape(partial(init_trained, c.tuning, seed=c.seed), self.base.params)

    def open_store(self, folder: Path, variant: Variant) -> AdapterStore:
        """The adapters of one way to encode documents.

        Raises:
            RagJaxError: the folder has adapters of another kind.
        """
        c = self.config
        settings = {
            "tuning": c.tuning,
            "encode": c.encode,
            "augment": c.augment,
            "prompt": c.prompt,
        }
        settings |= {"variant": variant, "seed": c.seed}
        return AdapterStore(
            folder, self.adapter_shapes, base=self.base.fingerprint, settings=settings
        )

    def make_translator(
        self, folder: Path | None = None, passages: Sequence[Passage] = ()
    ) -> Translator:
        """The translator of documents, trained if there is a folder of its parameters.

        Args:
            passages: those that it makes adapters of by their ids.

        Raises:
            RagJaxError: as `load_tree`.
        """
        c, base = self.config, self.base
        kernels = list_adapted(self.adapter_shapes)
        sizes = {"state_size": base.config.hidden_size, "hidden": c.translator.hidden}
        params = None
        if folder is not None:
            init = partial(init_translator, kernels=kernels, **sizes)
            params = load_tree(folder, jax.eval_shape(init, jax.random.key(0)))
        return Translator(base, self.format, kernels, params, passages, c.answer.batch_size)

    def open_translated(self, folder: Path) -> AdapterStore:
        """The adapters that the translator made.

        Raises:
            RagJaxError: the folder has adapters of another kind.
        """
        c = self.config
        settings = {"tuning": c.tuning, "translator": c.translator, "seed": c.seed}
        made_for = {"base": self.base.fingerprint, "settings": settings}
        return AdapterStore(folder / "adapters", self.adapter_shapes, **made_for)

    @property
    def room(self) -> int:
        """Largest number of tokens of a prompt: the context without the answer."""
        return self.base.config.max_length - self.config.answer.max_tokens

    def describe_searching(self, by: By | None = None) -> dict[str, Any]:
        """The settings of the searchers that find documents, for a stage; see `make_search`."""
        c = self.config.retrieve
        c = replace(c, by=by or c.by)
        settings: dict[str, Any] = {"retrieve": {**vars(c)}, **describe_reranking(c.rerank)}
        del settings["retrieve"]["rerank"]
        if c.by != "fused":
            del settings["retrieve"]["fusion"]
        if c.by_encoder:
            settings["encoder"] = self.fingerprint("retrieve.encoder.name")
        if c.by_words:
            settings["bm25"] = self.config.bm25
        return settings

    def make_search(
        self,
        passages: Sequence[Passage],
        embed: Callable[..., Any] | None = None,
        keep_words: Callable[[BM25], None] = lambda words: None,
        by: By | None = None,
    ) -> Search:
        """A search for the run's number of passages, or for as many as are reranked, best first.

        BM25 finds no passage for a question that shares no word with any.

        Args:
            embed: embeds passages by an encoder; `encode_passages` if None.
            keep_words: called with BM25, if it is searched.
            by: in place of the setting.
        """
        c, searchers = self.config.retrieve, []
        c = replace(c, by=by or c.by)
        if c.by_words:
            searchers.append(BM25.build(map(make_text, passages), self.config.bm25))
            keep_words(searchers[0])
        if c.by_encoder:
            encoder = self.encoder
            embeddings = (embed or self.encode_passages)(encoder, passages)
            index = Index.build(embeddings, backend="exact", encoder=encoder.fingerprint)
            searchers.append(Dense(index, partial(self.encode_queries, encoder)))
        searcher = searchers[0] if len(searchers) == 1 else Fused(searchers, c.fusion)
        count = min(c.passages, len(passages))
        if self.reranking is not None:
            count = self.reranking.count(count, len(passages))
        return lambda questions: list_ranked(*searcher.search(questions, count))

    def make_engine(self, widths: Sequence[int], batch_size: int | None = None) -> Engine:
        """The language model, ready to answer.

        Args:
            widths: numbers of tokens that a batch's prompts are padded to.
            batch_size: number of questions answered together; the run's if None.
        """
        c = self.config
        return Engine(
            model=self.base.model,
            params=self.base.params,
            format=self.format,
            settings=replace(c.answer, batch_size=batch_size or c.answer.batch_size),
            scale=c.tuning.scale,
            documents=c.retrieve.passages,
            widths=widths,
        )

    def estimate_warm_up(self) -> Room:
        """What the training of one adapter writes."""
        return tuning_room(self.config.tuning, self.config.model.name)

    def estimate_adapters(self) -> Room:
        """What the adapters of as many documents take as the questions can find."""
        c = self.config
        documents = min(len(self.passages), len(self.questions) * c.retrieve.passages)
        return adapters_room(documents, c.tuning, load_config(c.model.name))

    def estimate_taught(self) -> Room:
        """What the adapters take that the translator is trained on."""
        c = self.config
        documents = min(len(self.passages), c.translator.documents)
        return adapters_room(documents, c.tuning, load_config(c.model.name))

    def check_length(self, tokens: int) -> None:
        """Raises a RagJaxError if a text of that many tokens exceeds the model's context."""
        limit = self.base.config.max_length
        if tokens > limit:
            raise RagJaxError(
                f"config.model.max_text={self.config.model.max_text}: a text has {tokens} tokens, "
                f"over the model's context of {limit}; lower it"
            )

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if a question is missing, or a corpus that is to be read is long."""
        self.choose_questions(corpus, self.config.evaluate_on)
        if CORPUS in self.config.readers:
            check_corpus_fits(corpus.passages, self.format, room=self.room)
        if self.trains and any(variant.start == "warm" for variant in self.variants.values()):
            self.choose_questions(corpus, "train")
