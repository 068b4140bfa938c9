"""Augmentation of documents by rules, for models too small to follow an instruction.

Sentences are reversed, and values are asked for. A rule takes only what the text says: a phrase
whose end is unclear is not asked for.
"""

import regex

from rag_jax.data.passages import Passage
from rag_jax.data.words import UNSPACED
from rag_jax.evaluation.answers import match, normalize_answer
from rag_jax.systems.prag.data import Pair
from rag_jax.systems.prag.phrases import VALUE, list_claims, list_statements

# The last word of a sentence: two characters in scripts without spaces.
_LAST = regex.compile(rf"(?:(?:{UNSPACED}){{1,2}}|(?:(?!{UNSPACED})\w)+)(?=\W*$)", regex.V1)


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
    title = passage.title or "it"
    sentences = list_statements(passage.text)
    named, gaps = [], []
    for sentence in sentences:
        for noun, name, verb, value in list_claims(sentence):
            place = f"{noun} of {name or title}"
            if not name and noun.endswith(" there"):
                place = f"{noun.removesuffix(' there')} in {title}"
            named.append(Pair(f"What {verb} the {place}?", value, sentence))
        # A sentence's first word has a capital whatever it is.
        values = [m for m in VALUE.finditer(sentence) if m.start() and m[0] not in title]
        values = values or list(_LAST.finditer(sentence))
        for value in values:
            gap = f"{sentence[: value.start()]}___{sentence[value.end() :]}"
            question = f"Which words are missing about {title}? {gap}"
            gaps.append(Pair(question, value[0], sentence))
    pairs: dict[str, Pair] = {}
    for pair in named + gaps:
        if normalize_answer(pair.answer) and not match(pair.question, [pair.answer]):
            pairs.setdefault(pair.answer, pair)
    return list(pairs.values())[:count]
