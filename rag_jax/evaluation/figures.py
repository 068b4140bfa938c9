"""Figures of a report, as plain values that its page draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """A chart of lines and points on axes from 0 to 1.

    A point and a line with the same name have the same colour and one entry in the legend. `x` and
    `y` are labels, and `guides` reference lines, dashed and grey.
    """

    x: str
    y: str
    lines: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    points: Mapping[str, Point] = field(default_factory=dict)
    guides: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    kind: str = field(default="lines", init=False)


@dataclass(frozen=True)
class Bars:
    """A bar chart on an axis from 0 to 1; `bars` are heights by name, one or None per group."""

    y: str
    groups: Sequence[str]
    bars: Mapping[str, Sequence[float | None]]
    kind: str = field(default="bars", init=False)


@dataclass(frozen=True)
class Costs:
    """A chart of scores from 0 to 1 against costs on a logarithmic axis.

    Points are coloured by group. A cost of 0 is at the left end of the axis.

    Attributes:
        points: cost and score by name.
        groups: of every point.
        frontier: names of the points that a dashed line joins, by rising cost.
    """

    x: str
    y: str
    points: Mapping[str, Point]
    groups: Mapping[str, str]
    frontier: Sequence[str] = ()
    kind: str = field(default="costs", init=False)


Figure = Chart | Bars | Costs
