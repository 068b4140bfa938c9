"""Metrics of answers, and how sure one can be of them.

Predictions are compared with acceptable answers after the normalisation of the SQuAD evaluation
(Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
arXiv:1606.05250): lower case, no punctuation, no English articles, single spaces.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from sacrebleu.metrics import BLEU
from scipy import stats

from rag_jax.errors import RagJaxError


def normalize_answer(text: str) -> str:
    """Returns `text` as SQuAD's evaluation compares it.

    Punctuation is what Unicode calls so (and ASCII symbols, as in SQuAD), and equal characters
    written differently are made the same (NFKC), so that text in any script can be compared.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if not _is_punctuation(c))
    # Lower case may have taken the composed form apart again, as in the Turkish dotted capital I.
    text = unicodedata.normalize("NFC", re.sub(r"\b(a|an|the)\b", " ", text))
    return " ".join(text.split())


def _is_punctuation(character: str) -> bool:
    category = unicodedata.category(character)
    return category.startswith("P") or (character.isascii() and category.startswith("S"))


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1 if the normalised prediction equals a normalised answer, else 0 (SQuAD's EM).

    Raises:
      RagJaxError: if there are no answers.
    """
    predicted = normalize_answer(prediction)
    return _best(lambda answer: float(predicted == normalize_answer(answer)), answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Returns SQuAD's F1 with the closest answer: the overlap of their normalised words as bags.

    Two texts without words are equal, and a text without words has nothing in common with others.

    Raises:
      RagJaxError: if there are no answers.
    """
    predicted = normalize_answer(prediction).split()

    def score(answer: str) -> float:
        words = normalize_answer(answer).split()
        if not predicted or not words:
            return float(predicted == words)
        common = sum((Counter(predicted) & Counter(words)).values())
        return 2 * common / (len(predicted) + len(words))

    return _best(score, answers)


def match(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1 if a normalised answer occurs in the normalised prediction, else 0.

    It must occur as a run of whole words: "Niger" does not occur in "Nigeria". An answer without
    words occurs nowhere.

    Raises:
      RagJaxError: if there are no answers.
    """
    predicted = f" {normalize_answer(prediction)} "

    def score(answer: str) -> float:
        words = normalize_answer(answer)
        return float(bool(words) and f" {words} " in predicted)

    return _best(score, answers)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """Returns ROUGE-L's F-measure with the closest answer, words stemmed (by `rouge_score`).

    Raises:
      RagJaxError: if there are no answers.
    """
    from rouge_score.rouge_scorer import RougeScorer  # takes a second, and few runs need it

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return _best(lambda answer: scorer.score(answer, prediction)["rougeL"].fmeasure, answers)


def bleu_1(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Returns the corpus's BLEU of single words, from 0 to 1, in lower case (by `sacrebleu`).

    Args:
      predictions: texts.
      answers: acceptable ones for each, at least one.

    Raises:
      RagJaxError: if there are no predictions, or one has no answers.
    """
    if not predictions or not all(answers):
        raise RagJaxError("answers: a question without answers cannot be scored")
    # sacrebleu takes the first references of all, then the second; None where there is none.
    most = max(map(len, answers))
    references = [[a[i] if i < len(a) else None for a in answers] for i in range(most)]
    scorer = BLEU(lowercase=True, max_ngram_order=1)
    return min(1.0, scorer.corpus_score(list(predictions), references).score / 100)


def _best(score: Callable[[str], float], answers: Sequence[str]) -> float:
    if isinstance(answers, str):
        raise TypeError("answers must be a sequence of strings, not a string")
    if not answers:
        raise RagJaxError("answers: a question without answers cannot be scored")
    return max(map(score, answers))


def compute_accuracy(scores: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Returns the share of ones in `scores` (each 0 or 1), and its 95 % confidence interval.

    The interval is Wilson's (1927, "Probable inference, the law of succession, and statistical
    inference", Journal of the American Statistical Association 22), which holds for few scores and
    for shares near 0 and 1 too.

    Raises:
      RagJaxError: if there are no scores.
    """
    values = np.asarray(scores, float)
    if not values.size:
        raise RagJaxError("scores: there is nothing to take the accuracy of")
    if not np.isin(values, (0, 1)).all():
        raise ValueError("an accuracy is of zeros and ones")
    result = stats.binomtest(int(values.sum()), values.size)
    interval = result.proportion_ci(confidence_level=0.95, method="wilson")
    return float(values.mean()), (float(interval.low), float(interval.high))


def popularity_thirds(popularities: Sequence[float]) -> list[str]:
    """Returns `"head"`, `"middle"` or `"tail"` for each, by rank: the most popular third is head.

    Equal popularities rank in the order given. Where the number is not a multiple of three, the
    head and then the middle have one more.
    """
    order = np.argsort(-np.asarray(popularities, float), kind="stable")
    labels = [""] * len(order)
    for name, rows in zip(("head", "middle", "tail"), np.array_split(order, 3), strict=True):
        for row in rows:
            labels[row] = name
    return labels
