"""Measures, their bootstrap, paired tests and masks: by hand, by scikit-learn, as published and by simulation."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn import metrics as sklearn

from groundglass.evaluation.bootstrap import Resampling
from groundglass.evaluation.metrics import TITLES, compute_metrics, confusion, reliability, weighted_metrics
from groundglass.evaluation.paired import ALPHA, delong_test, holm, mcnemar_test, paired_difference, resamples_for
from groundglass.evaluation.segmentation import SEGMENTATION_TITLES, Segmentation

LABEL = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], dtype=np.int8)
PROBABILITY = np.array([0.95, 0.85, 0.65, 0.15, 0.75, 0.55, 0.45, 0.25, 0.05, 0.05])
# The data of DeLong, DeLong and Clarke-Pearson (1988), without the six patients who lack a value: albumin, total
# protein, K-G score, outcome.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0  1.6 5.6 5 1
3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1  4.3 7.0 4 1  3.6 6.7 4 0
2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1  3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1
3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1  3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0
3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1  3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1
3.3 5.7 6 1  3.7 6.9 5 1  3.6 6.6 5 1
"""


def test_calls_errors_of_calibration_and_reliability_by_hand() -> None:
    assert list(compute_metrics(LABEL, PROBABILITY)) == list(TITLES)
    # Every bin but the first holds one slice; the first holds two that are both right by 0.05.
    errors = [0.05, 0.15, 0.35, 0.85, 0.75, 0.55, 0.45, 0.25, 0.05, 0.05]
    assert compute_metrics(LABEL, PROBABILITY)["calibration_error"].value == pytest.approx(sum(errors) / 10)
    counts = {"true_positive": 3, "false_positive": 2, "true_negative": 4, "false_negative": 1}
    assert confusion(LABEL, PROBABILITY) == counts
    assert [*confusion(LABEL, np.full(10, 0.5)).values()] == [4, 6, 0, 0], "called COVID at the threshold"
    for factor in (2, np.nan):
        with pytest.raises(ValueError, match="within 0 and 1"):
            compute_metrics(LABEL, PROBABILITY * factor)
    bins = reliability(np.array([0, 1, 0, 1, 1, 0], np.int8), np.array([0.0, 0.1, 0.3, 0.7, 0.999, 1.0]))
    assert [part["count"] for part in bins] == [1, 1, 0, 1, 0, 0, 0, 1, 0, 2], "every slice once"
    assert bins[2]["mean_probability"] is None
    assert bins[9]["observed"] == pytest.approx(0.5)
    # Wilson's interval of 1 of 2, by hand: (1 + z²/2 ± z sqrt(1/2 + z²/4)) / (2 + z²) with z = 1.96.
    assert (bins[9]["observed_low"], bins[9]["observed_high"]) == pytest.approx((0.0945, 0.9055), abs=1e-4)


def test_what_a_part_cannot_answer_has_a_reason() -> None:
    healthy = compute_metrics(np.zeros(4, np.int8), np.array([0.1, 0.2, 0.3, 0.9]))
    for name in ("recall", "f1", "auc", "average_precision"):
        assert (healthy[name].value, healthy[name].reason) == (None, "no COVID slice in the part")
    assert [healthy[name].value for name in ("accuracy", "specificity", "precision")] == [0.75, 0.75, 0]
    ill = compute_metrics(np.ones(4, np.int8), np.array([0.1, 0.6, 0.7, 0.9]))
    assert ill["auc"].reason == ill["specificity"].reason == "no NonCOVID slice in the part"
    assert (ill["recall"].value, ill["average_precision"].value) == (0.75, 1.0)
    uncalled = compute_metrics(LABEL, np.full(10, 0.1))
    assert uncalled["precision"].reason == "no slice was called COVID"
    assert [uncalled[name].value for name in ("f1", "recall", "auc")] == [0, 0, 0.5]


def predictions(slices: int) -> tuple[NDArray[np.int8], NDArray[np.float64]]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, slices).astype(np.int8)
    # Rounded, so that there are ties.
    return label, np.clip(rng.normal(0.35 + 0.3 * label, 0.25), 0, 1).round(2)


def patients(slices: int, each: int = 1) -> NDArray[np.str_]:
    return np.array([f"patient {number // each}" for number in range(slices)])


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


