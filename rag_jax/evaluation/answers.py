"""Metrics of answers, with confidence intervals and calibration.

Predictions are compared with acceptable answers after the normalisation of the SQuAD evaluation
(Rajpurkar et al. 2016, "SQuAD: 100,000+ Questions for Machine Comprehension of Text",
arXiv:1606.05250): lower case, no punctuation, no English articles, single spaces. Where that would
leave nothing of an answer, such as "A" or "The", articles or punctuation are kept on both sides.
Of a prediction that begins with thoughts, what follows `</think>` counts.
"""

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import regex
from jaxtyping import Bool, Float

from rag_jax.data.matching import normalize_answer, normalize_text
from rag_jax.data.words import space_characters
from rag_jax.evaluation.choices import pick_choice
from rag_jax.evaluation.texts import (
    NO,
    best_score,
    drop_thoughts,
    home_folder,
    list_words,
    normalize_pair,
    space_words,
)
from rag_jax.runtime.errors import RagJaxError

_VERDICTS = ("yes", "no")
_SAID = re.compile(rf"\byes\b|{NO}")
_CONCLUDED = re.compile(r"\banswer(?:\s+is)?\W{1,4}(yes|no)\b")
_NAMED_A = re.compile(r"\w\W?\s\W?A\W{0,3}\Z")
# Punctuation that stands between two words, but not within numbers such as "3.5".
_BETWEEN = regex.compile(
    r"</?\w+>|(?<![0-9])[.,/:;]|[.,/:;](?![0-9])|['\u2019](?=s\b)|[\u2013\u2014*(){}\[\]|\"\u201c\u201d\u2026!?=]|(?<=[0-9]{4})-(?=[0-9])|\p{Sc}"
)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's exact match: 1 if the normalised prediction equals a normalised answer, else 0.

    Raises:
        RagJaxError: there are no answers.
    """
    return best_score(functools.partial(_match_exactly, drop_thoughts(prediction)), answers)


def _match_exactly(prediction: str, answer: str) -> float:
    predicted, wanted = normalize_pair(prediction, answer)
    return float(predicted == wanted)


def f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's F1 score with the closest answer, by the overlap of the normalised bags of words.

    The score is 0 if just one of them has no words, and 1 if the answer is blank and the prediction
    has none either. As in HotpotQA's and 2WikiMultihopQA's scripts, "yes" and "no" share nothing
    with longer texts.

    Raises:
        RagJaxError: there are no answers.
    """
    return best_score(functools.partial(_f1, drop_thoughts(prediction)), answers)


def _f1(prediction: str, answer: str) -> float:
    pair = normalize_pair(prediction, answer)
    predicted, words = (text.split() for text in pair)
    if not (predicted and words) or {*pair} & {*_VERDICTS, "noanswer"}:
        return float(predicted == words)
    overlap = sum((Counter(predicted) & Counter(words)).values())
    return 2 * overlap / (len(predicted) + len(words))


def match(prediction: str, answers: Sequence[str]) -> float:
    """Match accuracy: 1 if a normalised answer occurs in the normalised prediction, else 0.

    The answer must occur as a run of whole words: "Niger" does not occur in "Nigeria". Punctuation
    is left out or, as in "Paris/France", divides two words. In scripts without spaces every
    character is a word. An answer that is an article, such as "A", must be the whole prediction or
    occur with its own capitals, and a blank answer never occurs. "Yes" or "no" must be the last of
    the two that the prediction calls the answer, or else the first that it says.

    Raises:
        RagJaxError: there are no answers.
    """
    return best_score(functools.partial(_match, drop_thoughts(prediction)), answers)


def _match(prediction: str, answer: str) -> float:
    predicted, words = _normalize_named(prediction, answer)
    if not normalize_answer(answer) and predicted != words:
        spelled = rf"(?<!\w){re.escape(answer.strip())}(?!\w)"
        return float(bool(answer.strip()) and re.search(spelled, prediction) is not None)
    if words in _VERDICTS:
        return float(_find_verdict(prediction) == words)
    divided, _ = _normalize_named(_BETWEEN.sub(" ", prediction), answer)
    spaced = (" ".join(space_characters(text).split()) for text in (words, predicted, divided))
    words, *readings = (f" {text} " for text in spaced)
    return float(bool(words.strip()) and any(words in reading for reading in readings))


