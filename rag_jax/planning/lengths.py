"""Numbers of tokens of a corpus's texts, as quantiles from which lengths are drawn."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import read_json

DEFAULT = Path(__file__).with_name("lengths.json")  # made by benchmarks/lengths.py


@dataclass(frozen=True)
class Lengths:
    """Evenly spaced quantiles, the least and the largest included, of texts' numbers of tokens.

    Attributes:
        question, answer, title, passage: as a decoder's tokenizer splits them; a passage is its
            text without its title.
        sentence: one sentence of a passage that is long enough to find the passage by.
        query: a question as an encoder reads it, with special tokens.
        text: a title and a passage as an encoder reads them, with special tokens.
    """

    question: tuple[float, ...]
    answer: tuple[float, ...]
    title: tuple[float, ...]
    passage: tuple[float, ...]
    sentence: tuple[float, ...]
    query: tuple[float, ...]
    text: tuple[float, ...]

    def draw(self, kind: str, count: int, rng: np.random.Generator) -> Int[np.ndarray, "N"]:
        """Lengths of `count` texts of a kind, one of the attributes."""
        quantiles = getattr(self, kind)
        places = rng.random(count) * (len(quantiles) - 1)
        drawn = np.interp(places, np.arange(len(quantiles)), quantiles)
        return np.rint(drawn).astype(np.int64)


def read_lengths(path: Path = DEFAULT) -> Lengths:
    """Reads the lengths of a corpus's texts from a JSON file, as benchmarks/lengths.py writes it.

    Raises:
        RagJaxError: the file is missing or damaged, or does not hold quantiles of every kind.
    """
    content = read_json(path)
    tokens = content.get("tokens") if isinstance(content, dict) else None
    if not isinstance(tokens, dict):
        raise RagJaxError(f'{path}: holds no lengths of texts: write {{"tokens": {{KIND: [...]}}}}')
    kinds = [field.name for field in dataclasses.fields(Lengths)]
    for kind in kinds:
        if kind not in tokens:
            raise RagJaxError(f"{path}: tokens.{kind} is missing; the kinds are {', '.join(kinds)}")
        _check_quantiles(f"{path}: tokens.{kind}", tokens[kind])
    return Lengths(**{kind: tuple(tokens[kind]) for kind in kinds})


def _check_quantiles(where: str, values: Any) -> None:
    is_list = isinstance(values, list) and len(values) >= 2
    if not is_list or not all(type(v) in (int, float) and 1 <= v < 1e6 for v in values):
        raise RagJaxError(f"{where}: must be a list of at least two numbers from 1 to a million")
    if sorted(values) != values:
        raise RagJaxError(f"{where}: must be ascending, from the least to the largest length")
