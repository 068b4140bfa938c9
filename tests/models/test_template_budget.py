"""A chat template ends after a bounded number of steps, and makes no text of boundless size."""

import json
import resource
import subprocess
import sys

import pytest
from chats import make_byte_level, write_folder

from rag_jax.models.chat_template import ChatTemplate
from rag_jax.models.tokenizer import Tokenizer
from rag_jax.runtime.errors import RagJaxError

R = "range(49999)"
LIST = f"{{% set l = {R}|list %}}"
DOUBLING = (
    "{% set ns = namespace(x=START) %}{% for i in range(60) %}{% set ns.x = STEP %}{% endfor %}"
)
MANY = "{% set big = 'a' * 90000 %}"


def double(start, step, rest="{{ ns.x }}"):
    return DOUBLING.replace("START", start).replace("STEP", step) + rest


# Without a limit each takes minutes or gigabytes.
ENDLESS = {
    "nested loops": f"{{% for a in {R} %}}{{% for b in {R} %}}x{{% endfor %}}{{% endfor %}}",
    "empty loops": f"{{% for a in {R} %}}{{% for b in {R} %}}{{% endfor %}}{{% endfor %}}",
    "a loop's test": f"{{% for a in {R} %}}"
    f"{{% for b in {R} if false %}}{{% endfor %}}{{% endfor %}}",
    "a macro": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(60) }}",
    "a block": "{% block a %}{{ self.a() }}{{ self.a() }}{% endblock %}",
    "a recursive loop": "{% for x in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "doubling by +": double("'a'", "ns.x + ns.x"),
    "doubling by ~": double("'a'", "ns.x ~ ns.x"),
    "doubling by *": double("'a'", "ns.x * 2"),
    "doubling by join": double("'a'", "[ns.x, ns.x]|join"),
    "doubling by a text's join": double("'a'", "'b'.join([ns.x, ns.x])"),
    "doubling by a block": double("'a'", "ns.x", "").replace(
        "{% set ns.x = ns.x %}", "{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"
    ),
    "doubling by %": double("'a'", "'%s%s' % (ns.x, ns.x)"),
    "doubling by format": double("'a'", "'{0}{0}'.format(ns.x)"),
    "doubling by the filter format": double("'a'", "'%s%s'|format(ns.x, ns.x)"),
    "doubling by replace": double("'a'", "ns.x|replace('a', 'aa')"),
    "doubling a list": double("[1]", "ns.x + ns.x"),
    "a list of lists": double("'a'", "[ns.x, ns.x]"),
    "a list of lists as JSON": double("'a'", "[ns.x, ns.x]", "{{ ns.x|tojson }}"),
    "equal lists of lists": double("'a'", "[ns.x, ns.x]", "{{ ns.x == [ns.x] }}"),
    "namespaces": double("'a'", "namespace(a=ns.x, b=ns.x)"),
    "a large number": double("9", "ns.x * ns.x", "{{ ns.x > 1 }}"),
    "a power": "{{ 10 ** (10 ** 10) > 1 }}",
    "a constant": "{{ 'a' * 10000000000 }}",
    "a width by %": "{{ '%9999999999d' % 1 }}",
    "a width among values": "{{ '%*d' % (9999999999, 1) }}",
    "a width by format": "{{ '{:9999999999}'.format(1) }}",
    "center": "{{ 'a'|center(9999999999) }}",
    "ljust": "{{ 'a'.ljust(9999999999) }}",
    "indent": "{% set t = '\\n' * 99999 %}{{ t|indent(99999) }}",
    "indent by a text": MANY + "{% set t = '\\n' * 99999 %}{{ t|indent(big) }}",
    "indented JSON": LIST + "{{ l|tojson(indent=99999) }}",
    "replace": MANY + "{{ big|replace('a', big) }}",
    "replace nothing": MANY + "{{ big.replace('', big) }}",
    "join": MANY + LIST + "{{ l|join(big) }}",
    "a text's join": MANY + LIST + "{{ big.join(l) }}",
    "join by map": MANY + LIST + "{{ l|map('replace', '1', big)|list }}",
    "center by map": LIST + "{{ l|map('center', 99999)|list }}",
    "sum": "{% set l = [[1] * 99] * 4999 %}{{ l|sum(start=[]) }}",
    "a test": LIST + "{{ l|select('in', l)|list }}",
    "in": LIST + "{% for a in l %}{{ -1 in l }}{% endfor %}",
    "find": MANY + "{% for a in range(99999) %}{{ big.find('b') }}{% endfor %}",
    "slices": MANY + "{% for a in range(99999) %}{% if big[1:] %}{% endif %}{% endfor %}",
    "translate": MANY + "{{ big.translate({97: big}) }}",
    "lipsum": "{{ lipsum(n=99999, min=99998, max=99999) }}",
    "wordwrap": MANY + "{{ big|wordwrap(1, wrapstring=big) }}",
    "parentheses": "{{ " + "(" * 99999 + "1" + ")" * 99999 + " }}",
    "a long source": "{# " + "a" * (1 << 20) + " #}",
}
PROGRAM = """
import json, sys
from rag_jax.models.chat_template import ChatTemplate
from rag_jax.runtime.errors import RagJaxError
for name, source in json.load(sys.stdin).items():
    try:
        messages = [{"role": "user", "content": "?"}]
        ChatTemplate(source, {}).render(messages, add_generation_prompt=True)
        print(name, "| ends")
    except RagJaxError as error:
        print(name, "|", error, flush=True)
"""


def test_a_template_without_an_end_is_refused():
    """All in one process with 2 GiB of memory, which ends in seconds: most take one alone."""

    def limit_memory():
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        input=json.dumps(ENDLESS),
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=limit_memory,
    )
    lines = dict(line.split(" | ", 1) for line in done.stdout.splitlines())
    assert list(lines) == list(ENDLESS), done.stderr
    known = ("limit of", "recursion depth", "No filter named", "is unsafe", "undefined", "nested")
    assert not {name: line for name, line in lines.items() if not any(k in line for k in known)}
    assert all(len(line) < 500 for line in lines.values())


def test_the_limit_is_told_with_the_file(tmp_path):
    folder = write_folder(tmp_path / "x", make_byte_level(), ENDLESS["nested loops"])
    tokenizer = Tokenizer.from_folder(folder).add_special_tokens(["<|more|>"])
    expected = r"x/tokenizer_config\.json: the chat template takes more than the limit of 500,\d"
    with pytest.raises(RagJaxError, match=expected):
        tokenizer.encode_chat([{"role": "user", "content": "?"}])


def test_long_messages_have_room():
    template = (
        "{% for m in messages %}{% set ns = namespace(t='') %}{% for p in m.content.split('\\n') %}"
        "{% set ns.t = p|trim ~ '|' %}{{ ns.t }}{% endfor %}{% endfor %}"
    )
    text = "\n".join(map(str, range(20_000)))
    rendered = ChatTemplate(template, {}).render(
        [{"role": "user", "content": text}], add_generation_prompt=True
    )
    assert rendered == "".join(f"{i}|" for i in range(20_000))
