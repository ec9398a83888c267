"""The curve of probability along a series as SVG that takes its colours from the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

COVID, NON_COVID = "COVID", "NonCOVID"

_WIDTH, _HEIGHT = 640, 200
_LEFT, _RIGHT, _TOP, _BOTTOM, _INSET = 40, 14, 12, 46, 8
_MARKED = 300
"""More slices than this are drawn as a band between the lowest and the highest of neighbours."""


@dataclass(frozen=True)
class SeriesCurve:
    """Probabilities of a series' slices.

    Attributes:
        at: where each slice lies, not falling.
        probability: of COVID, 0 to 1.
        label: of each slice.
        unit: of ``at``: ``mm``, or empty where it counts frames or slices.
        title: of the axis.
    """

    at: Sequence[float]
    probability: Sequence[float]
    label: Sequence[str]
    unit: str
    title: str

    @property
    def words(self) -> str:
        """What the curve shows, for everybody, screen readers included; empty where one slice is all."""
        if len(self.at) < 2:
            return ""
        peak = max(range(len(self.at)), key=self.probability.__getitem__)
        where = f"{round(self.at[peak], 1) + 0.0:g} {self.unit}".strip().replace("-", "−")
        return (
            f"Probability of COVID in {len(self.at)} slices: highest {self.probability[peak]:.3f} "
            f"at {where}, lowest {min(self.probability):.3f}."
        )

    @property
    def svg(self) -> Markup | None:
        """The curve as an ``<svg>`` element, None where one slice is all."""
        return Markup("".join(_drawn(self))) if len(self.at) > 1 else None  # noqa: S704 - numbers, constants


def _drawn(curve: SeriesCurve) -> list[str]:
    xs = [_x(value, curve) for value in curve.at]
    ys = [_y(value) for value in curve.probability]
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true" focusable="false" class="curve">',
        *_grid(curve),
    ]
    if len(xs) > _MARKED:
        parts.append(_band(xs, ys))
    else:
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(xs, ys, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="var(--muted)" stroke-width="1.2"/>')
        parts += [_marker(x, y, label) for x, y, label in zip(xs, ys, curve.label, strict=True)]
    return [*parts, "</svg>"]


def _x(value: float, curve: SeriesCurve) -> float:
    first, span = curve.at[0], curve.at[-1] - curve.at[0]
    inner = _WIDTH - _LEFT - _RIGHT - 2 * _INSET
    return _LEFT + _INSET + inner * ((value - first) / span if span > 0 else 0.5)


def _y(probability: float) -> float:
    return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (1 - probability)


def _grid(curve: SeriesCurve) -> list[str]:
    parts = []
    for value in (0.0, 0.5, 1.0):
        y = _y(value)
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - _RIGHT}" y2="{y:.1f}" class="rule"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>')
    for value in _ticks(curve.at[0], curve.at[-1]):
        x, foot = _x(value, curve), _HEIGHT - _BOTTOM
        parts.append(f'<line x1="{x:.1f}" y1="{foot}" x2="{x:.1f}" y2="{foot + 5}" class="rule"/>')
        text = f"{value:g}".replace("-", "−")
        parts.append(f'<text x="{x:.1f}" y="{foot + 18}" text-anchor="middle">{text}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{curve.title}</text>')
    return parts


def _ticks(first: float, last: float) -> list[float]:
    """Round numbers between two ends, about six; the one number where both are the same."""
    span = last - first
    if span <= 0:
        return [first]
    raw = span / 6
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw)
    start = math.ceil(first / step - 1e-9)
    count = math.floor(last / step + 1e-9) - start
    return [round((start + index) * step, 6) + 0.0 for index in range(count + 1)]


def _marker(x: float, y: float, label: str) -> str:
    """Labels differ in shape as well as in colour."""
    if label == COVID:
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--covid)"/>'
    if label == NON_COVID:
        return f'<rect x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6" fill="var(--other)"/>'
    points = f"{x:.1f},{y - 4.5:.1f} {x + 4.5:.1f},{y:.1f} {x:.1f},{y + 4.5:.1f} {x - 4.5:.1f},{y:.1f}"
    return f'<polygon points="{points}" fill="var(--card)" stroke="var(--ink)" stroke-width="1.4"/>'


def _band(xs: Sequence[float], ys: Sequence[float]) -> str:
    size = math.ceil(len(xs) / _MARKED)
    groups = [slice(start, start + size) for start in range(0, len(xs), size)]
    middles = [sum(xs[group]) / len(xs[group]) for group in groups]
    upper = [f"{x:.1f},{min(ys[group]):.1f}" for x, group in zip(middles, groups, strict=True)]
    lower = [f"{x:.1f},{max(ys[group]):.1f}" for x, group in zip(middles, groups, strict=True)]
    points = " ".join(upper + lower[::-1])
    return f'<polygon points="{points}" fill="var(--other)" stroke="var(--other)" stroke-width="1"/>'
