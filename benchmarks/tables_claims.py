"""The papers' claims, and what came out of them here, from `results/systems`; see `tables.py`.

Numbers of the papers are differences of their tables; where a table has several models or datasets
they are the mean over them.
"""

import json
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from tables_systems import ENCYCLOPEDIA, HALF, RESULTS, RUNS, Rows, read_run

REPRODUCED, NOT_SEEN, UNDECIDED = "reproduced", "not seen", "undecided"
PILOT = RESULTS.parent / "pilot_cpu.json"
UNABLE = "these data cannot show it"


class Trial(NamedTuple):
    """A run in which a claim could come out.

    Attributes:
        run: a name of `systems.py`.
        row: that is compared with the run's method.
        able: whether the data could show the claim, however many questions were asked.
        sign: 1 if the method is claimed to be better than the row, -1 if the row is.
        compared: the comparison of the run's results that the row is in.
    """

    data: str
    run: str
    row: str
    score: str
    able: bool = True
    sign: int = 1
    compared: str = "paired"


class Claim(NamedTuple):
    """A claim of a paper: the method is better than something, by so much.

    Attributes:
        effect: the paper's difference, as a share of 1; None if it has no number for it.
    """

    text: str
    effect: float | None
    trials: tuple[Trial, ...]


class Found(NamedTuple):
    """What came out of a trial: how much better the method is, on `n` questions."""

    n: int
    difference: float
    low: float
    high: float
    verdict: str


def _try(data: str, run: str, score: str) -> Callable[..., Trial]:
    """Makes trials of a run."""
    return lambda row, own=score, **options: Trial(data, run, row, own, **options)


_ROUTED = _try(ENCYCLOPEDIA, "srrag", "accuracy")
_ABLATED = _try(ENCYCLOPEDIA, "srrag_ablations", "accuracy")
_POPQA = _try("PopQA", "srrag_popqa", "accuracy")
_SOURCES = _try("encyclopedia, two indexes", "srrag_two_indexes", "accuracy")
_REAL = _try("PopQA and SQuAD, two indexes", "srrag_sources", "accuracy")
_RAG = _try(ENCYCLOPEDIA, "rag", "exact_match")
_RAG_SQUAD = _try("SQuAD", "rag_squad", "exact_match")
_FOUND = {"SQuAD": "rag_squad", "SQuAD, the retriever alone": "rag_squad_retriever"}
_SELF = _try(ENCYCLOPEDIA, "self_retrieval", "hits@1")
_SQUAD = _try("SQuAD", "self_retrieval_squad", "hits@1")
_PRAG = _try(ENCYCLOPEDIA, "prag", "f1")
_PRAG_ABLATED = _try(ENCYCLOPEDIA, "prag_ablations", "f1")
_HALF_ABLATED = _try(HALF, "prag_popqa", "f1")
_PRAG_SQUAD = _try("SQuAD", "prag_squad", "f1")
_2WIKI = _try("2WikiMultihopQA", "prag_2wiki", "f1")
_MIXED = _try("PopQA and ARC, 0.5B", "srrag_mixture", "accuracy")
_SHIFT = _try("TriviaQA, not trained on, 0.5B", "srrag_shift", "accuracy")
_HALF_SRRAG = _try(HALF, RUNS["srrag"][HALF], "accuracy")
_HALF_RAG = _try(HALF, RUNS["rag"][HALF], "exact_match")
_HALF_SELF = _try(HALF, RUNS["self_retrieval"][HALF], "hits@1")
_HALF_PRAG = _try(HALF, RUNS["prag"][HALF], "f1")

