"""Every regular expression of the package takes a time that grows with the text, not faster.

A pattern that backtracks takes 1,000 times as long on a text of 20,000 characters as it should.
What is measured is the processor time of this process, and the limit is far above what a linear
pattern needs, so a busy machine does not matter.
"""

import ast
import importlib
import importlib.util
import itertools
import pkgutil
import re
import signal
from pathlib import Path

import pytest
import regex

import rag_jax
from rag_jax.data.passages import Passage
from rag_jax.evaluation.choices import pick_choice
from rag_jax.runtime import patterns
from rag_jax.runtime.errors import RagJaxError
from rag_jax.runtime.patterns import MatchTime, NamePattern
from rag_jax.systems.asking import parse_pairs
from rag_jax.systems.prag.phrases import cut_clause, list_claims, list_statements
from rag_jax.systems.prag.rules import ask_by_rules, rewrite_by_rules
from rag_jax.systems.prag.writer import is_rewrite
from rag_jax.systems.srrag.verbalise import clean_document

SIZE = 20_000
SECONDS = 1.0  # of the processor; linear patterns take 0.02 and less, the mildest quadratic one 2
ROOT = Path(rag_jax.__file__).parent
UNITS = (
    *"aA1. \n\t,:;(\"'\\-_<[{%*#/é\u2019\u4e2d",
    *("a ", "A ", "a, ", "A, ", "A.", "A. ", "1,", "1.", "1 ", "a.", " \n", "a\n", "\n\n ", "a: "),
    *("a.b ", "A-", "A'", "St. ", "Mr.", "May 5, ", "5 May ", "A B, ", "of ", "of the ", "A of "),
    *("In A ", "the a of ", "The a of A is ", "no longer ", "and ", "A and ", "19", "$1", "1 % "),
    *("not the ", "not think a ", "Question: a\n", "Answer: ", "question 1", '(description "a")'),
    *('(description "', "(list", "{,\n", "{[", '""', '"a', "train", "val", "validat", "a_b ", "=1"),
    *("%2", "replica_groups=[1,", "a[1", "blk.1", "-1-of", "gguf", "LayerNorm.", "encoder."),
    *(" a: b\n", "    a: b\n     c", "cls.", "embeddings.position_ids", "e9", "A (", "[a]", "<a>"),
)
STARTS = ("The a is ", "The a of ", "In ", "not ", "(list (description ", "question", "a")
ENDS = ("", "!", " b", "b", "\n", "1", ".a")
SOURCES = {path: path.read_text("utf-8") for path in sorted(ROOT.rglob("*.py"))}
KINDS = (re.Pattern, regex.Pattern)
METHODS = ("search", "match", "fullmatch", "finditer", "findall", "sub", "split")


# What cannot be imported without a package of an extra.
OPTIONAL = {"rag_jax.retrieval.mteb": "mteb", "rag_jax.serving.server": "uvicorn"}
OPTIONAL |= {f"rag_jax.serving.{name}": "starlette" for name in ("access", "app", "endpoints")}


def list_named():
    """The patterns in the globals of all modules, with the methods that are called on them."""
    seen = set()
    for module in pkgutil.walk_packages(rag_jax.__path__, "rag_jax."):
        if module.name in OPTIONAL and not importlib.util.find_spec(OPTIONAL[module.name]):
            continue
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            if isinstance(value, KINDS) and id(value) not in seen:
                seen.add(id(value))
                called = set()
                for source in SOURCES.values():
                    called |= set(re.findall(rf"\b{name}\.(\w+)\(", source)) & set(METHODS)
                yield pytest.param(value, called, id=f"{module.name}.{name}")


