"""Decoding (Lewis et al. 2020, section 2.5): RAG-Token, RAG-Sequence Thorough and Fast, labels."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from rag_jax.data.batches import double_up, pad_rows, round_up
from rag_jax.decoding.beams import BeamConfig
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.prompts import check_prompts
from rag_jax.models.nn.bart import Bart
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.nn.layers import MASKED
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import count_data_rows, shard_batch
from rag_jax.systems.rag import steps
from rag_jax.systems.rag.data import Example, Format, PassageText, make_examples, pack_inputs

Way = Literal["token", "fast", "thorough"]
# The model, its parameters, and the cache and hidden states that `steps.read` left.
State = tuple[Decoder | Bart, Any, Cache, Float[Array, "R D"]]


class Answer(NamedTuple):
    """A text, its log-probability in nats, and its number of tokens with the one that ended it.

    `cut_off` is whether it has as many tokens as the limit, without the one that ended it.
    """

    text: str
    logprob: float
    tokens: int
    cut_off: bool = False

    @property
    def likelihood(self) -> float:
        """Mean log-probability in nats of the tokens."""
        return self.logprob / self.tokens


@dataclass(frozen=True)
class Engine:
    """The generator and settings of decoding; the methods take and give plain lists.

    Attributes:
        beams: of RAG-Token, and of each document in RAG-Sequence.
        batch_size: number of questions of a program; a multiple of the mesh's data rows.
        multiple: inputs are padded to a multiple of this number of tokens.
    """

    model: Decoder | Bart
    params: Any
    format: Format
    max_tokens: int
    beams: BeamConfig
    batch_size: int = 16
    multiple: int = 32

    def answer(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[PassageText | None]],
        doc_scores: Float[np.ndarray, "N K"],
        *,
        ways: Sequence[Way],
    ) -> dict[Way, list[list[Answer]]]:
        """Answers to each question, best first, in one or several ways from one reading.

        - "token": RAG-Token's answers, by their length-normalised score.
        - "fast": RAG-Sequence's, by `sum_z p(z|x) p(y|x,z)` with `p(y|x,z) = 0` where `y` is not
          among the beams of `z`.
        - "thorough": the answers of "fast", each scored under every document.

        Args:
            passages: `K` for each question.
            doc_scores: logits of `p(z|x)`.

        Raises:
            RagJaxError: as `make_examples`, or a text is too long for the model.
        """
        answers: dict[Way, list[list[Answer]]] = {way: [[] for _ in questions] for way in ways}
        for picked, state, scores in self._read(questions, passages, doc_scores):
            found = {}
            if "token" in ways:
                found["token"] = self._write_token(state, scores)
            if {"fast", "thorough"} & {*ways}:
                found |= self._write_sequence(state, scores, "thorough" in ways)
            for way in ways:
                for i, best in zip(picked, found[way], strict=False):
                    answers[way][i] = best
        return answers

    def _write_token(self, state: State, scores: Float[Array, "B K"]) -> list[list[Answer]]:
        found = fetch(steps.write_token(*state, scores, **self._settings))
        counts = found.lengths + (found.ends >= 0)
        rows = zip(found.tokens, found.lengths, found.logprobs, counts, found.exists, strict=True)
        return [
            [
                Answer(
                    self._decode(tokens[:length]),
                    float(logprob),
                    int(count),
                    bool(length >= self.max_tokens),
                )
                for tokens, length, logprob, count, exists in zip(*row, strict=True)
                if exists
            ]
            for row in rows
        ]

    def _write_sequence(
        self, state: State, scores: Float[Array, "B K"], thorough: bool
    ) -> dict[Way, list[list[Answer]]]:
        found = steps.propose(*state, scores, **self._settings)
        marginals = {"fast": steps.mix(scores, found.logprobs)}
        tokens, lengths = fetch((found.tokens, found.lengths))
        if thorough:
            width = min(round_up(lengths.max(), 8), tokens.shape[2])
            candidates = found.tokens[:, :, :width], found.lengths, found.logprobs
            logprobs = steps.score(*state, *candidates, chunk=self.beams.num_beams)
            marginals["thorough"] = steps.mix(scores, logprobs)

        def list_answers(b: int, marginal: Float[np.ndarray, "C"]) -> list[Answer]:
            order = [c for c in np.argsort(-marginal, kind="stable") if lengths[b, c]]
            answers = []
            for c in order:
                own, length = tokens[b, c, : lengths[b, c]], int(lengths[b, c])
                cut_off = length - (own[-1] in self.format.stop_ids) >= self.max_tokens
                answers.append(Answer(self._decode(own), float(marginal[c]), length, cut_off))
            return answers

        return {
            way: [list_answers(b, marginal) for b, marginal in enumerate(values)]
            for way, values in fetch(marginals).items()
        }

    def classify(
        self,
        questions: Sequence[str],
        passages: Sequence[Sequence[PassageText | None]],
        doc_scores: Float[np.ndarray, "N K"],
        labels: Sequence[str],
    ) -> Float[np.ndarray, "N labels"]:
        """`p(label|x)`: each label's likelihood as the answer, marginalised as by RAG-Sequence.

        Probabilities are normalised over the labels. For labels of one token RAG-Token gives the
        same, as the paper says of FEVER.

        Raises:
            RagJaxError: as `answer`, or there are fewer than two labels, or two equal ones.
        """
        rows = [self.format.encode_answer(label) for label in labels]
        if len(labels) < 2 or len({tuple(row) for row in rows}) < len(labels):
            raise RagJaxError(f"labels={list(labels)}: give at least two different ones")
        tokens, _ = pad_rows(rows, max(map(len, rows)), pad_id=0)
        lengths = np.asarray([len(row) for row in rows], np.int32)
        result = np.empty((len(questions), len(labels)), np.float32)
        for picked, state, scores in self._read(questions, passages, doc_scores):
            copies = (len(scores), 1)
            given = shard_batch((np.tile(tokens[None], (*copies, 1)), np.tile(lengths, copies)))
            logprobs = steps.score(*state, *given, chunk=len(labels))
            marginal = fetch(steps.mix(scores, logprobs))[: len(picked)]
            result[picked] = np.exp(marginal - np.logaddexp.reduce(marginal, axis=1, keepdims=True))
        return result

    @property
    def _settings(self) -> dict[str, Any]:
        limits = {"max_tokens": self.max_tokens, "stop_ids": self.format.stop_ids}
        return {**limits, "config": self.beams}

    def _decode(self, tokens) -> str:
        return self.format.tokenizer.decode(tokens).strip()

    def _read(
        self, questions, passages, doc_scores
    ) -> Iterator[tuple[list[int], State, Float[Array, "B K"]]]:
        """Yields batches of similar lengths: numbers, states, scores; `MASKED` on padding rows."""
        if not len(questions):
            return
        doc_scores = np.asarray(doc_scores, np.float32)
        shape = (len(questions), len(passages[0]))
        if doc_scores.shape != shape or np.isnan(doc_scores).any():
            raise RagJaxError(
                f"doc_scores is {list(doc_scores.shape)}: it must be {list(shape)}, a number for "
                "each passage of each question"
            )
        examples: list[Example] = make_examples(self.format, questions, passages)
        inputs = [tokens for example in examples for tokens in example.inputs]
        check_prompts(self.model, inputs, max_tokens=self.max_tokens, batch_size=self.batch_size)
        parts = count_data_rows()
        batch = min(self.batch_size, double_up(len(questions), parts))
        order = sorted(range(len(questions)), key=lambda i: examples[i].width)
        for start in range(0, len(order), batch):
            picked = order[start : start + batch]
            width = round_up(examples[picked[-1]].width, self.multiple)
            width = min(width, self.model.config.max_length)
            arrays = pack_inputs([examples[i] for i in picked], width=width, batch=batch)
            scores = np.full((batch, len(passages[0])), MASKED, np.float32)
            scores[: len(picked)] = doc_scores[picked]
            tokens, mask, scores = shard_batch((*arrays, scores))
            read = steps.read(self.model, self.params, tokens, mask)
            yield picked, (self.model, self.params, *read), scores
