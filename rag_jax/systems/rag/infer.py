"""Decoding (Lewis et al. 2020, section 2.5): RAG-Token, RAG-Sequence Thorough and Fast, labels.

Four compiled programs share one cache: `read` reads each passage with its question, once;
`write_token` decodes RAG-Token; `propose` searches each document's answers for RAG-Sequence and
`score` gives any answer's likelihood under every document, on the cache that `read` left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from rag_jax.data.batches import pad_rows, round_up
from rag_jax.decoding.beams import BeamConfig, Beams, has_probability, search_beams
from rag_jax.decoding.cache import Cache, append, fork
from rag_jax.decoding.prompts import check_prompts, read_prompts
from rag_jax.losses import mix_documents, token_logprobs
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import count_data_rows, shard_batch
from rag_jax.systems.rag.data import Example, Format, Passage, make_examples, pack_inputs

Answer = tuple[str, float]  # a text and its log-probability in nats
Way = Literal["token", "fast", "thorough"]


class Candidates(NamedTuple):
    """The distinct answers that any of a question's documents gave, without gaps.

    Attributes:
        tokens: `[B, C, T]`, the stop token included, padded with 0.
        lengths: `[B, C]`; 0 where a question has fewer answers.
        logprobs: `[B, K, C]`, `log p(y|x,z)` where `y` is among the beams of `z`, else `MASKED`.
    """

    tokens: Int[Array, "B C T"]
    lengths: Int[Array, "B C"]
    logprobs: Float[Array, "B K C"]


read = jax.jit(read_prompts, static_argnames="model")
mix = jax.jit(mix_documents)


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids", "search"))
def write_token(
    model: Decoder | Bart,
    params,
    cache: Cache,
    hidden: Float[Array, "R D"],
    doc_scores: Float[Array, "B K"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    search: BeamConfig,
) -> Beams:
    """RAG-Token: beams over the mixture of all documents' next-token distributions.

    Args:
        doc_scores: logits of `p(z|x)`; `MASKED` on documents that are not there.
    """
    return search_beams(
        model,
        params,
        cache,
        hidden,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        search=search,
        doc_scores=doc_scores,
        active=has_probability(doc_scores).any(axis=1),
    )


@partial(jax.jit, static_argnames=("model", "max_tokens", "stop_ids", "search"))
def propose(
    model: Decoder | Bart,
    params,
    cache: Cache,
    hidden: Float[Array, "R D"],
    doc_scores: Float[Array, "B K"],
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    search: BeamConfig,
) -> Candidates:
    """RAG-Sequence's candidates: the beams of every document by itself, each answer once."""
    found = search_beams(
        model,
        params,
        cache,
        hidden,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        search=search,
        active=has_probability(doc_scores).reshape(-1),
    )
    return unite(found, docs=doc_scores.shape[1])


