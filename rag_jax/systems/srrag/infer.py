"""One left-to-right pass: read the question, choose a source, write or retrieve knowledge, answer.

Questions are routed in batches. Their rows then continue together from the cache of routing,
whatever their sources, so nothing is read twice. The compiled steps are in `steps.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rag_jax.data.batches import double_up, pad_rows, round_up
from rag_jax.data.passages import Passage
from rag_jax.decoding.cache import Cache
from rag_jax.models.nn.decoder import Decoder
from rag_jax.pipeline.citations import Citation
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.memory import return_freed
from rag_jax.runtime.progress import log
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.srrag import steps
from rag_jax.systems.srrag.data import Format, join_passages
from rag_jax.systems.srrag.steps import Routed


class FoundText(NamedTuple):
    """A passage of a source's index.

    Attributes:
        title, text: what is read of it.
        score: of the index, or of the reranker.
        ranks: `list_ranks` of one that was reranked.
    """

    title: str
    text: str
    id: str
    score: float
    ranks: Mapping[str, int] = MappingProxyType({})


# A source's number and questions to the passages of each question as (title, text), best first; no
# passage where the source has none. They are `FoundText`s where the source has an index.
Search = Callable[[int, Sequence[str]], list[list[tuple[str, str]]]]


def list_places(passages: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """The ids, scores and ranks of the passages that an index found; none of others."""
    found = [passage for passage in passages if isinstance(passage, FoundText)]
    return [{"id": own.id, "score": own.score, **own.ranks} for own in found]


def cite(passages: Sequence[tuple[str, str]]) -> list[Citation]:
    """The passages that were read; the id of one without an id is its title."""
    return [
        Citation(Passage(own.id, own.title, own.text), own.score)
        if isinstance(own, FoundText)
        else Citation(Passage(own[0], *own), None)
        for own in passages
    ]


class Answers(NamedTuple):
    """Answers: texts, numbers of tokens, and likelihoods in nats a token with the stop token."""

    texts: list[str]
    lengths: list[int]
    likelihoods: list[float]


class KnowledgeBatch(NamedTuple):
    """Rows with the knowledge of their sources; further rows of the cache are padding.

    Attributes:
        written: number of tokens of the knowledge that the model wrote.
        ended: False where the limit cut the model's knowledge off.
        found: False where a searched source had no passage.
        places: of the passages that an index found.
    """

    cache: Cache
    texts: list[str]
    written: list[int]
    ended: list[bool]
    found: list[bool]
    places: list[list[dict[str, Any]]]

    @property
    def active(self) -> Bool[np.ndarray, "B"]:
        """False on padding rows of the cache."""
        return np.arange(self.cache.token_mask.shape[0]) < len(self.texts)


@dataclass(frozen=True)
class Engine:
    """The model and settings of a pass; the methods take and give plain lists.

    Attributes:
        layer: number of the layer whose output is the datastore key.
        batch_size: number of rows of every program.
        max_knowledge: largest number of tokens of a verbalisation.
        knowledge_width: cache slots reserved for retrieved knowledge. Allocated for every row,
            because one batch mixes sources.
        max_answer: largest number of tokens of an answer.
        writes: whether the model as a source verbalises, or answers at once.
    """

    model: Decoder
    params: Any
    format: Format
    search: Search
    layer: int
    batch_size: int
    max_knowledge: int
    knowledge_width: int
    max_answer: int
    writes: bool = True

    @property
    def room(self) -> int:
        """Largest number of tokens of a question: the context without knowledge and answer."""
        knowledge = 1 + max(self.max_knowledge, self.knowledge_width)
        answer = len(self.format.encode_answer_cue()) + self.max_answer
        return self.model.config.max_length - knowledge - answer

    def route(self, questions: Sequence[str]) -> Routed:
        """Routes questions batch by batch; further rows of the result are padding.

        Raises:
            RagJaxError: a question is too long for the model's context.
        """
        rows = [self.format.encode_question(question) for question in questions]
        longest = max(map(len, rows))
        if longest > self.room:
            raise RagJaxError(
                f"a question of {longest} tokens is longer than the {self.room} that the model's "
                f"context of {self.model.config.max_length} has for it; shorten it"
            )
        # Few widths: every later program is compiled for each.
        width = min(double_up(longest, 32), round_up(self.room, 32))
        options = {"source_ids": self.format.source_ids}
        parts = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            arrays = shard_batch(pad_rows(batch, width, pad_id=0, batch=self.batch_size))
            parts.append(steps.route(self.model, self.params, *arrays, layer=self.layer, **options))
        return parts[0] if len(parts) == 1 else steps.join_rows(parts)

    def gather_knowledge(
        self,
        routed: Routed,
        rows: Sequence[int],
        source: int | Sequence[int],
        questions: Sequence[str],
    ) -> KnowledgeBatch:
        """The knowledge that sources write or find for at most `batch_size` routed questions.

        Args:
            routed: of all questions.
            rows: the questions, by their rows in `routed`.
            source: one number for all rows, or one for each.
            questions: all questions, in the order of `routed`.
        """
        format, count, lm = self.format, len(rows), (self.model, self.params)
        sources = np.broadcast_to(np.asarray(source), count)
        picked = np.resize(np.asarray(rows, np.int32), self.batch_size)
        # Padding rows have no source.
        padded = np.pad(sources, (0, self.batch_size - count), constant_values=-1)
        tokens = np.asarray(format.source_ids, np.int32)[padded]
        writing = (padded == format.internal) & self.writes
        arrays = shard_batch((tokens, padded >= 0, writing))
        limits = {"max_tokens": self.max_knowledge, "stop_ids": format.stop_ids}
        cache = steps.pick_rows(routed.cache, picked)
        cache, *written = steps.verbalise(*lm, cache, *arrays, **limits)
        # Nothing has waited for the device yet: it writes while the searched sources are searched.
        found = self._find_all(sources, [questions[row] for row in rows])
        texts = [join_passages(passages) for passages in found]
        chunks = [format.encode_knowledge(text) if text else [] for text in texts]
        arrays = pad_rows(chunks, self.knowledge_width, pad_id=0, batch=self.batch_size)
        cache = steps.read(*lm, cache, *shard_batch(arrays))
        tokens, lengths, ended = (array[:count] for array in fetch(tuple(written)))
        pairs = zip(texts, self._decode(tokens, lengths), strict=True)
        known = [text or verbalised for text, verbalised in pairs]
        has = [s == format.internal or bool(p) for s, p in zip(sources, found, strict=True)]
        places = list(map(list_places, found))
        return KnowledgeBatch(cache, known, lengths.tolist(), ended.tolist(), has, places)

    def _find_all(
        self, sources: Int[np.ndarray, "B"], questions: Sequence[str]
    ) -> list[list[tuple[str, str]]]:
        """Passages for questions that have a source each; none for the model itself."""
        found: list[list[tuple[str, str]]] = [[] for _ in questions]
        for source in sorted({*sources.tolist()} - {self.format.internal}):
            rows = np.flatnonzero(sources == source)
            passages = self.find_passages(source, [questions[row] for row in rows])
            for row, texts in zip(rows, passages, strict=True):
                found[row] = texts
        return found

    def find_passages(self, source: int, questions: Sequence[str]) -> list[list[tuple[str, str]]]:
        """Passages of a searched source; none if the source cannot be read or reached."""
        try:
            return self.search(source, questions)
        except OSError as error:
            name = self.format.sources[source].name
            log(f"source {name}: {error}; {len(questions)} questions go on without it")
            return [[] for _ in questions]

    def _decode(self, tokens: Int[np.ndarray, "B N"], lengths: Int[np.ndarray, "B"]) -> list[str]:
        rows = zip(tokens, lengths, strict=True)
        return [self.format.tokenizer.decode(row[:length]).strip() for row, length in rows]

    def write_answers(self, knowledge: KnowledgeBatch) -> Answers:
        """Greedy answers."""
        inputs = self.model, self.params, knowledge.cache, shard_batch(knowledge.active)
        limits = {"max_tokens": self.max_answer, "stop_ids": self.format.stop_ids}
        written = fetch(steps.answer(*inputs, cue=tuple(self.format.encode_answer_cue()), **limits))
        tokens, lengths, likelihoods = (array[: len(knowledge.texts)] for array in written)
        return Answers(self._decode(tokens, lengths), lengths.tolist(), likelihoods.tolist())

    def score_answers(
        self, knowledge: KnowledgeBatch, answers: Sequence[str]
    ) -> Float[np.ndarray, "B"]:
        """Log-likelihoods in nats of given answers."""
        cue = self.format.encode_answer_cue()
        rows = [[*cue, *self.format.encode_answer(text)] for text in answers]
        width = round_up(max(map(len, rows)), 16)
        arrays = shard_batch(pad_rows(rows, width, pad_id=0, batch=self.batch_size))
        inputs = self.model, self.params, knowledge.cache, *arrays
        return fetch(steps.score_answer(*inputs, cue_length=len(cue)))[: len(rows)]

    def answer_questions(
        self,
        routed: Routed,
        rows: Sequence[int],
        source: int | Sequence[int],
        questions: Sequence[str],
    ) -> dict[int, dict[str, Any]]:
        """Knowledge and answers for routed questions.

        A question for which a searched source has no passage falls back on the model itself.

        Args:
            routed: as for `gather_knowledge`, as are `rows`, `source` and `questions`.

        Returns:
            For each row `source`, the name of the source that was read; `probabilities` of all
            sources, `knowledge` and `prediction`; `prompt_tokens` read and `generated_tokens`
            written, without stop tokens; `cut_off`, whether the limit cut the knowledge off, and
            `answer_cut_off`, the answer; and `fell_back`. `passages` has the ids, scores and ranks
            of passages that an index found.
        """
        sources = np.broadcast_to(np.asarray(source), len(rows))
        # Ordered by source: a batch in which no row writes, or none reads, skips that step.
        order = np.argsort(sources, kind="stable")
        probabilities = fetch(routed.probabilities)
        cue, records, missing = len(self.format.encode_answer_cue()), {}, []
        for start in range(0, len(rows), self.batch_size):
            places = order[start : start + self.batch_size]
            batch, numbers = [int(rows[place]) for place in places], sources[places].tolist()
            knowledge = self.gather_knowledge(routed, batch, numbers, questions)
            predictions, lengths, _ = self.write_answers(knowledge)
            for i, (row, number) in enumerate(zip(batch, numbers, strict=True)):
                if not knowledge.found[i]:
                    missing.append(row)
                    continue
                read = len(self.format.encode_question(questions[row])) + 1 + cue
                if number != self.format.internal:
                    read += len(self.format.encode_knowledge(knowledge.texts[i]))
                records[row] = {
                    "source": self.format.sources[number].name,
                    "probabilities": probabilities[row].tolist(),
                    "knowledge": knowledge.texts[i],
                    "prediction": predictions[i],
                    "prompt_tokens": read,
                    "generated_tokens": knowledge.written[i] + lengths[i],
                    "cut_off": not knowledge.ended[i],
                    "answer_cut_off": lengths[i] >= self.max_answer,
                    "fell_back": False,
                    **({"passages": knowledge.places[i]} if knowledge.places[i] else {}),
                }
            del knowledge  # the next one needs its room
            return_freed()
        if missing:
            written = self.answer_questions(routed, missing, self.format.internal, questions)
            records |= {row: record | {"fell_back": True} for row, record in written.items()}
        return records
