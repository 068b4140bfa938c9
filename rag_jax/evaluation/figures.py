"""Figures of the report, as self-contained SVG."""

import html
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

# Okabe and Ito's palette, which is safe for colour-blind readers, and four of Tol's colours.
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#444444"),
    *("#882255", "#117733", "#ddcc77", "#aa4499"),
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 360, 260, 56, 12, 44
_LETTER = 7.5  # maximum width of a letter in the page's text of 13 pixels


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

    def draw(self) -> str:
        """The chart as an `svg` element."""
        parts, legend = [_draw_axes(self.x, self.y)], {}
        names = dict.fromkeys([*self.lines, *self.points])
        colours = dict(zip(names, itertools.cycle(_COLOURS), strict=False))
        for name, points in self.guides.items():
            parts.append(f'<polyline points="{_place(points)}" class="guide"/>')
            legend[name] = '<line x1="0" y1="8" x2="18" y2="8" class="guide"/>'
        for name, points in self.lines.items():
            style = f'fill="none" stroke="{colours[name]}" stroke-width="2"'
            parts.append(f'<polyline points="{_place(points)}" {style}/>')
            legend[name] = f'<line x1="0" y1="8" x2="18" y2="8" {style}/>'
        for name, point in self.points.items():
            x, y = _scale(point)
            mark = f'r="4.5" fill="{colours[name]}" stroke="#fff"'
            title = f"<title>{html.escape(name)}: {point[0]:.3f}, {point[1]:.3f}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {mark}>{title}</circle>')
            legend[name] = legend.get(name, "") + f'<circle cx="9" cy="8" {mark}/>'
        return _finish(parts, legend)


@dataclass(frozen=True)
class Bars:
    """A bar chart on an axis from 0 to 1; `bars` are heights by name, one or None per group."""

    y: str
    groups: Sequence[str]
    bars: Mapping[str, Sequence[float | None]]

    def draw(self) -> str:
        """The bar chart as an `svg` element."""
        group_width = _WIDTH / max(len(self.groups), 1)
        width = 0.8 * group_width / max(len(self.bars), 1)
        parts, legend = [_draw_axes("", self.y, ticks=False)], {}
        for group, name in enumerate(self.groups):
            x = _LEFT + (group + 0.5) * group_width
            parts.append(
                f'<text x="{x:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">'
                f"{html.escape(name)}</text>"
            )
        for number, (name, heights) in enumerate(self.bars.items()):
            colour = f'fill="{_COLOURS[number % len(_COLOURS)]}"'
            for group, height in enumerate(heights):
                if height is not None:
                    x = _LEFT + group * group_width + 0.1 * group_width + number * width
                    _, y = _scale((0, height))
                    size = f'width="{width:.1f}" height="{_TOP + _HEIGHT - y:.1f}"'
                    title = f"<title>{html.escape(name)}: {height:.3f}</title>"
                    parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} {colour}>{title}</rect>')
            legend[name] = f'<rect x="4" y="2" width="12" height="12" {colour}/>'
        return _finish(parts, legend)


