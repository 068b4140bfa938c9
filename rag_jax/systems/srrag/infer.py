"""One left-to-right pass: read the question, choose a source, write or fetch knowledge, answer.

Questions are routed in batches; their rows then go on together from the cache that routing left,
whatever their sources, so nothing is read twice. What is compiled is in `steps.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from rag_jax.data.batches import pad_rows, round_up
from rag_jax.decoding.cache import Cache
from rag_jax.models.nn.decoder import Decoder
from rag_jax.pipeline.stage import log
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.srrag import steps
from rag_jax.systems.srrag.data import Format, join_passages
from rag_jax.systems.srrag.steps import Routed

# A source's number and questions to the passages of each as (title, text), best first; none where
# the source has nothing to say.
Search = Callable[[int, Sequence[str]], list[list[tuple[str, str]]]]


class Learned(NamedTuple):
    """Rows with the knowledge of their sources; those of the cache beyond them are padding.

    Attributes:
        cache: questions and knowledge.
        texts: the knowledge.
        written: how many tokens of it the model wrote.
        ended: False where it was still writing when it reached the limit.
        found: False where a searched source had nothing to say.
    """

    cache: Cache
    texts: list[str]
    written: list[int]
    ended: list[bool]
    found: list[bool]

    @property
    def active(self) -> Bool[np.ndarray, "B"]:
        """Which rows of the cache are real."""
        return np.arange(self.cache.real.shape[0]) < len(self.texts)


@dataclass(frozen=True)
class Engine:
    """Everything a pass needs; its methods take and give plain lists.

    Attributes:
        search: the searched sources.
        layer: whose output is the datastore key.
        batch_size: rows of every program.
        max_knowledge: tokens a verbalisation may have.
        knowledge_width: slots for the knowledge that a search finds. Rows that write theirs have
            them too, as the others have slots to write in: one batch holds rows of all sources.
        max_answer: tokens an answer may have.
        writes: whether the model as a source verbalises, or answers at once.
    """

    model: Decoder
    params: Any
    form: Format
    search: Search
    layer: int
    batch_size: int
    max_knowledge: int
    knowledge_width: int
    max_answer: int
    writes: bool = True

    @property
    def room(self) -> int:
        """Tokens a question may have: what knowledge and answer leave of the model's context."""
        knowledge = 1 + max(self.max_knowledge, self.knowledge_width)
        answer = len(self.form.encode_answer_cue()) + self.max_answer
        return self.model.config.max_length - knowledge - answer

    def route(self, questions: Sequence[str]) -> Routed:
        """Routes questions batch by batch; rows of the result beyond them are padding."""
        rows = [self.form.encode_question(question) for question in questions]
        longest = max(map(len, rows))
        if longest > self.room:
            raise RagJaxError(
                f"a question of {longest} tokens is longer than the {self.room} that the model's "
                f"context of {self.model.config.max_length} has for it; shorten it"
            )
        # In few widths: every later program is compiled anew for another one.
        width = round_up(longest, 32)
        parts = []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            arrays = pad_rows(batch, width, pad_id=0, batch=self.batch_size)
            parts.append(
                steps.route(
                    self.model,
                    self.params,
                    *shard_batch(arrays),
                    source_ids=self.form.source_ids,
                    layer=self.layer,
                )
            )
        return steps.join_rows(parts)

    def learn(
        self,
        routed: Routed,
        rows: Sequence[int],
        source: int | Sequence[int],
        questions: Sequence[str],
    ) -> Learned:
        """Gives at most `batch_size` rows of a routed batch what their sources write or find.

        Args:
            source: one for all the rows, or one for each.
        """
        form, count = self.form, len(rows)
        sources = np.broadcast_to(np.asarray(source), count)
        cache = steps.pick_rows(
            routed.cache, np.resize(np.asarray(rows, np.int32), self.batch_size)
        )
        # Rows that only fill the batch have no source.
        padded = np.pad(sources, (0, self.batch_size - count), constant_values=-1)
        cache, *written = steps.verbalise(
            self.model,
            self.params,
            cache,
            *shard_batch(
                (
                    np.asarray(form.source_ids, np.int32)[padded],
                    padded >= 0,
                    (padded == form.internal) & self.writes,
                )
            ),
            max_tokens=self.max_knowledge,
            stop_ids=form.stop_ids,
        )
        # Nothing has waited for the device yet: it writes while the other sources are searched.
        found = self._find_all(sources, [questions[row] for row in rows])
        texts = [join_passages(passages) for passages in found]
        chunks = [form.encode_knowledge(text) if text else [] for text in texts]
        arrays = pad_rows(chunks, self.knowledge_width, pad_id=0, batch=self.batch_size)
        cache = steps.read(self.model, self.params, cache, *shard_batch(arrays))
        tokens, lengths, ended = (array[:count] for array in fetch(tuple(written)))
        own = self._decode(tokens, lengths)
        return Learned(
            cache,
            [text or words for text, words in zip(texts, own, strict=True)],
            lengths.tolist(),
            ended.tolist(),
            [s == form.internal or bool(p) for s, p in zip(sources, found, strict=True)],
        )

    def _find_all(
        self, sources: Int[np.ndarray, "B"], questions: Sequence[str]
    ) -> list[list[tuple[str, str]]]:
        """Passages for questions with a source each; none from the model itself."""
        found: list[list[tuple[str, str]]] = [[] for _ in questions]
        for source in np.unique(sources).tolist():
            if source != self.form.internal:
                rows = np.flatnonzero(sources == source)
                passages = self._find(source, [questions[row] for row in rows])
                for row, texts in zip(rows, passages, strict=True):
                    found[row] = texts
        return found

    def _find(self, source: int, questions: Sequence[str]) -> list[list[tuple[str, str]]]:
        """Passages of a searched source; none from one that can't be read or reached."""
        try:
            return self.search(source, questions)
        except OSError as error:
            name = self.form.sources[source].name
            log(f"source {name}: {error}; {len(questions)} questions go on without it")
            return [[] for _ in questions]

    def _decode(self, tokens: Int[np.ndarray, "B N"], lengths: Int[np.ndarray, "B"]) -> list[str]:
        rows = zip(tokens, lengths, strict=True)
        return [self.form.tokenizer.decode(row[:length]).strip() for row, length in rows]

    def write_answers(self, learned: Learned) -> tuple[list[str], list[int]]:
        """Greedy answers of the real rows, and how many tokens each has."""
        tokens, lengths = steps.answer(
            self.model,
            self.params,
            learned.cache,
            shard_batch(learned.active),
            cue=tuple(self.form.encode_answer_cue()),
            max_tokens=self.max_answer,
            stop_ids=self.form.stop_ids,
        )
        tokens, lengths = (array[: len(learned.texts)] for array in fetch((tokens, lengths)))
        return self._decode(tokens, lengths), lengths.tolist()

    def score_answers(self, learned: Learned, answers: Sequence[str]) -> Float[np.ndarray, "B"]:
        """Log-likelihoods of given answers, for the real rows."""
        cue = self.form.encode_answer_cue()
        rows = [[*cue, *self.form.encode_answer(text)] for text in answers]
        width = round_up(max(map(len, rows)), 16)
        arrays = shard_batch(pad_rows(rows, width, pad_id=0, batch=self.batch_size))
        scores = steps.score_answer(
            self.model, self.params, learned.cache, *arrays, cue_length=len(cue)
        )
        return fetch(scores)[: len(rows)]

    def answer_questions(
        self,
        routed: Routed,
        rows: Sequence[int],
        source: int | Sequence[int],
        questions: Sequence[str],
    ) -> dict[int, dict[str, Any]]:
        """Knowledge and answers for rows of a routed batch.

        Questions for which a searched source has nothing fall back on what the model writes.

        Args:
            source: one for all the rows, or one for each.

        Returns:
            For each row `source`, whose knowledge was read; `probabilities`, `knowledge` and
            `prediction`; `prompt_tokens` that were given and `generated_tokens` that the model
            wrote, ends left out; `cut_off`, whether its writing reached the limit; and
            `fell_back`.
        """
        sources = np.broadcast_to(np.asarray(source), len(rows))
        # By source, for a batch in which no row writes skips that, and so it does with reading.
        order = np.argsort(sources, kind="stable")
        probabilities = fetch(routed.probabilities)
        cue, records, missing = len(self.form.encode_answer_cue()), {}, []
        for start in range(0, len(rows), self.batch_size):
            places = order[start : start + self.batch_size]
            batch, numbers = [int(rows[place]) for place in places], sources[places].tolist()
            learned = self.learn(routed, batch, numbers, questions)
            predictions, lengths = self.write_answers(learned)
            for i, (row, number) in enumerate(zip(batch, numbers, strict=True)):
                if not learned.found[i]:
                    missing.append(row)
                    continue
                given = len(self.form.encode_question(questions[row])) + 1 + cue
                if number != self.form.internal:
                    given += len(self.form.encode_knowledge(learned.texts[i]))
                records[row] = {
                    "source": self.form.sources[number].name,
                    "probabilities": probabilities[row].tolist(),
                    "knowledge": learned.texts[i],
                    "prediction": predictions[i],
                    "prompt_tokens": given,
                    "generated_tokens": learned.written[i] + lengths[i],
                    "cut_off": not learned.ended[i],
                    "fell_back": False,
                }
        if missing:
            written = self.answer_questions(routed, missing, self.form.internal, questions)
            records |= {row: record | {"fell_back": True} for row, record in written.items()}
        return records
