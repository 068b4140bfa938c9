"""Augmentation of documents before they are encoded: rewrites, and questions with their answers.

The model is asked in plain text, after an example, and its answers must be in the passage. Unusable
texts are retried a bounded number of times, with other random draws. Rules make simpler
augmentations: they reverse the order of sentences and leave words out.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rag_jax.data.passages import Passage
from rag_jax.decoding import Sampling
from rag_jax.evaluation.answers import match, normalize_answer
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_jsonl
from rag_jax.runtime.progress import log
from rag_jax.systems.prag.config import AugmentConfig
from rag_jax.systems.prag.data import Augmented, Format
from rag_jax.systems.prag.phrases import VALUE
from rag_jax.systems.prag.rules import ask_by_rules, rewrite_by_rules
from rag_jax.systems.stages import continue_prompts

_REWRITE = (
    "Restate the passage in other words. Keep every name, place, number and term as it is, and "
    "what is said of it. Write the new passage alone."
)
_ASK = (
    "Write {count} different questions that the passage answers. Each answer is a few words that "
    "stand in the passage. Write two lines for each, 'Question: ...' and 'Answer: ...'."
)
# One example, because small models copy its form.
_SAMPLE = (
    "The Eiffel Tower: The Eiffel Tower is an iron tower in Paris, built by the company of Gustave "
    "Eiffel from 1887 to 1889. It is 330 metres tall."
)
_SAMPLE_REWRITE = (
    "In Paris stands the Eiffel Tower, a tower of iron that is 330 metres tall. The company of "
    "Gustave Eiffel built it between 1887 and 1889."
)
_SAMPLE_PAIRS = (
    ("In which city is the Eiffel Tower?", "Paris"),
    ("Whose company built the Eiffel Tower?", "Gustave Eiffel"),
    ("How tall is the Eiffel Tower?", "330 metres"),
    ("What is the Eiffel Tower made of?", "iron"),
    ("When was the Eiffel Tower finished?", "1889"),
)
_PAIR = re.compile(
    r"^[\W\d]*question\s*\d*\s*[:.)]\s*(?P<question>\S.*?)\s*$\s*"
    r"^[\W\d]*answer\s*\d*\s*[:.)]\s*(?P<answer>\S.*?)\s*$",
    re.IGNORECASE | re.MULTILINE,
)
_KEPT = 0.7  # least share of a passage's names and numbers in its rewrite


def parse_pairs(text: str, passage: Passage) -> list[tuple[str, str]]:
    """The usable questions and answers of a model's text: those whose answer is in the passage.

    A question that contains its answer, or repeats another question, is left out.
    """
    pairs: dict[str, tuple[str, str]] = {}
    source = f"{passage.title}: {passage.text}"
    for found in _PAIR.finditer(text):
        question, answer = found["question"], found["answer"].rstrip(".")
        if match(source, [answer]) and not match(question, [answer]):
            pairs.setdefault(normalize_answer(question), (question, answer))
    return list(pairs.values())


def is_rewrite(text: str, passage: Passage) -> bool:
    """Whether a text says the same in other words, judged by the passage's names and numbers."""
    values = {found[0] for found in VALUE.finditer(passage.text)}
    kept = sum(bool(match(text, [value])) for value in values)
    same = normalize_answer(text) == normalize_answer(passage.text)
    return bool(text.strip()) and not same and kept >= _KEPT * len(values)


def list_documents(found: Path, passages: Sequence[Passage]) -> list[Passage]:
    """The passages of the corpus in `found.jsonl`, in their order: the documents to encode."""
    ids = {id for record in read_jsonl(found) for id in record["passages"]}
    return [passage for passage in passages if passage.id in ids]


