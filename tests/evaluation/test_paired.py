"""Paired tests against published examples, against their definitions, and by simulation."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.evaluation.bootstrap import Resampling
from groundglass.evaluation.paired import ALPHA, delong_test, holm, mcnemar, paired_difference, resamples_for

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


def test_delong_on_delongs_own_data() -> None:
    table = np.array(OVARIAN.split(), float).reshape(-1, 4)
    label, scores = table[:, 3].astype(np.int8), (table[:, 0], 10 - table[:, 2], table[:, 1])
    # As published with SAS/STAT, PROC LOGISTIC, example "Comparing Receiver Operating Characteristic Curves".
    for one, difference, p in ((0, 0.0108, 0.9102), (2, -0.0780, 0.4561)):
        assert delong_test(label, scores[one], scores[1]) == pytest.approx((difference, p), abs=5e-5)
    ranked = np.array([1, 1, 0, 0], np.int8), np.array([3.0, 2.0, 1.0, 0.0])
    assert delong_test(*ranked, 10 * ranked[1]) == (0.0, 1.0)
    assert delong_test(np.array([1, 1, 1, 0], np.int8), ranked[1], ranked[1]) == (None, None)


@pytest.mark.parametrize(
    ("counts", "p"),
    [
        # Bentur et al. (2009) in Fagerland, Lydersen and Laake (2013), table 1: mid-p 0.039.
        ((1, 1, 7, 12), 0.0391),
        # Six disagreements that all point one way: half of 2 / 2^6.
        ((20, 6, 0, 3), 1 / 64),
        ((5, 0, 0, 5), 1.0),
        ((5, 4, 4, 1), 1.0),
        ((0, 1, 1, 0), 1.0),
    ],
)
def test_mcnemar_on_counts(counts: tuple[int, int, int, int], p: float) -> None:
    """Slices that both, the first alone, the second alone and neither call rightly."""
    right = (np.repeat(which, counts) for which in ([True, True, False, False], [True, False, True, False]))
    assert mcnemar(*right) == pytest.approx(p, abs=5e-5)


def test_resamples_are_paired_and_weigh_patients() -> None:
    rng = np.random.default_rng(4)
    label = (np.arange(30) // 3 % 2).astype(np.int8)
    patient = np.array([f"p{number}" for number in np.arange(30) // 3])
    probability = rng.uniform(size=(2, 30))
    first, second, again = (
        Resampling(patient, 500, 9).draws(label, each)["accuracy"] for each in (*probability, probability[0])
    )
    assert first.shape == (500,)
    np.testing.assert_array_equal(first, again)
    low, high, _ = paired_difference(first, second, 10)
    right = (probability >= 0.5) == (label == 1)
    # Both standard errors by hand: the spread over patients of the difference between the networks.
    spread = np.std([(right[0] * 1.0 - right[1])[patient == name].mean() for name in set(patient)])
    assert low is not None
    assert high is not None
    middle, half = (low + high) / 2, (high - low) / 2
    assert middle == pytest.approx(right[0].mean() - right[1].mean(), abs=0.02)
    assert half / 1.96 == pytest.approx(spread / np.sqrt(10), rel=0.15)


def test_a_difference_that_cannot_be_resampled() -> None:
    draws = np.array([0.1, np.nan, np.nan, np.nan])
    assert paired_difference(draws, 0 * draws, 5) == paired_difference(draws, draws, 1) == (None, None, None)
    assert paired_difference(np.full(99, 0.3), np.full(99, 0.1 + 0.2), 5)[2] == 1.0
    assert paired_difference(np.full(99, 0.5), np.full(99, 0.3), 5)[2] == pytest.approx(0.02)


@pytest.mark.parametrize("comparisons", [1, 14, 105])
def test_a_family_of_any_size_can_show_a_difference(comparisons: int) -> None:
    resamples = resamples_for(comparisons)
    draws = np.random.default_rng(0).normal(0.2, 0.01, resamples)
    *_, p = paired_difference(draws, np.zeros(resamples), patients=50)
    assert all(each is not None and each <= ALPHA / 10 for each in holm([p] * comparisons))
    assert resamples >= 2000


def test_holm_by_hand_and_by_simulation() -> None:
    # 4 x 0.005, 3 x 0.01, 2 x 0.03, and 1 x 0.04, which may not fall below the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, None, 0.8]) == pytest.approx([1.0, None, 1.0])
    assert holm([]) == []
    p = np.random.default_rng(5).uniform(size=(4000, 10))
    wrong = [min(value for value in holm(list(each)) if value is not None) < 0.05 for each in p]
    assert np.mean(wrong) == pytest.approx(0.05, abs=0.012)
