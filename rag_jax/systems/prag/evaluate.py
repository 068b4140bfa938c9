"""The comparison: every way to give the model its passages, on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.config import TuningConfig
from rag_jax.data.batches import round_up
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import compute_accuracy, exact_match, f1, match
from rag_jax.evaluation.compare import Method, Record, compare, mean_numbers, timed
from rag_jax.lora.store import AdapterStore
from rag_jax.models import Pretrained
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from rag_jax.runtime.progress import log
from rag_jax.systems.prag.augment import list_documents
from rag_jax.systems.prag.config import AnswerConfig, RetrieveConfig
from rag_jax.systems.prag.data import Format, Variant
from rag_jax.systems.prag.infer import Engine, Search

COLUMNS = ("n", "exact_match", "f1", "match", "prompt_tokens", "seconds_per_question")
# For each method whether its prompt has the passages, and whose adapters are merged.
METHODS = {
    "direct": (False, None),
    "in_context": (True, None),
    "parametric": (False, "own"),
    "both": (True, "own"),
    "random": (False, "random"),
}


def describe_report(config: Any, variants: Mapping[str, Variant]) -> ReportSpec:
    """What the report shows: a row for each way to give the passages, and for each ablation."""
    ablations = [name for name in variants if name != "encode"]
    return ReportSpec(
        model=config.model.name,
        methods=dict.fromkeys([*METHODS, *ablations], "evaluate"),
        columns=COLUMNS,
        summarize=summarize,
        extras=_make_tables,
    )


def summarize(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A method's numbers over its questions; the interval is for the exact match."""
    interval = compute_accuracy([row["exact_match"] for row in rows])[1] if rows else (0.0, 1.0)
    means = mean_numbers(rows, ("exact_match", "f1", "match", "prompt_tokens", "seconds"))
    means["seconds_per_question"] = means.pop("seconds", None)
    return {"n": len(rows), **means, "ci95": interval}


def _make_tables(
    stages: Path, predictions: Mapping[str, Sequence[Mapping[str, Any]]], methods: Any
) -> dict[str, Any]:
    del methods
    tables = {"the documents' adapters": tabulate_adapters(stages)}
    if any(row["type"] for rows in predictions.values() for row in rows):
        tables["F1 by type of question"] = tabulate_types(predictions)
    return {"tables": tables}


def run_retrieval(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    questions: Sequence[Question],
    make_search: Callable[[Sequence[Passage]], Search],
) -> None:
    """Finds the documents of every question that is evaluated.

    BM25 finds none for a question that shares no word with any document.
    """
    found = make_search(passages)([question.question for question in questions])
    records = [
        {"id": question.id, "passages": [passage.id for passage in own]}
        for question, own in zip(questions, found, strict=True)
    ]
    write_jsonl(context.folder / "found.jsonl", records)


def draw_others(
    questions: Sequence[Question],
    found: Sequence[Sequence[str]],
    encoded: Sequence[str],
    *,
    seed: int,
) -> list[list[str]]:
    """For each question as many random documents as it found, none of them found or relevant."""
    drawn = []
    for i, (question, own) in enumerate(zip(questions, found, strict=True)):
        others = [id for id in encoded if id not in own and id not in question.relevant]
        rng = np.random.default_rng((seed, i))
        drawn.append([others[j] for j in rng.permutation(len(others))[: len(own)]])
    return drawn


def run_evaluation(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    questions: Sequence[Question],
    base: Pretrained,
    format: Format,
    answer: AnswerConfig,
    retrieve: RetrieveConfig,
    tuning: TuningConfig,
    variants: Mapping[str, Variant],
    open_store: Callable[..., AdapterStore],
    check_length: Callable[[int], None],
    seed: int,
) -> None:
    """Answers all questions in every way; `adapters.json` says what an adapter costs."""
    documents = {p.id: p for p in list_documents(context.path("retrieve", "found.jsonl"), passages)}
    found = [r["passages"] for r in read_jsonl(context.path("retrieve", "found.jsonl"))]
    stores = {
        name: open_store(context.path(name, "adapters"), variant)
        for name, variant in variants.items()
    }
    encoded = [id for id in documents if id in stores["encode"]]
    merged = {None: [[]] * len(found), "own": found}
    merged["random"] = draw_others(questions, found, encoded, seed=seed)
    prompts = {
        with_passages: [
            format.encode_prompt(q.question, [documents[id] for id in ids] if with_passages else ())
            for q, ids in zip(questions, found, strict=True)
        ]
        for with_passages in (False, True)
    }
    check_length(max(map(len, prompts[True])) + answer.max_tokens)
    engine = partial(
        Engine,
        model=base.model,
        params=base.params,
        format=format,
        settings=answer,
        scale=tuning.scale,
        documents=retrieve.passages,
    )
    ways = {
        name: (with_passages, merged[kind], kind and stores["encode"])
        for name, (with_passages, kind) in METHODS.items()
    }
    ways |= {name: (False, found, stores[name]) for name in variants if name != "encode"}
    passes: dict[str, list[Record]] = {}

    def answer_all(name: str) -> list[Record]:
        with_passages, ids, store = ways[name]
        read = found if with_passages else [[]] * len(found)
        passes[name] = _answer_all(context, name, engine, prompts[with_passages], read, ids, store)
        return passes[name]

    compare([Method(n, partial(answer_all, n)) for n in ways], questions, grade, context.folder)
    _write_costs(context, passes, [stores["encode"].count_bytes(id) for id in encoded])


