"""Plots as plain SVG: bars with the spread of the rounds, and lines for what grows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ("Bar", "Line", "bars", "lines")

_COLOURS = ("#1f5fa8", "#c4551d", "#3d8b40", "#7a4fa3", "#8a6d1a", "#4d4d4d")
_FONT = 'font-family="sans-serif" font-size="12" fill="#222"'
_WIDTH, _LABEL_WIDTH, _BAR_WIDTH, _BAR_HEIGHT = 760, 200, 430, 22
_PLOT = (70, 40, 480, 300)
"""Left, top, width and height of a line plot."""


@dataclass(frozen=True)
class Bar:
    """One bar, with the smallest and the largest round."""

    label: str
    value: float
    low: float
    high: float
    ours: bool = False


@dataclass(frozen=True)
class Line:
    """One line of (x, y) points, all positive."""

    label: str
    points: Sequence[tuple[float, float]]


def bars(title: str, drawn: Sequence[Bar]) -> str:
    """A bar for each server, from the top down."""
    largest = max(bar.high for bar in drawn)
    height = 50 + _BAR_HEIGHT * len(drawn)
    parts = [f'<text x="10" y="22" {_FONT} font-weight="bold">{escape(title)}</text>']
    for place, bar in enumerate(drawn):
        top = 38 + place * _BAR_HEIGHT
        middle = top + _BAR_HEIGHT / 2 - 2
        length, low, high = (_BAR_WIDTH * value / largest for value in (bar.value, bar.low, bar.high))
        colour = _COLOURS[0] if bar.ours else "#9aa7b4"
        parts += [
            f'<text x="{_LABEL_WIDTH - 8}" y="{middle + 4:.1f}" text-anchor="end" {_FONT}>{escape(bar.label)}</text>',
            f'<rect x="{_LABEL_WIDTH}" y="{top}" width="{length:.1f}" height="{_BAR_HEIGHT - 5}" fill="{colour}"/>',
            f'<path d="M{_LABEL_WIDTH + low:.1f} {middle:.1f}H{_LABEL_WIDTH + high:.1f}" stroke="#222"/>',
            f'<text x="{_LABEL_WIDTH + high + 8:.1f}" y="{middle + 4:.1f}" {_FONT}>{_shown(bar.value)}</text>',
        ]
    return _svg(parts, height)


def lines(title: str, drawn: Sequence[Line], *, across: str, up: str) -> str:
    """Lines over two axes of powers."""
    left, top, width, height = _PLOT
    points = [point for line in drawn for point in line.points]
    across_span, up_span = (_span([point[axis] for point in points]) for axis in (0, 1))

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return (
            left + width * _part(point[0], across_span),
            top + height * (1.0 - _part(point[1], up_span)),
        )

    parts = [
        f'<text x="10" y="22" {_FONT} font-weight="bold">{escape(title)}</text>',
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#999"/>',
        f'<text x="{left + width / 2}" y="{top + height + 38}" text-anchor="middle" {_FONT}>{escape(across)}</text>',
        f'<text x="18" y="{top + height / 2}" text-anchor="middle" {_FONT} '
        f'transform="rotate(-90 18 {top + height / 2})">{escape(up)}</text>',
    ]
    for value in sorted({point[0] for point in points}):
        x = place((value, up_span[0]))[0]
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle" {_FONT}>{_shown(value)}</text>')
    for value in _ticks(up_span):
        y = place((across_span[0], value))[1]
        parts.append(f'<path d="M{left} {y:.1f}h{width}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end" {_FONT}>{_shown(value)}</text>')
    for number, line in enumerate(drawn):
        colour = _COLOURS[number % len(_COLOURS)]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in map(place, line.points))
        parts.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        below = top + 14 + 18 * number
        parts.append(f'<path d="M{left + width + 16} {below - 4}h18" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{left + width + 40}" y="{below}" {_FONT}>{escape(line.label)}</text>')
    return _svg(parts, top + height + 52)


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low / 2, high * 2)


def _part(value: float, span: tuple[float, float]) -> float:
    return math.log(value / span[0]) / math.log(span[1] / span[0])


def _ticks(span: tuple[float, float]) -> list[float]:
    exponents = range(math.floor(math.log10(span[0])), math.ceil(math.log10(span[1])) + 1)
    values = [digit * 10.0**exponent for exponent in exponents for digit in (1, 2, 5)]
    return [value for value in values if span[0] <= value <= span[1]]


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"


def _svg(parts: Sequence[str], height: float) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height:.0f}">'
    return "\n".join([head, '<rect width="100%" height="100%" fill="#fff"/>', *parts, "</svg>"]) + "\n"