CLAIMS: dict[str, tuple[Claim, ...]] = {
    "srrag": (
        Claim(
            "more accurate than the same weights that always retrieve",
            0.014,
            (
                _ROUTED("retrieve", able=False),
                _POPQA("retrieve", able=False),
                _REAL("retrieve"),
                _HALF_SRRAG("retrieve", able=False),
                _MIXED("retrieve"),
            ),
        ),
        Claim("more accurate than selective retrieval", 0.032, (_ABLATED("selective"),)),
        Claim(
            "more accurate than the untrained model that always retrieves",
            0.075,
            (_ABLATED("raw_retrieve"),),
        ),
        Claim(
            "the datastore raises accuracy",
            0.014,
            (
                _ROUTED("without_knn", able=False),
                _POPQA("without_knn", able=False),
                _SOURCES("without_knn", able=False),
                _REAL("without_knn"),
                _HALF_SRRAG("without_knn", able=False),
                _MIXED("without_knn"),
                _SHIFT("without_knn", able=False),
            ),
        ),
        Claim("so does verbalising in the labels", 0.038, (_ABLATED("without_verbalisation"),)),
        Claim("so do stage 2's preferences", 0.032, (_ABLATED("without_stage2"),)),
    ),
    "rag": (
        Claim(
            "trained together better than with a frozen retriever",
            0.026,
            (_RAG("frozen"), _RAG_SQUAD("frozen"), _HALF_RAG("frozen", able=False)),
        ),
        Claim(
            "training has the retriever find an answer among five passages more often",
            None,
            tuple(Trial(d, r, "frozen", "answer@5", compared="hits") for d, r in _FOUND.items()),
        ),
        Claim("better than trained with BM25's passages", 0.130, (_RAG("bm25"),)),
        Claim("better than trained without passages", 0.079, (_RAG("closed_book"),)),
        Claim(
            "RAG-Sequence better than RAG-Token",
            0.010,
            (_RAG("token"), _RAG_SQUAD("token"), _HALF_RAG("token")),
        ),
    ),
    "self_retrieval": (
        Claim(
            "finds the passage more often than BM25",
            0.431,
            (_SELF("bm25"), _SQUAD("bm25"), _HALF_SELF("bm25")),
        ),
        Claim(
            "more often than a trained encoder",
            0.074,
            (_SELF("dense_tuned"), _SQUAD("dense_tuned"), _HALF_SELF("dense_tuned")),
        ),
        Claim(
            "answers better than a trained encoder with the same reader",
            0.045,
            tuple(t("dense_tuned", "exact_match") for t in (_SELF, _SQUAD, _HALF_SELF)),
        ),
        Claim(
            "self-assessment raises MRR@5",
            0.087,
            tuple(t("without_assessment", "mrr@5") for t in (_SELF, _SQUAD, _HALF_SELF)),
        ),
        Claim(
            "so does indexing",
            0.081,
            tuple(t("without_indexing", "mrr@5") for t in (_SELF, _HALF_SELF)),
        ),
        Claim(
            "so do titles",
            0.124,
            tuple(t("without_titles", "mrr@5") for t in (_SELF, _HALF_SELF)),
        ),
    ),
    "prag": (
        Claim(
            "adapters better than the passages in the context",
            0.045,
            (
                _PRAG("in_context"),
                _PRAG("in_context", "match"),
                _PRAG_SQUAD("in_context"),
                _2WIKI("in_context"),
                _HALF_PRAG("in_context"),
            ),
        ),
        Claim(
            "better than the augmented passages in the context",
            0.058,
            (
                _PRAG("in_context_augmented"),
                _PRAG("in_context_augmented", "match"),
                _PRAG_SQUAD("in_context_augmented"),
                _2WIKI("in_context_augmented"),
                _HALF_PRAG("in_context_augmented"),
            ),
        ),
        Claim(
            "both together better than adapters alone",
            0.047,
            (
                _PRAG("both", sign=-1),
                _PRAG("both", "match", sign=-1),
                _PRAG_SQUAD("both", sign=-1),
                _2WIKI("both", sign=-1),
                _HALF_PRAG("both", sign=-1),
            ),
        ),
        Claim(
            "an adapter that was warmed up is better",
            0.067,
            (_PRAG_ABLATED("warm_start", sign=-1), _HALF_ABLATED("warm_start", sign=-1)),
        ),
        Claim(
            "questions about the document help",
            None,
            (_PRAG_ABLATED("without_questions"), _HALF_ABLATED("without_questions")),
        ),
        Claim(
            "rewrites of the document help",
            None,
            (_PRAG_ABLATED("without_rewrites"), _HALF_ABLATED("without_rewrites")),
        ),
    ),
    "dpr": (
        Claim(
            "the trained encoders find an answer among twenty passages more often than BM25",
            0.193,
            (Trial(ENCYCLOPEDIA, "dpr", "bm25", "answer@20"),),
        ),
    ),
}
SYSTEMS = {
    "srrag": ("Self-Routing RAG", "Wu 2025", "the model writes down what it knows, or searches"),
    "rag": ("RAG", "Lewis 2020", "marginalise over passages, train both"),
    "self_retrieval": ("Self-Retrieval", "Tang 2024", "one model is index, retriever, reranker"),
    "prag": ("Parametric RAG", "Su 2025", "documents are LoRAs, merged for a question"),
    "dpr": ("Dense retrievers", "Karpukhin 2020", "encoders trained with hard negatives"),
}


