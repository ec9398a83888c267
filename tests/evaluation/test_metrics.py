"""Measures against values worked out by hand, and what they say of parts that cannot answer."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.errors import DataError
from groundglass.evaluation.metrics import (
    TITLES,
    Confusion,
    compute_metrics,
    reliability,
)

LABEL = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=np.int8)
PROBABILITY = np.array([0.95, 0.85, 0.65, 0.15, 0.75, 0.55, 0.45, 0.25, 0.05, 0.05])


def test_the_papers_formulas_by_hand() -> None:
    metrics = compute_metrics(LABEL, PROBABILITY)
    assert Confusion.of(LABEL, PROBABILITY) == Confusion(3, 2, 4, 1)
    assert metrics["precision"].value == pytest.approx(3 / 5)
    assert metrics["recall"].value == pytest.approx(3 / 4)
    assert metrics["f1"].value == pytest.approx(2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))
    assert metrics["accuracy"].value == pytest.approx(7 / 10)
    assert metrics["specificity"].value == pytest.approx(4 / 6)


def test_ranking_and_probability_measures_by_hand() -> None:
    metrics = compute_metrics(LABEL, PROBABILITY)
    # NonCOVID slices beaten by each COVID slice: 6, 6, 5 and 2 of 6.
    assert metrics["auc"].value == pytest.approx(19 / 24)
    # Precision at each COVID slice, best first: ranks 1, 2, 4 and 8.
    assert metrics["average_precision"].value == pytest.approx((1 / 1 + 2 / 2 + 3 / 4 + 4 / 8) / 4)
    squares = [0.05, 0.15, 0.35, 0.85, 0.75, 0.55, 0.45, 0.25, 0.05, 0.05]
    assert metrics["brier"].value == pytest.approx(sum(s * s for s in squares) / 10)
    # Every bin but the first holds one slice; the first holds two that are both right by 0.05.
    assert metrics["calibration_error"].value == pytest.approx(sum(squares) / 10)


def test_order_is_that_of_the_titles() -> None:
    metrics = compute_metrics(LABEL, PROBABILITY)
    assert list(metrics) == list(TITLES)


def test_a_probability_at_the_threshold_is_called_covid() -> None:
    assert Confusion.of(LABEL, np.full(10, 0.5)) == Confusion(4, 6, 0, 0)


def test_part_without_covid_says_why() -> None:
    metrics = compute_metrics(np.zeros(4, np.int8), np.array([0.1, 0.2, 0.3, 0.9]))
    for undefined in (metrics["recall"], metrics["f1"], metrics["auc"], metrics["average_precision"]):
        assert undefined.value is None
        assert undefined.reason == "no COVID slice in the part"
    assert metrics["accuracy"].value == metrics["specificity"].value == pytest.approx(0.75)
    assert metrics["precision"].value == 0.0


def test_part_with_covid_alone_says_why() -> None:
    metrics = compute_metrics(np.ones(4, np.int8), np.array([0.1, 0.6, 0.7, 0.9]))
    assert metrics["auc"].reason == metrics["specificity"].reason == "no NonCOVID slice in the part"
    assert metrics["recall"].value == pytest.approx(0.75)
    assert metrics["average_precision"].value == 1.0


def test_nothing_called_covid() -> None:
    metrics = compute_metrics(LABEL, np.full(10, 0.1))
    assert metrics["precision"].value is None
    assert metrics["precision"].reason == "no slice was called COVID"
    assert metrics["f1"].value == metrics["recall"].value == 0.0
    assert metrics["auc"].value == pytest.approx(0.5)


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(DataError, match="no slice"):
        compute_metrics(np.array([], np.int8), np.array([]))
    with pytest.raises(ValueError, match="within 0 and 1"):
        compute_metrics(np.array([1], np.int8), np.array([np.nan]))
    with pytest.raises(ValueError, match="within 0 and 1"):
        compute_metrics(np.array([1], np.int8), np.array([1.5]))
    with pytest.raises(ValueError, match="labels"):
        compute_metrics(np.array([2], np.int8), np.array([0.5]))
    with pytest.raises(ValueError, match="must be"):
        compute_metrics(np.array([1, 0], np.int8), np.array([0.5]))


def test_reliability_bins_hold_every_slice_once() -> None:
    probability = np.array([0.0, 0.1, 0.3, 0.7, 0.999, 1.0])
    bins = reliability(np.array([0, 1, 0, 1, 1, 0], np.int8), probability)
    assert [part.count for part in bins] == [1, 1, 0, 1, 0, 0, 0, 1, 0, 2]
    assert bins[2].mean_probability is None
    assert bins[9].observed == pytest.approx(0.5)


def test_calibration_error_of_calibrated_predictions_is_small() -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=100_000)
    label = (rng.uniform(size=100_000) < probability).astype(np.int8)
    assert (compute_metrics(label, probability)["calibration_error"].value or 1.0) < 0.01
    assert (compute_metrics(1 - label, probability)["calibration_error"].value or 0.0) > 0.4
