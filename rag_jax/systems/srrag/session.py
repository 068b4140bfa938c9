"""What a run of SR-RAG has open: the language model with special tokens, encoder, losses."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from rag_jax.data.passages import Passage
from rag_jax.data.questions import Collection, Question
from rag_jax.evaluation.rankings import Ranked
from rag_jax.models import Pretrained
from rag_jax.models.io.load import load_config
from rag_jax.models.vocabulary import (
    grow_vocabulary,
    overlay_tokens,
    put_tokens,
    take_tokens,
)
from rag_jax.pipeline.own_corpus import keep_measured
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.sharding import DECODER_RULES, shard_params
from rag_jax.systems import session
from rag_jax.systems.room import Room, index_room, train_room, weigh_arrays, weigh_trained
from rag_jax.systems.srrag import sources
from rag_jax.systems.srrag.config import SRRAGConfig
from rag_jax.systems.srrag.data import Example, Format, make_examples, special_tokens
from rag_jax.systems.srrag.infer import Engine, Search
from rag_jax.systems.srrag.label import read_labels
from rag_jax.systems.srrag.loss import make_losses
from rag_jax.systems.srrag.policy import Datastore, read_datastore
from rag_jax.systems.srrag.train import fit_examples
from rag_jax.systems.srrag.verbalise import draw_pool
from rag_jax.training.loop import LossFunction
from rag_jax.training.trainable import Trainable, cast, init_trained, merge_trained, set_passes


class Session(session.Session):
    """The models, corpus and mesh of a run."""

    config: SRRAGConfig
    batch_sizes = ("verbalise.batch_size", "label.batch_size", "answer.batch_size")
    train_count = "train_questions"
    question_count = "questions"

    # Models.

    @cached_property
    def model_fingerprint(self) -> str:
        """Of the files of the language model."""
        return self.fingerprint("model.name")

    def describe_model(self) -> dict[str, Any]:
        """What of the language model the stages that read it depend on.

        Settings that are as usual are left out, so that older runs keep their stages.
        """
        c = self.config
        described = {"model": self.model_fingerprint, "dtype": c.model.dtype, "sources": c.sources}
        changed = {"int8": c.model.int8, "vocab_multiple": c.model.vocab_multiple}
        usual = {"int8": False, "vocab_multiple": 1}
        return described | {n: value for n, value in changed.items() if value != usual[n]}

    @cached_property
    def base(self) -> Pretrained:
        """The language model with the special tokens added, before training."""
        c = self.config
        loaded = self.load_language_model("model.name", dtype=self.dtype, int8=c.model.int8)
        self.check_layer(loaded.config.num_layers)
        names = special_tokens(c.sources)
        grown = grow_vocabulary(loaded, names, multiple=c.model.vocab_multiple)
        rules = self.choose_rules(grown.config)
        return replace(grown, params=shard_params(grown.params, self.mesh, rules))

    def check_layer(self, num_layers: int) -> None:
        """Raises a RagJaxError if the model does not have the datastore's layer."""
        layer = self.config.datastore.layer
        if layer > num_layers:
            raise RagJaxError(f"config.datastore.layer={layer}: the model has {num_layers} layers")

    @property
    def new_ids(self) -> list[int]:
        """The ids of the special tokens."""
        return [self.base.tokenizer.token_id(name) for name in special_tokens(self.config.sources)]

    @cached_property
    def format(self) -> Format:
        """The pieces of the packed sequence."""
        c = self.config
        return Format(self.base.tokenizer, c.sources, c.model.max_text)

    def embed(self, questions: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Embeddings of questions by the sentence encoder."""
        return self.encode_queries(self.encoder, questions)

    # Training.

    @property
    def trainable(self) -> Trainable:
        """All weights or an adapter, and the embeddings of the special tokens.

        The rows of the special tokens are trained in both modes, apart from the table: they learn
        faster, and with an adapter the table needs no gradient.
        """
        c, ids, dtype = self.config, self.new_ids, self.dtype
        put = put_tokens if c.tuning.mode == "full" else overlay_tokens

        def init(params: PyTree) -> PyTree[Array]:
            tokens = cast(take_tokens(params, ids), jnp.float32)
            return {"model": init_trained(c.tuning, params, seed=c.seed), "new_tokens": tokens}

        def merge(trained: PyTree, base: PyTree) -> PyTree[Array]:
            params = merge_trained(c.tuning, trained["model"], base, dtype=dtype)
            return put(params, cast(trained["new_tokens"], dtype), ids)

        params = self.base.params
        return Trainable(
            base=params,
            frozen=None if c.tuning.mode == "full" else params,
            init=init,
            merge=merge,
            rules=DECODER_RULES,
            mesh=self.mesh,
            rates={"new_tokens": c.tuning.new_token_rate},
        )

    @cached_property
    def losses(self) -> dict[str, LossFunction]:
        """Both stages' losses, made once, so that both stages share compiled programs."""
        c = self.config
        model = set_passes(self.base.model, c.tuning)
        return make_losses(model, self.trainable, beta=c.stage2.beta)

    def make_examples(
        self, context: StageContext, *, closed_book: bool = False, writes: bool = True
    ) -> list[Example]:
        """The training questions as rows of tokens; see `data.make_examples`."""
        c, contexts = self.config, context.path("contexts", "contexts.jsonl")
        labels = read_labels(context.path("labels", "labels.jsonl"), self.model_fingerprint)
        options = {"extra_mean": c.extra_mean, "limit": self.base.config.max_length, "seed": c.seed}
        options |= {"closed_book": closed_book, "writes": writes}
        return make_examples(self.format, self.train_questions, contexts, labels, **options)

    @property
    def fit_examples(self) -> Callable[..., None]:
        """`train.fit_examples` with the run's model, losses and settings."""
        c = self.config
        settings = {"reduction": c.loss_reduction, "seed": c.seed, "profile_steps": c.profile_steps}
        model = {"base": self.base, "trainable": self.trainable, "losses": self.losses}
        return partial(fit_examples, **model, **settings)

    # Room on the disk.

    @property
    def rooms(self) -> dict[str, Callable[[], Room]]:
        """The estimates of stages of every run."""
        trainings = dict.fromkeys(("stage1", "stage2"), self.estimate_training)
        return {"index": self.estimate_index, "datastore": self.estimate_datastore, **trainings}

    def estimate_training(self) -> Room:
        """What a training writes: all weights or an adapter, and the special tokens' embeddings."""
        c, model = self.config, load_config(self.config.model.name)
        rows = len(special_tokens(c.sources)) + c.model.vocab_multiple
        # Embeddings and head, apart and, where all is trained, as rows of the grown tables.
        tables = [(rows, model.hidden_size)] * (4 if c.tuning.mode == "full" else 2)
        return train_room(weigh_trained(c.tuning, model) + weigh_arrays(tables))

    def estimate_index(self) -> Room:
        """What the index stage writes: all embeddings, and those of each searched source."""
        selected = sources.select_all(self.config.sources, self.passages).values()
        indexed = sum(map(len, selected))
        return index_room(self.config.encoder.name, len(self.passages), indexed=indexed)

    def estimate_datastore(self) -> Room:
        """What a datastore's entries take, and their parts before they are joined."""
        width = load_config(self.config.model.name).hidden_size + 32  # a key, an id, scores
        entries = weigh_arrays([(len(self.train_questions), width)])
        return entries, entries

    # Inference.

    def open_datastore(self, context: StageContext, stage: str = "datastore") -> Datastore:
        """The policy datastore that a stage filled."""
        path = context.path(stage, "datastore.npz")
        return read_datastore(path, self.config.datastore)

    def open_search(self, context: StageContext, count: int) -> Search:
        """The searched sources over the run's passages; see `sources.search_indices`.

        Args:
            context: of a stage that needs the stage "index".
        """
        encoder, passages = self.fingerprint("encoder.name"), self.passages
        searched = sources.load_indices(context, passages, self.config.sources, encoder=encoder)
        reading = (passages, self.embed, self.format.cut)
        return sources.search_indices(searched, *reading, count=count, reranking=self.reranking)

    def list_found(
        self, context: StageContext, questions: Sequence[str]
    ) -> dict[int, list[Ranked]]:
        """What each searched source's index finds of what is reranked; see `sources.list_found`."""
        encoder, passages = self.fingerprint("encoder.name"), self.passages
        searched = sources.load_indices(context, passages, self.config.sources, encoder=encoder)
        count = self.reranking.count(self.config.answer.passages, len(passages))
        return sources.list_found(searched, self.embed, questions, count=count)

    def open_engine(self, context: StageContext, params: Path | None) -> Engine:
        """A trained model over the run's passages.

        Args:
            context: of a stage that needs the stages "index" and "lengths".
            params: the folder of the trained tree; None for the model before training.
        """
        c, untrained = self.config, self.base.params
        return Engine(
            model=self.base.model,
            params=self.trainable.load_merged(params) if params else untrained,
            format=self.format,
            search=self.open_search(context, c.answer.passages),
            layer=c.datastore.layer,
            batch_size=c.answer.batch_size,
            max_knowledge=c.verbalise.max_tokens,
            knowledge_width=self._count_slots(sources.read_longest(context)),
            max_answer=c.answer.max_tokens,
        )

    def measure_corpus(self, passages: Sequence[Passage]) -> dict[str, int]:
        """See `sources.measure_corpus`; the numbers are kept in the user's cache."""
        names = special_tokens(self.config.sources)
        made_by = {"model": self.model_fingerprint, "names": names, "cut": self.format.max_text}
        measure = partial(sources.measure_corpus, passages, self.format)
        return keep_measured(passages, measure, **made_by)

    def replace_corpus(
        self,
        engine: Engine,
        passages: Sequence[Passage],
        embeddings: Float[np.ndarray, "N E"],
        *,
        longest: int,
    ) -> Engine:
        """An engine that searches other passages.

        Args:
            longest: number of tokens of the longest one, from `measure_corpus`.
        """
        c, encoder = self.config, self.fingerprint("encoder.name")
        searched = sources.build_indices(passages, c.sources, embeddings, c.index, encoder=encoder)
        reading = (passages, self.embed, self.format.cut)
        options = {"count": c.answer.passages, "reranking": self.reranking}
        return replace(
            engine,
            search=sources.search_indices(searched, *reading, **options),
            knowledge_width=self._count_slots(longest),
        )

    def _count_slots(self, longest: int) -> int:
        c = self.config
        return sources.count_slots(longest, c.answer.passages, c.verbalise.max_tokens)

    # Questions.

    @property
    def dev_questions(self) -> Sequence[Question]:
        """The questions that thresholds are chosen on; none where they are given."""
        c = self.config
        return self.choose_questions(self.corpus, "dev", c.questions) if c.route.is_tuned else []

    @cached_property
    def contexts(self) -> int:
        """Number of contexts that each source gives for a training question."""
        return self.count_contexts(self.corpus)

    def count_contexts(self, corpus: Collection) -> int:
        """Number of contexts that every source has: odd, and fewer where there is little.

        A source needs as many passages, and a dataset as many training questions.
        """
        c = self.config
        searched = sources.select_all(c.sources, corpus.passages)
        counts = {c.sources[i].name: len(rows) for i, rows in searched.items()}
        asked = self.choose_questions(corpus, "train", c.train_questions)
        counts["the training set"] = min(Counter(q.dataset for q in asked).values())
        least = min(counts, key=counts.__getitem__)
        count = min(c.contexts, counts[least])
        count -= 1 - count % 2  # the better half of two sources' contexts has to have a majority
        if count < c.contexts:
            few = f"{least} has only {counts[least]}"
            self.note(f"config.contexts={c.contexts}: {count} of each source, because {few}")
        return count

    def check_corpus(self, corpus: Collection) -> None:
        """Raises a RagJaxError if the corpus cannot be trained on and evaluated."""
        c = self.config
        if not self.trains:
            self.check_evaluation(corpus)
            return
        questions = self.choose_questions(corpus, "train", c.train_questions)
        contexts, count = self.count_contexts(corpus), len(questions)
        draw_pool(questions, c.verbalise, contexts=contexts, seed=c.seed)
        if c.datastore.k > count:
            self.note(f"config.datastore.k={c.datastore.k}: all {count} training questions vote")
        self.check_evaluation(corpus)
        if c.route.is_tuned and not any(q.answers for q in corpus.questions.get("dev", [])):
            raise RagJaxError(
                "config.route.tau=None: there are no 'dev' questions with answers to choose it on; "
                "give a number (the paper's is 0.2), or config.data.held_out training questions"
            )

    def check_evaluation(self, corpus: Collection) -> None:
        """Raises a RagJaxError if there are no questions or a source has no passages."""
        c = self.config
        self.choose_questions(corpus, c.evaluate_on, c.questions)
        asked = {"count": c.answer.passages, "setting": "config.answer.passages"}
        for remark in sources.check_sources(corpus.passages, c.sources, **asked):
            self.note(remark)
