"""The bodies of requests, checked by hand: each mistake has a message and the field's path."""

import json
from dataclasses import dataclass
from typing import Any

from rag_jax.pipeline.ask import clean
from rag_jax.retrieval.texts import Role
from rag_jax.serving.errors import RequestError
from rag_jax.serving.limits import Limits

# What a run cannot do, and the values that ask for nothing.
_REFUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "stop": ([], ""),
    "audio": (),
    "web_search_options": (),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}


@dataclass(frozen=True)
class ChatRequest:
    """A question to be answered.

    Attributes:
        streams: whether the answer is sent as events.
        counts: whether the last event has the numbers of tokens.
    """

    question: str
    streams: bool
    counts: bool


@dataclass(frozen=True)
class EmbeddingRequest:
    """Texts to be embedded; `is_packed` embeddings are sent as base64 of float32."""

    texts: list[str]
    role: Role
    is_packed: bool
    size: int | None


@dataclass(frozen=True)
class RerankRequest:
    """Documents to be ordered for a query, the best `count` of them."""

    query: str
    documents: list[str]
    count: int
    returns_text: bool


def read_object(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; raises a RequestError if it is none."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise RequestError(400, f"the body is not JSON: {reason}") from None
    if not isinstance(found, dict):
        raise RequestError(400, "the body is no JSON object")
    return found


def check_model(fields: dict[str, Any], name: str) -> None:
    """Raises a RequestError if another model than the one that is served is named."""
    model = _take(fields, "model", str, None)
    if model is None:
        raise RequestError(400, f"model is missing: this server has {name!r}", "model")
    if model != name:
        shown = json.dumps(model[:64])
        raise RequestError(404, f"model {shown} is not served here, but {name!r} is", "model")


def read_chat(fields: dict[str, Any], limits: Limits) -> ChatRequest:
    """A request for `/v1/chat/completions`; the question is the last message of a user."""
    for name, allowed in _REFUSED.items():
        value = fields.get(name)
        if value is not None and not any(
            type(value) is type(own) and value == own for own in allowed
        ):
            raise RequestError(400, f"{name}: a run has no such thing; leave it out", name)
    messages = _take(fields, "messages", list, [])
    asked: int | None = None
    for i, message in enumerate(messages):
        path = f"messages[{i}]"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(400, f"{path} is no object with a role and content", path)
        if message["role"] == "user":
            asked = i
    if asked is None:
        raise RequestError(400, "messages has no message of the role user", "messages")
    path = f"messages[{asked}].content"
    question = _read_content(messages[asked].get("content"), path)
    options = _take(fields, "stream_options", dict, {})
    return ChatRequest(
        clean(_check_text(question, path, limits)),  # in one line, as `ask` reads a question
        _take(fields, "stream", bool, False),
        _take(options, "include_usage", bool, False),
    )


def read_embedding(fields: dict[str, Any], limits: Limits) -> EmbeddingRequest:
    """A request for `/v1/embeddings`."""
    given = fields.get("input")
    texts = _check_texts([given] if isinstance(given, str) else given, "input", limits)
    role = _take(fields, "input_type", str, "document")
    if role not in ("query", "document"):
        raise RequestError(400, 'input_type must be "query" or "document"', "input_type")
    packing = _take(fields, "encoding_format", str, "float")
    if packing not in ("float", "base64"):
        raise RequestError(400, 'encoding_format must be "float" or "base64"', "encoding_format")
    return EmbeddingRequest(texts, role, packing == "base64", _take_count(fields, "dimensions"))


def read_rerank(fields: dict[str, Any], limits: Limits) -> RerankRequest:
    """A request for `/v1/rerank`, as Jina's and Cohere's interfaces have it."""
    query = _check_text(fields.get("query"), "query", limits)
    given = fields.get("documents")
    if isinstance(given, list):
        given = [d.get("text") if isinstance(d, dict) else d for d in given]
    documents = _check_texts(given, "documents", limits)
    count = _take_count(fields, "top_n") or len(documents)
    return RerankRequest(query, documents, count, _take(fields, "return_documents", bool, False))


def _read_content(content: Any, path: str) -> Any:
    """The text of a message: a string, or parts that are texts."""
    if not isinstance(content, list):
        return content
    for i, part in enumerate(content):
        is_text = isinstance(part, dict) and part.get("type") == "text"
        if not is_text or not isinstance(part.get("text"), str):
            raise RequestError(400, f"{path}[{i}] is no text, and only texts are read", path)
    return "\n".join(part["text"] for part in content)


def _check_texts(texts: Any, path: str, limits: Limits) -> list[str]:
    if not isinstance(texts, list) or not texts:
        raise RequestError(400, f"{path} must be texts, at least one", path)
    if len(texts) > limits.texts:
        raise RequestError(
            400, f"{path} has {len(texts)} texts, and the limit is {limits.texts}", path
        )
    return [_check_text(text, f"{path}[{i}]", limits) for i, text in enumerate(texts)]


def _check_text(text: Any, path: str, limits: Limits) -> str:
    if not isinstance(text, str):
        raise RequestError(400, f"{path} must be a text", path)
    if len(text) > limits.characters:
        message = f"{path} has {len(text)} characters, and the limit is {limits.characters}"
        raise RequestError(400, f"{message}: shorten it", path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestError(400, f"{path} has half of a surrogate pair", path) from None
    if not text.strip():
        raise RequestError(400, f"{path} is blank", path)
    return text


def _take_count(fields: dict[str, Any], name: str) -> int | None:
    count = _take(fields, name, int, None)
    if count is not None and count < 1:
        raise RequestError(400, f"{name} must be at least 1", name)
    return count


def _take(fields: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """The value of a field of some kind; the default where it is left out or null."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        names = {str: "a text", int: "a whole number", bool: "true or false", list: "a list"}
        raise RequestError(400, f"{name} must be {names.get(kind, 'an object')}", name)
    return value
