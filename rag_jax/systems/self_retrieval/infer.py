"""Retrieval by generation along a trie, self-assessment, and the answer, over one cache.

A question is read once: titles are searched behind it, passages behind each title, and every
candidate is read and assessed behind it too; the answer goes on from the best candidate's cache
(Tang et al. 2024, section 3).
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rag_jax.data.batches import pad_rows, round_up
from rag_jax.data.passages import Passage
from rag_jax.decoding.beams import BeamConfig
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.prompts import check_prompts
from rag_jax.decoding.packing import pack_texts
from rag_jax.decoding.trie import Trie, TrieArrays
from rag_jax.decoding.trie_beams import TrieBeams
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.self_retrieval import steps
from rag_jax.systems.self_retrieval.config import SearchConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.systems.self_retrieval.scores import Candidate, score, to_probability

# Of candidates in one row: with more, attention to the others' tokens costs what padding would.
_ROW_TOKENS = 512

# Of tokens, that the one candidate is padded to whose answer is written.
_READ_MULTIPLE = 64


class Title(NamedTuple):
    """A title found for a question: its probability, its tokens with the heading behind, and the
    trie's node there."""

    probability: float
    tokens: list[int]
    node: int


class Judged(NamedTuple):
    """Candidates that were read, packed into rows, `R / B` for each question.

    Attributes:
        cache: what was read of them, behind their questions.
        hidden: `[R, T, D]`, of every token.
        places: for each question's candidates the row, and the places of the tokens up to the cue.
        rejections: for each question the probabilities that its candidates are rejected.
    """

    cache: Cache
    hidden: Float[Array, "R T D"]
    places: list[list[tuple[int, list[int]]]]
    rejections: list[list[float]]


