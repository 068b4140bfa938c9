"""Checks of a call's arguments, before anything is computed.

`checked` compares arguments with the function's own signature. Shapes and dtypes are known while a
program is traced, so a compiled program pays nothing. What depends on values, such as ids outside
the vocabulary, is checked where token ids come as lists, by `check_token_rows`.
"""

import functools
import inspect
import numbers
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import numpy as np
from jaxtyping import AbstractArray, Bool, Float, Int, Integer, Real, jaxtyped

from rag_jax.runtime.errors import RagJaxError

_Function = TypeVar("_Function", bound=Callable[..., Any])

# The kinds of arrays that are checked, what may be passed, and their names in messages. An array of
# integers serves as weights; all integers serve as ids.
_KINDS = {Float: (Real, "floats"), Int: (Integer, "integers"), Bool: (Bool, "booleans")}


def checked(function: _Function) -> _Function:
    """The function, with its arguments compared with their annotations at every call.

    Compared are arrays (NumPy's and JAX's, by kind and shape, where a letter is one size in all
    arguments), instances of the package's own classes, names that a `Literal` lists, and `params`,
    which is a model's own tree and not the variables around it. Arguments of other annotations are
    not looked at, and an object of another project's class may stand in for one of the package's.

    Raises, when called:
        TypeError: an argument is of another kind.
        ValueError: an array does not have the shape that the signature and the other arrays give,
            or `params` are variables.
        RagJaxError: a name is not listed.
    """
    signature = inspect.signature(function)
    wanted = {name: _list_wanted(p) for name, p in signature.parameters.items()}
    wanted = {name: kinds for name, kinds in wanted.items() if kinds}
    named = {
        name: get_args(parameter.annotation)
        for name, parameter in signature.parameters.items()
        if get_origin(parameter.annotation) is Literal
    }

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError:  # missing or unknown arguments, which Python names better
            return function(*args, **kwargs)
        with jaxtyped("context"):
            for name, kinds in wanted.items():
                if name not in given or isinstance(given[name], kinds):
                    continue
                if not _stands_in(given[name], kinds):
                    _refuse(function.__qualname__, name, given, kinds)
        for name, names in named.items():
            if name in given and given[name] not in names:
                expected = " or ".join(map(repr, names))
                message = f"{name} is {_show(given[name])}, expected {expected}"
                raise RagJaxError(f"{function.__qualname__}: {message}")
        params = given.get("params")
        if isinstance(params, Mapping) and set(params) == {"params"}:
            message = 'params are variables of Flax, expected the tree in them: ["params"]'
            raise ValueError(f"{function.__qualname__}: {message}")
        return function(*args, **kwargs)

    return call


def check_token_rows(name: str, rows: Sequence[Sequence[int]], vocab_size: int) -> None:
    """Checks a list of rows of token ids, as `check_token_row` checks each row.

    Raises:
        RagJaxError: naming the row that is not a list of ids, as `name` is in the caller's words.
    """
    if isinstance(rows, str) or not hasattr(rows, "__len__"):
        raise RagJaxError(f"{name}: {_show(rows)}, not a list of lists of token ids")
    for i, row in enumerate(rows):
        check_token_row(f"{name}: entry {i}", row, vocab_size)


def check_token_row(name: str, row: Sequence[int], vocab_size: int | None = None) -> None:
    """Checks one row of token ids, which may be empty.

    Args:
        vocab_size: number of ids of the model; None to check no value. JAX would clamp an id out of
            range, so that the model would read another token.

    Raises:
        RagJaxError: the row is not a list of integers, or an id is not from 0 to `vocab_size` - 1.
    """
    if isinstance(row, str | bytes):
        raise RagJaxError(f"{name}: {_show(row)}, not token ids; use the tokenizer's encode")
    if isinstance(row, Mapping) or not hasattr(row, "__len__") or not np.iterable(row):
        raise RagJaxError(f"{name}: {_show(row)}, not a list of token ids")
    if not len(row):
        return
    try:
        ids = np.asarray(row)
    except ValueError:  # rows of several lengths
        ids = np.zeros((len(row), 1), int)
    if ids.ndim != 1:
        raise RagJaxError(f"{name}: a list of lists, not a list of token ids")
    if ids.dtype.kind not in "iu":
        first = next((token for token in row if not isinstance(token, int | np.integer)), row[0])
        raise RagJaxError(f"{name}: {_show(first)} among its token ids, which are integers")
    if vocab_size is not None and not 0 <= ids.min() <= ids.max() < vocab_size:
        wrong = ids[(ids < 0) | (ids >= vocab_size)][0]
        raise RagJaxError(f"{name}: the id {wrong}, but the model's ids are 0 to {vocab_size - 1}")


def _show(value: Any) -> str:
    text = repr(value)
    short = text if len(text) <= 40 else f"{text[:40]}..."
    return f"{short} ({type(value).__name__})"


def describe(value: Any) -> str:
    """What a value is: `float32[2, 3]` for an array, else its class."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{value.dtype}{[*value.shape]}"
    return "None" if value is None else f"a {type(value).__name__}"


def _list_wanted(parameter: inspect.Parameter) -> tuple[type, ...]:
    """The classes that an argument may have; none if it is not checked."""
    if parameter.name == "params":
        return (Mapping,)
    annotation = parameter.annotation
    is_union = get_origin(annotation) in (Union, types.UnionType)
    wanted = [_find_class(one) for one in (get_args(annotation) if is_union else (annotation,))]
    return () if None in wanted else tuple(wanted)


def _find_class(annotation: Any) -> type | None:
    if isinstance(annotation, type) and issubclass(annotation, AbstractArray):
        known = _KINDS.get(annotation.dtype)
        return known and known[0][Any, annotation.dim_str]
    if annotation in (type(None), int):
        return {int: numbers.Integral}.get(annotation, annotation)  # NumPy's too
    is_own = isinstance(annotation, type) and annotation.__module__.startswith("rag_jax.")
    return annotation if is_own else None


def _stands_in(value: Any, kinds: tuple[type, ...]) -> bool:
    """Whether a value of another project's class comes in the place of one of ours."""
    ours = any(not hasattr(kind, "dim_str") for kind in kinds)
    home = type(value).__module__.partition(".")[0]
    return ours and home not in ("builtins", "rag_jax", "numpy", "jax", "jaxlib")


def _refuse(function: str, name: str, given: Mapping[str, Any], kinds: tuple[type, ...]) -> None:
    value, arrays = given[name], [kind for kind in kinds if hasattr(kind, "dim_str")]
    expected = " or ".join(map(_name_kind, kinds))
    message = f"{function}: {name} is {describe(value)}, expected {expected}"
    others = [
        f"{other} {describe(array)}"
        for other, array in given.items()
        if other != name and hasattr(array, "shape")
    ]
    if any(isinstance(value, kind.dtype[Any, "..."]) for kind in arrays):
        raise ValueError(f"{message}, beside {', '.join(others)}" if others else message)
    raise TypeError(message)


def _name_kind(kind: type) -> str:
    if not hasattr(kind, "dim_str"):
        return {type(None): "None", numbers.Integral: "int"}.get(kind, kind.__name__)
    noun = next(noun for accepted, noun in _KINDS.values() if accepted is kind.dtype)
    return f"{noun} [{', '.join(kind.dim_str.split())}]" if kind.dim_str else noun
