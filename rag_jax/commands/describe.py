"""The settings of a config as text: each with its value, type, range and purpose."""

import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Collection, Iterator
from typing import Annotated, Any, Literal

from rag_jax.config import build
from rag_jax.pipeline import command
from rag_jax.systems import list_systems, open_room

_KINDS = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def describe_config(config: Any) -> str:
    """Every setting of a config, as `--config.PATH=VALUE`, its type, and what it is.

    Raises:
        RagJaxError: the config has no known system, or a value that is not allowed.
    """
    system = command.find_system(config, list_systems("pipeline"))
    settings = build(open_room(system, "pipeline").CONFIG, config)
    return "\n".join(list_settings(settings, "config"))


def list_settings(
    settings: Any, path: str, *, hidden: Collection[str] = frozenset()
) -> Iterator[str]:
    """Yields the lines of `describe_config` for the settings at a path, but for hidden paths."""
    hints = typing.get_type_hints(type(settings), include_extras=True)
    purposes = read_purposes(type(settings))
    for name, hint in hints.items():
        value = getattr(settings, name)
        if f"{path}.{name}" in hidden:
            continue
        if dataclasses.is_dataclass(value):
            yield from list_settings(value, f"{path}.{name}", hidden=hidden)
        elif isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
            for number, item in enumerate(value):
                yield from list_settings(item, f"{path}.{name}[{number}]", hidden=hidden)
        else:
            yield f"--{path}.{name}={value}\n    {describe_type(hint)}"
            if name in purposes:
                yield f"    {purposes[name]}"


def describe_type(hint: Any) -> str:
    """The values that a field takes, from its annotation: "a number from 0 to 1, or None"."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return " ".join([describe_type(arguments[0]), *map(str, arguments[1:])])
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        (inner,) = set(arguments) - {types.NoneType}
        return f"{describe_type(inner)}, or None"
    if origin is tuple:
        return f"a list, each {describe_type(arguments[0])}"
    return _KINDS.get(hint, getattr(hint, "__name__", str(hint)))


def read_purposes(settings: type) -> dict[str, str]:
    """What each field is for, from the attributes in the docstrings of a class and its bases."""
    purposes: dict[str, str] = {}
    for cls in reversed(settings.__mro__):
        text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        _, _, attributes = text.partition("Attributes:\n")
        for found in re.finditer(r"^    (\w+): (.*(?:\n     +.*)*)", attributes, re.MULTILINE):
            purposes[found[1]] = " ".join(found[2].split())
    return purposes
