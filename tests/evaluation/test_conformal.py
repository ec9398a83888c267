"""Calibration and prediction sets, on logits whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.evaluation.calibration import fit_calibration
from groundglass.inference.calibration import Calibration
from groundglass.inference.prediction import COVID, NON_COVID, UNCERTAIN


def drawn(
    rng: np.random.Generator, count: int, factor: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits that promise too much by a factor, and labels drawn from the true probabilities."""
    honest = rng.normal(0, 2, count)
    return honest * factor, (rng.random(count) < 1 / (1 + np.exp(-honest))).astype(np.int64)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found_and_probabilities_come_true(temperature: float) -> None:
    rng = np.random.default_rng(1)
    calibration = fit_calibration(*drawn(rng, 20_000, temperature))
    assert calibration.temperature == pytest.approx(temperature, rel=0.05)
    logit, label = drawn(rng, 20_000, temperature)
    probability = np.array([calibration.probability(value) for value in logit])
    for low in (0.1, 0.3, 0.5, 0.7):
        inside = (probability >= low) & (probability < low + 0.2)
        assert label[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.03)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
@pytest.mark.parametrize("slices", [60, 400])
def test_each_label_is_covered_as_often_as_promised(coverage: float, slices: int) -> None:
    """Split conformal promises at least ``coverage`` and at most 1 / (n + 1) more, on average over draws."""
    held = {COVID: [], NON_COVID: []}
    for seed in range(60):
        rng = np.random.default_rng([seed, slices])
        calibration = fit_calibration(*drawn(rng, slices, 2.0), coverage)
        for value, truth in zip(*drawn(rng, 100, 2.0), strict=True):
            name = COVID if truth else NON_COVID
            held[name].append(name in calibration.prediction_set(calibration.probability(value)))
    for name, each in held.items():
        # Test slices of one draw share its quantile: its spread is added to the binomial one.
        few = slices * 0.4
        spread = np.sqrt(coverage * (1 - coverage) * (1 / len(each) + 1 / (few * 60)))
        assert coverage - 4 * spread < np.mean(each) < coverage + 1 / (few + 1) + 4 * spread, name


def test_nine_slices_of_a_label_are_the_fewest_that_exclude_it_at_ninety_percent() -> None:
    label = np.repeat([0, 1], 9)
    logit = np.where(label == 1, 1.0, -1.0) * np.tile(np.arange(1, 10), 2)
    assert all(value < 1 for value in fit_calibration(logit, label, 0.9).quantiles.values())
    assert fit_calibration(logit[1:], label[1:], 0.9).quantiles[NON_COVID] == 1.0
    few = fit_calibration(logit[7:11], label[7:11], 0.9)
    assert few.quantiles == {COVID: 1.0, NON_COVID: 1.0}
    assert all(few.prediction_set(value) == (COVID, NON_COVID) for value in (0.0, 0.001, 0.5, 1.0))


def test_one_label_alone_and_a_coverage_out_of_range_are_refused() -> None:
    for label in ([1, 1, 1], [0, 0, 0]):
        with pytest.raises(ValueError, match="both labels"):
            fit_calibration(np.zeros(3), np.array(label))
    for coverage in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match="coverage"):
            fit_calibration(np.array([-1.0, 1.0]), np.array([0, 1]), coverage)


@pytest.mark.parametrize("quantiles", [(0.7533, 0.7361), (0.4, 0.45)])
def test_labels_follow_from_the_two_limits_that_are_stated(quantiles: tuple[float, float]) -> None:
    """Where the sets overlap and where they leave a gap: below the lower limit NonCOVID, above the upper COVID."""
    by_label = dict(zip((COVID, NON_COVID), quantiles, strict=True))
    calibration = Calibration(temperature=1.0, coverage=0.9, quantiles=by_label)
    low, high = calibration.uncertain
    for probability in np.linspace(0, 1, 997):
        expected = NON_COVID if probability < low else COVID if probability > high else UNCERTAIN
        assert calibration.label(calibration.prediction_set(probability)) == expected
    values = [calibration.probability(value) for value in (-1e6, 0.0, 1e6)]
    assert values == [0, 0.5, 1], "extreme logits stay probabilities"
