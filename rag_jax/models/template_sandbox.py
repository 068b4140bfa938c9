"""The Jinja environment of chat templates: a sandbox that traces texts and counts what is done."""

import functools
import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from rag_jax.models.template_budget import Budget
from rag_jax.models.traced import Traced, concatenate, join_items, settle, trust
from rag_jax.models.traced_format import follow_format, follow_percent

# For web pages and for finding errors. No conversation needs them, and what they cost is not known
# before they have run.
_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_LEFT_OUT_METHODS = ("expandtabs", "translate")


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with transformers' settings and helpers, which traces the template's texts.

    Everything that a template does is paid from `budget`: values when a name, an attribute, a call,
    a filter, a test or an operator gives them, and each turn of a loop or call of a macro.

    Attributes:
        budget: what is left for this rendering.
        concat: joins the parts of a text; Jinja calls it for the result and for every block.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, budget: Budget):
        # Without the optimizer: it would work out `10 ** 10 ** 10` before anything is counted.
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=self._finalize,
            extensions=[_Generation, loopcontrols],
        )
        self.budget = budget
        self.concat = self.join
        self.filters |= {"tojson": _to_json, "join": _join, "sum": _sum}
        self.filters |= {"replace": _replace, "indent": _indent, "format": _format}
        for name in _LEFT_OUT:
            del self.filters[name]
        self.filters = {name: self._count(filter) for name, filter in self.filters.items()}
        self.tests = {name: self._count(test) for name, test in self.tests.items()}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _format_now}
        del self.globals["lipsum"]  # random text of any length

    def read(self, source: str) -> jinja2.Template:
        """A template that is ready to be rendered; a TemplateError if its syntax is wrong."""
        return self.from_string(_Marker().visit(self.parse(source)))

    # `_Marker` puts calls of these four into a template.

    def trust(self, text: str) -> Traced:
        return self.budget.charge(trust(text))

    def join(self, parts: Iterable[Any]) -> Traced:
        parts = list(parts)
        self.budget.pay_join("", parts)
        return concatenate(parts)

    def load(self, value: Any) -> Any:
        return self.budget.charge(value)

    def step(self) -> bool:
        self.budget.spend(1)
        return True

    # Jinja calls the rest.

    def getattr(self, obj: Any, attribute: str) -> Any:
        return self.budget.charge(super().getattr(obj, attribute))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return self.budget.charge(super().getitem(obj, argument))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.budget.pay_binary(operator, left, right)
        result = super().call_binop(context, operator, left, right)
        if operator == "%" and isinstance(left, Traced):
            return follow_percent(result, left, right)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, str) and attr in _LEFT_OUT_METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        format = super().wrap_str_format(value)
        if format is None:
            return None

        @functools.wraps(format)
        def wrapped(*args: Any, **kwargs: Any) -> str:
            text = value.__self__
            self.budget.pay_format(text, list(args), kwargs)
            result = format(*args, **kwargs)
            if value.__name__ == "format_map":
                args, kwargs = (), args[0]
            return follow_format(result, text, args, kwargs, SandboxedFormatter(self))

        return wrapped

    # The underscores keep these names free for the keywords of what is called.
    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        budget, owner = __self.budget, getattr(__obj, "__self__", None)
        if owner is __self:
            return __obj(*args)  # without the keywords that Jinja adds for its own use
        budget.check_numbers((*args, *kwargs.values()))
        if isinstance(owner, str):
            args = __self._pay_method(owner, __obj.__name__, args)
        result = super().call(__context, __obj, *args, **kwargs)
        owner = getattr(getattr(__obj, "__wrapped__", __obj), "__self__", None)
        # Jinja adds its own arguments, which begin with an underscore.
        named = [value for name, value in kwargs.items() if not name.startswith("_")]
        return budget.charge(settle(result, owner, args, named))

    def _pay_method(self, text: str, name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Pays for a text's method; the arguments, with a list in the place of an iterator."""
        self.budget.spend(len(text))
        if name == "join" and len(args) == 1:
            args = (list(args[0]),)
            self.budget.pay_join(text, args[0])
        elif name == "replace" and all(isinstance(arg, str) for arg in args[:2]) and len(args) > 1:
            self.budget.pay_replace(text, *args)
        return args

    @jinja2.pass_environment  # so that Jinja does not work out constants before rendering
    def _finalize(self, _: Any, value: Any) -> Any:
        return self.budget.charge(value)

    def _count(self, function: Callable) -> Callable:
        """A filter or test that pays for its arguments and for what it gives.

        A text that is made of one writer's texts is that writer's.
        """

        @functools.wraps(function)
        def counted(*args: Any, **kwargs: Any) -> Any:
            given = (*args, *kwargs.values())
            self.budget.check_numbers(given)
            for value in given:
                self.budget.charge(value)
            seen = args[1:] if hasattr(function, "jinja_pass_arg") else args
            return self.budget.charge(settle(function(*args, **kwargs), seen, kwargs))

        return counted


class _Marker(NodeTransformer):
    """Marks the texts in a template as written by it, traces `~`, and has steps counted."""

    def visit_TemplateData(self, node: nodes.TemplateData) -> nodes.Expr:
        return _call("trust", [nodes.Const(node.data)], node.lineno)

    def visit_Const(self, node: nodes.Const) -> nodes.Expr:
        return _call("trust", [node], node.lineno) if isinstance(node.value, str) else node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        parts = [self.visit(part) for part in node.nodes]
        return _call("join", [nodes.List(parts)], node.lineno)

    def visit_Name(self, node: nodes.Name) -> nodes.Expr:
        return _call("load", [node], node.lineno) if node.ctx == "load" else node

    def visit_For(self, node: nodes.For) -> nodes.Node:
        node = self._visit_body(node)
        if node.test is not None:
            node.test = nodes.And(_call("step", [], node.lineno), node.test)
        return node

    def _visit_body(self, node: Any) -> nodes.Node:
        node = self.generic_visit(node)
        step = nodes.ExprStmt(_call("step", [], node.lineno)).set_lineno(node.lineno)
        node.body = [step, *node.body]
        return node

    visit_Macro = visit_Block = visit_CallBlock = _visit_body


class _Generation(Extension):
    """The block `generation`, which marks what the assistant writes in training; it is its body."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's name for it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def _call(name: str, arguments: list[nodes.Expr], line: int) -> nodes.Expr:
    function = nodes.EnvironmentAttribute(name)
    call = nodes.Call(function, arguments, [], None, None)
    return call.set_lineno(line)


@jinja2.pass_environment
def _to_json(
    environment: TemplateEnvironment,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's filter would escape the characters of HTML.
    encoder = json.JSONEncoder(
        ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
    return "".join(environment.budget.charge(part) for part in encoder.iterencode(value))


@jinja2.pass_environment
def _join(
    environment: TemplateEnvironment,
    value: Any,
    d: str = "",
    attribute: str | int | None = None,
) -> Traced:
    getter = None if attribute is None else make_attrgetter(environment, attribute)
    items = [getter(item) if getter else item for item in value]
    environment.budget.pay_join(d, items)
    return join_items(items, d)


@jinja2.pass_environment
def _sum(
    environment: TemplateEnvironment,
    iterable: Iterable[Any],
    attribute: str | int | None = None,
    start: Any = 0,
) -> Any:
    getter = None if attribute is None else make_attrgetter(environment, attribute)
    for item in iterable:
        start = environment.call_binop(None, "+", start, getter(item) if getter else item)
    return start


@jinja2.pass_eval_context
def _replace(context: Any, s: str, old: str, new: str, count: int | None = None) -> str:
    context.environment.budget.pay_replace(str(s), str(old), str(new), count)
    return jinja2.filters.do_replace(context, s, old, new, count)


@jinja2.pass_environment
def _indent(
    environment: TemplateEnvironment,
    s: str,
    width: int | str = 4,
    first: bool = False,
    blank: bool = False,
) -> str:
    size = width if isinstance(width, int) else len(width)
    environment.budget.spend(max(size, 0) * (1 + len(str(s).splitlines())))
    return jinja2.filters.do_indent(s, width, first, blank)


@jinja2.pass_environment
def _format(environment: TemplateEnvironment, value: str, *args: Any, **kwargs: Any) -> str:
    environment.budget.pay_format(str(value), args, kwargs)
    result = jinja2.filters.do_format(value, *args, **kwargs)
    return follow_percent(result, value, kwargs or args) if isinstance(value, Traced) else result


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _format_now(format: str) -> str:
    return datetime.now().strftime(format)