@dataclass(frozen=True, eq=False)
class Engine:
    """Everything retrieval needs; its methods take and give plain lists.

    Attributes:
        passages: the corpus, in the order that the trie was built from.
        trie: of `form.encode_sequence` of each.
        settings: of the search.
        width: tokens that questions are padded to at the least: all that reads behind them is
            compiled for it.
    """

    model: Decoder
    params: Any
    form: Format
    passages: Sequence[Passage]
    trie: Trie
    settings: SearchConfig
    width: int = 32

    def retrieve(self, questions: Sequence[str]) -> list[tuple[list[list[Candidate]], str]]:
        """For each question the passages found, assessed, by their titles; and its answer.

        Titles come by probability, and the passages of one too. Without titles all are one group.
        The answer goes on from the passage with the best score, which is not read again.

        Raises:
            RagJaxError: as `check_prompts`.
        """
        results = []
        for count, cache, hidden in self._read(questions):
            if self.form.titled:
                titles = self._find_titles(cache, hidden, count)
                paths = self._find_passages(*self._read_titles(cache, titles), count)
            else:
                titles = [[Title(1.0, [], 0)]] * count
                paths = self._find_from_root(cache, hidden, count)
            rows = [[rows for group in groups for rows, _ in group] for groups in paths]
            judged, found, best = self._judge(cache, rows), [], []
            for b in range(count):
                rejected = iter(judged.rejections[b])
                groups = [
                    [Candidate(rows, title.probability, p, next(rejected)) for rows, p in group]
                    for title, group in zip(titles[b], paths[b], strict=True)
                ]
                found.append([group for group in groups if group])
                best.append(int(np.argmax(np.concatenate(score(found[b], self.settings)))))
            answers = self._write_answers(judged, best)
            results += list(zip(found, answers, strict=True))
        return results

    def answer(self, questions: Sequence[str], rows: Sequence[int]) -> list[str]:
        """Each question's answer from one passage of the corpus, by its row."""
        results: list[str] = []
        for count, cache, _ in self._read(questions):
            given = rows[len(results) :][:count]
            judged = self._judge(cache, [[[row]] for row in given])
            results += self._write_answers(judged, [0] * count)
        return results

    def _read(self, questions: Sequence[str]) -> Iterator[tuple[int, Cache, Float[Array, "B D"]]]:
        """Reads questions in batches; yields how many a batch has, its cache and hidden states."""
        batch = self.settings.batch_size
        prompts = [self.form.encode_question(question) for question in questions]
        check_prompts(self.model, prompts, max_tokens=self._depth, batch_size=batch)
        width = round_up(max(self.width, *map(len, prompts), 1), 16)
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            arrays = shard_batch(pad_rows(part, width, pad_id=0, batch=batch))
            yield len(part), *steps.read(self.model, self.params, *arrays)

    def _find(
        self, cache, hidden, starts, active, *, beams: int, stops=None, power=0.0, **more
    ) -> TrieBeams:
        search = BeamConfig(beams, length_penalty=power)
        given = shard_batch((starts.astype(np.int32), active))
        arrays = self._arrays, given[0], stops, given[1]
        return fetch(
            steps.find(self.model, self.params, cache, hidden, *arrays, config=search, **more)
        )

    def _find_titles(self, cache: Cache, hidden, count: int) -> list[list[Title]]:
        s, batch = self.settings, self.settings.batch_size
        found = self._find(
            cache,
            hidden,
            np.zeros(batch),
            np.arange(batch) < count,
            beams=s.titles,
            stops=self._title_marks,
            power=1.0 if s.lengths == "mean" else 0.0,
            max_tokens=self._title_width,
        )
        return [
            [
                Title(
                    to_probability(float(found.logprobs[b, w]), int(found.lengths[b, w]), s),
                    *self._titles[int(found.nodes[b, w])],
                )
                for w in np.flatnonzero(found.real[b])
            ]
            for b in range(count)
        ]

    def _read_titles(
        self, cache: Cache, titles: Sequence[Sequence[Title]]
    ) -> tuple[Cache, Float[Array, "R D"], Int[np.ndarray, "R"], Bool[np.ndarray, "R"]]:
        """Caches behind each title, their hidden states, nodes, and which rows are titles."""
        batch, times = self.settings.batch_size, self.settings.titles
        filler = Title(0.0, next(iter(self._titles.values()))[0][-1:], 0)
        rows = [
            titles[b][w] if b < len(titles) and w < len(titles[b]) else filler
            for b in range(batch)
            for w in range(times)
        ]
        arrays = pad_rows([row.tokens for row in rows], self._title_width, pad_id=0)
        cache, hidden = steps.go_on(self.model, self.params, cache, *shard_batch(arrays))
        active = np.asarray([row is not filler for row in rows])
        return cache, hidden, np.asarray([row.node for row in rows]), active

    def _find_passages(
        self, cache: Cache, hidden, starts, active, count: int
    ) -> list[list[list[tuple[list[int], float]]]]:
        """For each question and title its passages: rows of the corpus and log-probability."""
        s = self.settings
        found = self._find(
            cache,
            hidden,
            starts,
            active,
            beams=s.passages,
            max_tokens=self._depth,
            greedy=s.method == "reference",
        )
        times = len(active) // s.batch_size
        groups = [self._list_passages(found, row) for row in range(count * times)]
        titles = active[: count * times].reshape(count, times).sum(axis=1)
        return [groups[b * times : b * times + titles[b]] for b in range(count)]

    def _find_from_root(self, cache: Cache, hidden, count: int):
        """The same without titles: all passages of a question are one group."""
        s, batch = self.settings, self.settings.batch_size
        found = self._find(
            cache,
            hidden,
            np.zeros(batch),
            np.arange(batch) < count,
            beams=s.titles * s.passages,
            max_tokens=self._depth,
            greedy=s.method == "reference",
        )
        return [[self._list_passages(found, b)] for b in range(count)]

    def _list_passages(self, found: TrieBeams, row: int) -> list[tuple[list[int], float]]:
        return [
            (self.trie.rows_at(int(found.nodes[row, w])), float(found.logprobs[row, w]))
            for w in np.flatnonzero(found.real[row])
        ]

    def _judge(self, cache: Cache, found: Sequence[Sequence[Sequence[int]]]) -> Judged:
        """Reads and judges each question's passages, each given by its rows of the corpus."""
        batch, reject = self.settings.batch_size, self.form.encode_reject()
        more = reject[:-1]
        texts = [
            [[*self.form.encode_reading(self.passages[rows[0]]), *more] for rows in group]
            for group in found
        ]
        packed = pack_texts([*texts, *[[]] * (batch - len(texts))], limit=_ROW_TOKENS)
        order: dict[int, list[list[int]]] = defaultdict(list)  # each row's candidates
        numbers = []
        for row, places in chain.from_iterable(packed.texts):
            numbers.append((row, len(order[row])))
            order[row].append(places[len(places) - len(reject) :])
        most = max(map(len, order.values()))
        width = 1 if most == 1 else round_up(most, 4)
        drawn = np.zeros((len(packed.tokens), width, len(reject)), np.int32)
        for row, some in order.items():
            drawn[row, : len(some)] = some
        arrays = shard_batch((packed.tokens, packed.attention_mask, packed.depth, drawn))
        cache, hidden, said = steps.assess(
            self.model, self.params, cache, *arrays, jnp.asarray(reject, jnp.int32)
        )
        said, numbers = fetch(said), iter(numbers)
        return Judged(
            cache,
            hidden,
            [[(row, p[: len(p) - len(more)]) for row, p in group] for group in packed.texts],
            [
                [
                    to_probability(float(said[next(numbers)]), len(reject), self.settings)
                    for _ in group
                ]
                for group in found
            ],
        )

    def _write_answers(self, judged: Judged, best: Sequence[int]) -> list[str]:
        """Answers from one candidate of each question, by its number among them."""
        batch, times = self.settings.batch_size, len(judged.hidden) // self.settings.batch_size
        rows, lengths = times * np.arange(batch, dtype=np.int32), np.ones(batch, np.int32)
        chosen = [judged.places[b][number] for b, number in enumerate(best)]
        longest = round_up(max(len(path) for _, path in chosen), _READ_MULTIPLE)
        places = np.zeros((batch, longest), np.int32)
        for b, (row, path) in enumerate(chosen):
            rows[b], lengths[b] = row, len(path)
            places[b, : len(path)] = path
        picked = steps.pick(judged.cache, judged.hidden, *shard_batch((rows, places, lengths)))
        tokens, lengths = fetch(
            steps.answer(
                self.model,
                self.params,
                *picked,
                jnp.asarray(self.form.encode_accept(), jnp.int32),
                shard_batch(np.arange(batch) < len(best)),
                max_tokens=self.settings.max_answer,
                stop_ids=(self.form.tokenizer.eos_id,),
            )
        )
        decode_text = self.form.tokenizer.decode
        return [decode_text(tokens[b, : lengths[b]]).strip() for b in range(len(best))]

    # What searches share, made when first needed.

    @cached_property
    def _arrays(self) -> TrieArrays:
        return self.trie.place()

    @cached_property
    def _titles(self) -> dict[int, tuple[list[int], int]]:
        """By the node where a title is known: its tokens and the node behind its heading."""
        titles = list(dict.fromkeys(passage.title for passage in self.passages))
        tokens = [self.form.encode_title(title) for title in titles]
        ends = self.trie.find([self.form.encode_title_end(title) for title in titles])
        nodes = self.trie.find(tokens)
        return dict(zip(ends.tolist(), zip(tokens, nodes.tolist(), strict=True), strict=True))

    @cached_property
    def _title_marks(self) -> Bool[Array, "N"]:
        return self.trie.mark(np.asarray(list(self._titles), np.int64))

    @cached_property
    def _title_width(self) -> int:
        return round_up(max(len(tokens) for tokens, _ in self._titles.values()), 8)

    @cached_property
    def _depth(self) -> int:
        return round_up(self.trie.depth, 16)
