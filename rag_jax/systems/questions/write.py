"""Which passages are asked about, and the questions that a model writes about them."""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from rag_jax.data.formats.documents import find_place
from rag_jax.data.passages import Passage
from rag_jax.data.words import count_words
from rag_jax.decoding import Sampling
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.progress import log
from rag_jax.systems.asking import ask_for_pairs
from rag_jax.systems.questions.config import WriteConfig

_LEAST_WORDS = 20  # of a passage that is asked about


def name_document(passage: Passage) -> str:
    """What a passage is a part of: its document's file or, without one, what has its title."""
    place = find_place(passage.id)
    return place.file if place else passage.title or passage.id


def choose_passages(
    passages: Iterable[Passage], count: int, rng: np.random.Generator
) -> Iterator[int]:
    """Draws numbers of passages, one of every document in turn, in the order of the corpus.

    Passages of fewer than 20 words are left out.

    Args:
        count: maximum number; 0 for all.
    """
    documents: dict[str, list[int]] = defaultdict(list)
    for number, passage in enumerate(passages):
        if count_words(passage.text) >= _LEAST_WORDS:
            documents[name_document(passage)].append(number)
    drawn = [rng.permutation(numbers).tolist() for numbers in documents.values()]
    # Every document's first, then every document's second, ...; documents in a random order.
    order = rng.permutation(len(drawn)).tolist()
    turns = itertools.zip_longest(*(drawn[n] for n in order))
    chosen = [number for turn in turns for number in turn if number is not None]
    yield from sorted(chosen[: count or None])


def run_writing(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    base: Pretrained,
    write: WriteConfig,
    max_text: int,
    seed: int,
) -> None:
    """Writes questions about passages: `drafts.jsonl`, lines `{"passage", "document", "pairs"}`.

    Raises:
        RagJaxError: no passage has enough text.
    """
    numbers = [*choose_passages(passages, write.passages, np.random.default_rng(seed))]
    if not numbers:
        raise RagJaxError(
            f"config.data: no passage has {_LEAST_WORDS} words, so there is nothing to ask about"
        )
    log(f"{len(numbers)} of {len(passages)} passages are asked about")
    sampling = Sampling(temperature=write.temperature, top_k=write.top_k)
    options = {"max_tokens": write.max_tokens, "batch_size": write.batch_size}
    options |= {"sampling": sampling, "seed": seed, "full": False}

    def run(batch: Sequence[int]) -> list[dict[str, Any]]:
        read = [passages[number] for number in batch]
        shorten = base.tokenizer.shorten
        cut = [Passage(p.id, p.title, shorten(" ".join(p.text.split()), max_text)) for p in read]
        found = ask_for_pairs(base, cut, write.each, **options)
        return [
            {
                "passage": p.id,
                "document": name_document(p),
                "pairs": [[pair.question, pair.answer] for pair in pairs],
            }
            for p, pairs in zip(read, found, strict=True)
        ]

    size = write.batch_size
    context.map("drafts.jsonl", numbers, run, batch_size=size, unit="passages (asked about)")
