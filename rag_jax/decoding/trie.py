"""The prefix tree of a corpus's token sequences, as a few arrays.

Nodes are numbered level by level from the root, 0, and within a level as their sequences sort. So
the children of a node are consecutive, sorted by token, and an edge is known by the node it leads
to: there is no array of targets. A path ends in a leaf as soon as one sequence remains (Tang et al.
2024); what that sequence has beyond its leaf is kept apart, as its tail.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from rag_jax.data.batches import round_up
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.manifest import check_files, read_manifest, write_folder
from rag_jax.runtime.sharding import shard_array

_KINDS = {
    "first_child": np.int32,
    "tokens": np.int32,
    "leaves": np.int32,
    "tail_starts": np.int64,
    "tails": np.int32,
    "row_starts": np.int64,
    "rows": np.int32,
}
_LIMIT = 2**31  # of a token id
# Of a trie: what `Trie.place` rounds up to has to be numbered in int32 too.
_MOST_NODES = 2**31 - 2**26


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrieArrays:
    """What a search needs of a trie, on the device; pass it to compiled functions as an argument.

    Closed over, it would be copied into the program. Made by `Trie.place`, which says what `N` is.

    Attributes:
        first_child: `[N + 1]`, node `n` has children `first_child[n]` to `first_child[n + 1] - 1`;
            a leaf has none.
        tokens: `[N]`, the token that leads to a node; 0 for the root, which none leads to.
        widths: numbers of children that programs gather at once; the last holds every node's.
    """

    first_child: Int[Array, "N+1"]
    tokens: Int[Array, "N"]
    widths: tuple[int, ...] = field(metadata={"static": True})


@dataclass(frozen=True, eq=False)
class Trie:
    """Token sequences as a tree of `N` nodes with `L` leaves, one for each distinct sequence.

    Made by `from_sequences` or `load`. With a single distinct sequence the root is its leaf.

    Attributes:
        first_child: as in `TrieArrays`.
        tokens: likewise.
        leaves: `[N]`, the number of the sequence that ends in a node, in the order they sort in;
            -1 in the others.
        tail_starts: `[L + 1]`, sequence `l` goes on behind its leaf with the tokens
            `tails[tail_starts[l] : tail_starts[l + 1]]`, which have no alternative.
        tails: those of all sequences.
        row_starts: `[L + 1]`, sequence `l` stood at positions
            `rows[row_starts[l] : row_starts[l + 1]]` of what the trie was built from.
        rows: all positions, those of a sequence in order.
        end_id: the token that stands behind every sequence and in none.
    """

    first_child: Int[np.ndarray, "N+1"]
    tokens: Int[np.ndarray, "N"]
    leaves: Int[np.ndarray, "N"]
    tail_starts: Int[np.ndarray, "L+1"]
    tails: Int[np.ndarray, "M"]
    row_starts: Int[np.ndarray, "L+1"]
    rows: Int[np.ndarray, "S"]
    end_id: int

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]], *, end_id: int) -> "Trie":
        """Builds the trie, level by level; equal sequences share a leaf.

        Args:
            sequences: token ids, at least one each.
            end_id: stands behind every sequence, so that one that is the beginning of another has
                a leaf of its own. It may come in none of them.

        Raises:
            RagJaxError: no sequences, an empty one, one with `end_id` in it, token ids that are no
                integers, negative or not below 2**31, or more nodes or sequences than int32 can
                number.
        """
        flat, starts = _join(sequences, end_id)
        # As bytes, most significant first, sequences compare as their tokens do.
        data = flat.astype(">u4").tobytes()
        keys = [data[4 * a : 4 * b] for a, b in itertools.pairwise(starts)]
        order = np.asarray(sorted(range(len(keys)), key=keys.__getitem__))
        same = [keys[a] == keys[b] for a, b in itertools.pairwise(order)]
        firsts = np.flatnonzero(~np.asarray([False, *same]))
        begins, ends = starts[order[firsts]], starts[order[firsts] + 1]
        first_child, tokens, leaves, depths = _grow(flat, begins)
        if max(len(tokens), len(order)) > _MOST_NODES:
            raise RagJaxError(
                f"sequences: {len(order)} of them make {len(tokens)} nodes, and a trie numbers "
                f"{_MOST_NODES} of either at most; split the corpus"
            )
        # What is behind the leaf, up to the end token; the leaf may be the end token's.
        lengths = np.maximum(ends - 1 - begins - depths, 0)
        tail_starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.arange(tail_starts[-1]) + np.repeat(begins + depths - tail_starts[:-1], lengths)
        arrays = {
            "first_child": first_child,
            "tokens": tokens,
            "leaves": leaves,
            "tail_starts": tail_starts,
            "tails": flat[places],
            "row_starts": np.append(firsts, len(order)),
            "rows": order,
        }
        return cls(**{name: arrays[name].astype(kind) for name, kind in _KINDS.items()},
                   end_id=int(end_id))  # fmt: skip

    @property
    def size(self) -> int:
        """Number of nodes, N."""
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """The most tokens there are between the root and a leaf."""
        depth, node = 0, 0
        while self.first_child[node] < self.size:  # from the first node of a level to the next's
            depth, node = depth + 1, self.first_child[node]
        return depth

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, name).nbytes for name in _KINDS)

    def find(self, prefixes: Sequence[Sequence[int]]) -> Int[np.ndarray, "P"]:
        """The node where each prefix ends: the one sequence's leaf where just one begins so.

        Raises:
            RagJaxError: no sequence begins with one of them.
        """
        lengths = np.asarray([len(prefix) for prefix in prefixes], np.int64)
        flat = np.fromiter((token for prefix in prefixes for token in prefix), np.int64)
        flat[flat >= _LIMIT] = -1  # in no trie either, and does not reach into the parent's bits
        starts = np.cumsum(lengths) - lengths
        edges = self._edges()
        nodes, known = np.zeros(len(lengths), np.int64), np.ones(len(lengths), bool)
        on_way, depth = np.flatnonzero(lengths), 0
        while True:
            ended = self.leaves[nodes[on_way]] >= 0
            for i in on_way[ended]:
                rest = flat[starts[i] + depth : starts[i] + lengths[i]]
                known[i] = np.array_equal(rest, self._tail(nodes[i])[: len(rest)])
            on_way = on_way[~ended]
            if not len(on_way):
                break
            keys = (nodes[on_way] << 32) | flat[starts[on_way] + depth]
            places = np.minimum(np.searchsorted(edges, keys), len(edges) - 1)
            known[on_way] = edges[places] == keys
            nodes[on_way] = places + 1
            depth += 1
            on_way = on_way[known[on_way] & (lengths[on_way] > depth)]
        if not known.all():
            i = int(np.flatnonzero(~known)[0])
            raise RagJaxError(f"prefixes: no sequence of the trie begins with prefix {i}")
        return nodes.astype(np.int32)

    def sequence(self, node: int) -> list[int]:
        """All tokens of the sequence that ends in a leaf, as they were given; no end token."""
        return self.path(node) + self._tail(node).tolist()

    def rows_at(self, node: int) -> list[int]:
        """Where the sequence that ends in a leaf stood in what the trie was built from."""
        leaf = self._leaf(node)
        return self.rows[self.row_starts[leaf] : self.row_starts[leaf + 1]].tolist()

    def path(self, node: int) -> list[int]:
        """The tokens from the root to a node, without the end token."""
        tokens = []
        while node:
            tokens.append(int(self.tokens[node]))
            # The last node whose first child does not stand behind this one.
            node = int(np.searchsorted(self.first_child, node, side="right")) - 1
        return [token for token in reversed(tokens) if token != self.end_id]

    def place(self) -> TrieArrays:
        """The arrays that a search needs, whole on every device of the mesh in effect.

        Nodes are rounded up, by a sixteenth at most or to a multiple of 64, so that tries of nearly
        the same size have arrays of the same shape; nothing leads to those that fill up.
        """
        more = self._places() - self.size
        first_child = np.pad(self.first_child, (0, more), constant_values=self.size)
        widths = choose_gathers(int(np.diff(self.first_child).max()))
        return TrieArrays(_place(first_child), _place(np.pad(self.tokens, (0, more))), widths)

    def mark(self, nodes: Int[np.ndarray, "n"]) -> Bool[Array, "N"]:
        """Some nodes, as the `stops` of a search."""
        marks = np.zeros(self._places(), bool)
        marks[nodes] = True
        return _place(marks)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the trie into a folder of its own, whole or not at all, as `Index.save` does.

        Raises:
            RagJaxError: there is something else in the folder.
        """

        def write(folder: Path) -> None:
            for name in _KINDS:
                np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

        write_folder(folder, {"backend": "trie", "end_id": self.end_id}, write)

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Trie":
        """Reads what `save` wrote; every file is compared with its SHA-256 first.

        Raises:
            RagJaxError: no trie there, a missing, additional or altered file, or arrays that do
                not fit each other.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, {"end_id": int}, ["trie"])
        check_files(folder, manifest["sha256"], [f"{name}.npy" for name in _KINDS])
        try:
            arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _KINDS}
            sound = _are_sound(arrays, manifest["end_id"])
        except (OSError, ValueError, IndexError):
            sound = False
        if not sound:
            raise RagJaxError(f"{folder} holds no trie that fits together: build it again")
        return cls(**arrays, end_id=manifest["end_id"])

    def _places(self) -> int:
        return round_up(self.size, max(64, 1 << max(0, self.size.bit_length() - 5)))

    def _edges(self) -> Int[np.ndarray, "N-1"]:
        """Parent and token of nodes 1, 2, ... as one number each; they come sorted."""
        parents = np.repeat(np.arange(self.size), np.diff(self.first_child))
        return (parents << 32) | self.tokens[1:]

    def _leaf(self, node: int) -> int:
        leaf = int(self.leaves[node])
        if leaf < 0:
            raise ValueError(f"node {node} is no leaf")
        return leaf

    def _tail(self, node: int) -> Int[np.ndarray, "n"]:
        leaf = self._leaf(node)
        return self.tails[self.tail_starts[leaf] : self.tail_starts[leaf + 1]]


def _place(array: np.ndarray) -> Array:
    mesh = jax.sharding.get_mesh()
    if mesh.size <= 1:
        return jnp.asarray(array)
    return shard_array(array, NamedSharding(mesh, PartitionSpec()))


def choose_gathers(most: int) -> tuple[int, ...]:
    """Widths at which children are gathered: few, and the same for tries that are nearly alike.

    Args:
        most: the most children that a node has.
    """
    last = 1 << max(3, (most - 1).bit_length())
    return (*(width for width in (8, 64, 512, 4096) if width < last), last)


def _join(
    sequences: Sequence[Sequence[int]], end_id: int
) -> tuple[Int[np.ndarray, "M"], Int[np.ndarray, "S+1"]]:
    """All sequences in one array, an end token behind each, and where each starts."""
    if not len(sequences):
        raise RagJaxError("sequences: there are none; the corpus has no passage")
    if not 0 <= end_id < _LIMIT:
        raise RagJaxError(f"end_id={end_id}: must be from 0 to {_LIMIT - 1}")
    lengths = np.asarray([len(sequence) for sequence in sequences], np.int64)
    if not lengths.all():
        raise RagJaxError(f"sequences: sequence {int(lengths.argmin())} is empty")
    arrays = [np.asarray(sequence) for sequence in sequences]
    bad = [
        i
        for i, array in enumerate(arrays)
        if array.dtype.kind not in "iu" or array.ndim != 1 or not _in_range(array)
    ]
    if bad:
        raise RagJaxError(
            f"sequences: sequence {bad[0]} must hold integers from 0 to {_LIMIT - 1}, token ids"
        )
    flat = np.concatenate(arrays).astype(np.int64)
    ends = np.cumsum(lengths)
    inside = np.flatnonzero(flat == end_id)
    if len(inside):
        i = int(np.searchsorted(ends, inside[0], side="right"))
        raise RagJaxError(f"sequences: sequence {i} has end_id={end_id} in it; choose another")
    flat = np.insert(flat, ends, end_id)
    return flat, np.concatenate([[0], ends + np.arange(1, len(ends) + 1)])


def _in_range(array: Int[np.ndarray, "n"]) -> bool:
    return array.min() >= 0 and array.max() < _LIMIT


def _grow(flat: Int[np.ndarray, "M"], begins: Int[np.ndarray, "L"]) -> tuple[np.ndarray, ...]:
    """The nodes over distinct sequences that are sorted and of which none begins another.

    Returns:
        `first_child`, `tokens` and `leaves`, and each sequence's depth: its tokens up to its leaf.
    """
    here = np.arange(len(begins))  # the sequences whose path goes on, and in which node each is
    group = np.zeros(len(begins), np.int64)
    depths = np.zeros(len(begins), np.int64)
    tokens, leaves, degrees = [np.zeros(1, np.int64)], [np.full(1, -1)], []
    if len(begins) == 1:
        leaves, here = [np.zeros(1, np.int64)], here[:0]
    while len(here):
        column = flat[begins[here] + len(degrees)]
        starts = np.ones(len(here), bool)
        starts[1:] = (group[1:] != group[:-1]) | (column[1:] != column[:-1])
        firsts = np.flatnonzero(starts)
        counts = np.diff(np.append(firsts, len(here)))
        degrees.append(np.bincount(group[firsts], minlength=len(tokens[-1])))
        tokens.append(column[firsts])
        alone = counts == 1
        leaves.append(np.where(alone, here[firsts], -1))
        depths[here[firsts[alone]]] = len(degrees)
        group = np.cumsum(starts) - 1
        goes_on = ~alone[group]
        here, group = here[goes_on], group[goes_on]
    degrees.append(np.zeros(len(tokens[-1]), np.int64))
    first_child = 1 + np.concatenate([[0], np.cumsum(np.concatenate(degrees))])
    return first_child, np.concatenate(tokens), np.concatenate(leaves), depths


def _are_sound(arrays: dict[str, Any], end_id: int) -> bool:
    """Whether arrays can be those of a trie."""
    if any(a.dtype != _KINDS[name] or a.ndim != 1 for name, a in arrays.items()):
        return False
    first, tokens, leaves, tail_starts, tails, row_starts, rows = (arrays[n] for n in _KINDS)
    size, count = len(tokens), len(tail_starts) - 1
    if size < 1 or count < 1 or len(first) != size + 1 or len(leaves) != size:
        return False
    degrees = np.diff(first)
    edges = (np.repeat(np.arange(size), degrees) << 32) | tokens[1:]
    return bool(
        first[0] == 1
        and first[-1] == size
        and (first[:-1] > np.arange(size)).all()
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
        and 0 <= end_id < _LIMIT
    )
