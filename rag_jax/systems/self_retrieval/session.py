"""What a run of Self-Retrieval has open: the language model, the tries, the dense encoder."""

from pathlib import Path

from rag_jax.data.questions import Collection, Question
from rag_jax.decoding import Trie
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.retrieval.contrastive import Encoders
from rag_jax.runtime.errors import RagJaxError
from rag_jax.systems import session
from rag_jax.systems.self_retrieval.config import SelfRetrievalConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.systems.self_retrieval.infer import Engine


class Session(session.Session):
    """The models, corpus and mesh of a run."""

    config: SelfRetrievalConfig
    batch_sizes = ("search.batch_size", "dense.train.batch_size")
    encoder_field = "dense.encoder"

    def load_base(self) -> Pretrained:
        """The language model before training, opened only when called."""
        return self.base

    def make_format(self, *, titled: bool) -> Format:
        """How questions, passages and assessments become tokens."""
        c = self.config
        return Format(self.base.tokenizer, titled, c.examples.assessment, c.model.max_text)

    def open_engine(self, context: StageContext, stage: str, *, titled: bool = True) -> Engine:
        """The model that a stage trained, ready to retrieve from the corpus.

        The model is as loaded if the context does not need the stage.
        """
        params = self.base.params
        if context.needs(stage):
            params = self.trainable.load_merged(context.path(stage, "params"))
        folder = context.path("trie" if titled else "trie_untitled", "trie")
        return Engine(
            model=self.base.model,
            params=params,
            format=self.make_format(titled=titled),
            passages=self.passages,
            trie=Trie.load(folder, vocab_size=self.base.config.vocab_size),
            settings=self.config.search,
        )

    def load_encoders(self, trained: Path | None = None) -> Encoders:
        """One encoder for both sides, before training or from the folder `trained`."""
        loaded = self.load_encoder("dense.encoder.name", trained)
        return Encoders(loaded, loaded, shared=True)

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if there are no questions to train, validate or evaluate on."""
        super().check_corpus(corpus)
        if self.trains and self.config.validation:
            self.choose_questions(corpus, "dev")

    def choose_questions(self, corpus: Collection, split: str, count: int = 0) -> list[Question]:
        """The split's questions that have an answer and a relevant passage.

        Raises:
            RagJaxError: there is none.
        """
        questions = [q for q in corpus.questions.get(split, []) if q.answers and q.relevant]
        if not questions:
            raise RagJaxError(
                f"config.data: there are no {split!r} questions with answers and passages"
            )
        return questions

    @property
    def validated(self) -> list[Question]:
        """The development questions that passages are found for after each epoch."""
        count = self.config.validation
        return self.choose_questions(self.corpus, "dev")[:count] if count else []
