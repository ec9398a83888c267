"""Calibration, prediction sets, the series rule and distances from the training data, where the truth is known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from groundglass.data.manifest import Label, Record
from groundglass.evaluation.calibration import fit_calibration, fit_reference, series_rule, summary
from groundglass.evaluation.part import Part
from groundglass.inference.calibration import COVID, NON_COVID, UNCERTAIN, Calibration

LABELS = (Label.NON_COVID, Label.COVID)


def part(slices: Sequence[tuple[str, int]]) -> Part:
    """Slices of these patients and labels; a patient's letters are the source."""
    records = (
        Record(Path(f"{number}.png"), LABELS[label], patient, patient.rstrip("0123456789"), None)
        for number, (patient, label) in enumerate(slices)
    )
    return Part("x", Path(), None, "all", tuple(records))


def calibrated(temperature: float, covid: float, non_covid: float) -> Calibration:
    return Calibration(temperature=temperature, coverage=0.9, quantiles={COVID: covid, NON_COVID: non_covid})


def drawn(rng: np.random.Generator, count: int, factor: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Logits that promise too much by a factor, and labels drawn from the true probabilities."""
    honest = rng.normal(0, 2, count)
    return honest * factor, rng.random(count) < 1 / (1 + np.exp(-honest))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    calibration = fit_calibration(*drawn(np.random.default_rng(1), 20_000, temperature))
    assert calibration.temperature == pytest.approx(temperature, rel=0.05)
    assert calibration.probability(2 * temperature) == pytest.approx(expit(2), abs=0.02)


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
    few = fit_calibration(logit[1:], label[1:], 0.9)
    assert few.quantiles[COVID] < few.quantiles[NON_COVID] == 1.0
    assert all(NON_COVID in few.prediction_set(value) for value in (0.0, 0.001, 0.5, 1.0))
    with pytest.raises(ValueError, match="both labels"):
        fit_calibration(logit[:9], label[:9])
    for coverage in (0.0, 1.0, 2.0):
        with pytest.raises(ValueError, match="coverage"):
            fit_calibration(logit, label, coverage)


@pytest.mark.parametrize("quantiles", [(0.7533, 0.7361), (0.4, 0.45)])
def test_labels_follow_from_the_two_limits_that_are_stated(quantiles: tuple[float, float]) -> None:
    """Where the sets overlap and where they leave a gap: below the lower limit NonCOVID, above the upper COVID."""
    calibration = calibrated(1.0, *quantiles)
    low, high = calibration.uncertain
    for probability in np.linspace(0, 1, 997):
        expected = NON_COVID if probability < low else COVID if probability > high else UNCERTAIN
        assert calibration.label(calibration.prediction_set(probability)) == expected
    values = [calibration.probability(value) for value in (-1e6, 0.0, 1e6)]
    assert values == [0, 0.5, 1], "extreme logits stay probabilities"


def test_the_summary_measures_calibrated_probabilities_and_counts_sets() -> None:
    for quantiles, label, probability, expected in (
        # Sets: COVID alone, NonCOVID alone, neither, NonCOVID alone, COVID alone.
        ((0.3, 0.6), [1, 0, 1, 1, 0], [0.88, 0.5, 0.62, 0.018, 0.88], (1 / 3, 1 / 2, 1 / 5, 2 / 4)),
        # Sets of both labels hold the truth and decide nothing.
        ((1.0, 1.0), [1, 0], [0.99, 0.99], (1, 1, 1, None)),
    ):
        slices, values = (part([(f"p{index}", each) for index, each in enumerate(label)]), np.array(probability))
        document = summary(slices, 2 * np.log(values / (1 - values)), calibrated(2.0, *quantiles))
        assert [document[name] for name in ("slices", "covid", "patients")] == [len(label), sum(label), len(label)]
        brier, sets = document["metrics"]["brier"], document["prediction_sets"]
        assert brier["value"] == pytest.approx(np.mean((values - label) ** 2))
        assert brier["low"] < brier["value"] < brier["high"]
        found = (*sets["coverage"].values(), sets["uncertain"], sets["accuracy_where_certain"])
        assert found == pytest.approx(expected)
        assert sets["nominal_coverage"] == 0.9


def test_the_series_rule_is_fitted_on_patients_with_several_slices() -> None:
    def fit(patients: dict[str, tuple[int, list[float]]]) -> Any:
        slices = [(name, label) for name, (label, values) in patients.items() for _ in values]
        values = [value for _, values in patients.values() for value in values]
        return series_rule(part(slices), np.array(values), 0.9)

    sick = {f"a{index}": (1, [0.05, 0.5 + index / 40]) for index in range(10)}
    well = {f"b{index}": (0, [0.01, 0.02, index / 40]) for index in range(10)}
    # A single slice is no series.
    rule, on_whom = fit({**sick, **well, "c1": (1, [0.0]), "c2": (0, [1.0])})
    assert on_whom == {"patients": {COVID: 10, NON_COVID: 10}, "sources": {"a": 10, "b": 10}}
    # The tenth of ten at 90 %: the least sure patient of each label; scores are means of two and of three slices.
    assert rule.quantiles[COVID] == pytest.approx(1 - (0.05 + 0.5) / 2)
    assert rule.quantiles[NON_COVID] == pytest.approx((0.01 + 0.02 + 9 / 40) / 3)
    assert fit({**sick, "b1": (0, [0.1, 0.2])}) is None, "too few of one label"


def draw(count: int, seed: int) -> NDArray[np.float32]:
    """Embeddings in 40 dimensions that vary along five directions and a little along all others."""
    mixing, rng = np.random.default_rng(99).normal(0, 1, (5, 40)), np.random.default_rng(seed)
    return (rng.normal(0, 1, (count, 5)) @ mixing + rng.normal(3, 0.3, (count, 40))).astype(np.float32)


def test_embeddings_of_the_same_kind_fill_the_percentiles_evenly_and_others_lie_farther() -> None:
    reference, points = fit_reference(draw(300, 0), draw(150, 1)), draw(2000, 2)
    assert np.mean(reference.percentile(points) >= 95) == pytest.approx(0.05, abs=0.04)
    assert np.median(reference.percentile(points)) == pytest.approx(50, abs=10)
    moved = points + 4 * points.std(axis=0)
    spread = points.mean(axis=0) + 3 * (points - points.mean(axis=0))
    beside = points + np.random.default_rng(4).normal(0, 1.5, points.shape)  # off the others' directions
    for other in (moved, spread, beside):
        assert np.mean(reference.percentile(other) >= 95) > 0.5
    point = draw(1, 8)
    distance = reference.distance(point)[0]
    # Of 20 exchangeable values, one is the largest: nothing below 19 held-out ones can be beyond 95 %.
    for nearer, expected in ((0, 0.0), (10, 50.0), (19, 95.0)):
        held_out = np.where(np.arange(19) < nearer, distance / 2, distance * 2).astype(np.float32)
        assert replace(reference, held_out=held_out).percentile(point) == pytest.approx([expected])


def test_with_every_direction_principal_it_is_mahalanobis_distance_and_always_finite() -> None:
    points, new = draw(300, 0)[:, :5], draw(200, 1)[:, :5]
    centred = new - points.mean(axis=0)
    mahalanobis = np.sqrt(np.sum(centred @ np.linalg.inv(np.cov(points.T)) * centred, axis=1))
    np.testing.assert_allclose(fit_reference(points, new).distance(new), mahalanobis, rtol=0.02)
    constant = np.tile(np.arange(4.0), (30, 1))
    flat = fit_reference(constant, constant)
    assert (flat.distance(constant + 1) > flat.distance(constant)).all()
    assert np.isfinite(flat.distance(constant * 1e30)).all()
    for training, held_out in ((19, 100), (100, 19)):
        assert fit_reference(draw(training, 0), draw(held_out, 1)) is None, "too few"