def run_augmentation(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    base: Pretrained,
    format: Format,
    augment: AugmentConfig,
    seed: int,
) -> None:
    """Augments every document that is to be encoded; says which are left out, and why."""
    documents = list_documents(context.path("retrieve", "found.jsonl"), passages)

    def augment_batch(batch: Sequence[Passage]) -> list[dict[str, Any]]:
        usable = [Passage(p.id, p.title, format.cut_text(p.text)) for p in batch if p.text.strip()]
        if augment.by == "rules":
            made = [_augment_by_rules(passage, augment) for passage in usable]
        else:
            made = _augment_by_model(usable, augment, base, seed=seed)
        augmented = dict(zip((p.id for p in usable), made, strict=True))
        return [_describe(p, augmented.get(p.id), format, augment) for p in batch]

    records = context.map(
        "augmented.jsonl", documents, augment_batch, batch_size=augment.batch_size, unit="documents"
    )
    report_left_out(records)
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
    elif len(augmented.rewrites) < augment.rewrites:
        error = "no usable rewrites"
    elif augment.questions and not augmented.pairs:
        error = "no usable questions"
    texts = {"rewrites": augmented.rewrites, "pairs": augmented.pairs}
    return {"id": passage.id, **texts, "cut": format.is_cut(passage.text), "error": error}


def read_augmented(file: Path) -> dict[str, Augmented]:
    """The augmentations in `augmented.jsonl` by document id, without the documents left out."""
    return {
        record["id"]: Augmented(tuple(record["rewrites"]), tuple(map(tuple, record["pairs"])))
        for record in read_jsonl(file)
        if not record["error"]
    }


def list_augmented(
    context: StageContext, passages: Sequence[Passage]
) -> tuple[list[Passage], list[Augmented]]:
    """The documents to encode that were not left out, and their augmentations.

    Raises:
        RagJaxError: all documents were left out.
    """
    augmented = read_augmented(context.path("augment", "augmented.jsonl"))
    documents = list_documents(context.path("retrieve", "found.jsonl"), passages)
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


def _augment_by_model(
    passages: Sequence[Passage], augment: AugmentConfig, base: Pretrained, *, seed: int
) -> list[Augmented]:
    """Asks the model until every document has enough, or the retries are used up."""
    rewrites: dict[str, list[str]] = {passage.id: [] for passage in passages}
    pairs: dict[str, dict[str, tuple[str, str]]] = {passage.id: {} for passage in passages}
    sample = "\n".join(f"Question: {q}\nAnswer: {a}" for q, a in _SAMPLE_PAIRS[: augment.questions])
    ask = _ASK.format(count=augment.questions)
    for attempt in range(1 + augment.retries):
        draw = seed + 2 * attempt
        short = [p for p in passages if len(rewrites[p.id]) < augment.rewrites]
        written = _write(short, augment, base, _REWRITE, _SAMPLE_REWRITE, seed=draw)
        for passage, text in zip(short, written, strict=True):
            text = " ".join(text.split())
            if is_rewrite(text, passage) and text not in rewrites[passage.id]:
                rewrites[passage.id].append(text)
        short = [p for p in passages if len(pairs[p.id]) < augment.questions]
        written = _write(short, augment, base, ask, sample, seed=draw + 1)
        for passage, text in zip(short, written, strict=True):
            for pair in parse_pairs(text, passage):
                pairs[passage.id].setdefault(pair[0], pair)
        if not augment.temperature:  # another try would write the same
            break
    return [
        Augmented(tuple(rewrites[p.id]), tuple(pairs[p.id].values())[: augment.questions])
        for p in passages
    ]


def _write(
    passages: Sequence[Passage],
    augment: AugmentConfig,
    base: Pretrained,
    instruction: str,
    sample: str,
    *,
    seed: int,
) -> list[str]:
    """The model's answers to an instruction about each passage, after one example."""
    turns = [
        {"role": "system", "content": instruction},
        {"role": "user", "content": _SAMPLE},
        {"role": "assistant", "content": sample},
    ]
    prompts = [
        base.tokenizer.encode_chat([*turns, {"role": "user", "content": f"{p.title}: {p.text}"}])
        for p in passages
    ]
    sizes = {"max_tokens": augment.max_tokens, "batch_size": augment.batch_size}
    sampling = Sampling(temperature=augment.temperature, top_k=augment.top_k)
    written = continue_prompts(base, prompts, **sizes, sampling=sampling, seed=seed)
    return [base.tokenizer.decode(tokens).strip() for tokens in written]
