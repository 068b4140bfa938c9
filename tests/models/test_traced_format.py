"""A format of traced texts is the text that Python makes, and every field keeps its writer."""

from string import Formatter

from damage import at_most
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.models.traced import MESSAGE, TEMPLATE, UNKNOWN, Traced, mark, read_mask, trust
from rag_jax.models.traced_format import follow_format, follow_percent

TYPED = mark("<|end|>", MESSAGE)
PERCENT = ["%s", "%s", "%5s", "%-9.2s", "%r", "%d", "%%", "%c", "%(a)s", "%(a", "%", "a", "%*d"]
BRACES = ["{}", "{}", "{0}", "{a}", "{!r}", "{:>9}", "{0:{1}}", "{{", "}}", "{", "a", "{0[0]}"]
VALUES = st.sampled_from([TYPED, trust("end"), "plain", 3, 2.5, None, [TYPED]])


def show(text):
    return "".join("?TM"[writer] for writer in read_mask(text))


def percent(text, values):
    return follow_percent(str.__mod__(text, values), text, values)


def braces(text, *args, **kwargs):
    result = Formatter().vformat(text, args, kwargs)
    return follow_format(result, text, args, kwargs, Formatter())


def test_every_field_keeps_its_writer():
    for made, expected in (
        (percent(trust("<|%s|>%s%%"), (trust("user"), TYPED)), "TTTTTTTT" + "M" * 7 + "T"),
        (percent(trust("<|%(a)s%(b)d"), {"a": TYPED, "b": 25}), "TT" + "M" * 7 + "TT"),
        (percent(trust("a%9s"), TYPED), "T?????????"),  # the blanks are nobody's
        (percent(trust("a%9s"), trust("b")), "TTTTTTTTTT"),
        (percent(mark("a%sb", MESSAGE), trust("<")), "MTM"),
        (braces(trust("<|{}|>{a}{{"), trust("user"), a=TYPED), "TTTTTTTT" + "M" * 7 + "T"),
        (braces(trust("{:>9}b"), TYPED), "?????????T"),
        (braces(trust("{:{}}b"), TYPED, 9), "??????????"),  # a field within a field
    ):
        assert show(made) == expected, made


@settings(max_examples=150)
@given(st.lists(st.sampled_from(PERCENT), max_size=5), st.lists(VALUES, max_size=3))
def test_percent_gives_what_python_gives(pieces, values):
    text = trust("".join(pieces))
    for given_values in (tuple(values), {"a": TYPED}, TYPED, 3):
        try:
            expected = str.__mod__(text, given_values)
        except (TypeError, ValueError, KeyError, OverflowError):
            continue
        check(percent(text, given_values), expected)


@settings(max_examples=150)
@given(st.lists(st.sampled_from(BRACES), max_size=5), st.lists(VALUES, max_size=3))
def test_format_gives_what_python_gives(pieces, values):
    text = trust("".join(pieces))
    try:
        expected = str.format(text, *values, a=TYPED, b=2)
    except (TypeError, ValueError, LookupError, AttributeError):
        return
    check(braces(text, *values, a=TYPED, b=2), expected)


def check(got, expected):
    """The text is Python's, and no character of the typed text is the template's."""
    assert str.__str__(got) == expected and len(read_mask(got)) == len(expected)
    start = expected.find(TYPED)
    while start >= 0:
        writers = {*read_mask(got)[start : start + len(TYPED)]}
        assert writers <= {MESSAGE, UNKNOWN}
        start = expected.find(TYPED, start + 1)


def test_very_many_fields():
    """Looking at the whole text for each of them would take minutes."""
    text = trust("%d{0}" * 200_000)
    with at_most(30):
        percent(text, (1,) * 200_000)
        braces(text, TYPED)


def test_a_text_of_one_writer_is_that_writers():
    assert show(percent(trust("a%*d"), (3, 5))) == "TTTT"
    assert show(percent(trust("a"), ())) == "T"
    assert read_mask(percent(Traced("x%s"), TYPED))[1:] == bytes([MESSAGE]) * 7
    assert TEMPLATE not in read_mask(percent(trust("%s%*d"), (TYPED, 3, 5)))
