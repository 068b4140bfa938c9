"""Answers with passages in the prompt, in the parameters, in both or in neither.

In the parameters means that the adapters of a question's documents are read from the store, merged
and applied while that question is answered (Su et al. 2025, section 3.3). Every question of a batch
has its own merged adapter; the base parameters are shared and never change.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from rag_jax.data.batches import choose_bucket, choose_widths, pad_rows, round_up
from rag_jax.decoding.prompts import check_prompts
from rag_jax.evaluation.rankings import Ranked
from rag_jax.lora.store import AdapterStore
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.platforms import count_program_tokens
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.prag import steps
from rag_jax.systems.prag.config import AnswerConfig
from rag_jax.systems.prag.data import Format

# Questions to the passages found for each: rows of the corpus and scores, best first.
Search = Callable[[Sequence[str]], list[Ranked]]

# Number of tokens of prompts that two cores read while a program of answers compiles.
PROGRAM_TOKENS = 2500


class Answers(NamedTuple):
    """The answers of a batch of questions.

    Attributes:
        lengths: numbers of tokens that were written.
        likelihoods: mean log-probabilities in nats of the tokens, with the one that ended them.
        lost: for each adapter that could not be used, by document id, the reason.
        load_seconds: seconds of reading adapters.
        loaded: number of adapters that were read.
    """

    texts: list[str]
    lengths: list[int]
    likelihoods: list[float]
    lost: dict[str, str]
    load_seconds: float
    loaded: int


@dataclass(frozen=True)
class Engine:
    """A model that answers batches of at most `settings.batch_size` questions.

    Attributes:
        scale: of every document's adapter.
        documents: largest number of documents of a question.
        widths: numbers of tokens that prompts are padded to, a batch to the smallest that holds it.
    """

    model: Decoder
    params: Any
    format: Format
    settings: AnswerConfig
    scale: float
    documents: int
    widths: Sequence[int]

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        store: AdapterStore | None = None,
        documents: Sequence[Sequence[str]] = (),
    ) -> Answers:
        """Answers prompts from `Format.encode_prompt`.

        Args:
            store: of the adapters; None to answer without adapters.
            documents: for each prompt the ids of the documents whose adapters are merged; a
                document that is named twice counts once.

        Raises:
            RagJaxError: a prompt is empty, or longer than every width.
        """
        s, bank, lost, start = self.settings, None, {}, time.perf_counter()
        check_prompts(self.model, prompts, max_tokens=s.max_tokens, batch_size=s.batch_size)
        chosen = np.full((s.batch_size, self.documents), -1, np.int32)
        rows: dict[str, int] = {}  # of the bank, by document
        if store is not None:
            for prompt, ids in enumerate(documents):
                for place, id in enumerate(dict.fromkeys(ids)):
                    chosen[prompt, place] = rows.setdefault(id, len(rows))
            # One size, whatever documents the questions share: another size would compile again.
            bank, lost = store.load(list(rows), rows=chosen.size)
        seconds = time.perf_counter() - start
        width = choose_bucket(max(map(len, prompts)), self.widths)
        arrays = shard_batch((chosen, *pad_rows(prompts, width, pad_id=0, batch=s.batch_size)))
        limits = {"max_tokens": s.max_tokens, "stop_ids": self.format.stop_ids}
        inputs = self.model, self.params, bank, *arrays
        how = {"scale": self.scale, "merge": s.merge}
        tokens, *numbers = fetch(steps.answer_batch(*inputs, **how, **limits))
        lengths, likelihoods = (array[: len(prompts)].tolist() for array in numbers)
        texts = [self.format.decode_answer(tokens[b, : lengths[b]]) for b in range(len(prompts))]
        return Answers(texts, lengths, likelihoods, lost, seconds, len(rows) - len(lost))


def sort_prompts(
    prompts: Sequence[Sequence[int]], *, batch_size: int
) -> tuple[list[int], list[int]]:
    """Sorts prompts by length, so that a batch has little padding.

    Returns:
        The prompts' numbers, shortest first, and the widths for an `Engine`: few, as a program is
        compiled for each.
    """
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    starts = range(0, len(order), batch_size)
    last = [order[start : start + batch_size][-1] for start in starts]
    longest = [round_up(len(prompts[i]), 32) for i in last]
    worth = count_program_tokens(None, on_cpu=PROGRAM_TOKENS)
    return order, choose_widths(longest, program_tokens=worth // batch_size)
