"""Painted signs of other diseases: in the lungs, each what it is called, the same for the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from groundglass.imaging.lesions import Mimic, paint_mimic
from groundglass.imaging.phantom import make_phantom

Slice = tuple[np.ndarray, np.ndarray]
SEEDS = range(8)


@pytest.fixture(scope="module")
def healthy() -> Slice:
    phantom = make_phantom(np.random.default_rng(5), level=0.5, size=256)
    return phantom.slice.pixels, phantom.lungs


def shares(healthy: Slice, mimic: Mimic) -> list[float]:
    pixels, lungs = healthy
    return [
        paint_mimic(pixels, lungs, mimic, np.random.default_rng(seed)).mask.sum() / lungs.sum()
        for seed in SEEDS
    ]


@pytest.mark.parametrize("mimic", Mimic)
def test_paint_stays_in_and_about_the_lungs(healthy: Slice, mimic: Mimic) -> None:
    pixels, lungs = healthy
    near = cv2.dilate(lungs.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    for seed in SEEDS:
        painted = paint_mimic(pixels, lungs, mimic, np.random.default_rng(seed))
        assert painted.mask.any()
        np.testing.assert_array_equal(painted.pixels[~near], pixels[~near])
        assert not (painted.mask & ~near).any()
        assert painted.pixels.dtype == np.uint8
        assert 0 <= painted.opacity.min() <= painted.opacity.max() <= 1


@pytest.mark.parametrize("mimic", [Mimic.NODULE, Mimic.MASS, Mimic.LOBAR_CONSOLIDATION, Mimic.EFFUSION])
def test_shadows_are_brighter_than_lung(healthy: Slice, mimic: Mimic) -> None:
    pixels, lungs = healthy
    painted = paint_mimic(pixels, lungs, mimic, np.random.default_rng(1))
    rise = painted.pixels.astype(int) - pixels
    assert rise[painted.mask & lungs].mean() > 10


def test_emphysema_is_darker(healthy: Slice) -> None:
    pixels, lungs = healthy
    painted = paint_mimic(pixels, lungs, Mimic.EMPHYSEMA, np.random.default_rng(1))
    fall = pixels.astype(int) - painted.pixels
    assert fall[painted.mask].mean() > 5
    assert fall.min() >= -1


def test_honeycombs_have_walls_and_holes(healthy: Slice) -> None:
    pixels, lungs = healthy
    painted = paint_mimic(pixels, lungs, Mimic.HONEYCOMBING, np.random.default_rng(1))
    change = (painted.pixels.astype(int) - pixels)[painted.mask & lungs]
    assert (change > 20).mean() > 0.05
    assert (change < 0).mean() > 0.05


def test_sizes_are_those_of_the_signs(healthy: Slice) -> None:
    assert max(shares(healthy, Mimic.NODULE)) < 0.08
    assert 0.01 < np.mean(shares(healthy, Mimic.MASS)) < 0.25
    assert np.mean(shares(healthy, Mimic.LOBAR_CONSOLIDATION)) > 0.1
    assert max(shares(healthy, Mimic.LOBAR_CONSOLIDATION)) < 0.6, "one lung only"


def test_fluid_lies_at_the_back(healthy: Slice) -> None:
    pixels, lungs = healthy
    for seed in SEEDS:
        mask = paint_mimic(pixels, lungs, Mimic.EFFUSION, np.random.default_rng(seed)).mask
        assert np.argwhere(mask)[:, 0].mean() > np.argwhere(lungs)[:, 0].mean() + 10


def test_honeycombs_lie_at_the_pleura(healthy: Slice) -> None:
    pixels, lungs = healthy
    depth = cv2.distanceTransform(lungs.astype(np.uint8), cv2.DIST_L2, 3)
    for seed in SEEDS:
        mask = paint_mimic(pixels, lungs, Mimic.HONEYCOMBING, np.random.default_rng(seed)).mask & lungs
        assert depth[mask].mean() < depth[lungs].mean()


def test_lungs_that_touch_are_taken_for_two() -> None:
    lungs = np.zeros((120, 200), bool)
    cv2_lungs = lungs.astype(np.uint8)
    cv2.ellipse(cv2_lungs, (55, 60), (45, 50), 0, 0, 360, 1, -1)
    cv2.ellipse(cv2_lungs, (145, 60), (46, 50), 0, 0, 360, 1, -1)
    pixels = np.where(cv2_lungs > 0, 40, 180).astype(np.uint8)
    for seed in SEEDS:
        mask = paint_mimic(pixels, cv2_lungs > 0, Mimic.LOBAR_CONSOLIDATION, np.random.default_rng(seed)).mask
        columns = np.flatnonzero(mask.any(axis=0))
        assert columns.max() < 110 or columns.min() > 90


@pytest.mark.parametrize("mimic", Mimic)
def test_one_seed_paints_one_mimic(healthy: Slice, mimic: Mimic) -> None:
    first, again, other = (paint_mimic(*healthy, mimic, np.random.default_rng(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.pixels != other.pixels).any()


@pytest.mark.parametrize("mimic", Mimic)
def test_without_lungs_nothing_is_painted(mimic: Mimic) -> None:
    pixels = np.full((64, 64), 90, np.uint8)
    painted = paint_mimic(pixels, np.zeros((64, 64), bool), mimic, np.random.default_rng(0))
    np.testing.assert_array_equal(painted.pixels, pixels)
    assert not painted.mask.any()


def test_shapes_must_fit() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        paint_mimic(
            np.zeros((10, 10), np.uint8), np.zeros((9, 10), bool), Mimic.MASS, np.random.default_rng(0)
        )
