"""Where phrases stand and end in a text: numbers, dates, names, abbreviations and lists, whole.

A full stop or a comma ends a phrase unless it stands inside a number ("2.9 million", "106,000"), a
date ("May 5, 1990"), initials or an abbreviation ("J. R. R. Tolkien", "St. Louis", "the U.S."), or
between the items of a list ("English, Hindi and Bengali").
"""

import re

from rag_jax.data.sentences import list_sentences


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Words that no noun, name or value of a claim has: the clause goes on in another way.
_CLAUSE = _words(
    "it its he his she her they their them we you i this these those that which who whom "
    "whose where when while because if but although though what is are was were be been being "
    "has have had does did do can could may might will would shall should must not so than "
    "then with by from such including"
)
_UPPER = r"[^\W\d_a-z]"  # any letter outside ASCII's lower case may be a capital
_MONTHS = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\b\.?)"
)
_BEFORE = (  # abbreviations with a full stop that something follows
    r"St|Ste|Mt|Ft|Dr|Mr|Mrs|Ms|Messrs|Prof|Gen|Col|Capt|Cpt|Cmdr|Lt|Sgt|Maj|Adm|Rev|Fr|Hon|Gov"
    r"|Sen|Rep|Pres|Nos?|nos?|vs?|cf|ca?|approx|al|[Vv]ol|pp?|[Ff]igs?|[Cc]h|[Ss]ec|Op|op|[Bb]ros"
    r"|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|b|d|r|fl|est|incl|lat|lit"
)
_AFTER = r"Jr|Sr|Inc|Ltd|Co|Corp|Esq"  # abbreviations that may end a name
# Initials that a word follows ("J.R.R.Tolkien") are tried from the first one only.
_INITIALS = (
    rf"(?<!(?<![^\W\d_])[^\W\d_]\.)(?:[^\W\d_]\.){{2,}}(?!\w)"
    rf"|{_UPPER}\.(?=\s?{_UPPER})|(?:{_BEFORE})\.(?=\s)|(?:{_AFTER})\."
)
_SUFFIX = rf"(?:,\s(?:(?:{_UPPER}\.){{2,}}|(?:{_AFTER})\b\.?))?"  # "Washington, D.C."
_DATE = (
    rf"{_MONTHS}\s\d{{1,2}}(?:st|nd|rd|th)?(?:,?\s\d{{3,4}})?(?!\w)"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\s{_MONTHS}(?:,?\s\d{{3,4}})?(?!\w)|{_MONTHS}\s\d{{3,4}}(?!\w)"
)
_UNIT = (
    r"(?:\s?%|\s?°(?:\s?[NSEWCF]\b)?|\s(?:hundred|thousand|million|billion|trillion|per\s?cent)\b)"
)
_JOINED = r"[.,:/\u2013-]\d"  # what goes on with a number
_NUMBER = rf"[$€£¥]?(?:\d{{2,}}|\d(?={_JOINED}|{_UNIT}))(?:[.,:/\u2013-]\d+)*(?:{_UNIT}|(?![\w%]))"
_NAME_WORD = rf"(?:{_INITIALS}|{_UPPER}[\w'\u2019-]*(?!\w|[.,]\d))"
_NAME = (
    rf"{_NAME_WORD}(?:\s?(?<=[\s.])(?:(?:of|the|de|la|del|di|da|du|van|von|der|bin|ibn|al)\s)*"
    rf"{_NAME_WORD})*{_SUFFIX}"
)
# A date, a number or a name of one or several words.
VALUE = re.compile(rf"(?<![\w.,$€£¥\u2013-])(?:{_DATE}|{_NUMBER})|(?<![\w.])(?:{_NAME})")

# A word of running text, a date or a name with its initials: what is inside is never given back.
_PLAIN = r"[^\s,;:.!?()\[\]]+(?:[.,:](?=\w)[^\s,;:.!?()\[\]]+)*"
_WORD = rf"(?>(?:{_UPPER}\.\s(?={_UPPER}))*(?:{_DATE}|{_INITIALS}|{_PLAIN}){_SUFFIX})"
_END = r"(?=\s?[,;:.!?()\[](?!\w)|\s?\(|\s[\u2013\u2014-]\s|$)"
_PHRASE = re.compile(rf"{_WORD}(?:\s{_WORD}){{0,4}}{_END}")
_LISTED = rf"(?!(?:{'|'.join(sorted(_CLAUSE))})\b){_WORD}"
_ITEM = rf"{_LISTED}(?:\s{_LISTED}){{0,5}}"
_LIST = re.compile(rf"{_ITEM}(?:,\s{_ITEM})+,?\s(?:and|or|&)\s{_ITEM}{_END}")
_ITEM_BREAK = re.compile(r",\s(?:and\s|or\s|&\s)?|\s(?:and|or|&)\s")
# "The capital of ... is ...", "its main languages are ...".
_NOUN = r"(?:(?!of\b)[a-z]+\s){0,2}(?!of\b)[a-z]+"
_CLAIM = re.compile(
    rf"\b(?:[Tt]he|[Ii]ts|[Tt]heir|[Hh]is|[Hh]er)\s(?P<noun>{_NOUN})"
    rf"(?:\sof\s(?P<of>{_WORD}(?:\s{_WORD}){{0,6}}?))?\s(?P<verb>is|are|was|were)\s(?:the\s)?"
)
# Words that no value begins with, participles among them: what follows is said of the subject.
_NO_VALUE = _CLAUSE | _words(
    "a an also still now not no often usually always never very more most less least too only "
    "even just to in on at of for as into under over between among near like due able likely "
    "one part found held built made born written named called known seen set left lost sent "
    "done taken given kept led run won read drawn spoken said thought brought bought sold "
    "told"
)
# Words that no phrase ends with.
_OPEN = _words("of in on at by from to for with as about the a an and or")
# What stands before a claim: nothing or "In Norway" in the whole of what is before, or a comma.
_START = re.compile(rf"(?:In\s{_NAME})?")
_COMMA = re.compile(r"[,;:](?:\s(?:and|but|so|while))?$")
# The longest start and the longest value, in characters. Without a limit, the time for a sentence
# with many claims grows with the square of its length.
_LONGEST_START, _LONGEST_VALUE = 200, 1000
# Words with a capital that begin a sentence and no name, after an abbreviation's full stop.
_OPENERS = _words(
    "The A An It Its He His She Her They Their We In On At By From For With This That These "
    "Those There When While After Before As If But And Or However Although Since Many Most "
    "Some"
)
_ABBREVIATED = re.compile(
    rf"(?:^|[\s(\"“'\u2019-])(?:{_UPPER}|(?:[^\W\d_]\.)+[^\W\d_]|{_BEFORE}|{_AFTER})\.$"
)


