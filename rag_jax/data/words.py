"""Words of scripts without spaces between words, such as those of Chinese, Japanese and Thai."""

import itertools

import regex

# A character of such a script with the marks on it, for patterns of `regex` with its flag V1. The
# mark of long vowels in Japanese counts to no script by itself.
UNSPACED = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]"
    r"&&\p{L}]\p{M}*"
)
_CHARACTER = regex.compile(UNSPACED, regex.V1)
_RUN = regex.compile(f"((?:{UNSPACED})+)", regex.V1)
_TOGETHER = 2  # characters of a word


def space_characters(text: str) -> str:
    """A text with spaces around every character of a script without spaces."""
    return text if text.isascii() else _CHARACTER.sub(r" \g<0> ", text)


def has_unspaced(text: str) -> bool:
    """Whether a text has a character of a script without spaces."""
    return not text.isascii() and _CHARACTER.search(text) is not None


def list_bigrams(text: str) -> list[str]:
    """The parts of a text: runs without spaces as overlapping pairs of characters, others whole.

    A single character is a part by itself.
    """
    parts: list[str] = []
    for i, part in enumerate(_RUN.split(text)):
        characters = _CHARACTER.findall(part) if i % 2 else [part] if part else []
        parts += [a + b for a, b in itertools.pairwise(characters)] or characters
    return parts


def count_words(text: str) -> int:
    """Number of words: those between spaces; two characters are one where there are no spaces."""
    return len(_split(text))


def take_words(text: str, count: int) -> str:
    """The beginning of a text, of at most `count` words, with single spaces; see `count_words`."""
    return "".join(_split(text)[:count]).strip()


def cut_words(text: str, count: int) -> list[str]:
    """The parts of a text of `count` words each, the last one of the rest, with single spaces."""
    words = _split(text)
    return ["".join(words[i : i + count]).strip() for i in range(0, len(words), count)]


def _split(text: str) -> list[str]:
    """The words of a text, each with the space before it and the punctuation after it."""
    if not has_unspaced(text):
        return [f" {word}" for word in text.split()]
    words: list[str] = []
    for word in text.split():
        pieces: list[str] = [""]
        for i, part in enumerate(_RUN.split(word)):
            if not regex.search(r"\w", part):
                pieces[-1] += part
                continue
            units = _CHARACTER.findall(part) if i % 2 else [part]
            starts = range(0, len(units), _TOGETHER)
            more = ["".join(units[start : start + _TOGETHER]) for start in starts]
            # What opens a quotation belongs to the word after it.
            first = pieces.pop() if len(pieces) == 1 and not regex.search(r"\w", pieces[0]) else ""
            pieces += [first + more[0], *more[1:]]
        words += [f" {pieces[0]}", *pieces[1:]]
    return words
