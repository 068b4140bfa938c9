"""One left-to-right pass: read the question, choose a source, write or fetch knowledge, answer.

Five compiled programs share one cache: `route`, `verbalise`, `read`, `answer` and `score_answer`.
Questions are routed in batches; their rows then go on together from the cache that routing left,
whatever their sources, so nothing is read twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rag_jax.data.batches import pad_rows, round_up
from rag_jax.decoding.cache import Cache, append, grow, init_cache
from rag_jax.decoding.generate import last_hidden
from rag_jax.decoding.loop import decode
from rag_jax.errors import RagJaxError
from rag_jax.hosts import fetch
from rag_jax.losses import token_logprobs
from rag_jax.models.decoder import Decoder
from rag_jax.sharding import constrain_rows, shard_batch
from rag_jax.stage import say
from rag_jax.systems.srrag.data import Format, join_passages

# A source's number and questions to the passages of each as (title, text), best first; none where
# the source has nothing to say.
Search = Callable[[int, Sequence[str]], list[list[tuple[str, str]]]]


class Routed(NamedTuple):
    """What the model says at `<EOQ>`.

    Attributes:
        cache: the question.
        probabilities: `[B, S]`, `p_M(s | q)` over the source tokens alone.
        key: `[B, D]`, the hidden state at `<EOQ>` after the datastore's layer.
    """

    cache: Cache
    probabilities: Float[Array, "B S"]
    key: Float[Array, "B D"]


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


@partial(jax.jit, static_argnames=("model", "source_ids", "layer"))
def route(
    model: Decoder,
    params,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    source_ids: tuple[int, ...],
    layer: int,
) -> Routed:
    """Reads the questions up to `<EOQ>`."""
    cache = init_cache(model, tokens.shape[0], dtype=params["embed"]["embedding"].dtype)
    output, cache = append(model, params, cache, tokens, mask, tap=layer)
    logits = model.apply({"params": params}, last_hidden(output.hidden, mask), method="logits")
    chosen = logits[:, jnp.asarray(source_ids)].astype(jnp.float32)
    return Routed(cache, jax.nn.softmax(chosen, axis=-1), last_hidden(output.tapped, mask))


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids"))
def verbalise(
    model: Decoder,
    params,
    cache: Cache,
    source_ids: Int[Array, "B"],
    active: Bool[Array, "B"],
    writing: Bool[Array, "B"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Cache, Int[Array, "B N"], Int[Array, "B"], Bool[Array, "B"]]:
    """Appends each row's source token; rows that are `writing` then write, greedily, knowledge up
    to `<EOK>` (left out) or the limit.

    Returns:
        The cache, `1 + max_tokens` slots longer; the knowledge, its lengths, and where `<EOK>` came
        in time.
    """
    output, cache = append(model, params, cache, source_ids[:, None], active[:, None])
    decoded = decode(
        model,
        params,
        cache,
        output.hidden[:, 0],
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        active=writing,
    )
    return decoded.cache, decoded.tokens, decoded.lengths, decoded.finished


@partial(jax.jit, static_argnames="model")
def read(
    model: Decoder, params, cache: Cache, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Cache:
    """Appends the knowledge that was found; empty slots, at no cost, where no row has any."""
    return jax.lax.cond(
        mask.any(),
        lambda cache: append(model, params, cache, tokens, mask)[1],
        lambda cache: grow(cache, tokens.shape[1]),
        cache,
    )


@partial(jax.jit, static_argnames=("model", "cue", "max_tokens", "stop_ids"))
def answer(
    model: Decoder,
    params,
    cache: Cache,
    active: Bool[Array, "B"],
    *,
    cue: tuple[int, ...],
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """Closes the knowledge with `<EOK>`, asks for the answer and writes it greedily."""
    tokens = jnp.tile(jnp.asarray(cue, jnp.int32), (active.shape[0], 1))
    output, cache = append(model, params, cache, tokens, jnp.tile(active[:, None], len(cue)))
    decoded = decode(
        model,
        params,
        cache,
        output.hidden[:, -1],
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        active=active,
    )
    return decoded.tokens, decoded.lengths


@partial(jax.jit, static_argnames=("model", "cue_length"))
def score_answer(
    model: Decoder,
    params,
    cache: Cache,
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    cue_length: int,
) -> Float[Array, "B"]:
    """`log p(answer | question, knowledge)` of given answers, which follow the cue in `tokens`."""
    output, _ = append(model, params, cache, tokens, mask)
    hidden = output.hidden[:, cue_length - 1 : -1]
    logits = model.apply({"params": params}, hidden, method="logits")
    logprobs = token_logprobs(logits, tokens[:, cue_length:])
    return (logprobs * mask[:, cue_length:]).sum(axis=-1)


@jax.jit
def pick_rows(cache: Cache, rows: Int[Array, "B"]) -> Cache:
    """The caches of some rows, in the order given."""
    return jax.tree.map(lambda leaf: constrain_rows(leaf[rows], len(rows), free=True), cache)


@jax.jit
def join_rows(parts: Sequence[Routed]) -> Routed:
    """The rows of several batches as one."""

    def join(*leaves):
        joined = jnp.concatenate(leaves)
        return constrain_rows(joined, len(joined), free=True)

    return jax.tree.map(join, *parts)


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
                route(
                    self.model,
                    self.params,
                    *shard_batch(arrays),
                    source_ids=self.form.source_ids,
                    layer=self.layer,
                )
            )
        return join_rows(parts)

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
        cache = pick_rows(routed.cache, np.resize(np.asarray(rows, np.int32), self.batch_size))
        # Rows that only fill the batch have no source.
        padded = np.pad(sources, (0, self.batch_size - count), constant_values=-1)
        cache, *written = verbalise(
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
        cache = read(self.model, self.params, cache, *shard_batch(arrays))
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
            say(f"source {name}: {error}; {len(questions)} questions go on without it")
            return [[] for _ in questions]

    def _decode(self, tokens: Int[np.ndarray, "B N"], lengths: Int[np.ndarray, "B"]) -> list[str]:
        rows = zip(tokens, lengths, strict=True)
        return [self.form.tokenizer.decode(row[:length]).strip() for row, length in rows]

    def write_answers(self, learned: Learned) -> tuple[list[str], list[int]]:
        """Greedy answers of the real rows, and how many tokens each has."""
        tokens, lengths = answer(
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
        scores = score_answer(self.model, self.params, learned.cache, *arrays, cue_length=len(cue))
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