def list_statements(text: str) -> list[str]:
    """The sentences of a text, where no full stop of an abbreviation ends one.

    "He met J. R. R. Tolkien." is one sentence, and so is "St. Louis lies in the U.S. state of
    Missouri."; `list_sentences` splits both.
    """
    joined: list[list[str]] = []
    for sentence in list_sentences(text):
        follows = sentence.split(" ", 1)[0].rstrip(",")
        if joined and _ABBREVIATED.search(joined[-1][-1]) and follows not in _OPENERS:
            joined[-1].append(sentence)
        else:
            joined.append([sentence])
    return [" ".join(sentences) for sentences in joined]


def cut_clause(text: str) -> str:
    """The first clause of a text, without the full stop or comma that ends it.

    Nothing ends inside an abbreviation, a date, a name with its initials or, at the start, a list:
    "September 21, 1937" is a clause. A line's end ends everything.
    """
    line = text.strip().split("\n", 1)[0]
    clause = next(iter(list_statements(line)), "").rstrip(".!? ")
    whole = VALUE.sub(lambda found: "\0" * len(found[0]), clause)
    listed = _LIST.match(clause[:_LONGEST_VALUE])
    if listed and _is_list(listed[0]):
        whole = "\0" * listed.end() + whole[listed.end() :]
    end = re.search(r",\s", whole)
    return clause[: end.start()] if end else clause


def list_claims(statement: str) -> list[tuple[str, str, str, str]]:
    """What a sentence says in the form "the NOUN of NAME is VALUE": noun, name or "", verb, value.

    A value is a phrase of at most five words or a whole list. A claim whose end is unclear is left
    out, such as a plural before a comma that begins no list.
    """
    claims, start = [], 0
    while found := _CLAIM.search(statement, start):
        start = found.start() + 1
        noun, name, verb = found["noun"], found["of"] or "", found["verb"]
        subject = {*noun.split(), *name.lower().split()}
        if subject & _CLAUSE or not _begins_clause(statement, found.start()):
            continue
        text = statement[found.end() : found.end() + _LONGEST_VALUE]
        # What is cut off must not look like the end of the sentence.
        text += "\0" * (found.end() + _LONGEST_VALUE < len(statement))
        value = _read_value(text, plural=verb in ("are", "were"))
        if value:
            claims.append((noun, name, verb, value))
            start = found.end()
    return claims


def _begins_clause(statement: str, place: int) -> bool:
    """Whether a claim at this place is not the rest of another clause."""
    before = statement[max(0, place - _LONGEST_START) : place].rstrip()
    whole = place <= _LONGEST_START
    return bool(_COMMA.search(before) or (whole and _START.fullmatch(before)))


def _read_value(text: str, *, plural: bool) -> str | None:
    """The value at the start of a text, or None where it is unclear what the value is."""
    listed = _LIST.match(text)
    if listed and _is_list(listed[0]):
        return listed[0]
    found = _PHRASE.match(text)
    if found is None:
        return None
    pair = re.search(r"\s(?:and|or|&)\s", found[0])  # two items, a whole list
    if plural and text[found.end() :].startswith(",") and not (pair and _is_list(found[0])):
        return None
    words = found[0].split()
    participle = re.match(r"[a-z]+(?:ed|ing|ly)\b(?!\s\W?\d)", found[0])  # no "roughly 2.9 million"
    unclear = participle or words[0] in _NO_VALUE or _CLAUSE & set(words)
    # A quotation that does not close: the value is only a part of what is quoted.
    quoted = found[0].count('"') % 2 or found[0].count("“") != found[0].count("”")
    return None if unclear or quoted or words[-1] in _OPEN else found[0]


def _is_list(text: str) -> bool:
    """Whether all parts of a text look alike: names or numbers, or short phrases without a name."""
    items = [item for item in _ITEM_BREAK.split(text) if not item.isspace()]
    named = [re.match(rf"(?:[Tt]he\s)?(?:{_UPPER}|\W?\d)", item) is not None for item in items]
    short = all(len(item.split()) <= 3 for item in items)
    first = text.split()[0]
    return first not in _NO_VALUE and (all(named) or (short and not any(named)))
