"""The prefix tree (trie) of a corpus's token sequences, as a few arrays.

Nodes are numbered level by level from the root, node 0, and within a level in the sort order of
their sequences. The children of a node are therefore consecutive and sorted by token, and an edge
is identified by the node at its end: no array of targets is needed. A path ends in a leaf as soon
as one sequence remains (Tang et al. 2024), or later where that is asked for. The tokens of that
sequence after its leaf are stored separately, as the sequence's tail.
"""

import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Int

from rag_jax.data.batches import round_up
from rag_jax.decoding.trie_build import (
    DTYPES,
    TOKEN_LIMIT,
    check_least,
    grow_nodes,
    is_trie,
    join_sequences,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.files import map_array, save_array
from rag_jax.runtime.manifest import check_files, read_manifest, write_folder
from rag_jax.runtime.outside import parsing
from rag_jax.runtime.sharding import shard_array

# Limit of nodes and of sequences: int32 must also number the nodes that `Trie.place` adds.
_MOST_NODES = 2**31 - 2**26


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrieArrays:
    """The arrays of a trie that a search reads, on the device.

    Pass a `TrieArrays` to compiled functions as an argument: a compiled function that closes over
    the arrays copies them into its program. `Trie.place` makes the arrays and rounds the number of
    nodes up to `N`.

    Attributes:
        first_child: node `n` has children `first_child[n]` to `first_child[n + 1] - 1`; a leaf has
            none.
        tokens: the token on the edge to each node; 0 for the root.
        widths: numbers of children that a program may gather at once, ascending; the last is enough
            for every node.
    """

    first_child: Int[Array, "N+1"]
    tokens: Int[Array, "N"]
    widths: tuple[int, ...] = field(metadata={"static": True})


@dataclass(frozen=True, eq=False)
class Trie:
    """A trie of `N` nodes with `L` leaves, one for each distinct token sequence.

    Made by `from_sequences` or `load`. With a single distinct sequence the root is the leaf, unless
    its path was to be longer.

    Attributes:
        first_child: as in `TrieArrays`, as are `tokens`.
        leaves: the number of a leaf's sequence in sort order; -1 for inner nodes.
        tail_starts: after its leaf, sequence `l` has the tokens
            `tails[tail_starts[l] : tail_starts[l + 1]]`, which have no alternative.
        row_starts: sequence `l` was at the positions `rows[row_starts[l] : row_starts[l + 1]]` of
            the input, ascending.
        end_id: the end token, which follows every sequence and which no sequence contains.
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
    def from_sequences(
        cls,
        sequences: Sequence[Sequence[int]],
        *,
        end_id: int,
        least: Sequence[int] | Int[np.ndarray, "S"] | None = None,
    ) -> "Trie":
        """Builds the trie, level by level; equal sequences share a leaf.

        Args:
            sequences: token ids, at least one per sequence.
            end_id: the end token, which no sequence may contain. The trie adds the end token to
                every sequence, so that a sequence that is a prefix of another has a leaf too.
            least: for each sequence the number of its first tokens that its path has in any case,
                so that a search scores them even where no other sequence remains; none by default.

        Raises:
            RagJaxError: there are no sequences, a sequence is empty or contains `end_id`, a token
                id is not an integer from 0 to 2**31 - 1, `least` is not a number for each sequence
                from 0 to its length, or int32 cannot number the nodes or the sequences.
        """
        flat, starts = join_sequences(sequences, end_id)
        least = check_least(least, np.diff(starts) - 1)
        # Big-endian bytes compare as the tokens do.
        data = flat.astype(">u4").tobytes()
        keys = [data[4 * a : 4 * b] for a, b in itertools.pairwise(starts)]
        order = np.asarray(sorted(range(len(keys)), key=keys.__getitem__))
        is_repeat = [keys[a] == keys[b] for a, b in itertools.pairwise(order)]
        firsts = np.flatnonzero(~np.asarray([False, *is_repeat]))
        # Of the distinct sequences: [L].
        starts, ends = starts[order[firsts]], starts[order[firsts] + 1]
        least = np.maximum.reduceat(least[order], firsts)  # of equal sequences the longest path
        first_child, tokens, leaves, depths = grow_nodes(flat, starts, least)
        if max(len(tokens), len(order)) > _MOST_NODES:
            raise RagJaxError(
                f"sequences: {len(order)} sequences need {len(tokens)} nodes, and a trie holds at "
                f"most {_MOST_NODES} of either; split the corpus"
            )
        # A tail ends before the end token. At a leaf that is the end token's node, the difference
        # is -1.
        lengths = np.maximum(ends - 1 - starts - depths, 0)
        tail_starts = np.concatenate([[0], np.cumsum(lengths)])
        offsets = np.repeat(starts + depths - tail_starts[:-1], lengths)
        tails = flat[np.arange(tail_starts[-1]) + offsets]
        row_starts = np.append(firsts, len(order))
        arrays = first_child, tokens, leaves, tail_starts, tails, row_starts, order
        arrays = [a.astype(dtype) for a, dtype in zip(arrays, DTYPES.values(), strict=True)]
        return cls(*arrays, end_id=int(end_id))

    @property
    def size(self) -> int:
        """Number of nodes, N."""
        return len(self.tokens)

    @property
    def depth(self) -> int:
        """Number of tokens on the longest path from the root to a leaf."""
        depth, node = 0, 0
        # The first child of a level's first inner node is the first node of the next level.
        while self.first_child[node] < self.size:
            depth, node = depth + 1, self.first_child[node]
        return depth

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(getattr(self, name).nbytes for name in DTYPES)

    def find(self, prefixes: Sequence[Sequence[int]]) -> Int[np.ndarray, "P"]:
        """The node where each prefix ends; the leaf for a prefix of a single distinct sequence.

        Raises:
            RagJaxError: a prefix begins no sequence of the trie.
        """
        lengths = np.asarray([len(prefix) for prefix in prefixes], np.int64)
        flat = np.fromiter((token for prefix in prefixes for token in prefix), np.int64)
        flat[flat >= TOKEN_LIMIT] = -1  # matches no edge, and leaves the parent's bits free
        starts = np.cumsum(lengths) - lengths
        # Parent and token of nodes 1, 2, ... as one number per node, ascending.
        edges = (np.repeat(np.arange(self.size), np.diff(self.first_child)) << 32) | self.tokens[1:]
        nodes, exists = np.zeros(len(lengths), np.int64), np.ones(len(lengths), bool)
        pending, depth = np.flatnonzero(lengths), 0
        while True:
            at_leaf = self.leaves[nodes[pending]] >= 0
            for i in pending[at_leaf]:
                suffix = flat[starts[i] + depth : starts[i] + lengths[i]]
                exists[i] = np.array_equal(suffix, self._tail(nodes[i])[: len(suffix)])
            pending = pending[~at_leaf]
            if not len(pending):
                break
            keys = (nodes[pending] << 32) | flat[starts[pending] + depth]
            places = np.minimum(np.searchsorted(edges, keys), len(edges) - 1)
            exists[pending] = edges[places] == keys
            nodes[pending] = places + 1
            depth += 1
            pending = pending[exists[pending] & (lengths[pending] > depth)]
        if not exists.all():
            i = int(np.flatnonzero(~exists)[0])
            raise RagJaxError(f"prefixes: no sequence of the trie begins with prefix {i}")
        return nodes.astype(np.int32)

    def sequence(self, node: int) -> list[int]:
        """All tokens of a leaf's sequence, without the end token; a ValueError for other nodes."""
        return self.path(node) + self._tail(node).tolist()

    def rows_at(self, node: int) -> list[int]:
        """The positions of a leaf's sequence in the input; a ValueError for other nodes."""
        leaf = self._leaf(node)
        return self.rows[self.row_starts[leaf] : self.row_starts[leaf + 1]].tolist()

    def path(self, node: int) -> list[int]:
        """The tokens from the root to a node, without the end token."""
        tokens = []
        while node:
            tokens.append(int(self.tokens[node]))
            # The parent is the last node with a first child at or before this node.
            node = int(np.searchsorted(self.first_child, node, side="right")) - 1
        return [token for token in reversed(tokens) if token != self.end_id]

    def place(self) -> TrieArrays:
        """The arrays that a search reads, replicated over the current mesh.

        The number of nodes is rounded up, by a sixteenth at most or to a multiple of 64, so that
        tries of similar sizes share compiled programs. No edge leads to the padding nodes.
        """
        padding = self._places() - self.size
        first_child = np.pad(self.first_child, (0, padding), constant_values=self.size)
        tokens = np.pad(self.tokens, (0, padding))
        widths = choose_gathers(int(np.diff(self.first_child).max()))
        return TrieArrays(_replicate(first_child), _replicate(tokens), widths)

    def mark(self, nodes: Int[np.ndarray, "n"]) -> Bool[Array, "N"]:
        """A mask that is True on `nodes`, for example the `stops` of a search.

        The mask has the length of `TrieArrays.tokens` and is replicated over the current mesh.
        """
        mask = np.zeros(self._places(), bool)
        mask[nodes] = True
        return _replicate(mask)

    def save(self, folder: str | os.PathLike) -> None:
        """Writes the trie as a folder, completely or not at all, and replaces an older index.

        Raises:
            RagJaxError: the folder holds something other than an index.
        """

        def write(folder: Path) -> None:
            for name in DTYPES:
                save_array(folder / f"{name}.npy", getattr(self, name))

        write_folder(folder, {"backend": "trie", "end_id": self.end_id}, write)

    @classmethod
    def load(cls, folder: str | os.PathLike, *, vocab_size: int = TOKEN_LIMIT) -> "Trie":
        """Reads a trie that `save` wrote. Every file is compared with its SHA-256 first.

        Args:
            vocab_size: number of tokens of the model, which clamps a token beyond them.

        Raises:
            RagJaxError: the folder holds no trie, or one that is incomplete or altered, or has a
                token that the model lacks.
        """
        folder = Path(folder)
        manifest = read_manifest(folder, {"end_id": int}, ["trie"])
        check_files(folder, manifest["sha256"], [f"{name}.npy" for name in DTYPES])
        arrays = {name: np.array(map_array(folder / f"{name}.npy")) for name in DTYPES}
        with parsing(folder, "holds arrays that do not form a trie", "build it again"):
            if not is_trie(arrays, manifest["end_id"]):
                raise ValueError("they contradict each other")
        largest = max(arrays[name].max(initial=manifest["end_id"]) for name in ("tokens", "tails"))
        if largest >= vocab_size:
            raise RagJaxError(
                f"{folder} has the token {largest}, but the model's vocabulary ends at "
                f"{vocab_size - 1}: build it again"
            )
        return cls(**arrays, end_id=manifest["end_id"])

    def _places(self) -> int:
        """Number of nodes in the arrays on the device, padding included."""
        return round_up(self.size, max(64, 1 << max(0, self.size.bit_length() - 5)))

    def _leaf(self, node: int) -> int:
        leaf = int(self.leaves[node])
        if leaf < 0:
            raise ValueError(f"node {node} is not a leaf")
        return leaf

    def _tail(self, node: int) -> Int[np.ndarray, "n"]:
        leaf = self._leaf(node)
        return self.tails[self.tail_starts[leaf] : self.tail_starts[leaf + 1]]


def _replicate(array: np.ndarray) -> Array:
    mesh = jax.sharding.get_mesh()
    if mesh.size <= 1:
        return jnp.asarray(array)
    return shard_array(array, NamedSharding(mesh, PartitionSpec()))


def choose_gathers(most: int) -> tuple[int, ...]:
    """The widths at which a search gathers children.

    The widths ascend to at least `most`, the largest number of children of a node. They are few and
    equal for tries of similar shapes, so that few programs are compiled.
    """
    last = 1 << max(3, (most - 1).bit_length())
    return (*(width for width in (8, 64, 512, 4096) if width < last), last)