def test_intervals_cover_the_truth_about_as_often_as_they_promise() -> None:
    """Two slices per patient, both of the same label and score: true AUC of two unit normals one apart."""
    truth, covered = 0.7602, 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        label = np.repeat(rng.integers(0, 2, 60).astype(np.int8), 2)
        probability = 1 / (1 + np.exp(-np.repeat(rng.normal(size=60), 2) - label))
        auc = Resampling(patients(120, each=2), 300).measure(label, probability).metrics["auc"]
        covered += auc.low <= truth <= auc.high
    assert 0.90 <= covered / 200 <= 0.985
    drawn = [Resampling(patients(120, each=2), 50, n).measure(label, probability) for n in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0].patients.count == 60


def test_undefined_resamples_are_counted_and_left_out_or_the_reason_is_given() -> None:
    label = np.array([1, 0, 0, 0, 0], np.int8)
    result = Resampling(patients(5), 1000).measure(label, np.array([0.9, 0.1, 0.2, 0.3, 0.6]))
    auc = result.metrics["auc"]
    # A resample misses the one COVID patient with probability 0.8 ** 5 = 0.33, or is that patient alone.
    assert auc.undefined_resamples == pytest.approx(328, abs=60)
    assert (auc.low, auc.interval_reason) == (None, "all resamples are alike")
    assert result.metrics["accuracy"].undefined_resamples == 0
    one_class = Resampling(patients(20), 100).measure(np.zeros(20, np.int8), np.linspace(0, 0.4, 20))
    undefined = one_class.metrics["auc"]
    assert (undefined.low, undefined.interval_reason) == (None, "undefined in 100 of 100 resamples")
    assert one_class.metrics["brier"].low is not None
    one_patient = Resampling(np.array(["one"] * 10), 50).measure(*predictions(10))
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
    label = np.arange(40, dtype=np.int8) % 2
    right = Resampling(patients(40, each=2)).measure(label, label.astype(np.float64)).metrics
    for name in ("accuracy", "recall", "specificity", "precision"):
        assert (right[name].low, right[name].high) == pytest.approx((1 - 0.1611, 1.0), abs=5e-5)


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


def test_delong_on_delongs_own_data() -> None:
    table = np.array(OVARIAN.split(), float).reshape(-1, 4)
    label, scores = table[:, 3].astype(np.int8), (table[:, 0], 10 - table[:, 2], table[:, 1])
    # As published with SAS/STAT, PROC LOGISTIC, example "Comparing Receiver Operating Characteristic Curves".
    for one, difference, p in ((0, 0.0108, 0.9102), (2, -0.0780, 0.4561)):
        assert delong_test(label, scores[one], scores[1]) == pytest.approx((difference, p), abs=5e-5)
    ranked = np.array([1, 1, 0, 0], np.int8), np.array([3.0, 2.0, 1.0, 0.0])
    assert delong_test(*ranked, 10 * ranked[1]) == (0.0, 1.0)
    assert delong_test(np.array([1, 1, 1, 0], np.int8), ranked[1], ranked[1]) == (None, None)


def test_mcnemar_on_counts() -> None:
    """Slices that both, the first alone, the second alone and neither call rightly."""
    for counts, p in (
        # Bentur et al. (2009) in Fagerland, Lydersen and Laake (2013), table 1: mid-p 0.039.
        ((1, 1, 7, 12), 0.0391),
        # Six disagreements that all point one way: half of 2 / 2^6.
        ((20, 6, 0, 3), 1 / 64),
        ((0, 1, 1, 0), 1.0),
    ):
        called = np.repeat([[0.5, 0.9, 0.4, 0.1], [0.6, 0.2, 1.0, 0.0]], counts, axis=1)
        found = mcnemar_test(np.ones(sum(counts), np.int8), *called)
        assert found == pytest.approx(((counts[1] - counts[2]) / sum(counts), p), abs=5e-5), counts


