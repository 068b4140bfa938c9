"""Where sentences end."""

import pytest

from rag_jax.data.sentences import list_sentences


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("", [""]),
        ("One.  Two\nlines! Three?", ["One.", "Two lines!", "Three?"]),
        ("The U.S. dollar. 5 of them.", ["The U.S. dollar.", "5 of them."]),
        ("Раз два. Три.", ["Раз два.", "Три."]),
        ("no end", ["no end"]),
    ],
)
def test_list_sentences(text, sentences):
    assert list_sentences(text) == sentences
