"""Tries on PyTorch's side: nested dicts with a `prefix_allowed_tokens_fn`."""

from collections.abc import Sequence
from typing import Any

import torch
from models import as_tensor


def grow_dicts(sequences: Sequence[tuple[int, ...]], depth: int = 0) -> dict[str, Any] | None:
    """Nested dicts from tokens, as strings, to subtrees; None where one sequence remains.

    Recursive, as in the released code.
    """
    if len(sequences) == 1:
        return None
    groups: dict[int, list[tuple[int, ...]]] = {}
    for sequence in sequences:
        groups.setdefault(sequence[depth], []).append(sequence)
    return {str(token): grow_dicts(group, depth + 1) for token, group in groups.items()}


class Walker:
    """Finds the header in a row and walks the dicts from there, again at every step."""

    def __init__(self, dicts: dict[str, Any], end: int, header: list[int]):
        self.dicts, self.end, self.header = dicts, end, header

    def find(self, row: list[int]) -> dict[str, Any] | None:
        """The node that a row has reached; None at a leaf or where there is no node."""
        size = len(self.header)
        start = next(i for i in range(len(row)) if row[i : i + size] == self.header) + size
        node = self.dicts
        for token in row[start:]:
            node = node and node.get(str(token))
        return node

    def allow(self, _: int, row: torch.Tensor) -> list[int]:
        """The tokens that may follow a row: a `prefix_allowed_tokens_fn`."""
        node = self.find(row.tolist())
        return [int(token) for token in node] if node else [self.end]

    def is_done(self, rows: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Whether each row has reached a leaf: a stopping criterion."""
        return torch.tensor([self.find(row) is None for row in rows.tolist()], device=rows.device)


class Pointers:
    """Remembers the node of every path, so that a step looks up the node of the path's parent.

    A row's path begins after `start` tokens.
    """

    def __init__(self, dicts: dict[str, Any], end: int, start: int):
        self.root, self.end, self.start = dicts, end, start
        self.nodes: dict[tuple[int, ...], dict[str, Any] | None] = {}

    def find(self, path: tuple[int, ...]) -> dict[str, Any] | None:
        """The node at the end of a path; None at a leaf or where there is no node."""
        if not path:
            self.nodes = {(): self.root}  # the first step of a call
        elif path not in self.nodes:
            parent = self.nodes[path[:-1]]
            self.nodes[path] = parent and parent.get(str(path[-1]))
        return self.nodes[path]

    def allow(self, _: int, row: torch.Tensor) -> list[int]:
        """The tokens that may follow a row: a `prefix_allowed_tokens_fn`."""
        node = self.find(tuple(row[self.start :].tolist()))
        return [int(token) for token in node] if node else [self.end]

    def is_done(self, rows: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        """Whether each row has reached a leaf: a stopping criterion."""
        paths = map(tuple, rows[:, self.start :].tolist())
        return torch.tensor([self.find(path) is None for path in paths], device=rows.device)


def pad_left(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Prompts as PyTorch's arrays `[B, T]`, padded on the left."""
    width = max(map(len, prompts))
    rows = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": as_tensor(rows), "attention_mask": as_tensor(mask)}
