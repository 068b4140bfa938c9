"""What the model that is not yet trained is asked: to write background documents, and how likely
an answer is given one.

Documents come in GenRead's two rounds (Yu et al. 2023, section 3.2). Round one writes one for each
of some training questions. Those that hold the answer are clustered by the embedding of question
and document; round two shows a few from one cluster as demonstrations and writes again, so that
every cluster gives a document of its own manner.
"""

import re
from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from sklearn.cluster import KMeans

from rag_jax.data.batches import pad_rows, round_up
from rag_jax.data.questions import Question
from rag_jax.decoding.cache import Cache, append, init_cache
from rag_jax.evaluation.answers import match
from rag_jax.losses import token_logprobs
from rag_jax.models.nn.decoder import Decoder
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.pipeline.runner import StageContext
from rag_jax.runtime.files import read_json, write_json, write_jsonl
from rag_jax.runtime.hosts import fetch
from rag_jax.runtime.sharding import shard_batch
from rag_jax.systems.srrag.data import render_passage
from rag_jax.systems.srrag.sources import make_search

if TYPE_CHECKING:
    from rag_jax.systems.srrag.pipeline import Session

# Asks for what the paper asks for (appendix B.1): a Wikipedia-style background document, begun at
# once. Demonstrations come as earlier turns: a small model copies their manner better that way.
_INSTRUCTION = (
    "You write a short Wikipedia-style background document that helps to answer the question. "
    "Begin with the document itself and leave out links."
)
_ANSWER_CUE = "The answer is"


