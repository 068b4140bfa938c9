"""Metrics of answers, with confidence intervals and calibration.

Predictions are compared with acceptable answers after the normalisation of the SQuAD evaluation
(Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
arXiv:1606.05250): lower case, no punctuation, no English articles, single spaces.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from sacrebleu.metrics import BLEU
from scipy import stats

from rag_jax.runtime.errors import RagJaxError


def normalize_answer(text: str) -> str:
    """Normalises a text as SQuAD's evaluation does.

    Punctuation is defined by Unicode (plus ASCII symbols, as in SQuAD), and equivalent characters
    are unified (NFKC), so that texts in any script can be compared.
    """
    text = unicodedata.normalize("NFKC", text).lower()
    text = "".join(c for c in text if not _is_punctuation(c))
    # lower() may decompose characters again, such as the Turkish dotted capital I.
    text = unicodedata.normalize("NFC", re.sub(r"\b(a|an|the)\b", " ", text))
    return " ".join(text.split())


def _is_punctuation(character: str) -> bool:
    category = unicodedata.category(character)
    return category.startswith("P") or (character.isascii() and category.startswith("S"))


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's exact match: 1 if the normalised prediction equals a normalised answer, else 0.

    Raises:
        RagJaxError: there are no answers.
    """
    predicted = normalize_answer(prediction)
    return _best(lambda answer: float(predicted == normalize_answer(answer)), answers)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 score with the closest answer, by the overlap of the normalised bags of words.

    The score is 1 if prediction and answer both have no words, and 0 if only one has no words.

    Raises:
        RagJaxError: there are no answers.
    """
    predicted = normalize_answer(prediction).split()

    def score(answer: str) -> float:
        words = normalize_answer(answer).split()
        if not predicted or not words:
            return float(predicted == words)
        overlap = sum((Counter(predicted) & Counter(words)).values())
        return 2 * overlap / (len(predicted) + len(words))

    return _best(score, answers)


def match(prediction: str, answers: Sequence[str]) -> float:
    """Match accuracy: 1 if a normalised answer occurs in the normalised prediction, else 0.

    The answer must occur as a run of whole words: "Niger" does not occur in "Nigeria". An answer
    without words never occurs.

    Raises:
        RagJaxError: there are no answers.
    """
    predicted = f" {normalize_answer(prediction)} "

    def score(answer: str) -> float:
        words = normalize_answer(answer)
        return float(bool(words) and f" {words} " in predicted)

    return _best(score, answers)


def contains_answer(prediction: str, answers: Sequence[str]) -> float:
    """Substring accuracy: 1 if an answer occurs in the prediction, without normalisation, else 0.

    This is the metric of Self-RAG (Asai et al. 2023, arXiv:2310.11511) for PopQA and TriviaQA:
    "Niger" occurs in "Nigeria", but "paris" does not occur in "Paris". A blank answer never occurs.

    Raises:
        RagJaxError: there are no answers.
    """
    return _best(lambda answer: float(bool(answer.strip()) and answer in prediction), answers)


def choice_match(prediction: str, answers: Sequence[str], choices: Mapping[str, str]) -> float:
    """Multiple-choice accuracy: 1 if the label by `pick_choice` is an answer, else 0.

    This is the metric of ARC and PubHealth. Answers are labels.

    Raises:
        RagJaxError: there are no answers.
    """
    picked = pick_choice(prediction, choices)
    return _best(lambda answer: float(bool(picked) and picked == answer), answers)


def pick_choice(prediction: str, choices: Mapping[str, str]) -> str:
    """The label of the choice that a prediction names, or `""`; `choices` are texts by label.

    The first rule that applies decides:

    1. The prediction consists of a label.
    2. The prediction begins with a label, as in "B) Sea", or calls a label the answer, option or
       choice.
    3. The words of a choice occur in the prediction, and not as a part of a longer choice that
       occurs too.
    4. A label occurs as a separate word. "A" before a word is the article, not a label.

    If a rule applies to several choices, the first in the prediction wins. Labels of one letter are
    case-sensitive in rules 2 and 4.
    """
    labels, stripped = {label.casefold(): label for label in choices}, prediction.strip(" \n.:()")
    if stripped.casefold() in labels:
        return labels[stripped.casefold()]
    by_length = sorted(choices, key=len, reverse=True)
    spelled = [re.escape(x) if len(x) == 1 else f"(?i:{re.escape(x)})" for x in by_length if x]
    label = f"(?<!\\w)({'|'.join(spelled) or '(?!)'})(?!\\w)"
    first = rf"^[\s(*]*{label}\s*(?:[).:,;*]|$)"
    called = rf"(?i:answer|option|choice)(?i:\s+is)?\W{{0,4}}{label}"
    label_match = re.search(f"{first}|{called}", prediction)
    if label_match is None:
        words = {x: normalize_answer(text) for x, text in choices.items()}
        present = [x for x in choices if match(prediction, [choices[x]])]
        longest = [x for x in present if not any(_is_within(words[x], words[y]) for y in present)]
        if longest:
            predicted = f" {normalize_answer(prediction)} "
            return min(longest, key=lambda x: predicted.index(f" {words[x]} "))
        label_match = re.search(rf"(?!A\s+\w){label}", prediction)
    if label_match is None:
        return ""
    spelling = next(group for group in label_match.groups() if group)
    return next(x for x in by_length if x == spelling or x.casefold() == spelling.casefold())


def _is_within(words: str, others: str) -> bool:
    return words != others and f" {words} " in f" {others} "


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L F-measure with the closest answer, with stemming, by `rouge_score`.

    Raises:
        RagJaxError: there are no answers.
    """
    from rouge_score.rouge_scorer import RougeScorer  # imported here: slow, and rarely needed

    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return _best(lambda answer: scorer.score(answer, prediction)["rougeL"].fmeasure, answers)


