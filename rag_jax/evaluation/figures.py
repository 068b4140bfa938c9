"""Pictures for the report: SVG that needs no other file."""

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Point = tuple[float, float]

# Okabe and Ito's palette, which is told apart without hue too, and four of Tol's for long lists.
_COLOURS = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#444444"),
    *("#882255", "#117733", "#ddcc77", "#aa4499"),
)
_WIDTH, _HEIGHT, _LEFT, _TOP, _BOTTOM = 360, 260, 56, 12, 44
_LETTER = 7.5  # the width of one, at most, in the page's text of 13 pixels


@dataclass(frozen=True)
class Chart:
    """Lines and marked points by their names, on axes from 0 to 1; a point with a line's name has
    its colour.

    Attributes:
        x, y: what the axes are.
        lines: drawn through their points in the order given.
        points: marked and named each.
        guides: lines to compare with, dashed and grey.
    """

    x: str
    y: str
    lines: Mapping[str, Sequence[Point]] = field(default_factory=dict)
    points: Mapping[str, Point] = field(default_factory=dict)
    guides: Mapping[str, Sequence[Point]] = field(default_factory=dict)

    def draw(self) -> str:
        """The chart as an `svg` element."""
        parts, entries = [_draw_axes(self.x, self.y)], {}
        names = dict.fromkeys([*self.lines, *self.points])
        colours = dict(zip(names, itertools.cycle(_COLOURS), strict=False))
        for name, points in self.guides.items():
            parts.append(f'<polyline points="{_place(points)}" class="guide"/>')
            entries[name] = '<line x1="0" y1="8" x2="18" y2="8" class="guide"/>'
        for name, points in self.lines.items():
            style = f'fill="none" stroke="{colours[name]}" stroke-width="2"'
            parts.append(f'<polyline points="{_place(points)}" {style}/>')
            entries[name] = f'<line x1="0" y1="8" x2="18" y2="8" {style}/>'
        for name, point in self.points.items():
            x, y = _scale(point)
            mark = f'r="4.5" fill="{colours[name]}" stroke="#fff"'
            title = f"<title>{html.escape(name)}: {point[0]:.3f}, {point[1]:.3f}</title>"
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" {mark}>{title}</circle>')
            entries[name] = entries.get(name, "") + f'<circle cx="9" cy="8" {mark}/>'
        return _finish(parts, entries)


@dataclass(frozen=True)
class Bars:
    """Groups of bars from 0 to 1, a bar of each group for each name.

    Attributes:
        y: what the bars' height is.
        groups: their names, along the axis.
        bars: for each name its heights, one a group; None where there is none.
    """

    y: str
    groups: Sequence[str]
    bars: Mapping[str, Sequence[float | None]]

    def draw(self) -> str:
        """The bars as an `svg` element."""
        room = _WIDTH / max(len(self.groups), 1)
        width = 0.8 * room / max(len(self.bars), 1)
        parts, entries = [_draw_axes("", self.y, ticks=False)], {}
        for group, name in enumerate(self.groups):
            x = _LEFT + (group + 0.5) * room
            parts.append(
                f'<text x="{x:.1f}" y="{_TOP + _HEIGHT + 18}" text-anchor="middle">'
                f"{html.escape(name)}</text>"
            )
        for number, (name, heights) in enumerate(self.bars.items()):
            colour = f'fill="{_COLOURS[number % len(_COLOURS)]}"'
            for group, height in enumerate(heights):
                if height is not None:
                    x = _LEFT + group * room + 0.1 * room + number * width
                    _, y = _scale((0, height))
                    size = f'width="{width:.1f}" height="{_TOP + _HEIGHT - y:.1f}"'
                    title = f"<title>{html.escape(name)}: {height:.3f}</title>"
                    parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} {colour}>{title}</rect>')
            entries[name] = f'<rect x="4" y="2" width="12" height="12" {colour}/>'
        return _finish(parts, entries)


def _scale(point: Point) -> Point:
    return _LEFT + point[0] * _WIDTH, _TOP + (1 - point[1]) * _HEIGHT


def _place(points: Sequence[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in map(_scale, points))


def _draw_axes(x: str, y: str, *, ticks: bool = True) -> str:
    """A frame with lines at every fifth, and the axes' names."""
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


def _finish(parts: Sequence[str], entries: Mapping[str, str]) -> str:
    """The parts with a legend, of a mark for each name."""
    legend = [
        f'<g transform="translate({_LEFT + _WIDTH + 24} {_TOP + 20 * number})">{mark}'
        f'<text x="26" y="12">{html.escape(name)}</text></g>'
        for number, (name, mark) in enumerate(entries.items())
    ]
    height = max(_TOP + _HEIGHT + _BOTTOM, _TOP + 20 * len(entries))
    width = _LEFT + _WIDTH + 24 + 26 + _LETTER * max(map(len, entries), default=0)
    size = f'viewBox="0 0 {width:.0f} {height}" width="{width:.0f}"'
    return f'<svg {size} class="chart" role="img">' + "\n".join([*parts, *legend]) + "</svg>"
