"""The corpus as the model's index: titles for untitled passages, and tries of all passages."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from rag_jax.config import DataConfig, ReaderConfig, WorldConfig
from rag_jax.data.passages import Passage, write_passages
from rag_jax.data.questions import PASSAGES, Collection, load_collection
from rag_jax.decoding import Trie
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.hosts import is_first, wait_for_all
from rag_jax.systems.self_retrieval.config import SearchConfig
from rag_jax.systems.self_retrieval.data import Format
from rag_jax.systems.stages import continue_prompts, run_corpus

_TITLE_TOKENS = 12


def run_titled_corpus(
    context: StageContext,
    *,
    data: DataConfig,
    world: WorldConfig,
    check_corpus: Callable[[Collection], Any],
    load_base: Callable[[], Pretrained],
    model: ReaderConfig,
    search: SearchConfig,
) -> None:
    """Copies passages and questions; the language model gives titles to passages without one.

    Args:
        load_base: opens the language model, which a corpus with titles does not need.
    """
    run_corpus(context, data=data, world=world, check_corpus=check_corpus)
    wait_for_all("the corpus was copied")
    passages = load_collection(context.folder).passages
    untitled = [row for row, passage in enumerate(passages) if not passage.title.strip()]
    if not untitled:
        return
    base = load_base()

    def write(rows: Sequence[int]) -> list[dict[str, Any]]:
        batch = [passages[row] for row in rows]
        titles = _write_titles(batch, base, max_text=model.max_text, batch_size=search.batch_size)
        return [{"id": p.id, "title": title} for p, title in zip(batch, titles, strict=True)]

    records = context.map("titles.jsonl", untitled, write, batch_size=64, unit="titles")
    titles = {record["id"]: record["title"] for record in records}
    if is_first():
        titled = (replace(p, title=titles.get(p.id, p.title)) for p in passages)
        write_passages(context.folder / PASSAGES, titled)


def _write_titles(
    passages: Sequence[Passage], base: Pretrained, *, max_text: int, batch_size: int
) -> list[str]:
    """A title for each passage by the language model, or else the passage's id."""
    tokenizer = base.tokenizer
    texts = [tokenizer.decode(tokenizer.encode(p.text)[:max_text]) for p in passages]
    prompts = [
        tokenizer.encode_prompt(f'{text}\n\nThe title of this article is "') for text in texts
    ]
    sizes = {"max_tokens": _TITLE_TOKENS, "batch_size": batch_size}
    written = continue_prompts(base, prompts, **sizes)
    titles = [tokenizer.decode(tokens).split('"')[0] for tokens in written]
    return [" ".join(t.split()) or p.id for p, t in zip(passages, titles, strict=True)]


def run_trie(
    context: StageContext,
    *,
    titled: bool,
    passages: Sequence[Passage],
    make_format: Callable[..., Format],
) -> None:
    """Builds the trie of all passages, with or without their titles."""
    trie = build_trie(make_format(titled=titled), passages)
    if is_first():
        trie.save(context.folder / "trie")


def build_trie(format: Format, passages: Sequence[Passage]) -> Trie:
    """The trie of passages, with titles if the format has them.

    Every path has the whole title and the token that ends it, so that titles are scored alike,
    however many passages they have.
    """
    # As arrays, of 4 bytes a token.
    sequences = [np.asarray(format.encode_sequence(passage), np.int32) for passage in passages]
    titles = {passage.title for passage in passages}
    ends = {title: len(format.cut_title(format.encode_title(title))) for title in titles}
    least = [ends[passage.title] for passage in passages]
    return Trie.from_sequences(sequences, end_id=format.tokenizer.eos_id, least=least)
