"""The comparison: every way to give the model its passages, on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rag_jax.data.batches import round_up
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import exact_match, f1, match
from rag_jax.evaluation.compare import Method, Record, compare, describe_question, summarize_answers
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_json, read_jsonl, write_json, write_jsonl
from rag_jax.runtime.progress import log
from rag_jax.systems.prag.augment import list_documents
from rag_jax.systems.prag.config import AnswerConfig, PRAGConfig
from rag_jax.systems.prag.data import Format, Variant, list_variants
from rag_jax.systems.prag.infer import Engine, Search
from rag_jax.systems.stages import answer_timed

COLUMNS = ("n", "exact_match", "f1", "match", "prompt_tokens", "seconds_per_question")
# For each method whether its prompt has the passages, and whose adapters are merged.
METHODS = {
    "direct": (False, None),
    "in_context": (True, None),
    "parametric": (False, "own"),
    "both": (True, "own"),
    "random": (False, "random"),
}


def describe_report(config: PRAGConfig) -> ReportSpec:
    """What the report shows: a row for each way to give the passages, and for each ablation."""
    ablations = [name for name in list_variants(config) if name != "encode"]
    methods = dict.fromkeys([*METHODS, *ablations], "evaluate")
    summarize = partial(summarize_answers, names=COLUMNS[1:-1], main="exact_match")
    paired = "parametric", {name: name for name in ("exact_match", "f1")}
    return ReportSpec(config.model.name, methods, COLUMNS, summarize, *paired, _make_tables)


def _make_tables(
    stages: Path, predictions: Mapping[str, Sequence[Record]], methods: Any
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
    pairs = zip(questions, found, strict=True)
    records = [{"id": question.id, "passages": [p.id for p in own]} for question, own in pairs]
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
    format: Format,
    answer: AnswerConfig,
    variants: Mapping[str, Variant],
    make_engine: Callable[..., Engine],
    open_store: Callable[..., AdapterStore],
    check_length: Callable[[int], None],
    seed: int,
) -> None:
    """Answers all questions in every way; `adapters.json` says what an adapter costs."""
    path = context.path("retrieve", "found.jsonl")
    documents = {passage.id: passage for passage in list_documents(path, passages)}
    found = [record["passages"] for record in read_jsonl(path)]
    stores = {n: open_store(context.path(n, "adapters"), v) for n, v in variants.items()}
    encoded = [id for id in documents if id in stores["encode"]]
    nothing: list[list[str]] = [[]] * len(found)
    others = draw_others(questions, found, encoded, seed=seed)
    merged = {None: nothing, "own": found, "random": others}
    # For each method whether the prompts have the passages, the ids of the adapters, and the store.
    ways = {
        name: (with_passages, merged[kind], kind and stores["encode"])
        for name, (with_passages, kind) in METHODS.items()
    }
    ways |= {name: (False, found, stores[name]) for name in variants if name != "encode"}
    read = {False: nothing, True: found}
    prompts = {
        with_passages: [
            format.encode_prompt(question.question, [documents[id] for id in ids])
            for question, ids in zip(questions, every, strict=True)
        ]
        for with_passages, every in read.items()
    }
    check_length(max(map(len, prompts[True])) + answer.max_tokens)
    passes: dict[str, list[Record]] = {}

    def answer_all(name: str) -> list[Record]:
        with_passages, adapters, store = ways[name]
        texts, places = prompts[with_passages], range(len(questions))
        engine = make_engine(round_up(max(map(len, texts)), 32))
        run = partial(_answer_batch, engine, texts, read[with_passages], adapters, store)
        passes[name] = answer_timed(context, name, places, run, batch_size=answer.batch_size)
        return passes[name]

    compare([Method(n, partial(answer_all, n)) for n in ways], questions, grade, context.folder)
    _write_costs(context, passes, [stores["encode"].count_bytes(id) for id in encoded])


def _answer_batch(
    engine: Engine,
    prompts: Sequence[Sequence[int]],
    read: Sequence[Sequence[str]],
    merged: Sequence[Sequence[str]],
    store: AdapterStore | None,
    batch: Sequence[int],
) -> list[Record]:
    """The records of the prompts in `batch`, with the ids of the documents read and merged."""
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


def _write_costs(
    context: StageContext, passes: Mapping[str, Sequence[Record]], sizes: Sequence[int]
) -> None:
    """Writes `adapters.json`: bytes and milliseconds of an adapter, and the adapters lost."""
    records = [record for answered in passes.values() for record in answered]
    lost = {id: reason for record in records for id, reason in record["lost"].items()}
    for reason in lost.values():
        log(f"answered without an adapter: {reason}")
    loads = [record["load_ms"] for record in records if record["load_ms"] is not None]
    costs = {
        "documents": len(sizes),
        "bytes_per_document": float(np.mean(sizes)) if sizes else 0.0,
        "load_ms_per_document": float(np.mean(loads)) if loads else 0.0,
    }
    write_json(context.folder / "adapters.json", costs | {"lost": lost})


def grade(question: Question, record: Record) -> Record:
    """An answer's record with its question and scores."""
    prediction, answers = record["prediction"], question.answers
    scores = {"exact_match": exact_match(prediction, answers), "f1": f1(prediction, answers)}
    scores["match"] = match(prediction, answers)
    return {**describe_question(question), "type": question.type, **scores, **record}


def tabulate_types(predictions: Mapping[str, Sequence[Record]]) -> list[list[str | float]]:
    """F1 by type of question, a row for each method."""
    types = sorted({row["type"] for rows in predictions.values() for row in rows})
    table: list[list[str | float]] = [["method", *types]]
    for name, rows in predictions.items():
        scores = ([row["f1"] for row in rows if row["type"] == type_] for type_ in types)
        table.append([name, *(float(np.mean(members)) for members in scores)])
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
