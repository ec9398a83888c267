"""How far data lie from the training data, as JSON and as rows of tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from groundglass.evaluation.distance import (
    ALIKE,
    FAR,
    FEWEST,
    LIMITS,
    TOLD,
    Accepted,
    Distance,
    Placed,
    Share,
)
from groundglass.evaluation.metrics import TITLES

HEADLINES = ("accuracy", "auc", "recall", "specificity")
"""Measures of the accepted slices that tables show."""


@dataclass(frozen=True)
class DistanceRow:
    """One row of the table of distances.

    Attributes:
        title: what is measured.
        value: as it is shown.
        interval: its 95 % interval as it is shown, or a dash.
        alike: what data like the training data's sources give, as it is shown; may be empty.
    """

    title: str
    value: str
    interval: str
    alike: str = ""


@dataclass(frozen=True)
class ShiftRow:
    """One grey statistic as it is shown.

    Attributes:
        title: its name and unit.
        training: median and 5 to 95 % range of the training part.
        data: the same of the data.
        shift: of the median, in standard deviations of the training part.
        outside: share of slices outside the training part's range.
    """

    title: str
    training: str
    data: str
    shift: str
    outside: str


def distance_rows(distance: Distance) -> list[DistanceRow]:
    """What is to be said of a distance, in its order."""
    rows = [_share("Refused by the bundle", distance.refused, "about 1 %")]
    if distance.placed is not None:
        rows += _placed_rows(distance.placed)
    if distance.accepted is not None and distance.refused.value > 0:
        rows += _accepted_rows(distance.accepted)
    return rows


def shift_rows(distance: Distance) -> list[ShiftRow]:
    """The grey statistics; none where the bundle carries no reference."""
    shifts = () if distance.placed is None else distance.placed.shifts
    return [
        ShiftRow(
            f"{shift.statistic.name} ({shift.statistic.unit})",
            _range(shift.training),
            _range(shift.data),
            f"{shift.shift:+.1f}",
            f"{shift.outside.value:.0%}",
        )
        for shift in shifts
    ]


def distance_document(distance: Distance) -> dict[str, Any]:
    """Everything measured, as plain JSON values."""
    accepted = distance.accepted
    return {
        "verdict": distance.verdict,
        "words": distance.words,
        "limits": LIMITS,
        "thresholds": {"alike": ALIKE, "far": FAR, "told_apart": TOLD, "fewest_slices": FEWEST},
        "slices": distance.slices,
        "patients": distance.patients,
        "refused": {**asdict(distance.refused), "reasons": dict(distance.reasons)},
        "accepted": None if accepted is None else _accepted_document(accepted),
        "placed": None if distance.placed is None else _placed_document(distance.placed),
    }


def _placed_rows(placed: Placed) -> Iterator[DistanceRow]:
    yield _share("Refused or beyond 95 %", placed.outside, "5 to 6 %")
    for name, spread in (("Embedding", placed.embedding), ("Grey values", placed.grey)):
        yield _share(f"{name} beyond 95 %", spread.beyond_95, "5 %")
        yield _share(f"{name} beyond 99 %", spread.beyond_99, "1 %")
        yield DistanceRow(f"{name}, middle percentile", f"{spread.median:.0f}", "–", "50")
    told = placed.told_apart
    value = f"– ({told.reason})" if told.auc is None else f"{told.auc:.2f}"
    interval = "–" if told.low is None else f"{told.low:.2f}–{told.high:.2f}"
    yield DistanceRow("Told apart (AUC)", value, interval, "0.5")


def _accepted_rows(accepted: Accepted) -> Iterator[DistanceRow]:
    values = accepted.metrics.values()
    for name in HEADLINES:
        value, interval = values[name], accepted.bootstrap.intervals[name]
        yield DistanceRow(
            f"{TITLES[name]}, accepted slices",
            "–" if value is None else f"{value:.3f}",
            "–" if interval.low is None else f"{interval.low:.3f}–{interval.high:.3f}",
        )


def _share(title: str, share: Share, alike: str) -> DistanceRow:
    interval = "–" if share.low is None else f"{100 * share.low:.1f}–{100 * (share.high or 0):.1f} %"
    return DistanceRow(title, f"{100 * share.value:.1f} %", interval, alike)


def _range(quantiles: tuple[float, ...]) -> str:
    low, middle, high = quantiles
    return f"{middle:.3g} ({low:.3g}–{high:.3g})"


def _accepted_document(accepted: Accepted) -> dict[str, Any]:
    intervals = accepted.bootstrap.intervals
    return {
        "slices": accepted.slices,
        "confusion": asdict(accepted.metrics.confusion),
        "metrics": {
            name: {**asdict(metric), "low": intervals[name].low, "high": intervals[name].high}
            for name, metric in accepted.metrics
        },
    }


def _placed_document(placed: Placed) -> dict[str, Any]:
    return {
        "training_slices": placed.training,
        "held_out_slices": placed.held_out,
        "outside": asdict(placed.outside),
        "embedding": asdict(placed.embedding),
        "grey": {
            **asdict(placed.grey),
            "statistics": [
                {
                    "name": shift.statistic.name,
                    "unit": shift.statistic.unit,
                    "training": _quantiles(shift.training),
                    "data": _quantiles(shift.data),
                    "shift": shift.shift,
                    "outside": asdict(shift.outside),
                }
                for shift in placed.shifts
            ],
        },
        "told_apart": asdict(placed.told_apart),
        "calibrating_slices": placed.calibrating,
    }


def _quantiles(values: tuple[float, ...]) -> dict[str, float]:
    return dict(zip(("low", "median", "high"), values, strict=True))