def unite(found: Beams, *, docs: int) -> Candidates:
    """The distinct answers among the beams of a question's documents."""
    rows, beams, width = found.tokens.shape
    stopped = found.stops >= 0
    lengths = found.lengths + stopped
    tokens = jnp.pad(found.tokens, ((0, 0), (0, 0), (0, 1)))
    at_end = jnp.arange(width + 1)[None, None] == found.lengths[..., None]
    tokens = jnp.where(at_end & stopped[..., None], found.stops[..., None], tokens)

    tokens = tokens.reshape(rows // docs, docs * beams, width + 1)
    lengths, real = (x.reshape(tokens.shape[:2]) for x in (lengths, found.real))
    same = (tokens[:, :, None] == tokens[:, None]).all(axis=-1)
    same &= (lengths[:, :, None] == lengths[:, None]) & real[:, :, None] & real[:, None]
    new = real & (jnp.argmax(same, axis=2) == jnp.arange(docs * beams)[None])
    order = jnp.argsort(~new, axis=1, stable=True)

    def pick(array):
        picked = jax.vmap(lambda row, places: row[places])(array, order)
        kept = jnp.take_along_axis(new, order, axis=1)
        return picked * kept.reshape(*kept.shape, *[1] * (array.ndim - 2))

    # Which of each document's beams, of which one at most, is the answer.
    given = pick(same.astype(jnp.int32)).reshape(*lengths.shape, docs, beams) > 0
    logprobs = jnp.where(given, found.logprobs.reshape(-1, 1, docs, beams), MASKED).max(axis=-1)
    return Candidates(pick(tokens), pick(lengths), logprobs.swapaxes(1, 2))


@partial(jax.jit, static_argnames=("model", "chunk"))
def score(
    model: Decoder | Bart,
    params,
    cache: Cache,
    hidden: Float[Array, "R D"],
    tokens: Int[Array, "B C T"],
    lengths: Int[Array, "B C"],
    known: Float[Array, "B K C"] | None = None,
    *,
    chunk: int,
) -> Float[Array, "B K C"]:
    """`log p(y|x,z)` of every answer under every document, in nats; `MASKED` where it has no token.

    Args:
        cache: the documents', as `read` left it; nothing in it is read again.
        tokens: answers with their stop token, if one ended them.
        known: what `propose` found of it; `MASKED` where an answer is to be scored.
        chunk: how many answers go through the model together, a divisor of `C`. Chunks behind the
            last answer that any document has to score cost nothing.
    """
    questions, count, width = tokens.shape
    docs = hidden.shape[0] // questions
    if known is None:
        known = jnp.full((questions, docs, count), MASKED)
    wanted = (lengths > 0)[:, None] & ~has_probability(known)
    # Each document's own order, those that it has to score first.
    order = jnp.argsort(~wanted, axis=2, stable=True)
    tokens, lengths = (jax.vmap(lambda x, i: x[i])(x, order) for x in (tokens, lengths))
    logits = model.apply({"params": params}, hidden, method="logits")
    first = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1).reshape(questions, docs, -1)
    first = jnp.take_along_axis(first, tokens[..., 0], axis=2)
    behind = fork(model, cache, chunk)

    def more(state):
        place, _ = state
        return place < wanted.sum(axis=2).max()

    def step(state):
        place, rest = state
        part = jax.lax.dynamic_slice_in_dim(tokens, place, chunk, axis=2).reshape(-1, width)
        size = jax.lax.dynamic_slice_in_dim(lengths, place, chunk, axis=2).reshape(-1, 1)
        real = jnp.arange(width)[None] < size
        output, _ = append(model, params, behind, part[:, :-1], real[:, :-1])
        logits = model.apply({"params": params}, output.hidden, method="logits")
        logprobs = (token_logprobs(logits, part[:, 1:]) * real[:, 1:]).sum(axis=-1)
        logprobs = logprobs.reshape(questions, docs, chunk)
        return place + chunk, jax.lax.dynamic_update_slice_in_dim(rest, logprobs, place, axis=2)

    rest = jnp.zeros((questions, docs, count), jnp.float32)
    _, rest = jax.lax.while_loop(more, step, (jnp.int32(0), rest))
    found = jnp.take_along_axis(first + rest, jnp.argsort(order, axis=2), axis=2)
    return jnp.where(wanted, found, known)


