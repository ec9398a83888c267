"""Dose-response measured on networks that see the lesion, see nothing, or see it upside down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.evaluation.dose_response import BINS, STEPS, dose_response
from groundglass.imaging.framing import Framing
from groundglass.inference.engine import Outputs
from groundglass.inference.finding import COVID, NON_COVID
from groundglass.inference.gate import Gate
from groundglass.inference.trust import Calibration

pytestmark = pytest.mark.slow


class GreyLungs:
    """Takes the share of mid-grey, ground glass between lung and tissue, for COVID."""

    def __init__(self, sign: float) -> None:
        self.sign = sign

    def run(self, images: NDArray[np.float32]) -> Outputs:
        share = ((images > -0.5) & (images < 1.2)).mean(axis=(1, 2))
        logit = np.asarray(20 * self.sign * (share - 0.3), np.float32)
        return Outputs(
            logit, np.zeros((len(images), 2, 2), np.float32), np.zeros((len(images), 3), np.float32)
        )


@pytest.fixture(scope="module")
def trust() -> dict[str, Any]:
    return Gate.open_wide(3).as_arrays()


def _bundle(sign: float, trust: dict[str, Any]) -> Any:
    calibration = Calibration(1.0, 0.9, {COVID: 0.9, NON_COVID: 0.9})
    return SimpleNamespace(
        framing=Framing(size=64), engine=lambda: GreyLungs(sign), calibration=calibration, trust=trust
    )


def test_a_network_that_sees_the_lesion(trust: dict[str, Any]) -> None:
    dose = dose_response(_bundle(1, trust), phantoms=40, patients=6)
    # Between people and scanners the grey of lungs differs anyway: the correlation is far from 1.
    assert dose.correlation.value > 0.2
    assert dose.correlation.low < dose.correlation.value < dose.correlation.high <= 1
    assert dose.painted_share.value > 0.2
    assert dose.rising_patients.count == 6
    assert (dose.rising_steps.total, dose.refused_of_patients.total) == (6 * (len(STEPS) - 1), 6 * len(STEPS))
    assert dose.within_patients > 0.4
    assert dose.mean_by_step[-1] > dose.mean_by_step[0]
    assert sum(each.phantoms for each in dose.bins) == 40
    assert len(dose.bins) == BINS
    assert dose.refused.count == 0


def test_one_that_sees_it_upside_down_falls(trust: dict[str, Any]) -> None:
    dose = dose_response(_bundle(-1, trust), phantoms=30, patients=4)
    assert dose.correlation.value < -0.2
    assert dose.rising_patients.count == 0
    assert dose.within_patients < -0.4


def test_one_that_sees_nothing_does_not_correlate(trust: dict[str, Any]) -> None:
    dose = dose_response(_bundle(0, trust), phantoms=10, patients=2)
    assert dose.correlation.value == 0.0
    assert dose.rising_steps.count == 0
    assert dose.within_patients == 0.0


def test_the_same_seed_measures_the_same(trust: dict[str, Any]) -> None:
    first, again = (dose_response(_bundle(1, trust), phantoms=6, patients=1, seed=3) for _ in range(2))
    assert first == again
    assert first != dose_response(_bundle(1, trust), phantoms=6, patients=1, seed=4)
