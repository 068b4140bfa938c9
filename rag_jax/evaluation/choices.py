"""The choice that a free text names, for questions with several choices."""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping

from rag_jax.data.matching import normalize_answer
from rag_jax.data.words import space_characters
from rag_jax.evaluation.texts import NO, drop_thoughts

# What may follow "A" as a label; before any other word, "A" is the article.
_AFTER_LABEL = (
    "is|was|isn't|because|since|as|and|or|but|would|will|must|should|could|can|may|might|seems"
)
_RIGHT = (
    r"(?:the\s+|my\s+)?(?:more\s+|most\s+)?"
    r"(?:correct|right|best|better|accurate|likely|answer|final answer)"
)
_ANSWER, _OPTION = "(?i:answer|boxed)", "(?i:option|choice)"
_BEST = (
    r"(?i:\b(?:correct|right|best|selected|chosen|final|my)\s+"
    r"(?:(?:answer\s+)?(?:option|choice|letter)|selection))"
)
_SO = r"(?i:\b(?:so|hence|thus|therefore)\W{1,3}(?:option\s+|choice\s+)?)\(?"
_SIGNED = r"(?i:\b(?:correct|solution|selection|letter))\s?[:=]\W{0,3}"
_ASKED = r"(?i:\s+to\s+(?:this|the)\s+question)?"
_IS = (
    r"(?i:\s+(?:is|was|(?:would|should|must|can only)\s+be|seems\s+to\s+be))"
    r"(?i:\s+(?:probably|likely|most likely|clearly|definitely|therefore|thus))?"
)
_CALLED = rf"{_ASKED}(?:{_IS})?\W{{0,4}}"
# With a verb, or a sign as in "Answer: B": "answer C is cold" only mentions one.
_CALLED_SO = rf"{_ASKED}(?:{_IS}\W{{0,4}}|(?=\W{{0,3}}[:={{*>\n\u2192\u2013\u2014-])\W{{1,4}})"
_CALLS_TEXT = re.compile(
    rf"(?<!\bis )(?<!\bis the )(?:answer|boxed){_ASKED}(?:{_IS})?\W{{1,4}}(?:(?:the|an?) )?\Z"
)
_CHOSEN = (
    r"(?i:\bI(?:\s+would|['\u2019](?:d|ll))?\s+(?:choose|pick|select)|\bgo(?:ing)?\s+with)"
    r"(?i:\s+(?:option|choice|answer))?\W{1,4}"
)
_NEGATED_BEFORE = re.compile(
    r"(?i)(?:\bnot|n['\u2019]t|\b(?:is|was|are|do|does|did|would|could|can)nt|\bcannot|\bnever|\bnor|\bneither|"
    r"\bno\s+(?:longer|(?:\w+\s+)?(?:evidence|proof)\s+(?:\w+\s+){0,6}?is)|"
    r"\b(?:rul(?:e|es|ed|ing)\s+out|(?:eliminat|exclud)(?:e|es|ed|ing))\s?:?)\s+"
    r"(?:(?:be|the|an?|answer|option|choice|really|entirely|completely|strictly|quite|exactly|"
    r"necessarily|actually|always|at\s+all)\s+|"
    r"(?:think|believe|accurate|correct|right|case)\s+(?:\w+\s+){0,6}?is\s+)*[\"'(*\u201c\u2018]*$"
)
# Of several that are ruled out every one is, as in "eliminate A, C and D".
_RULED_OUT = re.compile(r"(?i)rul|eliminat|exclud")
_LEFT_OUT = r"(?:is|was|are|were|(?:can|must|should)\s+be)\s+(?:ruled\s+out|eliminated|excluded)"
_NEGATED_AFTER = re.compile(
    r"(?i)[\"')*\u201d\u2019.]*(?:[^\S\n]+(?:is|was|are|were)(?:n['\u2019]t\b|\s+not\b|"
    r"\s+(?:clearly\s+|also\s+|both\s+|all\s+)?(?:wrong|incorrect|false|untrue)\b)|"
    rf"[^\S\n]+{_LEFT_OUT}\b|"
    r"[^\S\n]*[:\u2013\u2014-][^\S\n]*(?:wrong|incorrect)\b)"
)
_CALLED_WRONG = re.compile(
    r"(?i)[\"')*]*(?:\s+(?:is|was)\s+(?:wrong|incorrect|false|untrue)\b|"
    r"[^\S\n]*[:(\u2013\u2014-][^\S\n]*(?:this\s+is\s+)?(?:wrong|incorrect)\b)"
)
_DENIALS = re.compile(
    r" (?:isnt|wasnt|is (?:not|wrong|incorrect|false)|was not|(?:this is )?(?:wrong|incorrect)|"
    rf"{_LEFT_OUT}) "
)
_CALLED_AFTER = re.compile(
    r" (?:is|was|must be|would be) (?:the )?(?:answer|"
    r"(?:most )?(?:correct|right|best|likely|accurate)(?: (?:answer|choice|option|one))?) "
)
# What follows a label that begins a text.
_MARKS = r"(?:\s*(?:[):;*\]]|[.,](?!\d)|\n|$)|\s+[-\u2013\u2014]\s|\t)"
_QUESTION = re.compile(r"\n[^\S\n]*(?:[Qq]uestion|Q) ?\d{0,5} ?:")
# What a text with signs must not lie in, as "3" in "-3", "3.5" or "3/4".
_NO_SIGN_BEFORE, _NO_SIGN_AFTER = r"(?<![\w+\-/^<>])(?<!\d\.)", r"(?![\w+\-/^<>]|\.\d)"
_DASHES = {0x2212: "-", 0x2013: "-"}
_REACH = 400  # characters before a label in which a negation of it begins
# "No" before a noun, a decimal point and a minus sign, in texts whose signs are dropped.
_DETERMINER = re.compile(rf"(?i)(?!{NO})\bno\b")
_POINT, _MINUS = re.compile(r"(?<=\d)\.(?=\d)"), re.compile(r"(?<![\w.)])[-\u2212](?=\.?\d)")