def judge(claim: Claim, trial: Trial) -> Found:
    """What came out: reproduced if the interval is above 0, not seen if the paper's number is not.

    That is, if the paper's difference is above the interval, and so would have shown with as many
    questions. Without a number of the paper, an interval below 0 is "not seen". Where what the
    method is compared with scores so high that the paper's difference has no room, a difference
    that may be 0 says nothing.
    """
    run = read_run(trial.run)
    paired = run[trial.compared]
    pair = paired["rows"][trial.row][trial.score]
    differences = (pair["difference"], *pair["ci95"])  # of the row from the method
    difference, *ends = (-trial.sign * value + 0.0 for value in differences)
    low, high = sorted(ends)
    other = trial.row if trial.sign == 1 else paired["reference"]
    effect = claim.effect or 0
    has_room = not effect or run["methods"][other][trial.score] + effect <= 1
    if trial.able and low > 0:
        verdict = REPRODUCED
    elif not trial.able or (high >= 0 and not has_room):
        verdict = UNABLE
    else:
        verdict = NOT_SEEN if high < effect else UNDECIDED
    return Found(pair["n"], difference, low, high, verdict)


def list_claims(system: str) -> Rows:
    """A row for each trial of a system's claims."""
    rows = [["claim", "paper", "data", "questions", "score", "here", "95 % interval", "verdict"]]
    for claim in CLAIMS[system]:
        shown = [claim.text, "" if claim.effect is None else f"{claim.effect:+.3f}"]
        for trial in claim.trials:
            found = judge(claim, trial)
            interval = f"{found.low:+.3f} to {found.high:+.3f}"
            score = trial.score.replace("_", " ")
            here = [str(found.n), score, f"{found.difference:+.3f}", interval, found.verdict]
            rows.append([*shown, trial.data, *here])
            shown = ["", ""]
    return rows


def count_verdicts(system: str, *, made_up: bool) -> str:
    """How many trials of a system's claims came out how, on made-up or on real text.

    A run in which a claim is judged by several scores counts once, by the first, the paper's.
    """
    counts: Counter[str] = Counter()
    for claim in CLAIMS[system]:
        first = {trial.run: trial for trial in reversed(claim.trials)}
        for trial in first.values():
            if trial.data.startswith(ENCYCLOPEDIA) == made_up:
                counts[judge(claim, trial).verdict] += 1
    order = (REPRODUCED, NOT_SEEN, UNDECIDED)
    return ", ".join(f"{counts[name]} {name}" for name in order if counts[name]) or "-"


def list_verdicts() -> Rows:
    """For each system how many of its paper's claims came out, on made-up and on real text."""
    rows = [["system", "paper", "idea", "on the encyclopedia", "on real text"]]
    for system, (title, *about) in SYSTEMS.items():
        counts = (count_verdicts(system, made_up=made_up) for made_up in (True, False))
        rows.append([f"[{title}](PAGES/systems/{system}.md)", *about, *counts])
    return rows


def list_pilots() -> Rows:
    """What the untrained models make of datasets, and how often reading hurts and helps them."""
    alone = ("direct", "verbalise")
    rows = [["model", "data", "questions", *alone, "read", "reading hurts", "helps", "one label"]]
    for model, pilot in json.loads(PILOT.read_text("utf-8")).items():
        for data, found in pilot["datasets"].items():
            ways, n = (*alone, "read"), found["n"]
            accuracies = [f"{found[way]['accuracy']:.3f}" for way in ways]
            shares = [
                " / ".join(f"{found[way][effect] / n:.3f}" for way in alone)
                for effect in ("hurts", "helps")
            ]
            most = [max(found[w]["picked"].values()) / n for w in ways if "picked" in found[w]]
            shares.append(" / ".join(f"{share:.2f}" for share in most))
            rows.append([model, data, str(n), *accuracies, *shares])
    return rows


TABLES: dict[str, Callable[[], Rows]] = {
    "pilots": list_pilots,
    "verdicts": list_verdicts,
    **{f"claims_{system}": (lambda system=system: list_claims(system)) for system in CLAIMS},
}
