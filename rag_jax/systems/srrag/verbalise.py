"""Verbalisation before training: the documents that the untrained model writes, and all contexts.

Documents come in GenRead's two rounds (Yu et al. 2023, section 3.2). Round one writes one document
for each of some training questions. Documents that hold the answer are clustered by the embedding
of question and document. Round two shows a few documents of one cluster as demonstrations and
writes again, so each cluster gives a document in its own style. No question is shown its own
document.
"""

import itertools
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from rag_jax.data.questions import Question
from rag_jax.decoding import Sampling
from rag_jax.evaluation.answers import match
from rag_jax.evaluation.texts import drop_thoughts
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json, write_json, write_jsonl
from rag_jax.systems.reranking import Reranking
from rag_jax.systems.srrag.config import SourceConfig, VerbaliseConfig
from rag_jax.systems.srrag.data import encode_document_prompt
from rag_jax.systems.srrag.infer import Search
from rag_jax.systems.stages import continue_prompts

Demonstration = tuple[str, str]  # a question and its document
_TOGETHER = 32  # questions of a piece on disk whose passages are reranked


def write_texts(
    base: Pretrained,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    batch_size: int,
    seed: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """The tokens that the untrained model writes after prompts."""
    options = {"sampling": Sampling(temperature=temperature), "seed": seed}
    return continue_prompts(base, prompts, max_tokens=max_tokens, batch_size=batch_size, **options)


def write_documents(
    base: Pretrained,
    questions: Sequence[str],
    demonstrations: Sequence[Sequence[Demonstration]],
    settings: VerbaliseConfig,
    *,
    seed: int,
) -> list[str]:
    """Background documents by the untrained model.

    Args:
        demonstrations: of each question; what all prompts begin with is read once.
    """
    pairs = zip(questions, demonstrations, strict=True)
    prompts = [encode_document_prompt(base.tokenizer, *pair) for pair in pairs]
    limit, decode = settings.max_tokens, base.tokenizer.decode
    sizes = {"max_tokens": limit, "batch_size": settings.batch_size}
    written = write_texts(base, prompts, **sizes, seed=seed, temperature=settings.temperature)
    return [clean_document(decode(tokens), finished=len(tokens) < limit) for tokens in written]


def clean_document(text: str, *, finished: bool) -> str:
    """A document in one line; a document that the limit cut off ends with its last sentence."""
    text = " ".join(drop_thoughts(text).split())
    if not finished and (ends := [m.end() for m in re.finditer(r"[.!?](?=\s)", text)]):
        return text[: ends[-1]]
    return text


def is_clean(text: str) -> bool:
    """Whether a text is a document, and does not talk about the question or itself."""
    return bool(text) and not re.search(r"\b(question|answer|document)\b", text, re.IGNORECASE)


def draw_clusters(
    embeddings: Float[np.ndarray, "N D"], *, clusters: int, seed: int
) -> list[list[int]]:
    """Clusters documents by K-means.

    Returns:
        For each cluster the numbers of its documents in random order: the first are the
        demonstrations.
    """
    from sklearn.cluster import KMeans  # imported here: slow, and asking needs none

    labels = KMeans(clusters, n_init=10, random_state=seed).fit_predict(embeddings)
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == cluster) for cluster in range(clusters)]
    return [rng.permutation(numbers).tolist() for numbers in members]


def list_datasets(questions: Sequence[Question]) -> list[str]:
    """The names of the questions' datasets: "" alone if they are of one."""
    return list(dict.fromkeys(question.dataset for question in questions))


def draw_pool(
    questions: Sequence[Question], settings: VerbaliseConfig, *, contexts: int, seed: int
) -> list[Question]:
    """The training questions that the first round writes documents for.

    Raises:
        RagJaxError: a dataset has fewer of them than there are contexts.
    """
    order = np.random.default_rng(seed).permutation(len(questions))[: settings.pool]
    drawn = [questions[i] for i in order]
    counts = Counter(question.dataset for question in drawn)
    for name in list_datasets(questions):
        if counts[name] < contexts:
            raise RagJaxError(
                f"config.verbalise.pool={settings.pool}: has {counts[name]} questions of {name}, "
                f"and each of the {contexts} contexts (config.contexts) needs one; raise it"
            )
    return drawn


def choose_demonstrations(
    cluster: Sequence[Demonstration], question: str, *, count: int
) -> list[Demonstration]:
    """A question's demonstrations from a cluster: its first `count` documents, or all it has.

    The question's own document is left out, and the next one takes its place. It was kept because
    it holds the answer, so a model that copies it would verbalise what it was just shown.
    """
    others = (shown for shown in cluster if shown[0] != question)
    return list(itertools.islice(others, count))


