"""What a choice of sources is worth, against slow references."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rag_jax.evaluation.routing import analyse, analyse_choices, compare, list_tables, list_trivial


class Source(NamedTuple):
    name: str
    kind: str


TWO = (Source("Self", "verbalise"), Source("Wiki", "search"))
THREE = (*TWO, Source("Other", "search"))
SHARES = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9])


@st.composite
def draw_rows(draw, sources=TWO):
    rows = []
    for number in range(draw(st.integers(1, 12))):
        correct = [draw(st.sampled_from([0.0, 1.0])) for _ in sources]
        chosen = draw(st.integers(0, len(sources) - 1))
        mass = draw(SHARES)
        rows.append(
            {
                "scores": [draw(SHARES) for _ in sources],
                "mass": mass,
                "search": mass,
                "correct_by_source": correct,
                "number": chosen,
                "correct": correct[chosen],
                "retrieved": float(chosen > 0),
                "popularity": draw(st.sampled_from([number, None])),
            }
        )
    return rows


@given(draw_rows())
def test_frontier(rows):
    found = analyse_choices(rows, TWO)["frontier"]
    rates = [point["retrieval_rate"] for point in found["points"]]
    assert rates == sorted(set(rates)) and (rates[0], rates[-1]) == (0, 1)
    for point in found["points"]:
        searched = [point["tau"] is None or row["search"] > point["tau"] for row in rows]
        right = [row["correct_by_source"][s] for row, s in zip(rows, searched, strict=True)]
        assert point["accuracy"] == pytest.approx(np.mean(right))
        assert point["retrieval_rate"] == pytest.approx(np.mean(searched))
    area = 0.0
    for a, b in zip(found["points"], found["points"][1:], strict=False):
        width = b["retrieval_rate"] - a["retrieval_rate"]
        area += width * (a["accuracy"] + b["accuracy"]) / 2
    assert found["area"] == pytest.approx(area)
    assert found["area"] <= found["area_oracle"] + 1e-9
    assert found["area_random"] <= found["area_oracle"] + 1e-9


def judge_slowly(row):
    """Whether a source was rightly chosen, and whether searching was."""
    internal, *external = row["correct_by_source"]
    better = max(external) > internal
    if not better:
        return row["number"] == 0, better
    return row["number"] > 0 and row["correct_by_source"][row["number"]] == max(external), better


@given(draw_rows() | draw_rows(THREE))
def test_choices(rows):
    sources = TWO if len(rows[0]["scores"]) == 2 else THREE
    found = analyse_choices(rows, sources)
    judged = [judge_slowly(row) for row in rows]
    assert found["choice_accuracy"] == pytest.approx(np.mean([right for right, _ in judged]))
    assert found["retrieval_better"] == pytest.approx(np.mean([better for _, better in judged]))
    # The chance that a question that search helps scores above one that it does not.
    scores = {side: [] for side in (True, False)}
    for row, (_, better) in zip(rows, judged, strict=True):
        scores[better].append(row["search"])
    pairs = [(a > b) + (a == b) / 2 for a in scores[True] for b in scores[False]]
    if pairs:
        assert found["auroc"] == pytest.approx(np.mean(pairs))
    else:
        assert found["auroc"] is None
    totals = [row["mass"] + row["scores"][0] for row in rows]
    shares = [row["mass"] / t if t else 0.5 for row, t in zip(rows, totals, strict=True)]
    brier = np.mean([(s - better) ** 2 for s, (_, better) in zip(shares, judged, strict=True)])
    assert found["calibration"]["brier"] == pytest.approx(brier)
    assert sum(b["n"] for b in found["calibration"]["bins"]) == len(rows)
    thirds = found["by_popularity"].values()
    total = sum(third["n"] * third["accuracy"] for third in thirds)
    known = [row for row in rows if row["popularity"] is not None]
    assert total == pytest.approx(sum(row["correct"] for row in known))


def test_several_indexes_are_searched_by_their_scores():
    """At the threshold's other side a question goes to the index with the larger score."""
    row = {"number": 0, "correct": 0.0, "retrieved": 0.0, "popularity": 1}
    rows = [
        row | {"scores": [0.1, 0.2, 0.7], "mass": 0.8, "correct_by_source": [0.0, 0.0, 1.0]},
        row | {"scores": [0.1, 0.6, 0.3], "mass": 0.7, "correct_by_source": [0.0, 0.0, 1.0]},
    ]
    rows = [r | {"search": r["mass"]} for r in rows]
    points = analyse_choices(rows, THREE)["frontier"]["points"]
    assert [(p["tau"], p["retrieval_rate"], p["accuracy"]) for p in points] == [
        (0.8, 0, 0),
        (0.7, 0.5, 0.5),
        (None, 1, 0.5),
    ]


CORRECT = [[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 1]]


def take(numbers, correct=CORRECT, search=(0.5,) * 5):
    shared = {"scores": [0.5, 0.3, 0.2], "mass": 0.5, "popularity": None, "cut_off": False}
    return [
        shared
        | {"number": number, "correct_by_source": right, "correct": float(right[number])}
        | {"retrieved": float(number > 0), "fell_back": False, "search": score}
        for number, right, score in zip(numbers, correct, search, strict=True)
    ]