def bleu_1(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Corpus-level BLEU-1 in lower case, from 0 to 1, by `sacrebleu`.

    Raises:
        RagJaxError: there are no predictions, or a prediction has no answers.
    """
    if not predictions or not all(answers):
        raise RagJaxError("answers: a question without answers cannot be scored")
    # sacrebleu takes the first references of all predictions, then the second references, and so
    # on, with None for a missing reference.
    width = max(map(len, answers))
    references = [[a[i] if i < len(a) else None for a in answers] for i in range(width)]
    scorer = BLEU(lowercase=True, max_ngram_order=1)
    return min(1.0, scorer.corpus_score(list(predictions), references).score / 100)


def _best(score: Callable[[str], float], answers: Sequence[str]) -> float:
    if isinstance(answers, str):
        raise TypeError("answers must be a sequence of strings, not a string")
    if not answers:
        raise RagJaxError("answers: a question without answers cannot be scored")
    return max(map(score, answers))


def compute_accuracy(scores: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """Accuracy, the mean of scores of 0 or 1, and its 95 % confidence interval `(low, high)`.

    The interval is Wilson's (1927, "Probable inference, the law of succession, and statistical
    inference", Journal of the American Statistical Association 22), which also holds for few scores
    and for accuracies near 0 and 1.

    Raises:
        RagJaxError: there are no scores.
        ValueError: a score is neither 0 nor 1.
    """
    values = np.asarray(scores, float)
    if not values.size:
        raise RagJaxError("scores are empty: there is no accuracy")
    if not np.isin(values, (0, 1)).all():
        raise ValueError("scores must be zeros and ones")
    result = stats.binomtest(int(values.sum()), values.size)
    interval = result.proportion_ci(confidence_level=0.95, method="wilson")
    return float(values.mean()), (float(interval.low), float(interval.high))


def calibrate(
    probabilities: Float[np.ndarray, "N"], outcomes: Bool[np.ndarray, "N"], *, bins: int = 10
) -> dict[str, Any]:
    """Calibration of the predicted probabilities of events, in bins of equal width.

    Returns:
        `bins`, the bins that are not empty, each with the mean `probability`, the `share` of events
        that happened and the number of events `n`; and `ece`, the expected calibration error, which
        is the mean absolute difference of probability and share (Naeini et al. 2015, "Obtaining
        well calibrated probabilities using Bayesian binning").
    """
    from sklearn.calibration import calibration_curve  # imported here: slow, and rarely needed

    shares, means = calibration_curve(outcomes, probabilities, pos_label=True, n_bins=bins)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    counts = np.bincount(np.searchsorted(edges, probabilities), minlength=bins)
    counts = counts[counts > 0]
    columns = zip(means.tolist(), shares.tolist(), counts.tolist(), strict=True)
    return {
        "ece": float(np.abs(shares - means) @ counts / counts.sum()),
        "bins": [{"probability": mean, "share": share, "n": n} for mean, share, n in columns],
    }


def popularity_thirds(popularities: Sequence[float | None]) -> list[str]:
    """Thirds by popularity rank: `"head"`, `"middle"` or `"tail"` for each popularity.

    The most popular third is the head. The label of an unknown popularity is `""`. Equal
    popularities rank in their order. If the number of known popularities is not a multiple of
    three, the head and then the middle have one more.
    """
    labels = [""] * len(popularities)
    known = [i for i, popularity in enumerate(popularities) if popularity is not None]
    order = sorted(known, key=lambda i: -popularities[i])
    for name, rows in zip(("head", "middle", "tail"), np.array_split(order, 3), strict=True):
        for row in rows:
            labels[row] = name
    return labels