def _normalize_named(prediction: str, answer: str) -> tuple[str, str]:
    """As `normalize_pair`, but of an "A" that ends an answer, which is a name as in "Vitamin A"."""
    if not _NAMED_A.search(answer):
        return normalize_pair(prediction, answer)
    predicted, words = (normalize_text(text, keep_articles=True) for text in (prediction, answer))
    return predicted, re.sub(r"^(an?|the) (?=\w+ )", "", words)


def _find_verdict(prediction: str) -> str | None:
    """The "yes" or "no" that a prediction gives as its answer."""
    text = unicodedata.normalize("NFKC", prediction).lower()
    if concluded := _CONCLUDED.findall(text):
        return concluded[-1]
    said = _SAID.search(text)
    return said[0] if said else None


def contains_answer(prediction: str, answers: Sequence[str]) -> float:
    """Substring accuracy: 1 if an answer occurs in the prediction, without normalisation, else 0.

    This is the metric of Self-RAG (Asai et al. 2023, arXiv:2310.11511) for PopQA and TriviaQA:
    "Niger" occurs in "Nigeria", but "paris" does not occur in "Paris". A blank answer never occurs.

    Raises:
        RagJaxError: there are no answers.
    """
    said = drop_thoughts(prediction)
    return best_score(lambda answer: float(bool(answer.strip()) and answer in said), answers)


def choice_match(prediction: str, answers: Sequence[str], choices: Mapping[str, str]) -> float:
    """Multiple-choice accuracy: 1 if the label by `pick_choice` is an answer, else 0.

    This is the metric of ARC and PubHealth. Answers are labels.

    Raises:
        RagJaxError: there are no answers.
    """
    picked = pick_choice(prediction, choices)
    return best_score(lambda answer: float(bool(picked) and picked == answer), answers)


def rouge_l(prediction: str, answers: Sequence[str]) -> float:
    """ROUGE-L F-measure with the closest answer, with stemming, by `rouge_score`.

    Words are those of `list_words`, because `rouge_score` by itself drops every letter outside
    ASCII. In ASCII they are the same.

    Raises:
        RagJaxError: there are no answers.
    """
    scorer, said = _make_rouge(), drop_thoughts(prediction)
    return best_score(lambda answer: scorer.score(answer, said)["rougeL"].fmeasure, answers)


@functools.cache
def _make_rouge() -> Any:
    """The scorer of `rouge_score`, imported here because that is slow, and rarely needed."""
    with home_folder():
        from nltk.stem.porter import PorterStemmer
        from rouge_score.rouge_scorer import RougeScorer
    return RougeScorer(["rougeL"], tokenizer=_Stems(PorterStemmer().stem))


@dataclass(frozen=True)
class _Stems:
    """The tokenizer of `rouge_score`, with stemming, for words in any script."""

    stem: Callable[[str], str]

    def tokenize(self, text: str) -> list[str]:
        """The stems of a text's words; words of up to three letters stay as they are."""
        return [self.stem(word) if len(word) > 3 else word for word in list_words(text)]


def bleu_1(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Corpus-level BLEU-1 in lower case, from 0 to 1, by `sacrebleu`.

    Its default tokenizer ("13a") knows spaces and the punctuation of ASCII; `space_words` gives it
    the words of other scripts. In ASCII the score is that of `sacrebleu`.

    Raises:
        RagJaxError: there are no predictions, or a prediction has no answers.
    """
    from sacrebleu.metrics import BLEU  # imported here: slow, and asking needs none

    if not predictions or not all(answers):
        raise RagJaxError("answers: a question without answers cannot be scored")
    # sacrebleu takes the first references of all predictions, then the second references, and so
    # on, with None for a missing reference.
    width = max(map(len, answers))
    spaced = [[space_words(answer) for answer in listed] for listed in answers]
    references = [[a[i] if i < len(a) else None for a in spaced] for i in range(width)]
    scorer = BLEU(lowercase=True, max_ngram_order=1)
    said = [space_words(drop_thoughts(text)) for text in predictions]
    score = scorer.corpus_score(said, references).score
    return min(1.0, score / 100)


def distinct_ngrams(texts: Sequence[str], n: int) -> float | None:
    """The diversity of generated texts: their distinct n-grams as a share of all their n-grams.

    Over all texts together, as in table 5 of Lewis et al. 2020 (arXiv:2005.11401), who have n = 3.
    Words are those of `list_words`; the paper names no tokenizer. None if no text has n words.
    """
    ngrams = [
        tuple(words[start : start + n])
        for words in map(list_words, texts)
        for start in range(len(words) - n + 1)
    ]
    return len(set(ngrams)) / len(ngrams) if ngrams else None


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
    from scipy import stats  # imported here: slow, and asking needs none

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
