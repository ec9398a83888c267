"""Measures against values worked out by hand, and what they say of parts that cannot answer."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.evaluation.metrics import TITLES, Confusion, compute_metrics, reliability

LABEL = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=np.int8)
PROBABILITY = np.array([0.95, 0.85, 0.65, 0.15, 0.75, 0.55, 0.45, 0.25, 0.05, 0.05])


def test_every_measure_by_hand() -> None:
    squares = [0.05, 0.15, 0.35, 0.85, 0.75, 0.55, 0.45, 0.25, 0.05, 0.05]
    expected = {
        "accuracy": 7 / 10,
        "precision": 3 / 5,
        "recall": 3 / 4,
        "specificity": 4 / 6,
        "f1": 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4),
        # NonCOVID slices beaten by each COVID slice: 6, 6, 5 and 2 of 6.
        "auc": 19 / 24,
        # Precision at each COVID slice, best first: ranks 1, 2, 4 and 8.
        "average_precision": (1 / 1 + 2 / 2 + 3 / 4 + 4 / 8) / 4,
        "brier": sum(s * s for s in squares) / 10,
        # Every bin but the first holds one slice; the first holds two that are both right by 0.05.
        "calibration_error": sum(squares) / 10,
    }
    metrics = compute_metrics(LABEL, PROBABILITY)
    assert list(metrics) == list(TITLES)
    assert {name: each.value for name, each in metrics.items()} == pytest.approx(expected)
    assert Confusion.of(LABEL, PROBABILITY) == Confusion(3, 2, 4, 1)
    assert Confusion.of(LABEL, np.full(10, 0.5)) == Confusion(4, 6, 0, 0), "called COVID at the threshold"


def test_what_a_part_cannot_answer_has_a_reason() -> None:
    healthy = compute_metrics(np.zeros(4, np.int8), np.array([0.1, 0.2, 0.3, 0.9]))
    for name in ("recall", "f1", "auc", "average_precision"):
        assert healthy[name].value is None
        assert healthy[name].reason == "no COVID slice in the part"
    assert healthy["accuracy"].value == healthy["specificity"].value == pytest.approx(0.75)
    assert healthy["precision"].value == 0.0
    ill = compute_metrics(np.ones(4, np.int8), np.array([0.1, 0.6, 0.7, 0.9]))
    assert ill["auc"].reason == ill["specificity"].reason == "no NonCOVID slice in the part"
    assert (ill["recall"].value, ill["average_precision"].value) == (0.75, 1.0)
    uncalled = compute_metrics(LABEL, np.full(10, 0.1))
    assert uncalled["precision"].reason == "no slice was called COVID"
    assert uncalled["f1"].value == uncalled["recall"].value == 0.0
    assert uncalled["auc"].value == pytest.approx(0.5)


@pytest.mark.parametrize("value", [np.nan, 1.5])
def test_what_is_no_probability_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="within 0 and 1"):
        compute_metrics(np.ones(1, np.int8), np.array([value]))


def test_reliability_bins_hold_every_slice_once() -> None:
    probability = np.array([0.0, 0.1, 0.3, 0.7, 0.999, 1.0])
    bins = reliability(np.array([0, 1, 0, 1, 1, 0], np.int8), probability)
    assert [part.count for part in bins] == [1, 1, 0, 1, 0, 0, 0, 1, 0, 2]
    assert bins[2].mean_probability is None
    assert bins[9].observed == pytest.approx(0.5)
    # Wilson's interval of 1 of 2, by hand: (1 + z²/2 ± z sqrt(1/2 + z²/4)) / (2 + z²) with z = 1.96.
    assert (bins[9].observed_low, bins[9].observed_high) == pytest.approx((0.0945, 0.9055), abs=1e-4)
