"""A traced text is the text that `str` makes, and knows the template's characters."""

from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.models.traced import (
    MESSAGE,
    TEMPLATE,
    UNKNOWN,
    Traced,
    concatenate,
    join_items,
    mark,
    read_mask,
    settle,
    trust,
)

# Capitals are the template's, all other characters a message's.
PIECES = st.text("AB\n b\tab\u2028", max_size=6)
NUMBERS = st.integers(-7, 7)


def trace(text):
    return Traced(text, bytes(c.isupper() for c in text))


def check(got, expected):
    if isinstance(expected, str):
        assert str(got) == expected and type(got) is Traced
        assert read_mask(got) == bytes(c.isupper() for c in expected)
    else:
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            check(one, other)


@settings(max_examples=50)
@given(PIECES, PIECES, PIECES, NUMBERS, NUMBERS)
def test_operations_follow_the_characters(text, other, third, start, stop):
    traced, old, new = trace(text), trace(other), trace(third)
    check(traced + other.lower(), text + other.lower())
    check(other.lower() + traced, other.lower() + text)
    check(traced + old, text + other)
    check(traced * 3, text * 3)
    check(2 * traced, 2 * text)
    check(traced[start:stop], text[start:stop])
    check(traced[::-2], text[::-2])
    check(list(traced), list(text))
    check(traced.replace(old, new), text.replace(other, third))
    check(traced.replace(old or "b", new, 1), text.replace(other or "b", third, 1))
    for name in ("strip", "lstrip", "rstrip"):
        check(getattr(traced, name)(), getattr(text, name)())
        check(getattr(traced, name)(old), getattr(text, name)(other))
    for name in ("removeprefix", "removesuffix"):
        check(getattr(traced, name)(old), getattr(text, name)(other))
    check(traced.splitlines(), text.splitlines())
    check(traced.splitlines(True), text.splitlines(True))
    for name in ("split", "rsplit"):
        check(getattr(traced, name)(), getattr(text, name)())
        check(getattr(traced, name)(None, 1), getattr(text, name)(None, 1))
        check(getattr(traced, name)(old or "A"), getattr(text, name)(other or "A"))
        check(getattr(traced, name)(old or "A", 1), getattr(text, name)(other or "A", 1))
    for name in ("partition", "rpartition"):
        check(getattr(traced, name)(old or "A"), getattr(text, name)(other or "A"))
    check(traced.join([old, new, old]), text.join([other, third, other]))
    check(join_items([old, new], traced), text.join([other, third]))
    check(concatenate([old, traced, 5]), f"{other}{text}5")


@settings(max_examples=30)
@given(st.text(max_size=8))
def test_case_changes_one_character_at_a_time_or_not_traced(text):
    for name in ("lower", "upper", "title", "capitalize"):
        for writer in (TEMPLATE, MESSAGE):
            changed = getattr(mark(text, writer), name)()
            assert changed == getattr(text, name)()
            assert read_mask(changed) == bytes([writer]) * len(changed)
        mixed = Traced(text, bytes(i % 3 for i in range(len(text))))
        changed = getattr(mixed, name)()
        followed = len(changed) == len(text) or len({*read_mask(mixed)}) == 1
        assert followed or read_mask(changed) == bytes(len(changed))


def test_what_is_made_of_one_writers_texts_is_that_writers():
    own, typed = mark("a", TEMPLATE), mark("b", MESSAGE)
    for writer, sources in (
        (TEMPLATE, (own, 5, [own, None, {own: True}])),
        (MESSAGE, (typed, {1: (typed,)})),
        (UNKNOWN, (own, typed)),
        (UNKNOWN, (own, "plain")),
        (UNKNOWN, (own, object())),  # which may hold a message
        (UNKNOWN, (5,)),
    ):
        assert read_mask(settle("xy", *sources)) == bytes([writer, writer])
    assert settle(5, own) == 5 and read_mask(settle(own, typed)) == bytes([TEMPLATE])


def test_a_traced_text_is_a_text():
    text = trust("ab")
    assert text == "ab" and {"ab": 1}[text] == 1 and "b" in text and text.startswith("a")
    assert read_mask("ab") == read_mask(Traced("ab")) == b"\0\0"
    assert read_mask(Traced(text)) == b"\1\1"
    assert read_mask(f"{text}!") == b"\0\0\0"  # an operation that is not followed
