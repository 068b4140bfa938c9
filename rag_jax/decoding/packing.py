"""Texts that are read behind one row, side by side, as trees: what several begin with is read once.

Beside each other in a batch texts would be padded to the longest, and every one would read its
beginning for itself. Here a row of tokens holds several; each token sees its own text alone.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from rag_jax.data.batches import round_up


class PackedTexts(NamedTuple):
    """Trees of `T` tokens, `R / G` rows for each of `G` groups of texts, as `write_branches` wants.

    Attributes:
        tokens: `[R, T]`, a token behind all that it follows; padded with 0.
        seen: `[R, T, T]`, True where a token looks at one of its text, itself among them.
        depth: `[R, T]`, how many tokens of its text a token follows.
        texts: for each group and text its row, and the places of its tokens there.
    """

    tokens: Int[np.ndarray, "R T"]
    seen: Bool[np.ndarray, "R T T"]
    depth: Int[np.ndarray, "R T"]
    texts: list[list[tuple[int, list[int]]]]


def pack_texts(groups: Sequence[Sequence[Sequence[int]]], *, limit: int) -> PackedTexts:
    """Packs each group's texts into rows of its own, one behind the other.

    All groups get as many rows as the one that needs most, and all rows one width, rounded up so
    that few programs are compiled.

    Args:
        groups: texts as tokens. Those that begin alike share what stands next to each other.
        limit: tokens of a row, except where one text has more.
    """
    grown = [_grow_rows(texts, limit) for texts in groups]
    times = max((len(rows) for rows, _ in grown), default=1)
    longest = max((len(row) for rows, _ in grown for row in rows), default=1)
    width = round_up(longest, max(32, 1 << longest.bit_length() >> 3))
    shape = (times * len(groups), width)
    tokens, depth = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    seen = np.broadcast_to(np.eye(width, dtype=bool), (*shape, width)).copy()
    for group, (rows, _) in enumerate(grown):
        for number, row in enumerate(rows, group * times):
            for place, (token, parent) in enumerate(row):
                tokens[number, place] = token
                if parent >= 0:
                    depth[number, place] = depth[number, parent] + 1
                    seen[number, place] |= seen[number, parent]
    texts = [
        [(group * times + row, places) for row, places in own]
        for group, (_, own) in enumerate(grown)
    ]
    return PackedTexts(tokens, seen, depth, texts)


def _grow_rows(
    texts: Sequence[Sequence[int]], limit: int
) -> tuple[list[list[tuple[int, int]]], list[tuple[int, list[int]]]]:
    """Rows of tokens, each with its parent's place or -1; and for each text its row and places."""
    rows: list[list[tuple[int, int]]] = [[]]
    known: dict[tuple[int, int], int] = {}  # places in the last row by parent and token
    found = []
    for text in texts:
        places: list[int] = []
        parent = -1
        for token in text:
            if (parent, token) not in known:
                break
            parent = known[parent, token]
            places.append(parent)
        if rows[-1] and len(rows[-1]) + len(text) - len(places) > limit:
            rows.append([])
            known, places, parent = {}, [], -1
        for token in text[len(places) :]:
            known[parent, token] = len(rows[-1])
            rows[-1].append((token, parent))
            parent = known[parent, token]
            places.append(parent)
        found.append((len(rows) - 1, places))
    return rows, found
