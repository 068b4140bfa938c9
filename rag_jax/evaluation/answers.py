"""Metrics of answers, and how sure one can be of them.

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


def contains_answer(prediction: str, answers: Sequence[str]) -> float:
    """Returns 1 if an answer occurs in the prediction, letter for letter, else 0.

    So Self-RAG (Asai et al. 2023, arXiv:2310.11511) scores PopQA and TriviaQA: "Niger" occurs in
    "Nigeria", and "paris" does not in "Paris". A blank answer occurs nowhere.

    Raises:
      RagJaxError: if there are no answers.
    """
    return _best(lambda answer: float(bool(answer.strip()) and answer in prediction), answers)


def choice_match(prediction: str, answers: Sequence[str], choices: Mapping[str, str]) -> float:
    """Returns 1 if the choice that the prediction names is an answer, else 0.

    The accuracy of ARC and PubHealth, after the post-processing by `pick_choice`.

    Args:
      prediction: what a model wrote.
      answers: labels.
      choices: as for `pick_choice`.

    Raises:
      RagJaxError: if there are no answers.
    """
    picked = pick_choice(prediction, choices)
    return _best(lambda answer: float(bool(picked) and picked == answer), answers)


def pick_choice(prediction: str, choices: Mapping[str, str]) -> str:
    """Returns the label of the choice that a text names, or `""`.

    In this order: the text is a label and no more; it begins with one, as in "B) Sea", or calls one
    the answer, option or choice; the words of a choice occur in it, and not within those of another
    that does; a label stands in it by itself. Of several it is the first, and an "A" before a word
    is the article. Labels of one letter count in the case they have.

    Args:
      prediction: what a model wrote.
      choices: texts by label.
    """
    alone = {label.casefold(): label for label in choices}.get(
        prediction.strip(" \n.:()").casefold()
    )
    if alone is not None:
        return alone
    by_length = sorted(choices, key=len, reverse=True)
    spelled = [re.escape(x) if len(x) == 1 else f"(?i:{re.escape(x)})" for x in by_length if x]
    label = f"(?<!\\w)({'|'.join(spelled) or '(?!)'})(?!\\w)"
    named = (
        rf"^[\s(*]*{label}\s*(?:[).:,;*]|$)|(?i:answer|option|choice)(?i:\s+is)?\W{{0,4}}{label}"
    )
    found = re.search(named, prediction)
    if found is None:
        words = {x: normalize_answer(text) for x, text in choices.items()}
        inside = [x for x in choices if match(prediction, [choices[x]])]
        widest = [x for x in inside if not any(_is_within(words[x], words[y]) for y in inside)]
        if widest:
            predicted = f" {normalize_answer(prediction)} "
            return min(widest, key=lambda x: predicted.index(f" {words[x]} "))
        found = re.search(rf"(?!A\s+\w){label}", prediction)
    if found is None:
        return ""
    spelling = next(group for group in found.groups() if group)
    return next(x for x in by_length if x == spelling or x.casefold() == spelling.casefold())


def _is_within(words: str, others: str) -> bool:
    return words != others and f" {words} " in f" {others} "


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


def calibrate(
    probabilities: Float[np.ndarray, "N"], outcomes: Bool[np.ndarray, "N"], *, bins: int = 10
) -> dict[str, Any]:
    """How well probabilities agree with what came of them, in bins of equal width.

    Args:
      probabilities: from 0 to 1.
      outcomes: whether it happened.

    Returns:
      `bins`, those that are not empty, each with its mean `probability`, the `share` that happened
      and `n`; and `ece`, the expected calibration error: the mean difference of the two (Naeini et
      al. 2015, "Obtaining well calibrated probabilities using Bayesian binning").
    """
    from sklearn.calibration import calibration_curve  # takes a second, and few runs need it

    shares, means = calibration_curve(outcomes, probabilities, pos_label=True, n_bins=bins)
    edges = np.linspace(0, 1, bins + 1)[1:-1]
    counts = np.bincount(np.searchsorted(edges, probabilities), minlength=bins)
    counts = counts[counts > 0]
    return {
        "ece": float(np.abs(shares - means) @ counts / counts.sum()),
        "bins": [
            {"probability": mean, "share": share, "n": count}
            for mean, share, count in zip(
                means.tolist(), shares.tolist(), counts.tolist(), strict=True
            )
        ],
    }


def popularity_thirds(popularities: Sequence[float | None]) -> list[str]:
    """Returns `"head"`, `"middle"` or `"tail"` for each, by rank: the most popular third is head.

    Those that are not known, None, are in no third: `""`. Equal popularities rank in the order
    given. Where the number is not a multiple of three, the head and then the middle have one more.
    """
    labels = [""] * len(popularities)
    known = [i for i, popularity in enumerate(popularities) if popularity is not None]
    order = sorted(known, key=lambda i: -popularities[i])
    for name, rows in zip(("head", "middle", "tail"), np.array_split(order, 3), strict=True):
        for row in rows:
            labels[row] = name
    return labels
