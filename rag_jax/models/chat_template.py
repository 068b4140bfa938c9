"""Chat templates: a conversation as text, in which the template's own characters are known."""

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cached_property, wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from rag_jax.models.traced import (
    MESSAGE,
    TEMPLATE,
    Traced,
    concatenate,
    join_items,
    mark,
    read_mask,
    settle,
    trust,
)
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing

_PROBE = "Answer in one word."
# Conversations in which a template writes the marker of every role.
_TURNS = (("user",), ("system", "user"), ("user", "assistant", "user"))


class ChatTemplate:
    """A chat template in Jinja, rendered as in transformers."""

    def __init__(self, source: str, tokens: Mapping[str, str]):
        """A template, and the names of special tokens by its variables (`bos_token`, ...)."""
        self._source, self._tokens = source, tokens

    def render(
        self, messages: Sequence[Mapping[str, str]], *, add_generation_prompt: bool
    ) -> Traced:
        """The text of a conversation.

        The template sees every message as it is. Where it has no place for a system message, the
        first one joins the user's message after it, with an empty line between them.

        Args:
            messages: dicts with `role` and `content`.

        Raises:
            RagJaxError: the template has an error, or refuses the messages.
        """
        if [m["role"] for m in messages[:2]] == ["system", "user"] and not self._has_system:
            joined = "\n\n".join(m["content"] for m in messages[:2] if m["content"])
            messages = [{"role": "user", "content": joined}, *messages[2:]]
        with parsing("the chat template", "refuses these messages"):
            return self._render(messages, add_generation_prompt)

    def sample(self) -> str:
        """What the template writes itself in short conversations; "" if it refuses them all."""
        written = []
        for roles in _TURNS:
            messages = [{"role": role, "content": _PROBE} for role in roles]
            with contextlib.suppress(RagJaxError), parsing("the chat template"):
                text = self._render(messages, add_generation_prompt=True)
                kept = zip(text, read_mask(text), strict=True)
                # A zero byte keeps apart what a message stands between.
                written += [*(c if writer == TEMPLATE else "\0" for c, writer in kept), "\0"]
        return "".join(written)

    @cached_property
    def _has_system(self) -> bool:
        """Whether a system message becomes part of the text."""
        messages = [{"role": "system", "content": _PROBE}, {"role": "user", "content": "?"}]
        try:
            with parsing("the chat template"):
                return _PROBE in self._render(messages, True)
        except RagJaxError:
            return False

    def _render(self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool) -> Traced:
        traced = [
            {"role": trust(m["role"]), "content": mark(m["content"], MESSAGE)} for m in messages
        ]
        return self._compiled.render(
            {
                "messages": traced,
                "add_generation_prompt": add_generation_prompt,
                # As in transformers, which defines them for every template.
                "tools": None,
                "documents": None,
                **{name: trust(token) for name, token in self._tokens.items()},
            }
        )

    @cached_property
    def _compiled(self) -> jinja2.Template:
        with parsing("the chat template"):
            environment = _Environment()
            tree = environment.parse(self._source)
            return environment.from_string(_Marker().visit(tree))


def choose_template(templates: Mapping[str, str]) -> str | None:
    """The template for a conversation without tools, among several with names; None without any.

    It is the one named "default", as in transformers, or else the only one not for tools.

    Raises:
        RagJaxError: several templates are left.
    """
    if "default" in templates:
        return templates["default"]
    names = sorted(set(templates) - {"tool_use"}) or sorted(templates)
    if len(names) > 1:
        raise RagJaxError(
            f"there are several chat templates, {', '.join(names)}, and none is named default: "
            "give the one to use that name"
        )
    return templates[names[0]] if names else None


class _Environment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with transformers' settings and helpers, which traces the template's texts.

    Attributes:
        concat: joins the parts of a text; Jinja calls it for the result and for every block.
        trust, join: for `_Marker`'s calls.
    """

    concat = staticmethod(concatenate)
    join = staticmethod(concatenate)
    trust = staticmethod(trust)

    def __init__(self):
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        self.filters |= {"tojson": _to_json, "join": _join}
        self.filters = {name: _follow(function) for name, function in self.filters.items()}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _format_now}

    def call(self, context: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Calls a function, or a text's method, for a template."""
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        # Jinja adds its own arguments, which begin with an underscore.
        named = [value for name, value in kwargs.items() if not name.startswith("_")]
        return settle(super().call(context, function, *args, **kwargs), owner, args, named)


class _Marker(NodeTransformer):
    """Marks the texts in a template as written by it, and traces `~`, which Jinja joins itself."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:
        return _call("trust", nodes.Const(node.data), node.lineno)

    def visit_Const(self, node: nodes.Const) -> nodes.Expr:
        return _call("trust", node, node.lineno) if isinstance(node.value, str) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        parts = [self.visit(part) for part in node.nodes]
        return _call("join", nodes.List(parts), node.lineno)


class _Generation(Extension):
    """The block `generation`, which marks what the assistant writes in training; it is its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's name for it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _follow(function: Callable) -> Callable:
    """A filter whose text, if it is made of one writer's texts, is that writer's."""

    @wraps(function)
    def follow(*args: Any, **kwargs: Any) -> Any:
        seen = args[1:] if hasattr(function, "jinja_pass_arg") else args
        return settle(function(*args, **kwargs), seen, kwargs)

    return follow


def _call(name: str, argument: nodes.Expr, line: int) -> nodes.Expr:
    function = nodes.EnvironmentAttribute(name)
    call = nodes.Call(function, [argument], [], None, None)
    return call.set_lineno(line)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's filter would escape the characters of HTML.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@jinja2.pass_environment
def _join(
    environment: ImmutableSandboxedEnvironment,
    value: Any,
    d: str = "",
    attribute: str | int | None = None,
) -> Traced:
    getter = None if attribute is None else make_attrgetter(environment, attribute)
    return join_items(value, d, getter)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _format_now(format: str) -> str:
    return datetime.now().strftime(format)
