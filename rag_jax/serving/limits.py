"""The limits of a server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much is taken of a request, and how many requests.

    Attributes:
        body: bytes of a request.
        characters: of a question, or of a text to embed or to rank.
        tokens: of a question.
        texts: number of texts of a request.
        waiting: number of requests of a kind that wait for their batch.
        seconds: within which a request has to have come.
    """

    body: int = 1 << 20
    characters: int = 16_384
    tokens: int = 256
    texts: int = 256
    waiting: int = 256
    seconds: float = 30.0