def pick_choice(prediction: str, choices: Mapping[str, str]) -> str:
    """The label of the choice that a prediction names, or `""`; `choices` are texts by label.

    The first rule that applies decides:

    1. The prediction consists of a label, or else of the text of one choice, with its signs.
    2. The prediction calls a label the final answer, option or choice.
    3. It begins with a label, as in "B) Sea" or a first line "B", unless it lists the choices.
    4. Its last line is a label.
    5. It calls a label the answer, the correct option or right, as in "A is correct", or concludes
       with one, as in "Hence, A."
    6. It calls the text of a choice the answer.
    7. It begins with a label, or calls one an option, choice or, without a verb, answer.
    8. The words of a choice occur in the prediction, and not as a part of a longer choice that
       occurs too.
    9. A label occurs as a separate word. "A" before a noun is the article, not a label. A label of
       several letters is rather one of which no clause follows, as of "It is true that".

    If rule 2, 5 or 6 applies to several choices, the last wins, as in "The answer is A. No, the
    answer is B", and else the first in the prediction. What stands before `</think>`, what follows
    the line of a further question, and what is only asked, as "A or B?" or "whether it is true",
    are not read. A choice that is denied, as in "not A" or "A is wrong", is passed over; where
    there are just two choices, it stands for the other one, as in "It is not true". Labels of one
    letter are case-sensitive in rules 2, 3, 5, 7 and 9 unless punctuation follows.
    """
    labels = {label.casefold(): label for label in choices}
    said = drop_thoughts(prediction)
    prediction = said if said.strip() else prediction
    for text in (prediction, prediction := _plain(prediction, choices)):
        if (stripped := text.strip(" \n.:()").casefold()) in labels:
            return labels[stripped]
    for text in map(_keep_signs, (prediction, prediction.rstrip().removesuffix("."))):
        same = [x for x, own in choices.items() if text and _keep_signs(own) == text]
        if len(same) == 1:
            return same[0]
    spelled = _Spelling(choices)
    prediction = _drop_questions(prediction, choices)
    called, named = _find_words(prediction, choices)
    rules = (_find_called(prediction, spelled), called, _find_begun(prediction, spelled), named)
    for found in (*rules, _find_alone(prediction, spelled)):
        for label, denied in found:
            if not denied:
                return label
            if len(choices) == 2:
                return next(other for other in choices if other != label)
    return ""


def _plain(prediction: str, choices: Mapping[str, str]) -> str:
    """A prediction with wide letters as usual ones, and spaces in scripts that have none.

    Underscores around a word, which are emphasis, the tags around an answer and LaTeX's `\\text{`
    become spaces, and so does what joins a letter to Korean. Labels that are no usual letters
    themselves leave it as it is.
    """
    if any("_" in x or unicodedata.normalize("NFKC", x) != x for x in choices):
        return prediction
    plain = space_characters(unicodedata.normalize("NFKC", prediction))
    plain = re.sub(r"</?(answer)>", r" \1: ", plain)
    plain = re.sub(r"\\(?:text|mathrm|textbf|mathbf)\s?\{", " ", plain)
    plain = plain.replace("\\boxed{", " boxed {")  # whose sign goes with the normalisation
    plain = re.sub(r"(?<=[A-Z0-9)*])(?=[\uac00-\ud7a3])", " ", plain)
    return re.sub(r"(?<![^\W_])_+|_+(?![^\W_])|\b(?:e\.g|i\.e)\.", " ", plain)


