"""Wilson's interval, held to published values and to what it promises."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import binom

from groundglass.evaluation.bootstrap import Proportion


def _of(count: int, total: int) -> Proportion:
    return Proportion.of(np.arange(total) < count)


@pytest.mark.parametrize(
    ("count", "total", "low", "high"),
    # R. G. Newcombe, Two-sided confidence intervals for the single proportion, Stat. Med. 17 (1998), table I.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(count: int, total: int, low: float, high: float) -> None:
    share = _of(count, total)
    assert share.value == count / total
    assert share.low == pytest.approx(low, abs=5e-5)
    assert share.high == pytest.approx(high, abs=5e-5)


def test_the_interval_holds_the_truth_nearly_as_often_as_stated() -> None:
    truth, total = 0.97, 118
    shares = [_of(count, total) for count in range(total + 1)]
    chance = binom.pmf(np.arange(total + 1), total, truth)
    held = np.array([bool(each.low <= truth <= each.high) for each in shares])
    assert 0.92 < chance[held].sum() <= 1


def test_all_and_none_stay_within_bounds() -> None:
    assert _of(5, 5).high == 1.0
    assert _of(0, 5).low == 0.0


def test_no_case_has_no_share() -> None:
    assert str(_of(0, 0)) == "–"
    assert _of(0, 0).value is None
