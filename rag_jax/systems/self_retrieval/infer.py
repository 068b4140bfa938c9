"""Retrieval by generation along a trie, self-assessment, and the answer, over one cache.

A question is read once. Titles are searched after the question, and passages after each title;
every candidate is read and assessed after the question; the answer continues from the best
candidate's cache (Tang et al. 2024, section 3).
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rag_jax.data.batches import pad_rows, round_up
from rag_jax.data.passages import Passage
from rag_jax.decoding.beams import BeamConfig
from rag_jax.decoding.cache import Cache
from rag_jax.decoding.packing import pack_texts
from rag_jax.decoding.prompts import check_prompts
from rag_jax.decoding.trie import Trie, TrieArrays
from rag_jax.decoding.trie_beams import TrieBeams
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.self_retrieval import steps
from rag_jax.systems.self_retrieval.config import SearchConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.systems.self_retrieval.scores import Candidate, find_best, to_probability

# Largest number of candidates' tokens in one row: with more, attention to other candidates' tokens
# would cost as much as padding.
ROW_TOKENS = 512

# The candidate that the answer continues from is padded to a multiple of this number of tokens.
_READ_MULTIPLE = 64


class Title(NamedTuple):
    """A title that was generated for a question.

    Attributes:
        tokens: of the title and the heading after it.
        node: of the trie, after the heading.
    """

    probability: float
    tokens: list[int]
    node: int


class Judged(NamedTuple):
    """Candidates that were read and assessed, packed into `R / B` rows for each question.

    Attributes:
        cache: of the candidates, after their questions.
        hidden: `[R, T, D]`, of every token.
        places: for each question's candidates the row, and the positions of the tokens up to the
            cue.
        rejections: for each question the probabilities of its candidates' rejection.
    """

    cache: Cache
    hidden: Float[Array, "R T D"]
    places: list[list[tuple[int, list[int]]]]
    rejections: list[list[float]]


class Written(NamedTuple):
    """An answer, and the mean log-probability in nats of its tokens and of its stop token.

    `cut_off` is whether the answer has as many tokens as the limit.
    """

    text: str
    likelihood: float
    cut_off: bool


@dataclass(frozen=True, eq=False)
class Engine:
    """The model, trie and settings of retrieval; the methods take and give plain lists.

    Attributes:
        passages: the corpus, in the order that the trie was built from.
        trie: of each passage's `format.encode_sequence`.
        width: smallest number of tokens that questions are padded to; the programs that continue
            after a question are compiled for this width.
    """

    model: Decoder
    params: Any
    format: Format
    passages: Sequence[Passage]
    trie: Trie
    settings: SearchConfig
    width: int = 32

    def retrieve(self, questions: Sequence[str]) -> list[tuple[list[list[Candidate]], Written]]:
        """For each question its candidates in groups by title, and its answer.

        Titles are ordered by probability, and so are the passages of a title. Without titles there
        is one group. The answer continues from the cache of the passage with the best score.

        Raises:
            RagJaxError: as `check_prompts`.
        """
        results = []
        for count, cache, hidden in self._read(questions):
            written = self._write_passages(cache, hidden, count)
            rows = [[c.rows for group in groups for c in group] for groups in written]
            judged, found, best = self._judge(cache, rows), [], []
            for b, groups in enumerate(written):
                rejected = iter(judged.rejections[b])
                found.append([[c._replace(reject=next(rejected)) for c in g] for g in groups])
                best.append(find_best(found[b], self.settings)[0])
            answers = self._write_answers(judged, best)
            results += list(zip(found, answers, strict=True))
        return results

    def write_passages(self, questions: Sequence[str]) -> list[list[list[Candidate]]]:
        """For each question its candidates as `retrieve` gives them, but that none is assessed.

        Their probability of rejection is NaN.
        """
        results: list[list[list[Candidate]]] = []
        for count, cache, hidden in self._read(questions):
            results += self._write_passages(cache, hidden, count)
        return results

    def _write_passages(self, cache: Cache, hidden, count: int) -> list[list[list[Candidate]]]:
        if self.format.titled:
            titles = self._find_titles(cache, hidden, count)
            paths = self._find_passages(*self._read_titles(cache, titles), count)
        else:
            titles = [[Title(1.0, [], 0)]] * count
            paths = self._find_from_root(cache, hidden, count)
        found = [
            [
                [Candidate(rows, title.probability, p, math.nan) for rows, p in group]
                for title, group in zip(titles[b], paths[b], strict=True)
            ]
            for b in range(count)
        ]
        return [[group for group in groups if group] for groups in found]

    def answer(self, questions: Sequence[str], rows: Sequence[int]) -> list[Written]:
        """Each question's answer from one passage of the corpus, by its row."""
        results: list[Written] = []
        for count, cache, _ in self._read(questions):
            given = rows[len(results) :][:count]
            judged = self._judge(cache, [[[row]] for row in given])
            results += self._write_answers(judged, [0] * count)
        return results

    def _read(self, questions: Sequence[str]) -> Iterator[tuple[int, Cache, Float[Array, "B D"]]]:
        """Reads questions in batches; yields their number, the cache and the hidden states."""
        batch = self.settings.batch_size
        prompts = [self.format.encode_question(question) for question in questions]
        check_prompts(self.model, prompts, max_tokens=self.room, batch_size=batch)
        width = round_up(max(self.width, *map(len, prompts), 1), 16)
        for start in range(0, len(prompts), batch):
            part = prompts[start : start + batch]
            arrays = shard_batch(pad_rows(part, width, pad_id=0, batch=batch))
            yield len(part), *steps.read(self.model, self.params, *arrays)

    def _search(
        self, cache, hidden, starts, active, *, beams: int, stops=None, power=0.0, **options
    ) -> TrieBeams:
        config = BeamConfig(beams, length_penalty=power)
        starts, active = shard_batch((starts.astype(np.int32), active))
        inputs = self.model, self.params, cache, hidden, self._arrays, starts
        found = steps.search(*inputs, config=config, stops=stops, active=active, **options)
        return fetch(found)

    def _find_titles(self, cache: Cache, hidden, count: int) -> list[list[Title]]:
        s, batch = self.settings, self.settings.batch_size
        inputs = cache, hidden, np.zeros(batch), np.arange(batch) < count
        limits = {"beams": s.titles, "max_tokens": self._title_width}
        power = 1.0 if s.lengths == "mean" else 0.0
        found = self._search(*inputs, stops=self._title_marks, power=power, **limits)

        def make_title(b: int, w: int) -> Title:
            logprob, length = float(found.logprobs[b, w]), int(found.lengths[b, w])
            known = self._titles[int(found.nodes[b, w])]
            return Title(to_probability(logprob, length, s), *known)

        return [[make_title(b, w) for w in np.flatnonzero(found.exists[b])] for b in range(count)]

    def _read_titles(
        self, cache: Cache, titles: Sequence[Sequence[Title]]
    ) -> tuple[Cache, Float[Array, "R D"], Int[np.ndarray, "R"], Bool[np.ndarray, "R"]]:
        """A cache after each title, the hidden states, the nodes, and which rows are titles."""
        batch, times = self.settings.batch_size, self.settings.titles
        filler = Title(0.0, next(iter(self._titles.values()))[0][-1:], 0)
        rows = [
            titles[b][w] if b < len(titles) and w < len(titles[b]) else filler
            for b in range(batch)
            for w in range(times)
        ]
        arrays = pad_rows([row.tokens for row in rows], self._title_width, pad_id=0)
        cache, hidden = steps.read_titles(self.model, self.params, cache, *shard_batch(arrays))
        active = np.asarray([row is not filler for row in rows])
        return cache, hidden, np.asarray([row.node for row in rows]), active

    def _find_passages(
        self, cache: Cache, hidden, starts, active, count: int
    ) -> list[list[list[tuple[list[int], float]]]]:
        """For each question and title the passages found: rows of the corpus, log-probability."""
        s = self.settings
        limits = {"beams": s.passages, "max_tokens": self._depth}
        found = self._search(
            cache, hidden, starts, active, **limits, greedy=s.method == "reference"
        )
        times = len(active) // s.batch_size
        groups = [self._list_passages(found, row) for row in range(count * times)]
        titles = active[: count * times].reshape(count, times).sum(axis=1)
        return [groups[b * times : b * times + titles[b]] for b in range(count)]

    def _find_from_root(self, cache: Cache, hidden, count: int):
        """Passages found without titles: all passages of a question are one group."""
        s, batch = self.settings, self.settings.batch_size
        inputs = cache, hidden, np.zeros(batch), np.arange(batch) < count
        limits = {"beams": s.titles * s.passages, "max_tokens": self._depth}
        found = self._search(*inputs, **limits, greedy=s.method == "reference")
        return [[self._list_passages(found, b)] for b in range(count)]

    def _list_passages(self, found: TrieBeams, row: int) -> list[tuple[list[int], float]]:
        return [
            (self.trie.rows_at(int(found.nodes[row, w])), float(found.logprobs[row, w]))
            for w in np.flatnonzero(found.exists[row])
        ]

    def _judge(self, cache: Cache, found: Sequence[Sequence[Sequence[int]]]) -> Judged:
        """Reads and assesses each question's passages, each given by its rows of the corpus."""
        batch, reject = self.settings.batch_size, self.format.encode_reject()
        predicting = reject[:-1]  # the rejection's tokens that predict its next ones
        texts = [
            [[*self.format.encode_reading(self.passages[rows[0]]), *predicting] for rows in group]
            for group in found
        ]
        packed = pack_texts([*texts, *[[]] * (batch - len(texts))], limit=ROW_TOKENS)
        order: dict[int, list[list[int]]] = defaultdict(list)  # candidates of each row
        numbers = []
        for row, path in itertools.chain(*packed.texts):
            numbers.append((row, len(order[row])))
            order[row].append(path[len(path) - len(reject) :])
        most = max(map(len, order.values()))
        width = 1 if most == 1 else round_up(most, 4)
        drawn = np.zeros((len(packed.tokens), width, len(reject)), np.int32)
        for row, members in order.items():
            drawn[row, : len(members)] = members
        arrays = shard_batch((packed.tokens, packed.attention_mask, packed.depth, drawn))
        inputs = self.model, self.params, cache, *arrays, jnp.asarray(reject, jnp.int32)
        cache, hidden, logprobs = steps.assess(*inputs)
        logprobs, count = fetch(logprobs), len(reject)
        values = (to_probability(float(logprobs[n]), count, self.settings) for n in numbers)
        rejections = [list(itertools.islice(values, len(group))) for group in found]
        # Without the rejection, which is no part of what the answer continues from.
        places = [[(row, p[: len(p) - count + 1]) for row, p in group] for group in packed.texts]
        return Judged(cache, hidden, places, rejections)

    def _write_answers(self, judged: Judged, best: Sequence[int]) -> list[Written]:
        """Answers from one candidate of each question, by its number among them."""
        batch, times = self.settings.batch_size, len(judged.hidden) // self.settings.batch_size
        rows, lengths = times * np.arange(batch, dtype=np.int32), np.ones(batch, np.int32)
        chosen = [judged.places[b][number] for b, number in enumerate(best)]
        longest = round_up(max(len(path) for _, path in chosen), _READ_MULTIPLE)
        places = np.zeros((batch, longest), np.int32)
        for b, (row, path) in enumerate(chosen):
            rows[b], lengths[b] = row, len(path)
            places[b, : len(path)] = path
        arrays = shard_batch((rows, places, lengths))
        picked = steps.pick_candidates(judged.cache, judged.hidden, *arrays)
        accept = jnp.asarray(self.format.encode_accept(), jnp.int32)
        active = shard_batch(np.arange(batch) < len(best))
        inputs = self.model, self.params, *picked, accept, active
        limits = {
            "max_tokens": self.settings.max_answer,
            "stop_ids": self.format.tokenizer.stop_ids,
        }
        tokens, lengths, likelihoods = fetch(steps.answer(*inputs, **limits))
        decode_text, count = self.format.tokenizer.decode, len(best)
        texts = [decode_text(tokens[b, : lengths[b]]).strip() for b in range(count)]
        cut_off = (lengths[:count] >= self.settings.max_answer).tolist()
        return list(map(Written, texts, likelihoods[:count].tolist(), cut_off))

    # Shared by all searches, made when first needed.

    @cached_property
    def _arrays(self) -> TrieArrays:
        return self.trie.place()

    @cached_property
    def _titles(self) -> dict[int, tuple[list[int], int]]:
        """By the node where a title is known: its tokens, and the node after its heading."""
        titles = list(dict.fromkeys(passage.title for passage in self.passages))
        tokens = [self.format.encode_title(title) for title in titles]
        ends = self.trie.find(list(map(self.format.cut_title, tokens)))
        nodes = self.trie.find(tokens)
        return dict(zip(ends.tolist(), zip(tokens, nodes.tolist(), strict=True), strict=True))

    @cached_property
    def _title_marks(self) -> Bool[Array, "N"]:
        return self.trie.mark(np.asarray(list(self._titles), np.int64))

    @cached_property
    def room(self) -> int:
        """The most tokens after a question: a path of the trie, or a passage and the answer."""
        format, blank = self.format, Passage("", "", "")
        cue = len(format.encode_reading(blank)) - len(format.encode_title(""))
        read = self._longest_title + format.max_text + cue + len(format.encode_accept())
        return max(self._depth, read + self.settings.max_answer)

    @cached_property
    def _longest_title(self) -> int:
        return max(len(tokens) for tokens, _ in self._titles.values())

    @cached_property
    def _title_width(self) -> int:
        return round_up(self._longest_title, 8)

    @cached_property
    def _depth(self) -> int:
        return round_up(self.trie.depth, 16)