def _drop_questions(prediction: str, choices: Mapping[str, str]) -> str:
    """A prediction up to the line of a further question, without what asks for the choices."""
    own = _QUESTION.split(prediction, maxsplit=1)[0]
    names = sorted({*choices, *choices.values()} - {""}, key=len, reverse=True)
    one = f"(?:{'|'.join(map(re.escape, names)) or '(?!)'})"
    gap = r"\s{1,3}"  # of bounded length, as is the list: quadratic time else
    asked = rf"(?<!\w){one}(?:,{gap}{one}){{0,25}},?{gap}or{gap}{one} ?\?"
    open_ = rf"\b(?:whether|if){gap}(?:[\w'\u2019]+{gap}){{0,8}}?{one}(?!\w)(?:{gap}or{gap}{one})?"
    return re.sub(f"(?i){asked}|{open_}(?!\\w)", " ", own if own.strip() else prediction)


class _Spelling:
    """Regular expressions for the labels, and the label of a spelling.

    `exact` takes a letter in its own case, `loose` in any case; longer labels come first.
    """

    def __init__(self, choices: Mapping[str, str]):
        self.labels = sorted(choices, key=len, reverse=True)
        escaped = [(x, re.escape(x)) for x in self.labels if x]
        spelled = [text if len(x) == 1 else f"(?i:{text})" for x, text in escaped]
        self.exact = f"(?<!\\w)({'|'.join(spelled) or '(?!)'})(?!\\w)"
        self.loose = f"(?<!\\w)((?i:{'|'.join(text for _, text in escaped) or '(?!)'}))(?!\\w)"
        joint = r"[\"')*\s]*(?:,|(?:,\s*|\s)(?:and|or|nor)\s)[\s(\"'*]*"
        self._list = re.compile(f"{self.exact}(?:{joint}{self.exact})+")
        self._texts = {
            x: re.compile(rf"(?i)[).:]*\s*{re.escape(text.strip()) or '(?!)'}")
            for x, text in choices.items()
        }

    def find(
        self, pattern: str, prediction: str, *, last_first: bool = False
    ) -> Iterator[tuple[str, bool]]:
        """The labels that a pattern finds, in their order, and whether each is denied."""
        matches = re.finditer(pattern, prediction)
        for match in reversed([*matches]) if last_first else matches:
            number = next(i for i, group in enumerate(match.groups(), 1) if group)
            spelling, (start, end) = match[number], match.span(number)
            same = (x for x in self.labels if x == spelling)
            # Not by case folding, which leaves letters apart that a pattern takes as one.
            alike = (x for x in self.labels if re.fullmatch(f"(?i:{re.escape(x)})", spelling))
            denied = _NEGATED_BEFORE.search(prediction, max(0, start - _REACH), start)
            denied = denied or _NEGATED_AFTER.match(prediction, end)
            label = next(same, None) or next(alike)
            denied = denied or self._is_denied_with_others(prediction, start)
            text = self._texts[label].match(prediction, end)
            denied = denied or (text and _CALLED_WRONG.match(prediction, text.end()))
            yield label, bool(denied)

    def _is_denied_with_others(self, prediction: str, start: int) -> bool:
        """Whether a label is denied as one of several: "not A or B", "A and B are wrong"."""
        found = self._list.finditer(prediction, max(0, start - _REACH), start + _REACH)
        among = next((m for m in found if m.start() <= start < m.end()), None)
        if among is None:
            return False
        first = among.start()
        return bool(
            _NEGATED_AFTER.match(prediction, among.end())
            or (
                (before := _NEGATED_BEFORE.search(prediction, max(0, first - _REACH), first))
                and (re.search(r"\bn?or\b", among[0]) or _RULED_OUT.match(before[0]))
            )
        )


def _find_called(prediction: str, label: _Spelling) -> Iterator[tuple[str, bool]]:
    """The labels that begin it, are its last line, or are called the answer or right, by rule."""
    named = _name_label(label)
    right = rf"{label.exact}[\"'\])*]*\s+(?i:is|was|would\s+be)\s+(?i:{_RIGHT})\b"
    final = rf"(?i:final)\s+(?:{_ANSWER}|{_OPTION}){_CALLED}{named}"
    yield from label.find(final, prediction, last_first=True)
    listed = re.finditer(rf"(?<!\S)[(*]*{label.exact} ?[):.]", prediction)
    if len({match[1] for match in listed}) < 2:
        yield from label.find(_begin_with(label), prediction)
    last = rf"\n[^\S\n]*[(*\"'\[]*{label.loose}[\"'\])*.:]*\Z"
    yield from label.find(last, prediction.rstrip())
    called = rf"(?:{_ANSWER}|{_BEST}){_CALLED_SO}{named}|{right}"
    called = rf"{called}|(?:{_CHOSEN}|{_SIGNED}){label.exact}"
    called = rf"{called}|{_SO}{label.exact}(?=\)?\s*(?:[.!\n]|\Z))"
    yield from label.find(called, prediction, last_first=True)


