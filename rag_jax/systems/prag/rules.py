"""Augmentation of documents by rules, for models too small to follow an instruction.

Sentences are reversed, and values are asked for. A rule takes only what the text says: a phrase
whose end is unclear is not asked for.
"""

import itertools
from collections.abc import Iterator, Sequence

import regex

from rag_jax.data.passages import Passage
from rag_jax.data.words import UNSPACED
from rag_jax.evaluation.answers import match, normalize_answer
from rag_jax.systems.asking import Pair
from rag_jax.systems.prag.phrases import VALUE, list_claims, list_statements

# The last word of a sentence: two characters in scripts without spaces.
_SPACED = rf"(?!{UNSPACED})\w"
_LAST = regex.compile(rf"(?:(?:{UNSPACED}){{1,2}}|(?<!{_SPACED})(?:{_SPACED})++)(?=\W*$)", regex.V1)
# Values of one sentence that are asked for. Each question repeats the sentence, so without a limit
# they would fill the memory for a text of numbers without a full stop.
_MOST_GAPS = 200


def rewrite_by_rules(passage: Passage) -> str:
    """A passage's sentences in reverse order, or a single sentence after an introduction."""
    sentences = list_statements(passage.text)
    if len(sentences) > 1:
        return " ".join(reversed(sentences))
    return f"This is said of {passage.title or 'it'}: {sentences[0]}"


def ask_by_rules(passage: Passage, *, count: int) -> list[Pair]:
    """At most `count` questions about a passage: by sentences' grammar, then by gaps.

    "Its capital is Oslo" becomes the question what the capital is. Any other sentence becomes the
    question which word was left out: a name, a date, a number or, without any, the last word. No
    question contains its answer, and no answer is the title. The full answer is the sentence.
    """
    pairs: dict[str, Pair] = {}
    sentences = list_statements(passage.text)
    title = passage.title or "it"
    for pair in itertools.chain(_ask_claims(sentences, title), _ask_gaps(sentences, title)):
        if normalize_answer(pair.answer) and not match(pair.question, [pair.answer]):
            pairs.setdefault(pair.answer, pair)
        if len(pairs) == count:
            break
    return list(pairs.values())[:count]


def _ask_claims(sentences: Sequence[str], title: str) -> Iterator[Pair]:
    """Questions what the value of a claim is."""
    for sentence in sentences:
        for noun, name, verb, value in list_claims(sentence):
            place = f"{noun} of {name or title}"
            if not name and noun.endswith(" there"):
                place = f"{noun.removesuffix(' there')} in {title}"
            yield Pair(f"What {verb} the {place}?", value, sentence)


def _ask_gaps(sentences: Sequence[str], title: str) -> Iterator[Pair]:
    """Questions which words are left out of a sentence."""
    for sentence in sentences:
        # A sentence's first word has a capital whatever it is.
        found = (m for m in VALUE.finditer(sentence) if m.start() and m[0] not in title)
        values = list(itertools.islice(found, _MOST_GAPS))
        for value in values or list(_LAST.finditer(sentence)):
            gap = f"{sentence[: value.start()]}___{sentence[value.end() :]}"
            question = f"Which words are missing about {title}? {gap}"
            yield Pair(question, value[0], sentence)