def test_trivial_routers_are_in_the_tables_for_every_model():
    """Verbalising is right where no search is better, a search where it is the best of them."""
    other = [[1, 0, 0]] * 5
    predictions = {
        "direct": [],
        "verbalise": take([0] * 5),
        "retrieve": take([1] * 5),
        "retrieve_Wiki": take([1] * 5),
        "retrieve_Other": take([2] * 5),
        "srrag": take([0, 1, 2, 0, 1]),
        "selective": take([0, 0, 0, 0, 1], other),
        "selective_fixed": take([1] * 5, other),
    }
    shares = {"share": dict.fromkeys(("Self", "Wiki", "Other"), 1 / 3), "flipped_by_verbalising": 0}
    labels = shares | {"share_closed_book": shares["share"]}
    routing, compared = analyse(predictions, THREE), compare(predictions, THREE)
    taus = {"srrag": 0.25, "selective": 0.5}
    statistics = {"labels": labels, "datastore": shares}
    tables = list_tables(routing, compared, statistics, predictions, THREE, taus)
    table = next(rows for title, rows in tables.items() if title.startswith("Choice of"))
    assert {len(row) for row in table} == {8}
    assert {row[0]: row[1] for row in table[1:]} == {
        "srrag": 1.0,
        "selective": pytest.approx(4 / 5),
        "selective_fixed": 0.0,
        "always verbalise": pytest.approx(2 / 5),
        "always retrieve": pytest.approx(2 / 5),
        "always retrieve_Wiki": pytest.approx(2 / 5),
        "always retrieve_Other": pytest.approx(2 / 5),
        "selective, always verbalise": 1.0,
        "selective, always retrieve": 0.0,
        "selective, always retrieve_Wiki": 0.0,
        "selective, always retrieve_Other": 0.0,
    }
    assert all(row[2:] == ["-"] * 6 for row in table[4:])
    title, routers = next(item for item in tables.items() if item[0].startswith("Routers"))
    assert "of srrag, 0.600" in title
    assert [row[0] for row in routers[1:]] == [row[0] for row in table[1:]]
    by_name = {row[0]: row for row in routers[1:]}
    assert by_name["srrag"][1:5] == ["0.25", 0.6, pytest.approx(0.8), "0.440"]
    assert by_name["srrag"][5::2] == ["-"] * 3
    assert by_name["always verbalise"][1:4] == ["-", 0.0, pytest.approx(0.2)]
    assert by_name["always retrieve_Other"][1:4] == ["-", 1.0, pytest.approx(0.4)]
    # One model's trivial routers have one curve, a straight line.
    assert len({tuple(by_name[n][4::2]) for n in ("always verbalise", "always retrieve")}) == 1
    assert by_name["always verbalise"][6] == "0.500"
    assert by_name["selective, always retrieve"][3:5] == [0.0, "0.400"]


def test_datasets_that_are_told_apart():
    """In one a search is always scored higher than in the other; within each the order is wrong."""
    # Retrieval is better for the second, third and fifth question.
    correct = [[1, 0], [0, 1], [0, 1], [1, 1], [0, 1], [1, 0]]
    scores = [0.9, 0.8, 0.7, 0.3, 0.2, 0.1]
    names = ["wiki"] * 3 + ["own"] * 3
    rows = [
        {"scores": [1 - score, score], "mass": score, "search": score, "popularity": None}
        | {"number": int(score > 0.5), "retrieved": float(score > 0.5), "dataset": name}
        | {"correct_by_source": right, "correct": right[int(score > 0.5)]}
        | {"cut_off": False, "fell_back": False}
        for score, right, name in zip(scores, correct, names, strict=True)
    ]
    shares = {"share": {"Self": 0.5, "Wiki": 0.5}}
    labels = shares | {"share_closed_book": shares["share"], "flipped_by_verbalising": 0}

    def tabulate(rows):
        predictions = dict.fromkeys(("srrag", "verbalise", "retrieve"), rows)
        settings = {"labels": labels, "datastore": shares}, predictions, TWO, {"srrag": 0.5}
        return list_tables(analyse(predictions, TWO), compare(predictions, TWO), *settings)

    title, tables = "Choice of the source within each dataset", tabulate(rows)
    head, *table = tables[title]
    assert [row[:2] for row in table] == [["wiki", "srrag"], ["own", "srrag"]]
    found = [dict(zip(head, row, strict=True)) for row in table]
    shown = ("retrieval better", "retrieval rate", "right source", "AUROC")
    expected = [(2 / 3, 1, 2 / 3, 0), (1 / 3, 0, 2 / 3, 0.5)]
    for row, values in zip(found, expected, strict=True):
        assert [row[name] for name in shown] == pytest.approx(list(values))
    overall = next(iter(tables.values()))
    assert overall[1][2] == pytest.approx(5 / 9)
    single = [{name: row[name] for name in row if name != "dataset"} for row in rows]
    assert title not in tabulate(single)


def test_the_strongest_index_is_always_retrieved_from():
    rows = take([0] * 5)
    rows[1] = rows[1] | {"scores": [0.5, 0.1, 0.4]}
    trivial = list_trivial(rows, THREE)
    assert [row["number"] for row in trivial["retrieve"]] == [1, 2, 1, 1, 1]
    assert [row["correct"] for row in trivial["retrieve"]] == [1, 0, 0, 0, 1]
    assert [row["correct"] for row in trivial["retrieve_Other"]] == [0, 0, 1, 0, 1]
