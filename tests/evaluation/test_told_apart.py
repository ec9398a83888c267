"""Two sets of slices, told apart or not."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.evaluation.result import FOLDS, told_apart


def draw(count: int, seed: int, shift: float = 0.0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(shift, 1, (count, 12))


def patients(count: int, each: int = 2) -> NDArray[np.str_]:
    return np.array([f"p{number // each}" for number in range(count)])


def test_sets_alike_are_not_told_apart() -> None:
    found = told_apart(draw(100, 0), patients(100), draw(150, 1), patients(150), resamples=100)
    assert found.auc == pytest.approx(0.5, abs=0.12)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.auc < found.high


def test_a_small_shift_of_all_is_noticed() -> None:
    found = told_apart(draw(100, 0), patients(100), draw(150, 1, shift=0.7), patients(150), resamples=100)
    assert found.auc is not None
    assert found.auc > 0.9
    assert found.low is not None
    assert found.low > 0.8


def test_a_shift_towards_the_middle_is_noticed_by_none_of_its_slices_being_far() -> None:
    found = told_apart(
        draw(100, 0, shift=1.0), patients(100), draw(150, 1) * 0.1, patients(150), resamples=20
    )
    assert found.auc is not None
    assert found.auc > 0.9


def test_patients_that_look_alike_within_themselves_tell_nothing() -> None:
    """Were a patient's slices on both sides, remembering the patient would pass for telling the sets apart."""
    rng = np.random.default_rng(0)
    own = [np.repeat(rng.normal(0, 1, (12, 40)), 10, axis=0) for _ in range(2)]
    found = told_apart(own[0], patients(120, 10), own[1], patients(120, 10), resamples=20)
    assert found.auc is not None
    assert found.auc < 0.7


def test_too_few_patients_give_no_figure() -> None:
    few = np.array([f"p{number % (FOLDS - 1)}" for number in range(60)])
    found = told_apart(draw(100, 0), patients(100), draw(60, 1), few, resamples=20)
    assert found.auc is None
    assert found.reason == f"fewer than {FOLDS} patients"


def test_equal_seeds_give_equal_figures() -> None:
    arguments = (draw(60, 0), patients(60), draw(60, 1, 0.3), patients(60))
    assert told_apart(*arguments, resamples=50, seed=3) == told_apart(*arguments, resamples=50, seed=3)
