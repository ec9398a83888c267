"""The bootstrap over patients: against scikit-learn, against theory, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from groundglass.evaluation.bootstrap import Resampling, bootstrap
from groundglass.evaluation.metrics import TITLES, Estimate, compute_metrics, weighted_metrics


def predictions(slices: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, slices).astype(np.int8)
    # Rounded, so that there are ties.
    return label, np.clip(rng.normal(0.35 + 0.3 * label, 0.25), 0, 1).round(2)


def patients(slices: int, each: int = 1) -> NDArray[np.str_]:
    return np.array([f"patient {number // each}" for number in range(slices)])


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_weighted_measures_are_those_of_repeated_slices_by_scikit_learn() -> None:
    label, probability = predictions(80)
    weights = np.random.default_rng(1).integers(0, 4, (20, 80))
    values = weighted_metrics(label, probability, weights.astype(float))
    for row, times in enumerate(weights):
        true, score = np.repeat(label, times), np.repeat(probability, times)
        called = score >= 0.5
        expected = {
            "accuracy": sklearn.accuracy_score(true, called),
            "precision": sklearn.precision_score(true, called),
            "recall": sklearn.recall_score(true, called),
            "specificity": sklearn.recall_score(true, called, pos_label=0),
            "f1": sklearn.f1_score(true, called),
            "auc": sklearn.roc_auc_score(true, score),
            "average_precision": sklearn.average_precision_score(true, score),
            "brier": sklearn.brier_score_loss(true, score),
            "calibration_error": compute_metrics(true, score)["calibration_error"].value,
        }
        assert {name: values[name][row] for name in TITLES} == pytest.approx(expected)


def test_slices_of_one_patient_do_not_count_as_independent() -> None:
    label, probability = predictions(50)
    many = np.repeat(label, 4), np.repeat(probability, 4)
    grouped, pretended = bootstrap(*many, patients(200, each=4)), bootstrap(*many, patients(200))
    single = bootstrap(label, probability, patients(50))
    assert grouped.patients == 50
    assert bootstrap(*many, patients(200, each=4)) == grouped
    assert bootstrap(*many, patients(200, each=4), seed=1) != grouped
    for name in ("accuracy", "auc", "brier"):
        assert width(grouped.metrics[name]) == pytest.approx(width(single.metrics[name]), rel=0.1)
        assert width(pretended.metrics[name]) < 0.6 * width(grouped.metrics[name])


def test_intervals_cover_the_truth_about_as_often_as_they_promise() -> None:
    # Two slices per patient, both of the same label and score: true AUC of two unit normals one apart.
    truth, covered = 0.7602, 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        label = np.repeat(rng.integers(0, 2, 60).astype(np.int8), 2)
        probability = 1 / (1 + np.exp(-np.repeat(rng.normal(size=60), 2) - label))
        auc = bootstrap(label, probability, patients(120, each=2), resamples=300).metrics["auc"]
        assert auc.low is not None
        assert auc.high is not None
        covered += auc.low <= truth <= auc.high
    assert 0.90 <= covered / 200 <= 0.985


def test_undefined_resamples_are_counted_and_left_out_or_the_reason_is_given() -> None:
    label = np.array([1, 0, 0, 0, 0], np.int8)
    result = bootstrap(label, np.array([0.9, 0.1, 0.2, 0.3, 0.6]), patients(5), resamples=1000)
    auc = result.metrics["auc"]
    # A resample misses the one COVID patient with probability 0.8 ** 5 = 0.33, or is that patient alone.
    assert result.one_class == auc.undefined_resamples == pytest.approx(328, abs=60)
    assert auc.low == auc.high == 1.0
    assert result.metrics["accuracy"].undefined_resamples == 0
    one_class = bootstrap(np.zeros(20, np.int8), np.linspace(0, 0.4, 20), patients(20), resamples=100)
    assert one_class.one_class == 100
    assert one_class.metrics["auc"].low is None
    assert one_class.metrics["auc"].interval_reason == "undefined in 100 of 100 resamples"
    assert one_class.metrics["brier"].low is not None
    one_patient = bootstrap(*predictions(10), np.array(["one"] * 10), resamples=50)
    assert {each.low for each in one_patient.metrics.values()} == {None}
    assert "one patient" in str(one_patient.metrics["accuracy"].interval_reason)


def test_a_share_has_an_interval_over_patients() -> None:
    holds, resampling = np.arange(200) % 4 == 0, Resampling(patients(200, each=4))
    by_patient, spread = resampling.share(np.sort(holds)), 1.96 * np.sqrt(0.25 * 0.75 / 50)
    assert by_patient.value == 0.25
    assert (by_patient.low, by_patient.high) == pytest.approx((0.25 - spread, 0.25 + spread), abs=0.03)
    alike = resampling.share(holds)  # one of every patient's four slices: patients do not differ
    assert (alike.low, alike.high) == (0.25, 0.25)
    assert Resampling(patients(0)).share(np.zeros(0, np.bool_)).value is None
    single = Resampling(np.array(["one", "one"])).share(np.array([True, False]))
    assert (single.value, single.low) == (0.5, None)
    # Wilson's interval of 0 among 20: R. G. Newcombe, Statistics in Medicine 17 (1998), table I.
    for all_or_none, bounds in ((True, (1 - 0.1611, 1.0)), (False, (0.0, 0.1611))):
        share = Resampling(patients(40, each=2)).share(np.full(40, all_or_none))
        assert (share.low, share.high) == pytest.approx(bounds, abs=5e-5), "not certain"


def test_bands_hold_the_middle_of_the_resampled_curves() -> None:
    """Each patient has one COVID and one other slice, so that every resample has a curve."""
    rng = np.random.default_rng(1)
    label, patient = np.tile([1, 0], 30).astype(np.int8), patients(60, each=2)
    probability = np.clip(0.3 * label + rng.random(60) * 0.7, 0, 1)
    roc, precision = Resampling(patient, 300).bands(label, probability)
    for (grid, low, high), (y, x) in (
        (roc, sklearn.roc_curve(label, probability)[1::-1]),
        (precision, sklearn.precision_recall_curve(label, probability)[:2]),
    ):
        assert (grid[0], grid[-1]) == (0, 1)
        order = np.argsort(x, kind="stable")
        middle = np.interp(grid[5:-5], x[order], y[order])
        assert np.mean((low[5:-5] <= middle) & (middle <= high[5:-5])) > 0.9
        assert 0.1 < np.mean(high - low) < 0.5
    # Twice the patients make it narrower by the square root of two, about.
    twice, _ = Resampling(patients(120, each=2)).bands(np.tile(label, 2), np.tile(probability, 2))
    assert np.mean(twice[2] - twice[1]) < 0.85 * np.mean(roc[2] - roc[1])
