"""Answers: with passages in the prompt, in the parameters, in both or in neither.

In the parameters means that the adapters of a question's documents are read from the store, put
side by side and applied while that question is answered (Su et al. 2025, section 3.3). Every
question of a batch has its own; the base parameters are shared and never change.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Bool, Int, PyTree

from rag_jax import lora
from rag_jax.data.batches import pad_rows
from rag_jax.decoding.prompts import check_prompts, read_prompts
from rag_jax.decoding.sample import decode
from rag_jax.lora.store import AdapterStore
from rag_jax.models.nn.decoder import Decoder
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.prag.config import AnswerConfig
from rag_jax.systems.prag.data import Format
from rag_jax.training.trainable import cast


class Answers(NamedTuple):
    """What a batch of questions gave.

    Attributes:
        texts: an answer each.
        lost: why some adapters could not be used, by document; answers went on without them.
        load_seconds: that reading the adapters took.
        loaded: how many were read.
    """

    texts: list[str]
    lost: dict[str, str]
    load_seconds: float
    loaded: int


@partial(jax.jit, static_argnames=("model", "scale", "max_tokens", "stop_ids"))
def answer_batch(
    model: Decoder,
    params: PyTree,
    bank: PyTree | None,
    chosen: Int[Array, "B k"],
    tokens: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    scale: float,
    max_tokens: int,
    stop_ids: tuple[int, ...],
) -> tuple[Int[Array, "B N"], Int[Array, "B"]]:
    """Selects, merges and answers: greedy tokens and their lengths.

    `W' = W + scale * sum_j A_j B_j` over the documents that row b has chosen (paper, eq. 6).

    Args:
        bank: adapters `[N, ...]`, or None for the parameters as they are.
        chosen: rows of the bank; -1 for none.
    """
    if bank is not None:
        dtype = params["embed"]["embedding"].dtype
        merged = lora.merge(lora.select(cast(bank, dtype), chosen), scale=scale)
        params = lora.apply(params, merged, scale=1.0)
    cache, hidden = read_prompts(model, params, tokens, mask)
    decoded = decode(
        model,
        params,
        cache,
        hidden,
        max_tokens=max_tokens,
        stop_ids=stop_ids,
        active=mask.any(axis=1),
    )
    return decoded.tokens, decoded.lengths


@dataclass(frozen=True)
class Engine:
    """A model that answers batches of at most `settings.batch_size` questions.

    Attributes:
        scale: of every document's adapter.
        documents: that a question may have at the most.
        width: tokens that a prompt is padded to.
    """

    model: Decoder
    params: Any
    form: Format
    settings: AnswerConfig
    scale: float
    documents: int
    width: int

    def answer(
        self,
        prompts: Sequence[Sequence[int]],
        store: AdapterStore | None = None,
        documents: Sequence[Sequence[str]] = (),
    ) -> Answers:
        """Answers prompts.

        Args:
            prompts: by `Format.encode_prompt`.
            store: where the adapters are; None to answer without any.
            documents: for each prompt the ids of those whose adapters are merged, maybe none; one
                that is named twice counts once.

        Raises:
            RagJaxError: a prompt is empty.
        """
        s, bank, lost, start = self.settings, None, {}, time.perf_counter()
        check_prompts(self.model, prompts, max_tokens=s.max_tokens, batch_size=s.batch_size)
        chosen = np.full((s.batch_size, self.documents), -1, np.int32)
        known: dict[str, int] = {}
        if store is not None:
            for row, ids in enumerate(documents):
                for place, id in enumerate(dict.fromkeys(ids)):
                    chosen[row, place] = known.setdefault(id, len(known))
            # One size, whatever the questions share: a bank of another would compile again.
            bank, lost = store.load(list(known), rows=chosen.size)
        seconds = time.perf_counter() - start
        arrays = pad_rows(prompts, self.width, pad_id=0, batch=s.batch_size)
        tokens, lengths = fetch(
            answer_batch(
                self.model,
                self.params,
                bank,
                *shard_batch((chosen, *arrays)),
                scale=self.scale,
                max_tokens=s.max_tokens,
                stop_ids=self.form.stop_ids,
            )
        )
        texts = [self.form.decode_answer(tokens[b, : lengths[b]]) for b in range(len(prompts))]
        return Answers(texts, lost, seconds, len(known) - len(lost))