def run_demonstrations(
    context: StageContext,
    *,
    train_questions: Sequence[Question],
    base: Pretrained,
    embed: Callable[..., Float[np.ndarray, "N E"]],
    verbalise: VerbaliseConfig,
    contexts: int,
    seed: int,
) -> None:
    """GenRead's first round: documents for some training questions, clustered.

    The documents of each dataset of a mixture are clustered by themselves, as in the paper.
    """
    asked = draw_pool(train_questions, verbalise, contexts=contexts, seed=seed)

    def write(batch: Sequence[Question]) -> list[dict[str, Any]]:
        texts, none = [q.question for q in batch], [()] * len(batch)
        documents = write_documents(base, texts, none, verbalise, seed=seed)
        return [
            {
                "question": q.question,
                "document": document,
                # A label says nothing about what a document has to hold.
                "good": is_clean(document) and bool(q.choices or match(document, q.answers)),
            }
            for q, document in zip(batch, documents, strict=True)
        ]

    size = verbalise.batch_size
    records = context.map("documents.jsonl", asked, write, batch_size=size, unit="documents")
    clusters = []
    for name in list_datasets(train_questions):
        own = [record for q, record in zip(asked, records, strict=True) if q.dataset == name]
        # If the model knows too little for a full set, all of its documents are used.
        enough = contexts * verbalise.demonstrations
        good = [record for record in own if record["good"]]
        used = good if verbalise.only_answered and len(good) >= enough else own
        embeddings = embed([f"{r['question']} {r['document']}" for r in used])
        drawn = draw_clusters(embeddings, clusters=contexts, seed=seed)
        clusters += [[(used[i]["question"], used[i]["document"]) for i in rows] for rows in drawn]
    write_json(context.folder / "clusters.json", clusters)


def write_second_round(
    base: Pretrained,
    clusters: Sequence[Sequence[Demonstration]],
    numbers: Sequence[int],
    questions: Sequence[str],
    settings: VerbaliseConfig,
    *,
    seed: int,
) -> list[str]:
    """A document for each question, after demonstrations of the cluster of each number.

    Most questions of a cluster have the same demonstrations, which are read once. The few that are
    themselves among them have others, and are a small batch of their own.
    """
    count = settings.demonstrations
    groups: dict[tuple[int, bool], list[int]] = {}
    for row, (k, question) in enumerate(zip(numbers, questions, strict=True)):
        is_shown = any(question == asked for asked, _ in clusters[k][:count])
        groups.setdefault((k, is_shown), []).append(row)
    texts = [""] * len(questions)
    for (k, _), rows in groups.items():
        asked = [questions[row] for row in rows]
        demonstrations = [choose_demonstrations(clusters[k], q, count=count) for q in asked]
        written = write_documents(base, asked, demonstrations, settings, seed=seed)
        for row, text in zip(rows, written, strict=True):
            texts[row] = text
    return texts


def run_contexts(
    context: StageContext,
    *,
    train_questions: Sequence[Question],
    base: Pretrained,
    open_search: Callable[[StageContext, int], Search],
    reranking: Reranking | None,
    sources: Sequence[SourceConfig],
    verbalise: VerbaliseConfig,
    contexts: int,
    seed: int,
) -> None:
    """`contexts` contexts of each source for every training question."""
    read = read_json(context.path("demonstrations", "clusters.json"))
    clusters = [[(question, document) for question, document in cluster] for cluster in read]
    asked = [q.question for q in train_questions]
    first = {name: i * contexts for i, name in enumerate(list_datasets(train_questions))}
    # Cluster by cluster, so that most batches have one cluster's demonstrations.
    items = [(first[q.dataset] + i, q.question) for i in range(contexts) for q in train_questions]

    def write(batch: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
        numbers, questions = zip(*batch, strict=True)
        texts = write_second_round(base, clusters, numbers, questions, verbalise, seed=seed)
        return [{"cluster": k, "text": text} for k, text in zip(numbers, texts, strict=True)]

    written = context.map(
        "verbalised.jsonl", items, write, batch_size=verbalise.batch_size, unit="documents"
    )
    search = open_search(context, contexts)
    by_source: list[Sequence[Any]] = []
    for number, source in enumerate(sources):
        if source.kind == "search" and reranking is None:
            by_source.append([[text[:2] for text in own] for own in search(number, asked)])
        elif source.kind == "search":
            by_source.append(_find_slowly(context, source.name, partial(search, number), asked))
        else:
            texts = [record["text"] for record in written]
            by_source.append([texts[i :: len(asked)] for i in range(len(asked))])
    gathered = zip(train_questions, zip(*by_source, strict=True), strict=True)
    records = [{"id": question.id, "contexts": texts} for question, texts in gathered]
    write_jsonl(context.folder / "contexts.jsonl", records)


def _find_slowly(
    context: StageContext,
    name: str,
    search: Callable[[Sequence[str]], list[list[tuple[str, str]]]],
    asked: Sequence[str],
) -> list[list[tuple[str, str]]]:
    """The passages of a source that is reranked, piece by piece, so that an interruption is cheap.

    Args:
        name: of the source; `found_<name>.jsonl` keeps the pieces.
    """

    def find(batch: Sequence[str]) -> list[dict[str, Any]]:
        return [{"texts": [text[:2] for text in own]} for own in search(batch)]

    options = {"batch_size": _TOGETHER, "unit": f"questions (reranking, {name})"}
    records = context.map(f"found_{name}.jsonl", asked, find, **options)
    return [record["texts"] for record in records]
