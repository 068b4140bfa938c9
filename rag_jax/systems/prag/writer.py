"""Augmentation of documents by a language model: rewrites, and questions with their answers.

Unusable texts are retried a bounded number of times, with other random draws.
"""

from collections.abc import Sequence

from rag_jax.data.passages import Passage
from rag_jax.decoding import Sampling
from rag_jax.evaluation.answers import match, normalize_answer
from rag_jax.models import Pretrained
from rag_jax.runtime.seeds import derive_seed
from rag_jax.systems.asking import Pair, ask_for_pairs, write_texts
from rag_jax.systems.prag.config import AugmentConfig
from rag_jax.systems.prag.data import Augmented
from rag_jax.systems.prag.phrases import VALUE

_REWRITE = (
    "Restate the passage in other words. Keep every name, place, number and term as it is, and "
    "what is said of it. Write the new passage alone."
)
_SAMPLE_REWRITE = (
    "In Paris stands the Eiffel Tower, a tower of iron that is 330 metres tall. The company of "
    "Gustave Eiffel built it between 1887 and 1889."
)
_KEPT = 0.7  # least share of a passage's names and numbers in its rewrite


def is_rewrite(text: str, passage: Passage) -> bool:
    """Whether a text says the same in other words, judged by the passage's names and numbers."""
    values = {found[0] for found in VALUE.finditer(passage.text)}
    kept = sum(bool(match(text, [value])) for value in values)
    same = normalize_answer(text) == normalize_answer(passage.text)
    return bool(text.strip()) and not same and kept >= _KEPT * len(values)


def augment_by_model(
    passages: Sequence[Passage],
    augment: AugmentConfig,
    writer: Pretrained,
    *,
    full: bool,
    seed: int,
) -> list[Augmented]:
    """Asks the model until every document has enough, or the retries are used up.

    Args:
        full: whether full answers are asked for.
    """
    rewrites: dict[str, list[str]] = {passage.id: [] for passage in passages}
    pairs: dict[str, dict[str, Pair]] = {passage.id: {} for passage in passages}
    sampling = Sampling(temperature=augment.temperature, top_k=augment.top_k)
    options = {"max_tokens": augment.max_tokens, "batch_size": augment.batch_size}
    for attempt in range(1 + augment.retries):
        drawing = {**options, "sampling": sampling, "seed": derive_seed(seed, attempt)}
        short = [p for p in passages if len(rewrites[p.id]) < augment.rewrites]
        written = write_texts(writer, short, _REWRITE, _SAMPLE_REWRITE, **drawing)
        for passage, text in zip(short, written, strict=True):
            text = " ".join(text.split())
            if is_rewrite(text, passage) and text not in rewrites[passage.id]:
                rewrites[passage.id].append(text)
        short = [p for p in passages if len(pairs[p.id]) < augment.questions]
        asked = ask_for_pairs(writer, short, augment.questions, full=full, **drawing)
        for passage, found in zip(short, asked, strict=True):
            for pair in found:
                pairs[passage.id].setdefault(pair.question, pair)
        if not augment.temperature:  # another try would write the same
            break
    return [
        Augmented(tuple(rewrites[p.id]), tuple(pairs[p.id].values())[: augment.questions])
        for p in passages
    ]