def encode_document_prompt(
    tokenizer: Tokenizer, question: str, demonstrations: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """The prompt for a background document, after (question, document) demonstrations."""
    turns = [{"role": "system", "content": _INSTRUCTION}]
    for asked, document in demonstrations:
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": document}]
    return tokenizer.encode_chat([*turns, {"role": "user", "content": question}])


def encode_answer_prompt(
    tokenizer: Tokenizer, question: str, knowledge: str = "", choices: Iterable[str] = ()
) -> list[int]:
    """The prompt for an answer, with or without knowledge to read, up to "The answer is".

    Args:
        choices: the labels of which the answer is one; none where it is free.
    """
    labels = list(choices)
    task = "Answer the question with a few words."
    if labels:  # what Self-RAG asks for ARC and for PubHealth, in one sentence for both
        task = f"Choose the best answer: {', '.join(labels[:-1])} or {labels[-1]}."
    before = f"Background knowledge: {knowledge}\n\n" if knowledge else ""
    text = f"{task}\n\n{before}Question: {question}"
    prompt = tokenizer.encode_chat([{"role": "user", "content": text}])
    return [*prompt, *tokenizer.encode(_ANSWER_CUE)]


def split_prefix(prompts: Sequence[Sequence[int]]) -> tuple[list[int], list[list[int]]]:
    """The tokens that all prompts begin with, and what remains of each (at least one token)."""
    first, last = min(prompts), max(prompts)
    shared = min(map(len, prompts)) - 1
    for place, (a, b) in enumerate(zip(first, last, strict=False)):
        if a != b or place == shared:
            shared = place
            break
    return list(first[:shared]), [list(prompt[shared:]) for prompt in prompts]


def clean_document(text: str, *, finished: bool) -> str:
    """A document as one line; one that the limit cut off ends with its last whole sentence."""
    text = " ".join(text.split())
    if not finished and (ends := [m.end() for m in re.finditer(r"[.!?](?=\s)", text)]):
        return text[: ends[-1]]
    return text


def is_document(text: str) -> bool:
    """Whether a text begins with the document, as asked, and not by talking about the question."""
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


@partial(jax.jit, static_argnames="model")
def score_batch(
    model: Decoder,
    params,
    prefix,
    tokens: Int[Array, "B T"],
    mask,
    at: Int[Array, "B P"],
    targets: Int[Array, "B P"],
    weights: Float[Array, "B P"],
) -> Float[Array, "B"]:
    dtype = params["embed"]["embedding"].dtype
    cache = init_cache(model, tokens.shape[0], dtype=dtype, prefix=prefix)
    hidden = append(model, params, cache, tokens, mask)[0].hidden
    picked = jnp.take_along_axis(hidden, at[:, :, None], axis=1)
    logits = model.apply({"params": params}, picked, method="logits")
    return (token_logprobs(logits, targets) * weights).sum(axis=-1)


def score_answers(
    model: Decoder,
    params,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    prefix: Cache,
    width: int,
    batch_size: int,
) -> list[float]:
    """`log p(answer | prompt)` in nats, summed over the answer's tokens, for at most `batch_size`.

    Args:
        prompts: what stands between the shared prefix and the answer.
        answers: their tokens.
        prefix: the cache of what stands before every prompt.
        width: tokens that prompt and answer are padded to.
    """
    rows = [[*p, *a] for p, a in zip(prompts, answers, strict=True)]
    tokens, mask = pad_rows(rows, width, pad_id=0, batch=batch_size)
    places = round_up(max(map(len, answers)), 8)
    at = np.zeros((batch_size, places), np.int32)
    weights = np.zeros((batch_size, places), np.float32)
    for r, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        at[r, : len(answer)] = len(prompt) - 1 + np.arange(len(answer))
        weights[r, : len(answer)] = 1
    targets = np.take_along_axis(tokens, np.minimum(at + 1, width - 1), axis=1)
    arrays = shard_batch((tokens, mask, at, targets, weights))
    scores = score_batch(model, params, prefix, *arrays)
    return fetch(scores)[: len(rows)].tolist()


def run_demonstrations(session: "Session", context: StageContext) -> None:
    """GenRead's first round: documents for some training questions, clustered."""
    c = session.config
    questions = session.list_training(session.read_corpus(context))
    rng = np.random.default_rng(c.seed)
    pool = [questions[i] for i in rng.permutation(len(questions))[: c.verbalise.pool]]

    def write(batch: Sequence[Question]) -> list[dict[str, Any]]:
        documents = session.write_documents([q.question for q in batch], [])
        return [
            {
                "question": q.question,
                "document": d,
                # A label says nothing of what a document has to hold.
                "good": is_document(d) and bool(q.choices or match(d, q.answers)),
            }
            for q, d in zip(batch, documents, strict=True)
        ]

    records = context.map_batches(
        "documents.jsonl", pool, write, batch_size=c.verbalise.batch_size, unit="documents"
    )
    # Where the model knows too little for a full set, what it wrote is all there is.
    enough = c.contexts * c.verbalise.demonstrations
    good = [record for record in records if record["good"]]
    used = good if c.verbalise.only_answered and len(good) >= enough else records
    embeddings = session.encode([f"{r['question']} {r['document']}" for r in used])
    clusters = pick_demonstrations(
        embeddings, clusters=c.contexts, count=c.verbalise.demonstrations, seed=c.seed
    )
    chosen = [[(used[i]["question"], used[i]["document"]) for i in rows] for rows in clusters]
    write_json(context.folder / "clusters.json", chosen)


def run_contexts(session: "Session", context: StageContext) -> None:
    """n contexts of each source for every training question."""
    c = session.config
    clusters = read_json(context.path("demonstrations", "clusters.json"))
    corpus = session.read_corpus(context)
    questions = session.list_training(corpus)
    size = c.verbalise.batch_size
    # Cluster by cluster, each filled up to whole batches of its own demonstrations.
    items = [(k, q.question) for k in range(len(clusters)) for q in questions]

    def write(batch: Sequence[tuple[int, str]]) -> list[dict[str, Any]]:
        documents: list[dict[str, Any]] = []
        for cluster in sorted({k for k, _ in batch}):
            asked = [question for k, question in batch if k == cluster]
            texts = session.write_documents(asked, clusters[cluster])
            documents += [{"cluster": cluster, "text": text} for text in texts]
        return documents

    written = context.map_batches(
        "verbalised.jsonl", items, write, batch_size=size, unit="documents"
    )
    search = make_search(session, context, corpus, c.contexts)
    asked = [q.question for q in questions]
    by_source: list[Sequence[Any]] = []
    for number, source in enumerate(c.sources):
        if source.kind == "search":
            by_source.append(search(number, asked))
        else:
            texts = [record["text"] for record in written]
            by_source.append([texts[i :: len(questions)] for i in range(len(questions))])
    records = [
        {"id": question.id, "contexts": [gathered[i] for gathered in by_source]}
        for i, question in enumerate(questions)
    ]
    write_jsonl(context.folder / "contexts.jsonl", records)


def render_context(context: str | Sequence[str]) -> str:
    """A context as text: a verbalisation as it is, a passage as `title: text`."""
    return context if isinstance(context, str) else render_passage(*context)
