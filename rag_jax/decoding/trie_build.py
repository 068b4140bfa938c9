"""Arrays of a trie: how they are built from token sequences, and which arrays form a trie.

`rag_jax.decoding.trie.Trie` holds the arrays and describes them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int

from rag_jax.runtime.errors import RagJaxError

# The arrays of a trie and their dtypes, in the order of `Trie`'s fields.
DTYPES = {
    "first_child": np.int32,
    "tokens": np.int32,
    "leaves": np.int32,
    "tail_starts": np.int64,
    "tails": np.int32,
    "row_starts": np.int64,
    "rows": np.int32,
}
# Token ids are below this limit, so that a parent and a token fit into one int64.
TOKEN_LIMIT = 2**31


def join_sequences(
    sequences: Sequence[Sequence[int]], end_id: int
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "S+1"]]:
    """The tokens of all sequences in one array, with an end token after each sequence.

    Returns:
        The array of `M` tokens, and the start of each sequence in the array, followed by `M`.

    Raises:
        RagJaxError: as `Trie.from_sequences`.
    """
    if not len(sequences):
        raise RagJaxError("sequences: the corpus is empty; give at least one sequence")
    if not 0 <= end_id < TOKEN_LIMIT:
        raise RagJaxError(f"end_id={end_id}: must be from 0 to {TOKEN_LIMIT - 1}")
    lengths = np.asarray([len(sequence) for sequence in sequences], np.int64)
    if not lengths.all():
        i = int(lengths.argmin())
        raise RagJaxError(f"sequences: sequence {i} is empty; give at least one token")
    arrays = [np.asarray(sequence) for sequence in sequences]
    invalid = [i for i, array in enumerate(arrays) if not _holds_token_ids(array)]
    if invalid:
        raise RagJaxError(
            f"sequences: sequence {invalid[0]} must hold integers from 0 to {TOKEN_LIMIT - 1}, "
            "token ids"
        )
    flat = np.concatenate(arrays).astype(np.int64)
    ends = np.cumsum(lengths)
    end_tokens = np.flatnonzero(flat == end_id)
    if len(end_tokens):
        i = int(np.searchsorted(ends, end_tokens[0], side="right"))
        raise RagJaxError(
            f"sequences: sequence {i} contains end_id={end_id}; choose an end_id that no sequence "
            "contains"
        )
    flat = np.insert(flat, ends, end_id)
    return flat, np.concatenate([[0], ends + np.arange(1, len(ends) + 1)])


def _holds_token_ids(array: np.ndarray) -> bool:
    if array.dtype.kind not in "iu" or array.ndim != 1:
        return False
    return array.min() >= 0 and array.max() < TOKEN_LIMIT


def check_least(
    least: Sequence[int] | Int[np.ndarray, "S"] | None, lengths: Int[np.ndarray, "S"]
) -> Int[np.ndarray, "S"]:
    """The number of tokens that each sequence's path has at least, as an array.

    Raises:
        RagJaxError: as `Trie.from_sequences`.
    """
    if least is None:
        return np.zeros_like(lengths)
    array = np.asarray(least)
    if array.dtype.kind not in "iu" or array.shape != lengths.shape:
        raise RagJaxError(f"least: give one integer for each of the {len(lengths)} sequences")
    invalid = np.flatnonzero((array < 0) | (array > lengths))
    if len(invalid):
        i = int(invalid[0])
        raise RagJaxError(
            f"least: {array[i]} for sequence {i}, which has {lengths[i]} tokens; give a number "
            "from 0 to its length"
        )
    return array.astype(np.int64)


def grow_nodes(
    flat: Int[np.ndarray, "M"], starts: Int[np.ndarray, "L"], least: Int[np.ndarray, "L"]
) -> tuple[
    Int[np.ndarray, "N+1"], Int[np.ndarray, "N"], Int[np.ndarray, "N"], Int[np.ndarray, "L"]
]:
    """The nodes of a trie over `L` sequences, level by level.

    Args:
        flat: the tokens of all sequences, as `join_sequences` returns them.
        starts: of the sequences, which are sorted and distinct, none a prefix of another.
        least: number of tokens before which a sequence's path does not end.

    Returns:
        `first_child`, `tokens` and `leaves` of `N` nodes, and the depth of each sequence's leaf.
    """
    # Sequences without a leaf so far, and the index of each one's node within the last level.
    pending, nodes = np.arange(len(starts)), np.zeros(len(starts), np.int64)
    depths = np.zeros(len(starts), np.int64)
    tokens, leaves, degrees = [np.zeros(1, np.int64)], [np.full(1, -1)], []
    if len(starts) == 1 and least[0] == 0:
        leaves, pending = [np.zeros(1, np.int64)], pending[:0]
    while len(pending):
        column = flat[starts[pending] + len(degrees)]
        is_new_node = np.ones(len(pending), bool)
        is_new_node[1:] = (nodes[1:] != nodes[:-1]) | (column[1:] != column[:-1])
        firsts = np.flatnonzero(is_new_node)
        counts = np.diff(np.append(firsts, len(pending)))
        degrees.append(np.bincount(nodes[firsts], minlength=len(tokens[-1])))
        tokens.append(column[firsts])
        is_leaf = (counts == 1) & (len(degrees) >= least[pending[firsts]])
        leaves.append(np.where(is_leaf, pending[firsts], -1))
        depths[pending[firsts[is_leaf]]] = len(degrees)
        nodes = np.cumsum(is_new_node) - 1
        continues = ~is_leaf[nodes]
        pending, nodes = pending[continues], nodes[continues]
    degrees.append(np.zeros(len(tokens[-1]), np.int64))
    first_child = 1 + np.concatenate([[0], np.cumsum(np.concatenate(degrees))])
    return first_child, np.concatenate(tokens), np.concatenate(leaves), depths


def is_trie(arrays: Mapping[str, np.ndarray], end_id: int) -> bool:
    """Whether arrays that were read from files, by the names in `DTYPES`, form a trie."""
    if any(a.dtype != DTYPES[name] or a.ndim != 1 for name, a in arrays.items()):
        return False
    first_child, tokens, leaves, tail_starts, tails, row_starts, rows = (arrays[n] for n in DTYPES)
    size, count = len(tokens), len(tail_starts) - 1
    if size < 1 or count < 1 or len(first_child) != size + 1 or len(leaves) != size:
        return False
    degrees = np.diff(first_child.astype(np.int64))
    # Before the edges are listed, whose number is the sum of the degrees.
    if first_child[0] != 1 or first_child[-1] != size or (degrees < 0).any():
        return False
    edges = (np.repeat(np.arange(size), degrees) << 32) | tokens[1:]
    return bool(
        (first_child[:-1] > np.arange(size)).all()
        and (np.diff(edges) > 0).all()
        and all((part >= 0).all() for part in (tokens, tails))
        and np.array_equal(leaves >= 0, degrees == 0)
        and np.array_equal(np.sort(leaves[leaves >= 0]), np.arange(count))
        and tail_starts[0] == row_starts[0] == 0
        and (tail_starts[-1], row_starts[-1]) == (len(tails), len(rows))
        and len(row_starts) == count + 1
        and (np.diff(tail_starts) >= 0).all()
        and (np.diff(row_starts) > 0).all()
        and np.array_equal(np.sort(rows), np.arange(len(rows)))
        and 0 <= end_id < TOKEN_LIMIT
    )
