"""Values that are asked for by rules: numbers, dates, names, abbreviations and lists are whole."""

import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rag_jax.data.gazetteer import build_world
from rag_jax.data.passages import Passage
from rag_jax.evaluation.answers import match
from rag_jax.systems.prag.phrases import VALUE, list_claims, list_statements
from rag_jax.systems.prag.rules import ask_by_rules, rewrite_by_rules

MONTHS = ["January", "May", "August", "December"]
numbers = st.one_of(
    st.integers(10, 10**9).map("{:,}".format),
    st.decimals(0, 1000, places=1).map(str),
    st.tuples(st.decimals(1, 99, places=1), st.sampled_from(["million", "billion", "feet"])).map(
        lambda pair: f"{pair[0]} {pair[1]}"
    ),
    st.integers(1, 99).map("${:,},000".format),
    st.decimals(0, 100, places=1).map("{}%".format),
)
months, years = st.sampled_from(MONTHS), st.integers(1000, 2030)
dates = st.one_of(
    st.builds("{} {}, {}".format, months, st.integers(1, 31), years),
    st.builds("{} {} {}".format, st.integers(1, 31), months, years),
)
WORDS = ["Oslo", "Lima", "Tolkien", "Québec", "Łódź", "O'Neill", "Saint-Denis"]
initials = st.builds(
    lambda letters, name: " ".join([*(f"{letter}." for letter in letters), name]),
    st.lists(st.sampled_from("ABJRST"), min_size=1, max_size=3),
    st.sampled_from(WORDS),
)
abbreviations = st.sampled_from(
    ["St. Louis", "Mt. Fuji", "Washington, D.C.", "U.S. Virgin Islands", "Dr. Watson", "Ft. Worth"]
)
names = st.one_of(st.sampled_from(WORDS), initials, abbreviations)
# Both commas and "and" of a list are between its items, so no item ends in a list itself.
lists = st.lists(
    st.one_of(st.sampled_from(WORDS), initials), min_size=2, max_size=5, unique=True
).map(lambda items: f"{', '.join(items[:-1])} and {items[-1]}")
values = st.one_of(numbers, dates, names, lists)
tails = st.sampled_from(
    [".", ". It is old.", " (about that).", ", and its colour is red.", "; nobody knows why.", ""]
)


@given(values, tails, st.sampled_from(["The size of the tower", "Its size", "In Norway the size"]))
def test_a_claimed_value_comes_back_whole(value, tail, subject):
    text = f"{subject} is {value}{tail}"
    if value.endswith(".") and tail.startswith("."):
        text = text.replace("..", ".")
    assert [found[3] for found in list_claims(list_statements(text)[0])][:1] == [value]


@given(lists, tails)
def test_a_plural_has_its_whole_list(value, tail):
    claims = list_claims(list_statements(f"Its languages are {value}{tail}")[0])
    assert claims[0] == ("languages", "", "are", value)


@given(st.one_of(numbers, dates, names), st.sampled_from(["saw", "lost", "gave us"]), tails)
def test_a_gap_leaves_out_the_whole_value(value, verb, tail):
    assume(not re.fullmatch(r"\d\.\d \w+", value) or "million" in value or "billion" in value)
    text = f"They {verb} {value}{tail}".replace("..", ".")
    statement = list_statements(text)[0]
    found = [m[0] for m in VALUE.finditer(statement) if m.start()]
    whole = value.removesuffix(" feet")  # "___ feet" leaves out the whole number
    assert whole in found, found


@given(st.lists(values, min_size=1, max_size=4))
def test_a_rewrite_keeps_values_whole(chosen):
    text = " ".join(f"Then the number {value} was drawn." for value in chosen)
    rewrite = rewrite_by_rules(Passage("1", "Lots", text))
    assert all(value in rewrite for value in chosen)


@given(st.text(max_size=200), st.text(max_size=20))
def test_any_text_is_asked_for(text, title):
    passage = Passage("1", title, text)
    joined = " ".join(text.split())
    for question, answer, _ in ask_by_rules(passage, count=5):
        assert answer in joined and not match(question, [answer])
    assert sorted(" ".join(list_statements(text)).split()) == sorted(text.split())


@pytest.mark.parametrize(
    ("text", "statements"),
    [
        ("He met J. R. R. Tolkien. They spoke.", ["He met J. R. R. Tolkien.", "They spoke."]),
        ("It is in the U.S. The sea is near.", ["It is in the U.S.", "The sea is near."]),
        ("It is in the U.S. Virgin Islands.", ["It is in the U.S. Virgin Islands."]),
        ("St. Louis is old. So is Mt. Fuji.", ["St. Louis is old.", "So is Mt. Fuji."]),
        ("It rains. Oslo is wet.", ["It rains.", "Oslo is wet."]),
        ("", [""]),
    ],
)
def test_abbreviations_end_no_sentence(text, statements):
    assert list_statements(text) == statements


@pytest.mark.parametrize(
    ("text", "claims"),
    [
        ("Its population is roughly 2.9 million.", ["roughly 2.9 million"]),
        ("The length of the Rhine was 1,230 km (764 mi).", ["1,230 km"]),
        ("The capital of St. Lucia is Castries.", ["Castries"]),
        ("Its crops are tea, maize, and coffee, all sold abroad.", ["tea, maize, and coffee"]),
        ("Its capital is Oslo, and its currency is the krone.", ["Oslo", "krone"]),
        ("Its neighbours are Gabon and the Congo.", ["Gabon and the Congo"]),
        ("Its president is Jo Do, lawyer and poet.", ["Jo Do"]),
        # The end is unclear, or what follows is no value.
        ("Its languages are Thai, which is old.", []),
        ("Its capital is Oslo and it has parks.", []),
        ("On the map it is found at 41.0°N.", []),
        ("The lecture was held in German.", []),
        ("The Philippines is a country.", []),
        ('Its motto is "Be, or not.', []),
        ("Ann travelled the length of the Nile was Jo.", []),
    ],
)
def test_claims(text, claims):
    assert [value for *_, value in list_claims(text)] == claims


def test_no_value_of_the_encyclopedia_is_cut():
    """In every passage of the built-in world, as the small run builds the world."""
    passages = build_world(cities=40, train=100, dev=60, test=100).passages
    cut = []
    for passage in passages:
        text = " ".join(passage.text.split())
        for _, answer, _ in ask_by_rules(Passage(passage.id, passage.title, text), count=3):
            places = [(m.start(), m.end()) for m in re.finditer(re.escape(answer), text)]
            if not any(is_whole(text, start, end) for start, end in places):
                cut.append((passage.id, answer))
    assert len(passages) == 1025 and cut == []


def is_whole(text, start, end):
    """Whether neither a word nor a number goes on beyond the ends of a part of a text."""
    before, after = text[:start], text[end:]
    goes_on = re.match(r"\w|[.,]\d|\s?%|\s(?:million|billion)\b", after)
    return not goes_on and not re.search(r"\w$|\d[.,]$", before)