@dataclass(frozen=True)
class Engine:
    """Everything decoding needs; its methods take and give plain lists.

    Attributes:
        max_tokens: tokens an answer may have.
        search: the beams of RAG-Token, and of each document in RAG-Sequence.
        batch_size: questions of a program; a multiple of the mesh's data rows.
    """

    model: Decoder | Bart
    params: Any
    form: Format
    max_tokens: int
    search: BeamConfig
    batch_size: int = 16

    def answer(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[Passage | None]],
        doc_scores: Float[np.ndarray, "N K"],
        *,
        ways: Sequence[Way],
    ) -> dict[Way, list[list[Answer]]]:
        """Answers to each question, best first, in one or several ways from one reading.

        - "token": RAG-Token's, by their length-normalised score.
        - "fast": RAG-Sequence's, by `sum_z p(z|x) p(y|x,z)` with `p(y|x,z) = 0` where `y` is not
          among the beams of `z`.
        - "thorough": the same answers, each scored under every document.

        Args:
            passages: `K` for each question.
            doc_scores: logits of `p(z|x)`.

        Raises:
            RagJaxError: as `make_examples`, or something is too long for the model.
        """
        answers: dict[Way, list[list[Answer]]] = {way: [[] for _ in questions] for way in ways}
        for picked, cache, hidden, scores in self._read(questions, passages, doc_scores):
            found = {}
            if "token" in ways:
                found["token"] = self._write_token(cache, hidden, scores)
            if {"fast", "thorough"} & {*ways}:
                found |= self._write_sequence(cache, hidden, scores, "thorough" in ways)
            for way in ways:
                for i, best in zip(picked, found[way], strict=False):
                    answers[way][i] = best
        return answers

    def _write_token(self, cache: Cache, hidden, scores) -> list[list[Answer]]:
        found = fetch(write_token(self.model, self.params, cache, hidden, scores, **self._settings))
        return [
            [
                (self._decode(tokens[:length]), float(logprob))
                for tokens, length, logprob, real in zip(*row, strict=True)
                if real
            ]
            for row in zip(found.tokens, found.lengths, found.logprobs, found.real, strict=True)
        ]

    def _write_sequence(
        self, cache: Cache, hidden, scores, thorough: bool
    ) -> dict[Way, list[list[Answer]]]:
        found = propose(self.model, self.params, cache, hidden, scores, **self._settings)
        marginals = {"fast": mix(scores, found.logprobs)}
        tokens, lengths = fetch((found.tokens, found.lengths))
        if thorough:
            width = min(round_up(lengths.max(), 8), tokens.shape[2])
            logprobs = score(
                self.model,
                self.params,
                cache,
                hidden,
                found.tokens[:, :, :width],
                found.lengths,
                found.logprobs,
                chunk=self.search.num_beams,
            )
            marginals["thorough"] = mix(scores, logprobs)
        return {
            way: [
                [
                    (self._decode(tokens[b, c, : lengths[b, c]]), float(marginal[c]))
                    for c in np.argsort(-marginal, kind="stable")
                    if lengths[b, c]
                ]
                for b, marginal in enumerate(values)
            ]
            for way, values in fetch(marginals).items()
        }

    def classify(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[Passage | None]],
        doc_scores: Float[np.ndarray, "N K"],
        labels: Sequence[str],
    ) -> Float[np.ndarray, "N labels"]:
        """`p(label|x)`: each label's likelihood as the answer, marginalised as RAG-Sequence does.

        Probabilities are relative to those of all labels. For a label of one token RAG-Token's
        would be the same, as the paper says of FEVER.

        Raises:
            RagJaxError: as `answer`, or there are fewer than two labels, or two alike.
        """
        rows = [self.form.encode_answer(label) for label in labels]
        if len(labels) < 2 or len({tuple(row) for row in rows}) < len(labels):
            raise RagJaxError(f"labels={list(labels)}: give at least two different ones")
        width = max(map(len, rows))
        tokens, _ = pad_rows(rows, width, pad_id=0)
        lengths = np.asarray([len(row) for row in rows], np.int32)
        result = np.empty((len(questions), len(labels)), np.float32)
        for picked, cache, hidden, scores in self._read(questions, passages, doc_scores):
            batch = len(scores)
            given = shard_batch(
                (np.tile(tokens[None], (batch, 1, 1)), np.tile(lengths, (batch, 1)))
            )
            logprobs = score(self.model, self.params, cache, hidden, *given, chunk=len(labels))
            marginal = fetch(mix(scores, logprobs))[: len(picked)]
            result[picked] = np.exp(marginal - np.logaddexp.reduce(marginal, axis=1, keepdims=True))
        return result

    @property
    def _settings(self) -> dict[str, Any]:
        stop_ids = self.form.stop_ids
        return {"max_tokens": self.max_tokens, "stop_ids": stop_ids, "search": self.search}

    def _decode(self, tokens) -> str:
        return self.form.tokenizer.decode(tokens).strip()

    def _read(
        self, questions, passages, doc_scores
    ) -> Iterator[tuple[list[int], Cache, Float[Array, "R D"], Float[Array, "B K"]]]:
        """Reads questions with their passages in batches of like lengths.

        Yields:
            Which questions they are, what `read` gives, and the documents' scores; there is no
            document in rows beyond the questions.
        """
        if not len(questions):
            return
        examples: list[Example] = make_examples(self.form, questions, passages)
        inputs = [tokens for example in examples for tokens in example.inputs]
        check_prompts(self.model, inputs, max_tokens=self.max_tokens, batch_size=self.batch_size)
        batch = round_up(1 << (len(questions) - 1).bit_length(), count_data_rows())
        batch = min(self.batch_size, batch)
        order = sorted(range(len(questions)), key=lambda i: examples[i].width)
        for start in range(0, len(order), batch):
            picked = order[start : start + batch]
            width = min(round_up(examples[picked[-1]].width, 32), self.model.config.max_length)
            arrays = pack_inputs([examples[i] for i in picked], width=width, batch=batch)
            scores = np.full((batch, len(passages[0])), MASKED, np.float32)
            scores[: len(picked)] = doc_scores[picked]
            tokens, mask, scores = shard_batch((*arrays, scores))
            yield picked, *read(self.model, self.params, tokens, mask), scores
