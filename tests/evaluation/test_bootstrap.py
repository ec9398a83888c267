"""The bootstrap over patients: against scikit-learn, against theory, and at its edges."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as sklearn

from groundglass.evaluation.bootstrap import bootstrap, curve_bands, share_of
from groundglass.evaluation.metrics import TITLES, Estimate, compute_metrics, weighted_metrics


def predictions(slices: int, seed: int = 0) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, slices).astype(np.int8)
    # Rounded, so that there are ties.
    return label, np.clip(rng.normal(0.35 + 0.3 * label, 0.25), 0, 1).round(2)


def patients(slices: int, each: int = 1) -> NDArray[np.str_]:
    return np.array([f"patient {number // each}" for number in range(slices)])


def width(estimate: Estimate) -> float:
    assert estimate.low is not None
    assert estimate.high is not None
    return estimate.high - estimate.low


def test_weighted_measures_agree_with_scikit_learn() -> None:
    label, probability = predictions(80)
    weights = np.random.default_rng(1).integers(0, 4, (20, 80)).astype(float)
    values = weighted_metrics(label, probability, weights)
    called = probability >= 0.5
    for row, weight in enumerate(weights):
        expected = {
            "accuracy": sklearn.accuracy_score(label, called, sample_weight=weight),
            "precision": sklearn.precision_score(label, called, sample_weight=weight),
            "recall": sklearn.recall_score(label, called, sample_weight=weight),
            "specificity": sklearn.recall_score(label, called, pos_label=0, sample_weight=weight),
            "f1": sklearn.f1_score(label, called, sample_weight=weight),
            "auc": sklearn.roc_auc_score(label, probability, sample_weight=weight),
            "average_precision": sklearn.average_precision_score(label, probability, sample_weight=weight),
            "brier": sklearn.brier_score_loss(label, probability, sample_weight=weight),
        }
        assert {name: values[name][row] for name in expected} == pytest.approx(expected)


def test_weights_of_repeated_slices_equal_repeating_them() -> None:
    label, probability = predictions(60)
    times = np.random.default_rng(2).integers(0, 3, 60)
    repeated = compute_metrics(np.repeat(label, times), np.repeat(probability, times))
    weighted = weighted_metrics(label, probability, times[None].astype(float))
    expected = {name: each.value for name, each in repeated.items()}
    assert {name: weighted[name][0] for name in TITLES} == pytest.approx(expected)


def test_slices_of_one_patient_do_not_count_as_independent() -> None:
    label, probability = predictions(50)
    copies = 4
    many_label, many_probability = np.repeat(label, copies), np.repeat(probability, copies)
    grouped = bootstrap(many_label, many_probability, patients(50 * copies, each=copies))
    single = bootstrap(label, probability, patients(50))
    pretended = bootstrap(many_label, many_probability, patients(50 * copies))
    assert grouped.patients == 50
    for name in ("accuracy", "auc", "brier"):
        assert width(grouped.metrics[name]) == pytest.approx(width(single.metrics[name]), rel=0.1)
        assert width(pretended.metrics[name]) < 0.6 * width(grouped.metrics[name])


def test_intervals_cover_the_truth_about_as_often_as_they_promise() -> None:
    # Two slices per patient, both of the same label and score: true AUC of two unit normals one apart.
    truth, covered = 0.7602, 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        label = np.repeat(rng.integers(0, 2, 60).astype(np.int8), 2)
        score = np.repeat(rng.normal(size=60), 2) + label
        probability = 1 / (1 + np.exp(-score))
        auc = bootstrap(label, probability, patients(120, each=2), resamples=300).metrics["auc"]
        assert auc.low is not None
        assert auc.high is not None
        covered += auc.low <= truth <= auc.high
    assert 0.90 <= covered / 200 <= 0.985


def test_seed_decides() -> None:
    label, probability = predictions(60)
    first, again = (bootstrap(label, probability, patients(60), resamples=200, seed=3) for _ in range(2))
    other = bootstrap(label, probability, patients(60), resamples=200, seed=4)
    assert first == again
    assert first.metrics != other.metrics


def test_resamples_of_one_class_are_counted_and_left_out() -> None:
    label = np.array([1, 0, 0, 0, 0], np.int8)
    result = bootstrap(label, np.array([0.9, 0.1, 0.2, 0.3, 0.6]), patients(5), resamples=1000)
    auc = result.metrics["auc"]
    # A resample misses the one COVID patient with probability 0.8 ** 5 = 0.33, or is that patient alone.
    assert result.one_class == auc.undefined_resamples == pytest.approx(328, abs=60)
    assert auc.low == auc.high == 1.0
    assert result.metrics["accuracy"].undefined_resamples == 0


def test_where_there_is_no_interval_the_reason_is_given() -> None:
    one_class = bootstrap(np.zeros(20, np.int8), np.linspace(0, 0.4, 20), patients(20), resamples=100)
    assert one_class.one_class == 100
    assert one_class.metrics["auc"].low is None
    assert one_class.metrics["auc"].interval_reason == "undefined in 100 of 100 resamples"
    assert one_class.metrics["brier"].low is not None
    one_patient = bootstrap(*predictions(10), np.array(["one"] * 10), resamples=50)
    assert {each.low for each in one_patient.metrics.values()} == {None}
    assert "one patient" in str(one_patient.metrics["accuracy"].interval_reason)


def test_bad_arguments_are_refused() -> None:
    label, probability = predictions(10)
    with pytest.raises(ValueError, match="resamples"):
        bootstrap(label, probability, patients(10), resamples=0)
    with pytest.raises(ValueError, match="patient"):
        bootstrap(label, probability, patients(9))


def test_a_share_has_an_interval_over_patients() -> None:
    holds, patient = np.arange(200) % 4 == 0, patients(200, each=4)
    by_patient = share_of(np.sort(holds), patient)
    assert by_patient.value == 0.25
    assert by_patient.low == pytest.approx(0.25 - 1.96 * np.sqrt(0.25 * 0.75 / 50), abs=0.03)
    assert by_patient.high == pytest.approx(0.25 + 1.96 * np.sqrt(0.25 * 0.75 / 50), abs=0.03)
    alike = share_of(holds, patient)  # one of every patient's four slices: patients do not differ
    assert (alike.low, alike.high) == (0.25, 0.25)
    assert share_of(np.zeros(0, np.bool_), patients(0)).value is None
    single = share_of(np.array([True, False]), np.array(["one", "one"]))
    assert (single.value, single.low) == (0.5, None)


@pytest.mark.parametrize("all_or_none", [True, False])
def test_a_share_of_all_or_none_is_not_certain(all_or_none: bool) -> None:
    share = share_of(np.full(40, all_or_none), patients(40, each=2))
    # Wilson's interval of 0 among 20: R. G. Newcombe, Statistics in Medicine 17 (1998), table I.
    low, high = (1 - 0.1611, 1.0) if all_or_none else (0.0, 0.1611)
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)


def test_bands_hold_the_middle_of_the_resampled_curves() -> None:
    """Each patient has one COVID and one other slice: every resample can be drawn by hand."""
    rng = np.random.default_rng(1)
    label, patient = np.tile([1, 0], 30).astype(np.int8), np.repeat(np.arange(30), 2).astype(np.str_)
    probability = np.clip(0.3 * label + rng.random(60) * 0.7, 0, 1)
    roc, precision = curve_bands(label, probability, patient, resamples=300, seed=0)
    for (grid, low, high), (y, x) in (
        (roc, sklearn.roc_curve(label, probability)[1::-1]),
        (precision, sklearn.precision_recall_curve(label, probability)[:2]),
    ):
        assert (grid[0], grid[-1]) == (0, 1)
        order = np.argsort(x, kind="stable")
        middle = np.interp(grid[5:-5], x[order], y[order])
        assert np.mean((low[5:-5] <= middle) & (middle <= high[5:-5])) > 0.9
        assert 0.1 < np.mean(high - low) < 0.5
    again = curve_bands(label, probability, patient, resamples=300, seed=0)
    assert all(np.array_equal(one, other) for one, other in zip(roc, again[0], strict=True))
    # Twice the patients make it narrower by the square root of two, about.
    twice = curve_bands(
        np.tile(label, 2), np.tile(probability, 2), np.repeat(np.arange(60), 2).astype(np.str_)
    )
    assert np.mean(twice[0][2] - twice[0][1]) < 0.85 * np.mean(roc[2] - roc[1])
