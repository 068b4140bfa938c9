"""The records of a method's answers: batches of prompts of similar lengths, with what each cost."""

from collections.abc import Callable, Sequence
from functools import partial

from rag_jax.evaluation.compare import Record
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.stage import StageContext
from rag_jax.systems.prag.infer import Engine, sort_prompts
from rag_jax.systems.stages import answer_timed


def answer_sorted(
    context: StageContext,
    name: str,
    prompts: Sequence[Sequence[int]],
    facts: Sequence[Record],
    store: AdapterStore | None = None,
    *,
    make_engine: Callable[..., Engine],
    batch_size: int,
) -> list[Record]:
    """A method's record of each prompt, kept on disk; those of similar lengths are read together.

    Args:
        name: of the method.
        facts: as for `answer_batch`.
    """
    order, widths = sort_prompts(prompts, batch_size=batch_size)
    run = partial(answer_batch, make_engine(widths), prompts, facts, store)
    records = answer_timed(context, name, order, run, batch_size=batch_size)
    by_item = {record.pop("item"): record for record in records}
    return [by_item[i] for i in range(len(prompts))]


def answer_batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    facts: Sequence[Record],
    store: AdapterStore | None,
    batch: Sequence[int],
) -> list[Record]:
    """The records of the prompts in `batch`: the number, what is known, the answer and the costs.

    Args:
        facts: for each prompt at least `"adapters"`, the ids of the documents that are merged.
    """
    merged = [facts[i]["adapters"] for i in batch]
    answers = engine.answer([prompts[i] for i in batch], store, merged)
    load = 1000 * answers.load_seconds / answers.loaded if answers.loaded else None
    return [
        {
            "item": i,
            "prediction": text,
            **facts[i],
            "generated_tokens": length,
            "load_ms": load,
            "lost": {id: answers.lost[id] for id in ids if id in answers.lost},
        }
        for i, ids, text, length in zip(batch, merged, answers.texts, answers.lengths, strict=True)
    ]
