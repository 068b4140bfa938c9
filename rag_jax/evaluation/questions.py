"""Q-BLEU-1, the metric of generated questions (Nema and Khapra 2018).

"Towards a Better Metric for Evaluating Question Generation Systems", arXiv:1808.10192. English
only: its words of questions and its stop words are.
"""

import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from rag_jax.evaluation.texts import best_score, drop_thoughts, home_folder

# The weights of the kinds of words for SQuAD, and of all kinds against BLEU-1, with which the
# authors publish their script, and others use it.
_WEIGHTS = {"relevant": 0.1, "names": 0.6, "type": 0.2, "function": 0.1}
_ANSWERABILITY = 0.7

_LOWER = ("what", "which", "why", "who", "whom", "whose", "where", "when", "how")
_ASKING = frozenset([*_LOWER, *map(str.title, _LOWER)])
# The script's list: NLTK's English stop words without those that ask.
_STOP_WORDS = """
a about above after again against all am an and any are as at be because been before being below
between both but by can did do does doing don down during each few for from further had has have
having he her here hers herself him himself his i if in into is it its itself just me more most my
myself no nor not now of off on once only or other our ours ourselves out over own s same she should
so some such t than that the their theirs them themselves then there these they this those through
to too under until up very was we were while will with you your yours yourself yourselves
"""
_FUNCTION_WORDS = frozenset(_STOP_WORDS.split())
# What the tokenizer of the Penn Treebank parts from words, and the script then leaves out.
_PUNCTUATION = "'' ' `` ` ( ) { } . ? ! , : - -- ... ;"
_MARKS = frozenset(_PUNCTUATION.split())


def q_bleu_1(prediction: str, answers: Sequence[str]) -> float:
    """Q-BLEU-1 of a generated question with the closest reference question, from 0 to 1.

    `0.7 answerability + 0.3 BLEU-1`. Answerability is the weighted mean, over four kinds of words,
    of the F-measure of BLEU-1 in both directions: named entities (0.6; words with a capital), the
    type of the question (0.2; what it asks with, and the word after "what" and "which"), other
    relevant words (0.1) and function words (0.1). A kind that neither question has counts as 1.

    It is computed as by the last version of the authors' script (November 2019), sentence by
    sentence, with the weights that its page gives for SQuAD. Words are those of NLTK's tokenizer of
    the Penn Treebank, where the script has Stanford's in Java.

    Raises:
        RagJaxError: there are no answers.
    """
    said = drop_thoughts(prediction)
    words, predicted = _list_kinds(said), _tokenize(said)

    def score(answer: str) -> float:
        wanted = _list_kinds(answer)
        shares = {kind: _match_kind(words[kind], wanted[kind]) for kind in _WEIGHTS}
        answerability = sum(weight * shares[kind] for kind, weight in _WEIGHTS.items())
        fluency = _score_words(predicted, _tokenize(answer))
        return _ANSWERABILITY * answerability + (1 - _ANSWERABILITY) * fluency

    return best_score(score, answers)


def _list_kinds(question: str) -> dict[str, list[str]]:
    """The words of each kind, where a word is what stands between spaces."""
    words = question.split()
    asking = [
        i
        for i, word in enumerate(words)
        if word in _ASKING or (word.lower() in _ASKING and word.istitle())
    ]
    asked = [i + 1 for i in asking if words[i].lower() in ("what", "which") and words[i + 1 :]]
    kinds = {"type": [words[i] for i in asking + asked]}
    others = [word for word in words if word not in kinds["type"]]
    kinds["relevant"] = [w for w in others if not w[0].isupper() and w not in _FUNCTION_WORDS]
    opens = bool(words) and words[0].lower() in _ASKING
    kinds["names"] = [word for word in words[opens:] if word[0].isupper()]
    kinds["function"] = [word for word in words if word.lower() in _FUNCTION_WORDS]
    return kinds


def _match_kind(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    """The F-measure of the words of one kind."""
    if not predicted and not wanted:
        return 1.0
    one, other = _tokenize(" ".join(predicted)), _tokenize(" ".join(wanted))
    precision, recall = _score_words(one, other), _score_words(other, one)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _score_words(predicted: Sequence[str], wanted: Sequence[str]) -> float:
    """BLEU-1 of a sentence, with its penalty of brevity."""
    if not predicted:
        return 0.0
    overlap = sum((Counter(predicted) & Counter(wanted)).values())
    return overlap / len(predicted) * math.exp(min(0.0, 1 - len(wanted) / len(predicted)))


def _tokenize(text: str) -> list[str]:
    words = _make_tokenizer().tokenize(text)
    return [word.lower() for word in words if word not in _MARKS]


@functools.cache
def _make_tokenizer() -> Any:
    with home_folder():
        from nltk.tokenize import NLTKWordTokenizer  # slow, and rarely needed
    return NLTKWordTokenizer()
