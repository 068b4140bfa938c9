"""Chat templates: a conversation as text, in which the template's own characters are known."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import cached_property

import jinja2

from rag_jax.models.template_budget import Budget, SpentError
from rag_jax.models.template_sandbox import TemplateEnvironment
from rag_jax.models.traced import MESSAGE, TEMPLATE, Traced, mark, read_mask, trust
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.outside import parsing

_PROBE = "Answer in one word."
# Conversations in which a template writes the marker of every role.
_TURNS = (("user",), ("system", "user"), ("user", "assistant", "user"))
_LONGEST = 1 << 20  # characters of a template
_MOST_TEMPLATES = 8  # all are rendered, to see which tokens they write
# A `Budget`'s units. The layouts of known families in tests/chats.py spend at most 500 units a
# message and 20 a character; the one that looks at all that a text has spends 100 a character.
_UNITS, _UNITS_A_CHARACTER = 500_000, 200


class ChatTemplate:
    """A chat template in Jinja, rendered as in transformers but for what takes too long."""

    def __init__(self, source: str, tokens: Mapping[str, str], *, name: str = "the chat template"):
        """A template, and the names of special tokens by its variables (`bos_token`, ...).

        `name` says in errors which template it is.
        """
        self._source, self._tokens, self._name = source, tokens, name

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        add_generation_prompt: bool,
        thinking: bool | None = None,
    ) -> Traced:
        """The text of a conversation.

        The template sees every message as it is. Where it has no place for a system message, the
        first one joins the user's message after it, with an empty line between them.

        Args:
            messages: dicts with `role` and `content`.
            thinking: `enable_thinking`, as Qwen3's and SmolLM3's templates call it; None to leave
                it undefined.

        Raises:
            RagJaxError: the template has an error, refuses the messages, or takes too many steps
                or makes too long texts.
        """
        if [m["role"] for m in messages[:2]] == ["system", "user"] and not self._has_system:
            joined = "\n\n".join(m["content"] for m in messages[:2] if m["content"])
            messages = [{"role": "user", "content": joined}, *messages[2:]]
        with parsing(self._name, "refuses these messages"):
            return self._render(messages, add_generation_prompt, thinking)

    def sample(self) -> str:
        """What the template writes itself in short conversations; "" if it refuses them all."""
        written = []
        for roles in _TURNS:
            messages = [{"role": role, "content": _PROBE} for role in roles]
            with contextlib.suppress(RagJaxError), parsing(self._name):
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
            with parsing(self._name):
                return _PROBE in self._render(messages, True)
        except RagJaxError:
            return False

    def _render(
        self,
        messages: Sequence[Mapping[str, str]],
        add_generation_prompt: bool,
        thinking: bool | None = None,
    ) -> Traced:
        characters = sum(len(m["content"]) for m in messages)
        self._environment.budget = Budget(_UNITS + _UNITS_A_CHARACTER * characters)
        traced = [
            {"role": trust(m["role"]), "content": mark(m["content"], MESSAGE)} for m in messages
        ]
        given = {
            "messages": traced,
            "add_generation_prompt": add_generation_prompt,
            # As in transformers, which defines them for every template.
            "tools": None,
            "documents": None,
            **({} if thinking is None else {"enable_thinking": thinking}),
            **{name: trust(token) for name, token in self._tokens.items()},
        }
        try:
            return self._compiled.render(given)
        except SpentError as error:
            raise RagJaxError(f"{self._name} {error}: use another template") from None

    @cached_property
    def _environment(self) -> TemplateEnvironment:
        return TemplateEnvironment(Budget(_UNITS))

    @cached_property
    def _compiled(self) -> jinja2.Template:
        if len(self._source) > _LONGEST:
            raise RagJaxError(
                f"{self._name} has {len(self._source):,} characters, more than the limit of "
                f"{_LONGEST:,}: use another template"
            )
        with parsing(self._name):
            return self._environment.read(self._source)


def sample_templates(sources: Sequence[str], tokens: Mapping[str, str], *, name: str) -> str:
    """The sources of chat templates, and what they write.

    Args:
        tokens, name: as for `ChatTemplate`.

    Raises:
        RagJaxError: there are very many of them.
    """
    if len(sources) > _MOST_TEMPLATES:
        raise RagJaxError(
            f"{name}: there are {len(sources):,} of them, more than the limit of "
            f"{_MOST_TEMPLATES}: keep the one to use"
        )
    written = [ChatTemplate(source, tokens).sample() for source in sources]
    return "\n".join([*sources, *written])


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
