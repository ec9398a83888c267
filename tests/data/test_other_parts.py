"""Invented heads and abdomens: plausible densities, reproducible, and no lungs in them."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from groundglass.data.out_of_distribution import abdomen_below, scan_head
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.crop import find_lungs
from groundglass.imaging.phantom import Scanner, scan
from groundglass.imaging.window import LUNG


def _patient(seed: int) -> tuple[Patient, Scanner]:
    rng = np.random.default_rng(seed)
    patient = Patient.draw(rng)
    return patient, Scanner.draw(patient, rng)


@pytest.mark.parametrize("level", [0.0, 0.5, 1.0])
def test_a_head_is_bone_around_brain(level: float) -> None:
    head = scan_head(np.random.default_rng(3), level, size=256)
    assert head.dtype == np.float32
    assert head.min() >= -1024
    assert 10 < np.median(head[108:148, 108:148]) < 60
    assert (head > 500).mean() > 0.01
    assert np.median(head[:8]) < -900
    skull = np.zeros(head.shape, np.uint8)
    cv2.fillConvexPoly(skull, cv2.convexHull(np.argwhere(head > 500)[:, ::-1].astype(np.int32)), 1)
    inside = cv2.erode(skull, np.ones((5, 5), np.uint8)) > 0
    assert (head[inside] < -600).any() == (level == 1.0), "only the base of the skull holds air"


def test_a_head_follows_from_the_state() -> None:
    first, again = (scan_head(np.random.default_rng(4), size=96) for _ in range(2))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("depth", [0.05, 0.4, 0.9])
def test_an_abdomen_holds_no_lung(depth: float) -> None:
    for seed in range(4):
        patient, scanner = _patient(seed)
        below = abdomen_below(patient, scanner, depth, size=256)
        chest = scan(patient, scanner, 0.5, size=256).hounsfield
        inside = np.s_[96:160, 64:192]
        assert -150 < np.median(below[inside]) < 150
        assert ((chest > -950) & (chest < -700)).mean() > 0.1
        assert ((below > -950) & (below < -700))[inside].mean() < 0.05
        assert find_lungs(LUNG.apply(below))[0].mean() < 0.06


def test_an_abdomen_follows_from_its_patient_and_depth() -> None:
    patient, scanner = _patient(1)
    first, again = (abdomen_below(patient, scanner, 0.3, size=96) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, abdomen_below(patient, scanner, 0.5, size=96))


@pytest.mark.parametrize("depth", [-0.1, 1.5])
def test_a_depth_outside_the_abdomen_is_an_error(depth: float) -> None:
    patient, scanner = _patient(1)
    with pytest.raises(ValueError, match="must lie in"):
        abdomen_below(patient, scanner, depth)