def _find_begun(prediction: str, label: _Spelling) -> Iterator[tuple[str, bool]]:
    """The labels that begin it, or that "option", "choice" or "answer" stands before."""
    called = f"(?:{_OPTION}|{_ANSWER}){_CALLED}{_name_label(label)}"
    return label.find(f"{_begin_with(label)}|{called}", prediction)


def _begin_with(label: _Spelling) -> str:
    first = rf"(?:{label.exact}[\]\"']*{_MARKS}|{label.loose}\s*[).:](?!\d))"
    reason = rf"{label.exact}[\"'\])*]*\s+(?:because|since|and|as\s+(?:it|the))\b"
    return rf"\A[\s(*\"'\[]*(?:{first}|{reason})"


def _name_label(label: _Spelling) -> str:
    return rf"(?:{label.exact}|{label.loose}(?={_MARKS}))"


def _find_words(
    prediction: str, choices: Mapping[str, str]
) -> tuple[list[tuple[str, bool]], list[tuple[str, bool]]]:
    """The choices whose words are called the answer, and those whose words occur.

    The former with the last first, the latter by the place of their first word that is not denied.
    """
    normalize, before, after = _normalize, "(?<= )", "(?= )"
    if len({*map(normalize, choices.values())}) < len(choices):  # as of "3" and "-3"
        normalize, before, after = _keep_signs, _NO_SIGN_BEFORE, _NO_SIGN_AFTER
    predicted = f" {normalize(_mark_determiners(prediction))} "
    texts = {x: _mark_determiners(space_characters(text)) for x, text in choices.items()}
    words = {x: normalize(text) for x, text in texts.items()}
    places = {
        x: [m.span() for m in re.finditer(f"{before}{_spell(text)}{after}", predicted)]
        for x, text in words.items()
        if text
    }
    # As of "C" in "C#", which are no words apart.
    longer = {x: [s for y in places if words[x] in words[y] for s in places[y]] for x in places}
    places = {x: [s for s in own if not _is_inside(s, longer[x])] for x, own in places.items()}
    present = [x for x in places if places[x]]
    longest = [x for x in present if not any(_is_within(words[x], words[y]) for y in present)]
    found, called = [], []
    for label in longest:
        asserted = [
            (start, end)
            for start, end in places[label]
            if not _NEGATED_BEFORE.search(predicted, max(0, start - _REACH), start)
            and not _DENIALS.match(predicted, end)
        ]
        found.append((min(asserted or places[label]), label, not asserted))
        called += [
            (start, label)
            for start, end in asserted
            if _CALLS_TEXT.search(predicted, max(0, start - _REACH), start)
            or _CALLED_AFTER.match(predicted, end)
        ]
    return (
        [(label, False) for _, label in sorted(called, reverse=True)],
        [(label, denied) for _, label, denied in sorted(found, key=lambda item: item[0])],
    )


def _mark_determiners(text: str) -> str:
    """A text in which "no" before a noun, as in "no doubt", is another word than the answer."""
    return _DETERMINER.sub("no\ua7fb", text)


def _normalize(text: str) -> str:
    """As `normalize_answer`, where "3.0" is not "30" and "-5" is not "5"."""
    return normalize_answer(_MINUS.sub("\ua7fd", _POINT.sub("\ua7fb", text)))


def _spell(words: str) -> str:
    """A regular expression for a choice; FEVER's "not enough info" may be written out."""
    return re.escape(words) + ("(?:rmation)?" if words.split()[-1:] == ["info"] else "")


def _keep_signs(text: str) -> str:
    """A text in small letters, without apostrophes, whose other signs stay."""
    text = unicodedata.normalize("NFKC", text).translate(_DASHES).casefold()
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))|\s(?=%)", "", text)
    return " ".join(re.sub("['\u2019]", "", text).split())


def _is_inside(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    start, end = span
    return any(first <= start and end <= last and (first, last) != span for first, last in others)


def _is_within(words: str, others: str) -> bool:
    return words != others and f" {words} " in f" {others} "


def _find_alone(prediction: str, label: _Spelling) -> Iterator[tuple[str, bool]]:
    """The labels that are words of their own; last come those that a clause follows."""
    article = rf"(?!A\s+(?!(?:{_AFTER_LABEL})\b)\w)(?!I\s+(?!is\b)\w)"
    for end in (r"(?!\s+that\b)", ""):
        yield from label.find(f"{article}{label.exact}{end}", prediction)
