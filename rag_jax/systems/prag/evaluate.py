"""The comparison: every way to give the model its passages, on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.config import EncoderConfig
from rag_jax.data.passages import Passage
from rag_jax.data.questions import Question
from rag_jax.evaluation.answers import exact_match, f1, match
from rag_jax.evaluation.compare import Method, Record, compare, describe_question, summarize_answers
from rag_jax.lora.store import AdapterStore
from rag_jax.pipeline.runner import ReportSpec
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_jsonl, write_json, write_jsonl
from rag_jax.runtime.progress import log
from rag_jax.systems.embeddings import embedding
from rag_jax.systems.evaluation import name_model
from rag_jax.systems.prag.answers import answer_sorted
from rag_jax.systems.prag.augment import list_documents, read_augmented
from rag_jax.systems.prag.config import AnswerConfig, DocumentsConfig, PRAGConfig
from rag_jax.systems.prag.data import Augmented, Format, Variant, list_variants
from rag_jax.systems.prag.infer import Engine, Search
from rag_jax.systems.prag.tables import tabulate_adapters, tabulate_coverage, tabulate_types
from rag_jax.systems.prag.translate import EVALUATE_TRANSLATED, TRANSLATE
from rag_jax.systems.reranking import (
    RERANKED,
    Reranking,
    add_ranks,
    keep_scores,
    rank_anew,
    rerank_found,
    tabulate_reranking,
)
from rag_jax.systems.words import keep_settings, tabulate_words

COLUMNS = ("n", "exact_match", "f1", "match", "prompt_tokens", "seconds_per_question")
# For each method what its prompt has of the documents, and whose adapters are merged. The paper's
# names are Standard RAG, DA-RAG, P-RAG and Combine Both; "random" is a control of our own.
METHODS = {
    "direct": ("nothing", None),
    "in_context": ("passages", None),
    "in_context_augmented": ("augmentations", None),
    "parametric": ("nothing", "own"),
    "both": ("passages", "own"),
    "random": ("nothing", "random"),
}
# With a translator also those whose adapters it makes, in a stage of their own; the last two are
# again controls.
TRANSLATED = {
    "translated": ("nothing", "translated"),
    "translated_both": ("passages", "translated"),
    "translated_random": ("nothing", "random_translated"),
    "translated_random_both": ("passages", "random_translated"),
}


def name_row(reader: str) -> str:
    """The row of one of `config.readers`."""
    return f"read_{reader}"


# What a record says of its question and prompt, beside the answer.
_FACTS = ("prompt_tokens", "passages", "adapters", "covered")


def describe_report(config: PRAGConfig, *, trained: bool = True) -> ReportSpec:
    """What the report shows: a row for each way to give the passages, and for each ablation.

    Rows are compared with the made adapters where there is a translator, else with the trained
    ones. Without a warm-up of the adapters it is not of a `trained` model.
    """
    ablations = [name for name in list_variants(config) if name != "encode"]
    translated = TRANSLATED if config.translator.documents else {}
    methods = {
        **dict.fromkeys(METHODS, "evaluate"),
        **dict.fromkeys(translated, EVALUATE_TRANSLATED),
        **dict.fromkeys(ablations, "evaluate"),
        **dict.fromkeys(map(name_row, config.readers), "read"),
    }
    summarize = partial(summarize_answers, names=COLUMNS[1:-1], main="exact_match")
    reference = "translated" if translated else "parametric"
    paired = reference, {name: name for name in ("exact_match", "f1", "match")}
    model = name_model(config.model.name, trained)
    make_tables = partial(_make_tables, retrieve=config.retrieve)
    return ReportSpec(model, methods, COLUMNS, summarize, *paired, make_tables)


def _make_tables(
    context: StageContext,
    predictions: Mapping[str, Sequence[Record]],
    methods: Any,
    *,
    retrieve: DocumentsConfig,
) -> dict[str, Any]:
    del methods
    tables = {"the documents' adapters": tabulate_adapters(context)}
    title = "exact match by whether the documents' adapters were trained to say the gold answer"
    tables[title] = tabulate_coverage(predictions)
    if any(row["type"] for rows in predictions.values() for row in rows):
        tables["F1 by type of question"] = tabulate_types(predictions)
    if retrieve.rerank.name is not None:
        tables |= tabulate_reranking(context, "retrieve")
    if retrieve.by_words:
        tables |= tabulate_words(context, "retrieve")
    return {"tables": tables}


def run_retrieval(
    context: StageContext,
    *,
    passages: Sequence[Passage],
    questions: Sequence[Question],
    make_search: Callable[..., Search],
    encode_passages: Callable[..., Float[np.ndarray, "N E"]],
    encoding: EncoderConfig,
    reranking: Reranking | None,
    retrieve: DocumentsConfig,
) -> None:
    """Finds the documents of every question that is evaluated.

    BM25 finds none for a question that shares no word with any document. An encoder embeds the
    passages piece by piece, and an interrupted search goes on with the pieces that are there. A
    reranker then orders them anew, and the first ones are a question's documents.
    """
    asked = [question.question for question in questions]
    with embedding(context, encode_passages, encoding) as embed:
        found = make_search(passages, embed, partial(keep_settings, context))(asked)
    chosen, ranks = found, [{}] * len(asked)
    if reranking is not None:
        read = rerank_found(context, "found", reranking, asked, found, passages)
        reranked = [ranked for ranked, _ in read]
        rankings = {"found": found, RERANKED: reranked}
        keep_scores(context, questions, rankings, passages, k=retrieve.passages)
        chosen = [ranked[: retrieve.passages] for ranked in reranked]
        ranks = rank_anew(found, chosen)
    records = [
        {"id": question.id, "passages": [passages[row].id for row, _ in own], **more}
        for question, own, more in zip(questions, chosen, ranks, strict=True)
    ]
    write_jsonl(context.folder / "found.jsonl", records)


def draw_others(
    questions: Sequence[Question],
    found: Sequence[Sequence[str]],
    encoded: Sequence[str],
    *,
    seed: int,
) -> list[list[str]]:
    """For each question as many random documents as it found, none of them found or relevant.

    Args:
        encoded: ids of documents, each once.
    """
    drawn, places = [], {id: place for place, id in enumerate(encoded)}
    for i, (question, own) in enumerate(zip(questions, found, strict=True)):
        left_out = sorted({places[id] for id in (*own, *question.relevant) if id in places})
        order = np.random.default_rng((seed, i)).permutation(len(encoded) - len(left_out))
        chosen = order[: len(own)]  # numbers among the documents that are not left out
        for place in left_out:
            chosen = chosen + (chosen >= place)
        drawn.append([encoded[place] for place in chosen])
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
    open_translated: Callable[[Path], AdapterStore],
    check_length: Callable[[int], None],
    seed: int,
    methods: Mapping[str, tuple[str, str | None]] = METHODS,
) -> None:
    """Answers all questions in every way; `adapters.json` says what an adapter costs.

    Documents without a trained adapter are left out of the prompts too, as in the released code, so
    that all methods have the same documents.

    Args:
        variants: the ways that the documents were encoded for these methods.
        methods: as `METHODS` or `TRANSLATED`.
    """
    path = context.path("retrieve", "found.jsonl")
    documents = {passage.id: passage for passage in list_documents(path, passages)}
    augmented = read_augmented(context.path("augment", "augmented.jsonl"))
    encoded = list_encoded(context.path("encode", "encoded.jsonl"))
    retrieved = read_jsonl(path)
    found = [[i for i in r["passages"] if i in encoded] for r in retrieved]
    stores = {n: open_store(context.path(n, "adapters"), v) for n, v in variants.items()}
    others = draw_others(questions, found, list(encoded), seed=seed)
    nothing: list[list[str]] = [[]] * len(found)
    merged = {None: nothing, "own": found, "random": others}
    merged |= {"translated": found, "random_translated": others}
    if context.needs(TRANSLATE):
        stores[TRANSLATE] = open_translated(context.path(TRANSLATE, ""))
    # For each method what its prompts have, the ids of the adapters, and the store.
    sources = {"own": "encode", "random": "encode"}
    ways = {
        n: (read, merged[k], k and stores[sources.get(k, TRANSLATE)])
        for n, (read, k) in methods.items()
    }
    ways |= {n: ("nothing", found, stores[n]) for n in variants if n != "encode"}
    prompts = _make_prompts(format, questions, found, documents, augmented)
    check_length(
        max(len(prompt) for made in prompts.values() for prompt in made) + answer.max_tokens
    )
    ranks = [_describe_ranks(record) for record in retrieved]
    covered = list(map(partial(is_covered, augmented=augmented), questions, found))
    passes: dict[str, list[Record]] = {}

    def answer_all(name: str) -> list[Record]:
        read, adapters, store = ways[name]
        texts = prompts[read]
        given = nothing if read == "nothing" else found
        columns = map(len, texts), given, adapters, covered
        facts = [dict(zip(_FACTS, row, strict=True)) for row in zip(*columns, strict=True)]
        facts = [fact | own for fact, own in zip(facts, ranks, strict=True)]
        options = {"make_engine": make_engine, "batch_size": answer.batch_size}
        passes[name] = answer_sorted(context, name, texts, facts, store, **options)
        return passes[name]

    compare([Method(n, partial(answer_all, n)) for n in ways], questions, grade, context.folder)
    store = stores["encode" if "encode" in variants else TRANSLATE]
    sizes = [store.count_bytes(id) for id in encoded if id in store]
    _write_costs(context, passes, sizes)


def _describe_ranks(record: Record) -> Record:
    """What a prediction says of the documents that were reranked, by a record of `found.jsonl`."""
    if "ranks" not in record:
        return {}
    return {"retrieved": add_ranks([{"id": id} for id in record["passages"]], record)}


def list_encoded(file: Path) -> dict[str, None]:
    """The ids of the documents that have an adapter, from `encoded.jsonl`, in their order."""
    return {record["id"]: None for record in read_jsonl(file) if not record["error"]}


def is_covered(
    question: Question, documents: Sequence[str], *, augmented: Mapping[str, Augmented]
) -> bool:
    """Whether an answer that the adapter of one of the documents is trained on has a gold answer.

    As whole words: "English, Hindi and Bengali" has "English".
    """
    pairs = [pair for id in documents for pair in augmented[id].pairs]
    return any(match(pair.answer, question.answers) for pair in pairs)


def _make_prompts(
    format: Format,
    questions: Sequence[Question],
    found: Sequence[Sequence[str]],
    documents: Mapping[str, Passage],
    augmented: Mapping[str, Augmented],
) -> dict[str, list[list[int]]]:
    """The prompts of all questions: without documents, with them, and with augmentations too."""
    own = [[documents[id] for id in ids] for ids in found]
    asked = [question.question for question in questions]
    augment = partial(format.encode_prompt, augmented=augmented)
    return {
        "nothing": list(map(format.encode_prompt, asked)),
        "passages": list(map(format.encode_prompt, asked, own)),
        "augmentations": list(map(augment, asked, own)),
    }


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
