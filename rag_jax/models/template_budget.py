"""What a chat template may spend: one unit a step, character or element of a list."""

import re
from collections.abc import ItemsView, KeysView, ValuesView
from typing import Any

import jinja2
from jinja2.utils import Namespace

# As Jinja's sandbox allows for `range`.
_LARGEST = 100_000
_NESTED = (list, tuple, set, frozenset, dict, KeysView, ValuesView, ItemsView, Namespace)
_WIDTH = re.compile(r"[0-9]+")


class SpentError(jinja2.TemplateRuntimeError):
    """A template does more than its budget allows."""


class Budget:
    """Units that the rendering of one conversation may spend.

    A value costs its size each time that an expression gives it. An operation whose result may be
    far larger than its operands, such as `replace`, pays for the result before it is made. So both
    the time and the memory of a rendering are bounded by the units.
    """

    def __init__(self, units: int):
        self._units = self._left = units

    def spend(self, units: int) -> None:
        """Pays; a SpentError if too few units are left."""
        self._left -= units
        if self._left < 0:
            raise SpentError(f"takes more than the limit of {self._units:,} steps and characters")

    def charge(self, value: Any) -> Any:
        """Pays for a value, and returns it."""
        self.spend(self._measure(value))
        return value

    def check_numbers(self, values: Any) -> None:
        """Raises a SpentError if an argument of a function is a large number, such as a width."""
        for value in values:
            if isinstance(value, int) and abs(value) > _LARGEST:
                raise SpentError(f"gives a function a number above the limit of {_LARGEST:,}")

    def pay_binary(self, operator: str, left: Any, right: Any) -> None:
        """Pays for the result of `+`, `*`, `**` or `%`."""
        if operator == "%" and isinstance(left, str):
            self.pay_format(left, right)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            self.spend(left.bit_length() * abs(right))
        elif operator == "*":
            times = [v for v in (left, right) if isinstance(v, int)]
            others = [v for v in (left, right) if not isinstance(v, int)]
            if len(times) == 1:
                self.spend(self._measure(others[0]) * max(times[0], 0))
        self.charge(left)
        self.charge(right)

    def pay_format(self, text: str, *values: Any) -> None:
        """Pays for `text % values` or `text.format(*values)`; every field may be as wide as all."""
        widths = [int(width.lstrip("0")[:9] or 0) for width in _WIDTH.findall(text)]
        wide = max(widths, default=0)
        self._check_stars(text, values)
        fields = text.count("%") + text.count("{")
        self.spend(len(text) + fields * (wide + sum(map(self._measure, values))))

    def pay_replace(self, text: str, old: str, new: str, count: int | None = None) -> None:
        """Pays for `text.replace(old, new, count)`."""
        found = text.count(old)
        found = found if count is None or count < 0 else min(found, count)
        self.spend(len(text) + found * len(new))

    def pay_join(self, separator: str, parts: list[Any]) -> None:
        """Pays for `separator.join(parts)`."""
        self.spend(self._measure(parts) + len(separator) * len(parts))

    def _check_stars(self, text: str, values: Any) -> None:
        if "*" in text:  # a width among the values
            for value in values:
                self.check_numbers(value if isinstance(value, tuple) else (value,))

    def _measure(self, value: Any) -> int:
        """The size of a value and all that it contains; at most about the units that are left.

        A list that contains another one twice counts it twice: as text it has it twice.
        """
        size, left = 0, [value]
        while left and size <= self._left:
            value = left.pop()
            size += 1
            if isinstance(value, str):
                size += len(value)
            elif isinstance(value, int):
                size += value.bit_length() // 32
            elif isinstance(value, _NESTED):
                left.extend(_list_parts(value))
        return size


def _list_parts(value: Any) -> list[Any]:
    if isinstance(value, Namespace):
        value = object.__getattribute__(value, "_Namespace__attrs")
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    return list(value)
