"""Words and terms: against their definition, in any script, with stems and stop words."""

import re
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rag_jax.data.words import list_bigrams
from rag_jax.retrieval.analysis import Analysis, count_english, list_words, split_words
from rag_jax.search_config import BM25Config

WILD = st.text() | st.text(st.sampled_from("aAbé é각각\u0301ى -.\n_1ßกำ漢字がｶﾞ हिन्दी"))
LANGUAGES = ("danish", "dutch", "english", "french", "german", "italian")
LANGUAGES += ("norwegian", "portuguese", "russian", "spanish", "swedish", "turkish")


UNSEEN = [0xAD, 0x61C, *range(0x200C, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2065)]
UNSEEN += [*range(0x2066, 0x206A), 0xFEFF]


def split_slowly(text):
    """Marks are removed from the whole text, and words are what is then left between others."""
    text = text.translate(dict.fromkeys(UNSEEN))
    text = unicodedata.normalize("NFKD", text).casefold()
    text = "".join(c for c in text if unicodedata.category(c)[0] != "M")
    words = re.findall(r"\w+", text.lower())
    return [part for word in words for part in list_bigrams(word)]


@settings(max_examples=200, deadline=None)
@given(WILD)
def test_words_against_their_definition(text):
    assert split_words(text) == split_slowly(text)


@settings(deadline=None)
@given(st.text())
def test_words_do_not_depend_on_how_characters_are_composed(text):
    words = split_words(text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert split_words(unicodedata.normalize(form, text)) == words
    assert split_words(" ".join(words)) == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3.5 km, A_B!", ["it", "s", "3", "5", "km", "a_b"]),
        ("CAFÉ Straße ﬁn İzmir", ["cafe", "strasse", "fin", "izmir"]),
        (unicodedata.normalize("NFD", "서울은 수도"), split_words("서울은 수도")),
        ("서울은 수도", split_words(unicodedata.normalize("NFKD", "서울은 수도"))),
        ("يَوْم ירוּשלים", ["يوم", "ירושלים"]),
        ("हिन्दी भाषा", ["हनद", "भष"]),
        ("🍕 … — !?", []),
        ("\ud800 half", ["half"]),
        ("\ufeffInter\u00adnational Paris\u200e \u2067a\u2069", ["international", "paris", "a"]),
        ("می\u200cروم", ["میروم"]),
        ("\u1e97\u200bb", ["t", "b"]),
    ],
)
def test_words(text, words):
    assert split_words(text) == words


@settings(max_examples=50, deadline=None)
@given(WILD, st.sampled_from(LANGUAGES))
def test_terms_are_the_words_or_fewer(text, language):
    """And every word counts alone as it does in a text."""
    analysis, words = Analysis(language), list_words(text)
    terms = analysis.reduce(words)
    assert terms == [term for word in words for term in analysis.reduce([word])]
    assert analysis.split(text) == [term for term in terms if term]


@pytest.mark.parametrize(
    ("language", "text", "terms"),
    [
        ("english", "The cats' running; it IS a café's", ["cat", "run", "cafe", "s"]),
        ("english", "서울의 cats, 東京都", [*split_words("서울의"), "cat", "東京", "京都"]),
        ("german", "Die Häuser der Straße", ["haus", "strass"]),
        ("french", "les élèves étudiaient", ["elev", "etudi"]),
        ("russian", "из новых книгах", ["нов", "книг"]),
    ],
)
def test_stems_and_stop_words(language, text, terms):
    assert Analysis(language).split(text) == terms


def test_fingerprints_tell_languages_apart():
    assert len({Analysis(language).fingerprint for language in ("none", *LANGUAGES)}) == 13
    assert Analysis("english").fingerprint == Analysis("english").fingerprint


def test_every_language_of_the_settings_has_an_analysis():
    """With a stemmer and stop words of its own."""
    for language in LANGUAGES:
        assert BM25Config(language=language)
        assert Analysis(language).reduce(["xyzzy"]) != [""]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("The passage that this is about was written in English by a person.", 8 / 13),
        ("Der Hund war in dem Haus, und die Katze will es so.", 2 / 12),
    ],
)
def test_english_words_are_counted(text, share):
    words = list_words(text)
    assert count_english(words) / len(words) == pytest.approx(share)