def test_resamples_are_paired_and_weigh_patients() -> None:
    rng = np.random.default_rng(4)
    label, patient = (np.arange(30) // 3 % 2).astype(np.int8), patients(30, each=3)
    probability = rng.uniform(size=(2, 30))
    networks = (*probability, probability[0])
    first, second, again = (Resampling(patient, 500, 9).draws(label, each)["accuracy"] for each in networks)
    np.testing.assert_array_equal(first, again)
    low, high, _ = paired_difference(first, second, 10)
    right = (probability >= 0.5) == (label == 1)
    # Both standard errors by hand: the spread over patients of the difference between the networks.
    spread = np.std([(right[0] * 1.0 - right[1])[patient == name].mean() for name in set(patient)])
    assert (low + high) / 2 == pytest.approx(right[0].mean() - right[1].mean(), abs=0.02)
    assert (high - low) / 2 / 1.96 == pytest.approx(spread / np.sqrt(10), rel=0.15)


def test_a_family_of_any_size_can_show_a_difference() -> None:
    for comparisons in (1, 14, 105):
        resamples = resamples_for(comparisons)
        draws = np.random.default_rng(0).normal(0.2, 0.01, resamples)
        *_, p = paired_difference(draws, np.zeros(resamples), patients=50)
        assert all(each is not None and each <= ALPHA / 10 for each in holm([p] * comparisons))
        assert resamples >= 2000
    draws = np.array([0.1, np.nan, np.nan, np.nan])
    assert paired_difference(draws, 0 * draws, 5) == paired_difference(draws, draws, 1) == (None, None, None)
    for second, p in ((0.1 + 0.2, 1.0), (0.1, 0.02)):
        assert paired_difference(np.full(99, 0.3), np.full(99, second), 5)[2] == pytest.approx(p)


def test_holm_by_hand() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not fall below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.8]) == pytest.approx([1.0, None, 1.0])
    assert holm([]) == []


def box(top: int = 0, left: int = 0, bottom: int = 0, right: int = 0) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:20, :30]
    return (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)


def peak(row: int, column: int) -> NDArray[np.float32]:
    return np.where(box(row, column, row + 1, column + 1), np.float32(3), np.float32(-4))


LUNGS, LESION, NOTHING = box(0, 0, 10, 10), box(0, 0, 2, 10), box()  # 100 pixels, 20 and none


def test_figures_of_two_ill_slices_and_a_clear_one() -> None:
    tally = Segmentation()
    # Found half of a lesion of 20 pixels, nothing else; the map is highest in it.
    tally.add("a", (LUNGS, LESION), LUNGS, box(0, 0, 1, 10), peak(0, 4))
    # A lesion of 40 pixels of which the predicted lungs hold 20; found beside it; higher still outside the lungs.
    beside, outside = peak(9, 9), box(19, 19, 20, 20)
    beside[outside] = 9
    tally.add("b", (LUNGS, box(0, 0, 4, 10)), box(2, 0, 10, 10), box(8, 0, 10, 10), beside)
    tally.add("c", (LUNGS, NOTHING), LUNGS, box(5, 0, 6, 10), peak(0, 0))
    measured = tally.figures(resamples=100)
    assert list(measured) == list(SEGMENTATION_TITLES)
    assert {name: (each["slices"], each["value"]) for name, each in measured.items()} == {
        "lung_dice": (3, pytest.approx((1 + 160 / 180 + 1) / 3)),
        "lesion_dice": (2, pytest.approx((20 / 30 + 0) / 2)),
        "lesion_dice_pooled": (3, pytest.approx(20 / (30 + 60 + 10))),
        "pointing": (2, 0.5),
        "lesion_in_lungs": (2, pytest.approx(40 / 60)),
        "opacity_spearman": (3, pytest.approx(spearmanr([20, 40, 0], [10, 25, 10]).statistic)),
        "opacity_error": (3, pytest.approx((10 + 15 + 10) / 3)),
        "clear_opacity_median": (1, 10.0),
        "clear_opacity_95": (1, 10.0),
    }


SEEN = (LUNGS, LESION, peak(0, 0))
OF_LESIONS = ("lesion_dice", "lesion_dice_pooled", "pointing", "lesion_in_lungs")


def test_what_is_not_known_is_left_out() -> None:
    for true, found, figures in (
        ((LUNGS, None), SEEN, {"lung_dice": 1}),
        ((None, LESION), SEEN, dict.fromkeys(OF_LESIONS, 1)),
        # A network without a lesion map is measured by its lungs.
        ((LUNGS, LESION), (LUNGS,), {"lung_dice": 1, "lesion_in_lungs": 1}),
        # Lungs that were not found miss the lesion and have no opacity.
        ((LUNGS, LESION), (NOTHING, NOTHING, peak(0, 0)), dict.fromkeys(("lung_dice", *OF_LESIONS), 0)),
        # A slice without lungs counts only where lungs are predicted.
        ((NOTHING, None), (NOTHING,), {}),
        ((NOTHING, None), (LUNGS,), {"lung_dice": 0}),
    ):
        tally = Segmentation()
        assert tally.figures() == {}
        tally.add("a", true, *found)
        measured = tally.figures(resamples=100)
        assert {name: each["value"] for name, each in measured.items() if each["slices"]} == figures
        assert all(each["low"] is None for each in measured.values()), "one patient only"
