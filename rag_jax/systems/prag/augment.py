"""Augmentation of documents before they are encoded: rewrites, and questions with their answers.

A model writes them (`writer`), or rules make simpler ones (`rules`): they reverse the order of
sentences and leave words out.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.passages import Passage
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.progress import log
from rag_jax.systems.asking import Pair
from rag_jax.systems.prag.config import AugmentConfig, PromptConfig
from rag_jax.systems.prag.data import Augmented, Format
from rag_jax.systems.prag.rules import ask_by_rules, rewrite_by_rules
from rag_jax.systems.prag.writer import augment_by_model


def list_documents(found: Path, passages: Sequence[Passage]) -> list[Passage]:
    """The passages of the corpus in `found.jsonl`, in their order: the documents to encode."""
    ids = {id for record in read_jsonl(found) for id in record["passages"]}
    return [passage for passage in passages if passage.id in ids]


def run_augmentation(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    augmenter: Pretrained,
    format: Format,
    augment: AugmentConfig,
    prompt: PromptConfig,
    seed: int,
    found: str = "retrieve",
) -> None:
    """Augments every document that is to be encoded; says which are left out or have too little.

    Full answers are asked for where adapters are trained on them, with `prompt.reasoning`.

    Args:
        found: the stage whose `found.jsonl` names the documents.
    """
    documents = list_documents(context.path(found, "found.jsonl"), passages)

    def augment_batch(batch: Sequence[Passage]) -> list[dict[str, Any]]:
        usable = [Passage(p.id, p.title, format.cut_text(p.text)) for p in batch if p.text.strip()]
        if augment.by == "rules":
            made = [_augment_by_rules(passage, augment) for passage in usable]
        else:
            options = {"full": prompt.reasoning, "seed": seed}
            made = augment_by_model(usable, augment, augmenter, **options)
        augmented = dict(zip((p.id for p in usable), made, strict=True))
        return [_describe(p, augmented.get(p.id), format, augment) for p in batch]

    records = context.map(
        "augmented.jsonl", documents, augment_batch, batch_size=augment.batch_size, unit="documents"
    )
    report_left_out(records)
    kept = [record for record in records if not record["error"]]
    asked = ("rewrites", "rewrites", augment.rewrites), ("pairs", "questions", augment.questions)
    for name, unit, wanted in asked:
        if fewer := sum(len(record[name]) < wanted for record in kept):
            log(f"{fewer} of {len(kept)} documents have too few usable {unit} ({wanted} asked for)")
    cut = sum(record["cut"] for record in records)
    if cut:
        log(f"{cut} passages were cut to {format.max_text} tokens (config.model.max_text)")


def report_left_out(records: Sequence[Mapping[str, Any]]) -> None:
    """Logs which documents are left out, and why, from their records' `id` and `error`."""
    for record in records:
        if record["error"]:
            log(f"passage {record['id']!r} is left out: {record['error']}")


def _describe(
    passage: Passage, augmented: Augmented | None, format: Format, augment: AugmentConfig
) -> dict[str, Any]:
    """The record of a document, with the reason why it is left out, if it is."""
    error = None
    if augmented is None:
        error, augmented = "its text is empty", Augmented((), ())
    elif augment.questions and not augmented.pairs:
        error = "no usable questions"
    elif not augment.questions and not augmented.rewrites:
        error = "no usable rewrites"
    texts = {"rewrites": augmented.rewrites, "pairs": augmented.pairs}
    return {"id": passage.id, **texts, "cut": format.is_cut(passage.text), "error": error}


def read_augmented(file: Path) -> dict[str, Augmented]:
    """The augmentations in `augmented.jsonl` by document id, without the documents left out."""
    return {
        record["id"]: Augmented(
            tuple(record["rewrites"]), tuple(Pair(*pair) for pair in record["pairs"])
        )
        for record in read_jsonl(file)
        if not record["error"]
    }


def list_augmented(
    context: StageContext,
    passages: Sequence[Passage],
    *,
    found: str = "retrieve",
    made: str = "augment",
) -> tuple[list[Passage], list[Augmented]]:
    """The documents to encode that were not left out, and their augmentations.

    Args:
        found: the stage whose `found.jsonl` names the documents.
        made: the stage that augmented them.

    Raises:
        RagJaxError: all documents were left out.
    """
    augmented = read_augmented(context.path(made, "augmented.jsonl"))
    documents = list_documents(context.path(found, "found.jsonl"), passages)
    documents = [document for document in documents if document.id in augmented]
    if not documents:
        raise RagJaxError(
            "no document is left to encode: see why the augmentation left each out, or set "
            "config.augment.by='rules'"
        )
    return documents, [augmented[document.id] for document in documents]


def _augment_by_rules(passage: Passage, augment: AugmentConfig) -> Augmented:
    pairs = ask_by_rules(passage, count=augment.questions)
    return Augmented((rewrite_by_rules(passage),) * augment.rewrites, tuple(pairs))
