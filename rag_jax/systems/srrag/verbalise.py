"""Verbalisation before training: the documents that the untrained model writes, and all contexts.

Documents come in GenRead's two rounds (Yu et al. 2023, section 3.2). Round one writes one document
for each of some training questions. Documents that hold the answer are clustered by the embedding
of question and document. Round two shows a few documents of one cluster as demonstrations and
writes again, so each cluster gives a document in its own style.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.cluster import KMeans

from rag_jax.data.questions import Question
from rag_jax.decoding import Sampling
from rag_jax.decoding.prompts import split_prefix
from rag_jax.evaluation.answers import match
from rag_jax.models import Pretrained
from rag_jax.pipeline.stage import StageContext
from rag_jax.runtime.files import read_json, write_json, write_jsonl
from rag_jax.systems.srrag.config import SourceConfig, VerbaliseConfig
from rag_jax.systems.srrag.data import encode_document_prompt
from rag_jax.systems.srrag.infer import Search
from rag_jax.systems.stages import continue_prompts


def write_texts(
    base: Pretrained,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    batch_size: int,
    seed: int,
    temperature: float = 0.0,
) -> list[list[int]]:
    """The tokens that the untrained model writes after prompts, whose common start is read once."""
    prefix, rests = split_prefix(prompts)
    options = {"prefix": prefix, "sampling": Sampling(temperature=temperature), "seed": seed}
    return continue_prompts(base, rests, max_tokens=max_tokens, batch_size=batch_size, **options)


def write_documents(
    base: Pretrained,
    questions: Sequence[str],
    demonstrations: Sequence[tuple[str, str]],
    settings: VerbaliseConfig,
    *,
    seed: int,
) -> list[str]:
    """Background documents by the untrained model."""
    prompts = [encode_document_prompt(base.tokenizer, q, demonstrations) for q in questions]
    limit, decode = settings.max_tokens, base.tokenizer.decode
    sizes = {"max_tokens": limit, "batch_size": settings.batch_size}
    written = write_texts(base, prompts, **sizes, seed=seed, temperature=settings.temperature)
    return [clean_document(decode(tokens), finished=len(tokens) < limit) for tokens in written]


def clean_document(text: str, *, finished: bool) -> str:
    """A document in one line; a document that the limit cut off ends with its last sentence."""
    text = " ".join(text.split())
    if not finished and (ends := [m.end() for m in re.finditer(r"[.!?](?=\s)", text)]):
        return text[: ends[-1]]
    return text


def is_document(text: str) -> bool:
    """Whether a text is a document, and does not talk about the question or itself."""
    return not re.search(r"\b(question|answer|document)\b", text, re.IGNORECASE)


def pick_demonstrations(
    embeddings: Float[np.ndarray, "N D"], *, clusters: int, count: int, seed: int
) -> list[list[int]]:
    """Clusters documents by K-means and draws `count` from each cluster, or all of a smaller one.

    Returns:
        For each cluster the numbers of its demonstrations.
    """
    labels = KMeans(clusters, n_init=10, random_state=seed).fit_predict(embeddings)
    rng = np.random.default_rng(seed)
    drawn = []
    for cluster in range(clusters):
        members = rng.permutation(np.flatnonzero(labels == cluster))
        drawn.append(members[:count].tolist())
    return drawn


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
    """GenRead's first round: documents for some training questions, clustered."""
    order = np.random.default_rng(seed).permutation(len(train_questions))[: verbalise.pool]

    def write(batch: Sequence[Question]) -> list[dict[str, Any]]:
        documents = write_documents(base, [q.question for q in batch], [], verbalise, seed=seed)
        return [
            {
                "question": q.question,
                "document": document,
                # A label says nothing about what a document has to hold.
                "good": is_document(document) and bool(q.choices or match(document, q.answers)),
            }
            for q, document in zip(batch, documents, strict=True)
        ]

    asked, size = [train_questions[i] for i in order], verbalise.batch_size
    records = context.map("documents.jsonl", asked, write, batch_size=size, unit="documents")
    # If the model knows too little for a full set, all of its documents are used.
    enough = contexts * verbalise.demonstrations
    good = [record for record in records if record["good"]]
    used = good if verbalise.only_answered and len(good) >= enough else records
    embeddings = embed([f"{r['question']} {r['document']}" for r in used])
    clusters = pick_demonstrations(
        embeddings, clusters=contexts, count=verbalise.demonstrations, seed=seed
    )
    chosen = [[(used[i]["question"], used[i]["document"]) for i in rows] for rows in clusters]
    write_json(context.folder / "clusters.json", chosen)


def run_contexts(
    context: StageContext,
    *,
    train_questions: Sequence[Question],
    base: Pretrained,
    open_search: Callable[[StageContext, int], Search],
    sources: Sequence[SourceConfig],
    verbalise: VerbaliseConfig,
    contexts: int,
    seed: int,
) -> None:
    """`contexts` contexts of each source for every training question."""
    clusters = read_json(context.path("demonstrations", "clusters.json"))
    asked = [q.question for q in train_questions]
    # Cluster by cluster, so that most batches have one cluster's demonstrations.
    items = [(cluster, question) for cluster in range(len(clusters)) for question in asked]

    def write(batch: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
        documents: list[dict[str, Any]] = []
        for cluster in sorted({cluster for cluster, _ in batch}):
            questions = [question for k, question in batch if k == cluster]
            texts = write_documents(base, questions, clusters[cluster], verbalise, seed=seed)
            documents += [{"cluster": cluster, "text": text} for text in texts]
        return documents

    written = context.map(
        "verbalised.jsonl", items, write, batch_size=verbalise.batch_size, unit="documents"
    )
    search = open_search(context, contexts)
    by_source: list[Sequence[Any]] = []
    for number, source in enumerate(sources):
        if source.kind == "search":
            by_source.append(search(number, asked))
        else:
            texts = [record["text"] for record in written]
            by_source.append([texts[i :: len(asked)] for i in range(len(asked))])
    gathered = zip(train_questions, zip(*by_source, strict=True), strict=True)
    records = [{"id": question.id, "contexts": texts} for question, texts in gathered]
    write_jsonl(context.folder / "contexts.jsonl", records)
