"""Pictures: what is drawn where."""

import xml.etree.ElementTree as ElementTree

import pytest

from rag_jax.evaluation.figures import Bars, Chart, Costs


def find(svg, tag, **attributes):
    found = ElementTree.fromstring(svg).iter(tag)
    return [e for e in found if all(e.get(key) == value for key, value in attributes.items())]


def read_points(line):
    return [tuple(map(float, pair.split(","))) for pair in line.get("points").split()]


def test_lines_points_and_guides():
    chart = Chart(
        x="rate & <b>",
        y="accuracy",
        lines={"first": [(0, 0), (0.5, 1)], "second": [(0, 1), (1, 1)]},
        points={"here": (1, 0.5), "second": (0.5, 1)},
        guides={"random": [(0, 0), (1, 1)]},
    )
    svg = chart.draw()
    guide, first, second = find(svg, "polyline")
    assert guide.get("class") == "guide"
    (left, bottom), (right, top) = read_points(guide)
    assert left < right and top < bottom
    assert read_points(first) == [(left, bottom), ((left + right) / 2, top)]
    assert read_points(second) == [(left, top), (right, top)]
    assert first.get("stroke") != second.get("stroke")
    point = next(e for e in find(svg, "circle") if e.get("cx") == f"{right:.1f}")
    assert float(point.get("cy")) == pytest.approx((top + bottom) / 2)
    assert point.get("fill") not in (first.get("stroke"), second.get("stroke"))
    same = next(e for e in find(svg, "circle") if e.get("cy") == f"{top:.1f}")
    assert same.get("fill") == second.get("stroke")
    texts = [e.text for e in find(svg, "text")]
    assert texts.count("second") == 1
    assert {"rate & <b>", "accuracy", "first", "second", "here", "random", "0.2"} <= set(texts)


def test_bars():
    bars = Bars(y="accuracy", groups=["head", "tail"], bars={"a": [1, 0.5], "b": [None, 0.25]})
    svg = bars.draw()
    drawn = [e for e in find(svg, "rect") if len(e)]
    heights = [float(e.get("height")) for e in drawn]
    assert heights == [pytest.approx(heights[0] * share) for share in (1, 0.5, 0.25)]
    # Of one foot, side by side within a group.
    feet = {float(e.get("y")) + float(e.get("height")) for e in drawn}
    assert len(feet) == 1
    places = [float(e.get("x")) for e in drawn]
    assert places[0] < places[1] < places[2]
    assert places[2] - places[1] == pytest.approx(float(drawn[1].get("width")), abs=0.1)
    assert [e.text for e in find(svg, "title")] == ["a: 1.000", "a: 0.500", "b: 0.250"]


def test_scores_against_costs_of_several_decades():
    points = {"a": (0, 0.0), "b": (10, 0.5), "<c>": (1000, 1.0), "d": (100, 0.2)}
    groups = {"a": "one", "b": "two", "<c>": "two", "d": "one"}
    svg = Costs("bytes", "accuracy", points, groups, ("a", "b", "<c>")).draw()
    drawn = [e for e in find(svg, "circle") if len(e)]
    places = [(float(e.get("cx")), float(e.get("cy"))) for e in drawn]
    (line,) = find(svg, "polyline")
    assert read_points(line) == places[:3]
    ticks = {e.text: float(e.get("x")) for e in find(svg, "text")}
    # A decade has one width, and 0 is at the left end.
    assert places[0][0] == ticks["0"] < places[1][0] == ticks["10"]
    assert ticks["1,000"] - ticks["100"] == pytest.approx(ticks["100"] - ticks["10"], abs=0.2)
    fills = [e.get("fill") for e in drawn]
    assert fills[0] == fills[3] != fills[1] == fills[2]
    assert {"1 a", "3 <c>", "3", "bytes"} <= {*ticks}
    ((whole, _),) = [
        (float(e.get("cx")), e)
        for e in find(Costs("s", "y", {"x": (0.02, 1)}, {"x": "g"}).draw(), "circle")
        if len(e)
    ]
    assert 0 < whole < ticks["1,000"]


def test_nothing_to_draw():
    for empty in (Chart("x", "y"), Bars("y", [], {}), Costs("x", "y", {}, {})):
        assert not find(empty.draw(), "polyline") and not find(empty.draw(), "circle")