def list_inline():
    """The patterns written in a call, such as `re.search(r"...", text)`."""
    for path, source in SOURCES.items():
        for node in ast.walk(ast.parse(source)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if ast.unparse(node.func.value) not in ("re", "regex") or not node.args:
                continue
            pattern, method = node.args[0], node.func.attr
            if isinstance(pattern, ast.Constant) and method in METHODS:
                flags = [ast.unparse(arg) for arg in node.args if "re." in ast.unparse(arg)[:3]]
                flags = eval(" | ".join(flags)) if flags else 0
                name = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield pytest.param(re.compile(pattern.value, flags), {method}, id=name)


def list_texts(pattern):
    """Many repeats of one or two pieces, with an end that does not fit, after a start that may."""
    source = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode()
    words = list(dict.fromkeys(re.findall(r"[A-Za-z]{2,}", source)))[:12]
    pieces = [*UNITS, *words, *(f"{word} " for word in words)]
    for number, piece in enumerate(pieces):
        other = pieces[number - 7]
        half = SIZE // 2
        yield (
            piece * (SIZE // len(piece)) + ENDS[number % len(ENDS)],
            piece * (half // len(piece)) + other * (half // len(other)) + "b",
            STARTS[number % len(STARTS)] + piece * (SIZE // len(piece)) + "\0",
        )[number % 3]


def run(pattern, method, text):
    if isinstance(pattern.pattern, bytes):
        text = text.encode()
    if method == "finditer":
        for _ in pattern.finditer(text):
            pass
    elif method == "sub":
        pattern.sub(text[:0], text)
    else:
        getattr(pattern, method)(text)


def stop(*_):
    raise TimeoutError


@pytest.fixture
def alarm():
    before = signal.signal(signal.SIGVTALRM, stop)
    yield lambda: signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize(("pattern", "methods"), [*list_named(), *list_inline()])
def test_a_pattern_is_linear(pattern, methods, alarm):
    assert methods, "no call of the pattern is found"
    for text in list_texts(pattern):
        for method in methods:
            check_time(alarm, lambda text, m=method: run(pattern, m, text), text)


def check_time(alarm, function, text):
    alarm()
    try:
        function(text)
    except TimeoutError:
        pytest.fail(f"takes too long on {text[:40]!r}...{text[-5:]!r}")


def read(text):
    return Passage("1", text=text, title="T")


@pytest.mark.parametrize(
    "function",
    [
        list_statements,
        cut_clause,
        list_claims,
        lambda text: rewrite_by_rules(read(text)),
        lambda text: ask_by_rules(read(text[:3000]), count=3),
        lambda text: is_rewrite(text, read(text)),
        lambda text: parse_pairs(text, read("Oslo"), full=True),
        lambda text: pick_choice(text, {"A": "sea", "B": "land", "C": "hill"}),
        lambda text: clean_document(text, finished=False),
    ],
)
def test_a_function_with_patterns_is_linear(function, alarm):
    """What is matched again and again, with the text before and after each place."""
    for piece in (
        *("a", "A", "1", "_", " ", "\n", "\n \n", "A. ", "A.B", "A. B", "Mr. A ", "a, ", "A, B, "),
        *("The a is ", "the a of A is a, ", "The a of A is ", "In A the a is ", "A and ", "1\n"),
        *("Question: a\n", "Question", "Answer: a\n", "A is wrong. ", "not sea ", "not A "),
        *("think a ", "answer ", "B) "),
    ):
        for start in ("", "In A, the a is "):
            check_time(alarm, function, start + piece * (SIZE // 2 // len(piece)) + "\nb")


def read_pattern(pattern, time=None):
    return NamePattern(pattern, source="x.json: target_modules", time=time or MatchTime())


@pytest.mark.parametrize("pattern", [r"(a|aa)+$b", r"(?=((a|a)+b))", "a" * 10_001, "(", "(" * 5000])
def test_a_pattern_of_a_file_has_a_limit(pattern):
    with pytest.raises(RagJaxError, match=r"^x\.json: target_modules.*(limit of|missing|depth)"):
        read_pattern(pattern).fullmatch("a" * 60)


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:a|bc){1000000000}",
        "(?:(?:a|bc){1,1000}){1000}",
        "(?:a|bc){,999999}",
        "(?x)(?:a|bc){ 9 999 99 }",
        "(?:a?){" + "9" * 5000 + "}",
    ],
)
def test_a_pattern_repeats_nothing_too_often(pattern):
    """It would be compiled to gigabytes."""
    with pytest.raises(RagJaxError, match=r"^x\.json: target_modules.* limit of 100,000 in"):
        read_pattern(pattern)


@pytest.mark.parametrize("pattern", ["(?R)", "(?:(?R)|a)*", "(?P<a>b)(?&a)", "(?1)(a)"])
def test_a_pattern_does_not_contain_itself(pattern):
    """It would take a gigabyte a second, and Python has no such patterns."""
    with pytest.raises(RagJaxError, match=r"^x\.json: target_modules .*unknown extension"):
        read_pattern(pattern)


def test_all_patterns_and_names_of_a_file_have_one_limit(monkeypatch):
    """By a clock on which each match takes 0.01 s: all that is accepted takes half a second."""
    clock = itertools.count()
    monkeypatch.setattr(patterns.time, "thread_time", lambda: next(clock) * 0.01)
    time = MatchTime()
    chosen, excluded = read_pattern(".*", time), read_pattern(".*b", time)
    done = 0
    with pytest.raises(RagJaxError, match=r"of all layers takes more than the limit of 0\.5 s"):
        for done in range(1000):
            assert chosen.fullmatch(f"a{done}") and not excluded.fullmatch(f"a{done}")
    assert 24 <= done <= 26


PATTERNS = (
    r".*\.(q|k|v)_proj",
    r"model\.layers\.(?:[0-9]|1[0-9])\.mlp\..*",
    r"^(?!.*(lm_head|vision)).*(?:q_proj|up_proj)$",
    r"(\w+\.)*down_proj",
    r"(?i).*Q_PROJ",
    r".*layers\.\d{1,2}\.self_attn\.[qkvo]_proj",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_of_files_match_as_ever(pattern):
    for name in ("model.layers.3.mlp.down_proj", "layers.12.self_attn.q_proj", "lm_head", "q_proj"):
        expected = re.fullmatch(pattern, name) is not None
        assert read_pattern(pattern).fullmatch(name) == expected