def _answer_all(
    context: StageContext,
    name: str,
    make_engine: Callable[..., Engine],
    prompts: Sequence[Sequence[int]],
    read: Sequence[Sequence[str]],
    merged: Sequence[Sequence[str]],
    store: AdapterStore | None,
) -> list[Record]:
    """Answers every prompt in one way.

    Args:
        read: for each prompt the ids of the documents in it.
        merged: for each prompt the ids of the documents whose adapters are merged.
    """
    engine = make_engine(width=round_up(max(map(len, prompts)), 32))

    def run(batch: Sequence[int]) -> list[Record]:
        answers = engine.answer([prompts[i] for i in batch], store, [merged[i] for i in batch])
        load = 1000 * answers.load_seconds / answers.loaded if answers.loaded else None
        return [
            {
                "prediction": text,
                "prompt_tokens": len(prompts[i]),
                "passages": read[i],
                "adapters": merged[i],
                "load_ms": load,
                "lost": {id: answers.lost[id] for id in merged[i] if id in answers.lost},
            }
            for i, text in zip(batch, answers.texts, strict=True)
        ]

    return context.map(
        f"answers_{name}.jsonl",
        range(len(prompts)),
        timed(run),
        batch_size=engine.settings.batch_size,
        unit=f"questions ({name})",
    )


def _write_costs(
    context: StageContext, passes: Mapping[str, Sequence[Record]], sizes: Sequence[int]
) -> None:
    """Writes `adapters.json`: bytes and milliseconds of an adapter, and the adapters lost."""
    records = [record for answered in passes.values() for record in answered]
    lost = {id: reason for record in records for id, reason in record["lost"].items()}
    for reason in lost.values():
        log(f"answered without an adapter: {reason}")
    loads = [record["load_ms"] for record in records if record["load_ms"] is not None]
    write_json(
        context.folder / "adapters.json",
        {
            "documents": len(sizes),
            "bytes_per_document": float(np.mean(sizes)) if sizes else 0.0,
            "load_ms_per_document": float(np.mean(loads)) if loads else 0.0,
            "lost": lost,
        },
    )


def grade(question: Question, record: Record) -> Record:
    """An answer's record with its question and scores."""
    prediction = record["prediction"]
    return {
        "id": question.id,
        "question": question.question,
        "answers": question.answers,
        "type": question.type,
        "exact_match": exact_match(prediction, question.answers),
        "f1": f1(prediction, question.answers),
        "match": match(prediction, question.answers),
        **record,
    }


def tabulate_types(
    predictions: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[list[str | float]]:
    """F1 by type of question, a row for each method."""
    types = sorted({row["type"] for rows in predictions.values() for row in rows})
    table: list[list[str | float]] = [["method", *types]]
    for name, rows in predictions.items():
        scores = ([row["f1"] for row in rows if row["type"] == type_] for type_ in types)
        table.append([name, *(float(np.mean(some)) for some in scores)])
    return table


def tabulate_adapters(stages: Path) -> list[list[str | float]]:
    """What the documents' adapters of a finished run cost to train and to use."""
    made = read_json(stages / "encode" / "groups.json")
    used = read_json(stages / "evaluate" / "adapters.json")
    return [
        ["", "value"],
        ["documents encoded", str(used["documents"])],
        ["trained together", str(made["size"])],
        ["tokens trained on", str(made["tokens"])],
        ["share of padding", made["padding"]],
        ["programs compiled", str(made["programs"])],
        ["bytes a document", f"{used['bytes_per_document']:.0f}"],
        ["milliseconds to load a document", used["load_ms_per_document"]],
    ]
