"""Formats of traced texts, `%` and `str.format`: who wrote what is known of every field."""

import re
from collections.abc import Callable
from string import Formatter
from typing import Any

from rag_jax.models.traced import Traced, concatenate, read_mask, settle

# A field of `%`: its key, what it does to the value, and its kind. Longer ones are not followed.
_FIELD = re.compile(r"%(?:\(([^()]{0,99})\))?([-#0 +]{0,9}[0-9]{0,9}(?:\.[0-9]{0,9})?)(.)", re.S)
_NOT_FOLLOWED = (LookupError, TypeError, ValueError, StopIteration)


def follow_percent(result: str, text: Traced, values: Any) -> str:
    """`text % values`, which is `result`, with its characters traced if they can be."""
    return settle(_follow(result, lambda: _split_percent(text, values)), text, values)


def follow_format(
    result: str, text: Traced, args: tuple[Any, ...], kwargs: Any, formatter: Formatter
) -> str:
    """`text.format(*args, **kwargs)`, which is `result`, with traced characters if they can be."""
    traced = _follow(result, lambda: _split_format(text, args, kwargs, formatter))
    return settle(traced, text, args, kwargs)


def _follow(result: str, split: Callable[[], list[str]]) -> str:
    """The parts of a text joined, if they make the text."""
    try:
        traced = concatenate(split())
    except _NOT_FOLLOWED:
        return result
    return traced if traced == result else result


def _split_percent(text: Traced, values: Any) -> list[str]:
    own, in_order = _sample(text), iter(values if isinstance(values, tuple) else (values,))
    parts: list[str] = []
    end = 0
    for field in _FIELD.finditer(text):
        parts.append(text[end : field.start()])
        end = field.end()
        key, options, kind = field.groups()
        if kind == "%":
            parts.append(text[end - 1 : end])
            continue
        value = next(in_order) if key is None else values[key]
        if isinstance(value, str) and kind == "s" and not options:
            parts.append(value)
        else:
            parts.append(settle(f"%{options}{kind}" % (value,), own, value))
    return [*parts, text[end:]]


def _split_format(
    text: Traced, args: tuple[Any, ...], kwargs: Any, formatter: Formatter
) -> list[str]:
    own, number = _sample(text), 0
    parts: list[str] = []
    for literal, name, options, conversion in formatter.parse(str.__str__(text)):
        parts.append(settle(literal, own))
        if name is None:
            continue
        if options and "{" in options:
            raise ValueError("a field within a field is not followed")
        if not name or name[0] in ".[":
            name, number = f"{number}{name}", number + 1
        value = formatter.get_field(name, args, kwargs)[0]
        if isinstance(value, str) and not options and conversion in (None, "s"):
            parts.append(value)
        else:
            shown = formatter.convert_field(value, conversion)
            parts.append(settle(formatter.format_field(shown, options or ""), own, value))
    return parts


def _sample(text: Traced) -> Traced:
    """A short text of the writers of a text, for each of its fields."""
    writers = bytes({*read_mask(text)})
    return Traced("?" * len(writers), writers)