@dataclass(frozen=True)
class Costs:
    """A chart of scores from 0 to 1 against costs on a logarithmic axis.

    Points are numbered, as their entries in the legend are, and coloured by group. A cost of 0 is
    at the left end of the axis.

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

    def draw(self) -> str:
        """The chart as an `svg` element."""
        costs = [cost for cost, _ in self.points.values() if cost > 0] or [1.0]
        # A whole number of decades, at least one, after room for a cost of 0.
        low, high = math.floor(math.log10(min(costs))), math.ceil(math.log10(max(costs)))
        high = max(high, low + 1)
        zero = any(cost <= 0 for cost, _ in self.points.values())
        start = low - (high - low) / 8 if zero else low

        def place(point: Point) -> Point:
            decades = math.log10(point[0]) if point[0] > 0 else start
            return _scale(((decades - start) / (high - start), point[1]))

        ticks = {place((10.0**n, 0))[0]: _name_decade(n) for n in range(low, high + 1)}
        ticks |= {_scale((0, 0))[0]: "0"} if zero else {}
        parts, legend = [_draw_axes(self.x, self.y, ticks=False), _draw_ticks(ticks)], {}
        if self.frontier:
            line = " ".join("{:.1f},{:.1f}".format(*place(self.points[n])) for n in self.frontier)
            parts.append(f'<polyline points="{line}" class="guide"/>')
        names = dict.fromkeys(self.groups.values())
        colours = dict(zip(names, itertools.cycle(_COLOURS), strict=False))
        for number, (name, point) in enumerate(self.points.items(), start=1):
            (x, y), colour = place(point), colours[self.groups[name]]
            mark = f'r="4.5" fill="{colour}" stroke="#fff"'
            title = f"<title>{html.escape(name)}: {point[0]:.4g}, {point[1]:.3f}</title>"
            parts.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" {mark}>{title}</circle>'
                f'<text x="{x + 6:.1f}" y="{y - 4:.1f}" fill="{colour}">{number}</text>'
            )
            legend[f"{number} {name}"] = f'<circle cx="9" cy="8" {mark}/>'
        return _finish(parts, legend)


def _name_decade(number: int) -> str:
    """A power of ten as it is written on an axis."""
    return f"{10**number:,}" if 0 <= number < 6 else f"{10.0**number:g}"


def _draw_ticks(ticks: Mapping[float, str]) -> str:
    """Grid lines from the horizontal axis up, with their labels below, by their place."""
    return "\n".join(
        f'<line x1="{x:.1f}" y1="{_TOP}" x2="{x:.1f}" y2="{_TOP + _HEIGHT}" class="grid"/>'
        f'<text x="{x:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">{label}</text>'
        for x, label in ticks.items()
    )


def _scale(point: Point) -> Point:
    return _LEFT + point[0] * _WIDTH, _TOP + (1 - point[1]) * _HEIGHT


def _place(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(_scale, points))


def _draw_axes(x: str, y: str, *, ticks: bool = True) -> str:
    """Grid lines and tick labels at every fifth, and the labels of the axes."""
    parts = []
    for fifth in range(6):
        value = fifth / 5
        across, down = _scale((value, value))
        parts.append(
            f'<line x1="{_LEFT}" y1="{down:.1f}" x2="{_LEFT + _WIDTH}" y2="{down:.1f}" '
            f'class="grid"/><text x="{_LEFT - 6}" y="{down + 4:.1f}" text-anchor="end">'
            f"{value:.1f}</text>"
        )
        if ticks:
            parts.append(
                f'<text x="{across:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">'
                f"{value:.1f}</text>"
            )
    middle = _TOP + _HEIGHT / 2
    parts.append(
        f'<text x="{_LEFT + _WIDTH / 2}" y="{_TOP + _HEIGHT + 38}" text-anchor="middle">'
        f'{html.escape(x)}</text><text x="14" y="{middle}" text-anchor="middle" '
        f'transform="rotate(-90 14 {middle})">{html.escape(y)}</text>'
    )
    return "\n".join(parts)


def _finish(parts: Sequence[str], legend: Mapping[str, str]) -> str:
    """The `svg` element with all parts and a legend, which maps names to their marks."""
    entries = [
        f'<g transform="translate({_LEFT + _WIDTH + 24} {_TOP + 20 * number})">{mark}'
        f'<text x="26" y="12">{html.escape(name)}</text></g>'
        for number, (name, mark) in enumerate(legend.items())
    ]
    height = max(_TOP + _HEIGHT + _BOTTOM, _TOP + 20 * len(legend))
    width = _LEFT + _WIDTH + 24 + 26 + _LETTER * max(map(len, legend), default=0)
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}"'
    return f'<svg {size} class="chart" role="img">' + "\n".join([*parts, *entries]) + "</svg>"
