"""One left-to-right pass: read the question, choose a source, write or fetch knowledge, answer.

Five compiled programs share one cache: `route`, `verbalise`, `read`, `answer` and `score_answer`.
Questions are routed in batches; the rows of each source then go on together from the cache that
routing left, so nothing is read twice.
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
from rag_jax.decoding.generate import decode, last_hidden
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
    """Rows with the knowledge of one source; those of the cache beyond them are padding.

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


@partial(jax.jit, static_argnames=("model", "width", "max_tokens", "stop_ids"))
def verbalise(
    model: Decoder,
    params,
    cache: Cache,
    source_id: int,
    active: Bool[Array, "B"],
    *,
    width: int,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Cache, Int[Array, "B N"], Int[Array, "B"], Bool[Array, "B"]]:
    """Writes the source token and, greedily, knowledge up to `<EOK>` (left out) or the limit.

    Returns:
        The cache, `width` slots longer; the knowledge, its lengths, and where `<EOK>` came in time.
    """
    token = jnp.full((active.shape[0], 1), source_id, jnp.int32)
    output, cache = append(model, params, cache, token, active[:, None])
    decoded = decode(
        model,
        params,
        cache,
        output.hidden[:, 0],
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        active=active,
    )
    cache = grow(decoded.cache, width - 1 - max_tokens)
    return cache, decoded.tokens, decoded.lengths, decoded.finished


@partial(jax.jit, static_argnames="model")
def read(
    model: Decoder, params, cache: Cache, tokens: Int[Array, "B T"], mask: Bool[Array, "B T"]
) -> Cache:
    """Appends a source token and the knowledge that was found."""
    return append(model, params, cache, tokens, mask)[1]


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
        knowledge_width: slots for a source token and its knowledge, the same for every source, so
            that one program answers after all of them.
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

    def route(self, questions: Sequence[str]) -> Routed:
        """Routes questions batch by batch; rows of the result beyond them are padding."""
        rows = [self.form.encode_question(question) for question in questions]
        # In few widths: every later program is compiled anew for another one.
        width = round_up(max(map(len, rows)), 32)
        if width > self.model.config.max_length:
            raise RagJaxError(
                f"a question of {max(map(len, rows))} tokens is longer than the model's context "
                f"of {self.model.config.max_length}; shorten it"
            )
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
        self, routed: Routed, rows: Sequence[int], source: int, questions: Sequence[str]
    ) -> Learned:
        """Gives at most `batch_size` rows of a routed batch what one source writes or finds."""
        cache = pick_rows(routed.cache, np.resize(np.asarray(rows, np.int32), self.batch_size))
        token, count = self.form.source_ids[source], len(rows)
        if source != self.form.internal:
            found = self._find(source, [questions[row] for row in rows])
            texts = [join_passages(passages) for passages in found]
            chunks = [[token, *self.form.encode_knowledge(text)] for text in texts]
        elif self.writes:
            return self._verbalise(cache, count)
        else:
            found, texts, chunks = [True] * count, [""] * count, [[token]] * count
        arrays = pad_rows(chunks, self.knowledge_width, pad_id=0, batch=self.batch_size)
        cache = read(self.model, self.params, cache, *shard_batch(arrays))
        return Learned(cache, texts, [0] * count, [True] * count, list(map(bool, found)))

    def _verbalise(self, cache: Cache, count: int) -> Learned:
        """Lets the model write, in the first `count` rows of a cache."""
        cache, tokens, lengths, ended = verbalise(
            self.model,
            self.params,
            cache,
            self.form.source_ids[self.form.internal],
            shard_batch(np.arange(self.batch_size) < count),
            width=self.knowledge_width,
            max_tokens=self.max_knowledge,
            stop_ids=self.form.stop_ids,
        )
        tokens, lengths, ended = (array[:count] for array in fetch((tokens, lengths, ended)))
        texts = self._decode(tokens, lengths)
        return Learned(cache, texts, lengths.tolist(), ended.tolist(), [True] * count)

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
        self, routed: Routed, rows: Sequence[int], source: int, questions: Sequence[str]
    ) -> dict[int, dict[str, Any]]:
        """Knowledge and answers for rows of a routed batch that go to one source.

        Questions for which a searched source has nothing fall back on what the model writes.

        Returns:
            For each row `source`, whose knowledge was read; `probabilities`, `knowledge` and
            `prediction`; `prompt_tokens` that were given and `generated_tokens` that the model
            wrote, ends left out; `cut_off`, whether its writing reached the limit; and
            `fell_back`.
        """
        probabilities = fetch(routed.probabilities)
        cue, records, missing = len(self.form.encode_answer_cue()), {}, []
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            learned = self.learn(routed, batch, source, questions)
            predictions, lengths = self.write_answers(learned)
            for i, row in enumerate(batch):
                if not learned.found[i]:
                    missing.append(row)
                    continue
                given = len(self.form.encode_question(questions[row])) + 1 + cue
                if source != self.form.internal:
                    given += len(self.form.encode_knowledge(learned.texts[i]))
                records[row] = {
                    "source": self.form.sources[source].name,
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
