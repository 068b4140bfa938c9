"""Tries as the PyTorch sides have them: nested dicts behind `prefix_allowed_tokens_fn`."""

from collections.abc import Sequence
from typing import Any

import torch
from models import as_tensor


def grow_dicts(texts: Sequence[tuple[int, ...]], depth: int = 0) -> dict[str, Any] | None:
    """Tokens, as strings, to what follows; None where one text remains. Recursive, as released."""
    if len(texts) == 1:
        return None
    groups: dict[int, list[tuple[int, ...]]] = {}
    for text in texts:
        groups.setdefault(text[depth], []).append(text)
    return {str(token): grow_dicts(group, depth + 1) for token, group in groups.items()}


class Walker:
    """Finds the header in a row and walks the dicts from there, at every step anew."""

    def __init__(self, dicts: dict[str, Any], end: int, header: list[int]):
        self.dicts, self.end, self.header = dicts, end, header

    def find(self, row: list[int]) -> dict[str, Any] | None:
        """The node that a row stands at; None at a leaf or where there is nothing."""
        size = len(self.header)
        start = next(i for i in range(len(row)) if row[i : i + size] == self.header) + size
        node = self.dicts
        for token in row[start:]:
            node = node and node.get(str(token))
        return node

    def allow(self, _: int, row: torch.Tensor) -> list[int]:
        node = self.find(row.tolist())
        return [int(token) for token in node] if node else [self.end]

    def is_done(self, rows: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        return torch.tensor([self.find(row) is None for row in rows.tolist()], device=rows.device)


class Pointers:
    """Remembers the node behind every path, so that a step looks up where its parent stood."""

    def __init__(self, dicts: dict[str, Any], end: int, start: int):
        self.root, self.end, self.start = dicts, end, start
        self.known: dict[tuple[int, ...], dict[str, Any] | None] = {}

    def find(self, path: tuple[int, ...]) -> dict[str, Any] | None:
        if not path:
            self.known = {(): self.root}  # a call's first step
        elif path not in self.known:
            parent = self.known[path[:-1]]
            self.known[path] = parent and parent.get(str(path[-1]))
        return self.known[path]

    def allow(self, _: int, row: torch.Tensor) -> list[int]:
        node = self.find(tuple(row[self.start :].tolist()))
        return [int(token) for token in node] if node else [self.end]

    def is_done(self, rows: torch.Tensor, _scores: Any, **_: Any) -> torch.Tensor:
        paths = map(tuple, rows[:, self.start :].tolist())
        return torch.tensor([self.find(path) is None for path in paths], device=rows.device)


def pad_left(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(map(len, prompts))
    rows = [[0] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": as_tensor(rows), "attention_mask": as_tensor(mask)}
