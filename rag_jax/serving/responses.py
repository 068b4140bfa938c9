"""The bodies of responses, in the format of OpenAI's API and, for reranking, of Jina's."""

import base64
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from jaxtyping import Float

from rag_jax.pipeline.citations import describe_citations
from rag_jax.serving.requests import ChatRequest, EmbeddingRequest, RerankRequest
from rag_jax.systems.served import Answer, Embedded

Body = dict[str, Any]


def list_models(name: str, created: int) -> Body:
    """The one model that is served."""
    return {"object": "list", "data": [describe_model(name, created)]}


def describe_model(name: str, created: int) -> Body:
    """A model of the list."""
    return {"id": name, "object": "model", "created": created, "owned_by": "rag_jax"}


def describe_answer(name: str, answer: Answer) -> Body:
    """A whole answer, with what it rests on as the message's annotations."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    message["annotations"] = _cite(answer)
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer), "logprobs": None}
    head = _begin("chat.completion", name)
    return {**head, "choices": [choice], "usage": _count(answer)}


def stream_answer(name: str, answer: Answer, request: ChatRequest) -> Iterator[str]:
    """Yields the events of a finished answer, a word each; the last one has the annotations."""
    head = _begin("chat.completion.chunk", name)

    def make(delta: Body, reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _write_event({**head, "choices": [choice]})

    yield make({"role": "assistant", "content": ""})
    for i, word in enumerate(answer.text.split(" ")):
        yield make({"content": f" {word}" if i else word})
    yield make({"annotations": _cite(answer)}, _finish(answer))
    if request.counts:
        yield _write_event({**head, "choices": [], "usage": _count(answer)})
    yield "data: [DONE]\n\n"


def describe_embeddings(name: str, request: EmbeddingRequest, embedded: Embedded) -> Body:
    """The embeddings of a request's texts, in their order."""
    data = [
        {"object": "embedding", "index": i, "embedding": _pack(vector, request.is_packed)}
        for i, vector in enumerate(embedded.vectors)
    ]
    read = sum(embedded.tokens)
    usage = {"prompt_tokens": read, "total_tokens": read}
    return {"object": "list", "model": name, "data": data, "usage": usage}


def describe_ranking(name: str, request: RerankRequest, scores: Float[np.ndarray, "N"]) -> Body:
    """The best documents; their relevance is the logistic function of the reranker's score."""
    results = []
    for i in np.argsort(-scores, kind="stable")[: request.count].tolist():
        found = {"index": i, "relevance_score": 0.5 + 0.5 * float(np.tanh(scores[i] / 2))}
        if request.returns_text:
            found["document"] = {"text": request.documents[i]}
        results.append(found)
    return {"id": f"rerank-{uuid.uuid4().hex}", "model": name, "results": results}


def _begin(kind: str, name: str) -> Body:
    id = f"chatcmpl-{uuid.uuid4().hex}"
    return {"id": id, "object": kind, "created": int(time.time()), "model": name}


def _finish(answer: Answer) -> str:
    return "length" if answer.cut_off else "stop"


def _cite(answer: Answer) -> list[Body]:
    """Citations for the whole answer; an address has the passage's id, and leads nowhere."""
    described = []
    for (passage, _), named in zip(
        answer.citations, describe_citations(answer.citations), strict=True
    ):
        cited = {"start_index": 0, "end_index": len(answer.text), **named, "text": passage.text}
        cited["url"] = f"urn:passage:{quote(passage.id, safe='')}"
        described.append({"type": "url_citation", "url_citation": cited})
    return described


def _count(answer: Answer) -> Body:
    read, written = answer.prompt_tokens, answer.written_tokens
    total = {"total_tokens": read + written}
    return {"prompt_tokens": read, "completion_tokens": written, **total}


def _pack(vector: Float[np.ndarray, "E"], is_packed: bool) -> str | Sequence[float]:
    if is_packed:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return vector.tolist()


def _write_event(body: Body) -> str:
    return f"data: {json.dumps(body)}\n\n"
