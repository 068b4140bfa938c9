"""Packing: several texts that continue the same row, as one tree of tokens with shared prefixes.

As rows of a batch, the texts would be padded to the longest, and each text would read its prefix
again. Packed, several texts share a row, a shared prefix is read once, and `attention_mask` limits
each token to its text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from rag_jax.data.batches import round_up


class PackedTexts(NamedTuple):
    """Texts of `G` groups in `R` rows of `T` tokens, `R / G` rows per group, for `write_branches`.

    Attributes:
        tokens: each token after the earlier tokens of its text; padded with 0.
        attention_mask: True from a token to the earlier tokens of its text and to the token itself.
            Padding attends to itself.
        depth: number of tokens of its text before each token.
        texts: for each group and each of its texts, the row of the text and the columns of its
            tokens.
    """

    tokens: Int[np.ndarray, "R T"]
    attention_mask: Bool[np.ndarray, "R T T"]
    depth: Int[np.ndarray, "R T"]
    texts: list[list[tuple[int, list[int]]]]


def pack_texts(groups: Sequence[Sequence[Sequence[int]]], *, limit: int) -> PackedTexts:
    """Packs the texts of each group into the group's rows, in order.

    Every group gets the same number of rows, and every row the same width, rounded up so that few
    programs are compiled.

    Args:
        groups: for each group its texts, as token ids. Consecutive texts share a common prefix if
            they fit into the same row.
        limit: number of tokens of a row. A longer text takes a row that exceeds the limit.
    """
    packed = [_pack_group(texts, limit) for texts in groups]
    times = max((len(rows) for rows, _ in packed), default=1)
    longest = max((len(row) for rows, _ in packed for row in rows), default=1)
    width = round_up(longest, max(32, 1 << longest.bit_length() >> 3))
    shape = (times * len(groups), width)
    tokens, depth = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    attention_mask = np.broadcast_to(np.eye(width, dtype=bool), (*shape, width)).copy()
    for group, (rows, _) in enumerate(packed):
        for row, nodes in enumerate(rows, group * times):
            for column, (token, parent) in enumerate(nodes):
                tokens[row, column] = token
                if parent >= 0:
                    depth[row, column] = depth[row, parent] + 1
                    attention_mask[row, column] |= attention_mask[row, parent]
    texts = [
        [(group * times + row, columns) for row, columns in group_texts]
        for group, (_, group_texts) in enumerate(packed)
    ]
    return PackedTexts(tokens, attention_mask, depth, texts)


def _pack_group(
    texts: Sequence[Sequence[int]], limit: int
) -> tuple[list[list[tuple[int, int]]], list[tuple[int, list[int]]]]:
    """Each row's tokens with their parents' columns or -1; each text's row and tokens' columns."""
    rows: list[list[tuple[int, int]]] = [[]]
    children: dict[tuple[int, int], int] = {}  # column in the last row by parent and token
    packed = []
    for text in texts:
        columns: list[int] = []
        parent = -1
        for token in text:
            if (parent, token) not in children:
                break
            parent = children[parent, token]
            columns.append(parent)
        if rows[-1] and len(rows[-1]) + len(text) - len(columns) > limit:
            rows.append([])
            children, columns, parent = {}, [], -1
        for token in text[len(columns) :]:
            children[parent, token] = len(rows[-1])
            rows[-1].append((token, parent))
            parent = children[parent, token]
            columns.append(parent)
        packed.append((len(rows) - 1, columns))
    return rows, packed
