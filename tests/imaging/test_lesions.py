"""Painted lesions and mimics: in the lungs, each what it is called, the same for the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from groundglass.imaging.lesions import Kind, Mimic, Painted, paint_lesion, paint_mimic
from groundglass.imaging.phantom import make_phantom

SEEDS = range(8)
SOLID = (Mimic.NODULE, Mimic.MASS, Mimic.LOBAR_CONSOLIDATION, Mimic.EFFUSION)
PHANTOM = make_phantom(np.random.default_rng(5), level=0.5, size=256)
PIXELS, LUNGS = PHANTOM.slice.pixels, PHANTOM.lungs


def paint(
    what: Kind | Mimic, seed: int, severity: float = 0.5, pixels: NDArray[np.uint8] = PIXELS, lungs=LUNGS
) -> Painted:
    rng = np.random.default_rng(seed)
    if isinstance(what, Kind):
        return paint_lesion(pixels, lungs, what, severity, rng)
    return paint_mimic(pixels, lungs, what, rng)


def rise(painted: Painted) -> NDArray[np.int64]:
    return painted.pixels.astype(int) - PIXELS


@pytest.mark.parametrize("what", [*Kind, *Mimic])
def test_paint_stays_in_and_about_the_lungs_and_follows_from_the_seed(what: Kind | Mimic) -> None:
    near = cv2.dilate(LUNGS.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    for seed in SEEDS:
        painted = paint(what, seed)
        assert painted.pixels.dtype == np.uint8
        assert painted.mask.any()
        assert not (painted.mask & ~near).any()
        np.testing.assert_array_equal(painted.pixels[~near], PIXELS[~near])
        np.testing.assert_array_equal(painted.pixels, paint(what, seed).pixels)
        assert (painted.pixels != paint(what, seed + 100).pixels).any()


@pytest.mark.parametrize("what", [*Kind, *SOLID])
def test_the_mask_is_where_grey_rose(what: Kind | Mimic) -> None:
    painted = paint(what, 1)
    assert rise(painted)[painted.mask & LUNGS].mean() > 10
    assert rise(painted)[~painted.mask].mean() < 3


def test_severity_sets_extent_and_zero_leaves_the_slice() -> None:
    shares = [
        np.mean([paint(Kind.GROUND_GLASS, seed, severity).mask.sum() / LUNGS.sum() for seed in SEEDS])
        for severity in (0.0, 0.1, 0.4, 0.9)
    ]
    assert shares == sorted(shares)
    assert (shares[0] == 0, shares[1] < 0.2, shares[3] > 0.35) == (True, True, True)
    untouched = paint(Kind.MIXED, 0, severity=0.0)
    np.testing.assert_array_equal(untouched.pixels, PIXELS)
    assert untouched.pixels is not PIXELS


def test_vessels_shine_through_ground_glass_and_consolidation_is_denser_and_hides_them() -> None:
    solid, glass = (paint(kind, 2, severity=0.9) for kind in (Kind.CONSOLIDATION, Kind.GROUND_GLASS))
    both = solid.mask & glass.mask
    assert solid.pixels[both].mean() > glass.pixels[both].mean() + 10
    bright = LUNGS & (PIXELS > 220) & solid.mask
    assert (rise(solid)[bright] < 0).mean() > 0.5
    assert rise(glass).min() == 0
    assert not rise(glass)[bright].any()


def test_signs_of_other_diseases_look_like_themselves() -> None:
    depth = cv2.distanceTransform(LUNGS.astype(np.uint8), cv2.DIST_L2, 3)
    share: dict[Mimic, list[float]] = {mimic: [] for mimic in Mimic}
    for seed in SEEDS:
        signs = {mimic: paint(mimic, seed) for mimic in Mimic}
        for mimic, painted in signs.items():
            share[mimic].append(painted.mask.sum() / LUNGS.sum())
        comb, emphysema = signs[Mimic.HONEYCOMBING], signs[Mimic.EMPHYSEMA]
        change = rise(comb)[comb.mask & LUNGS]
        assert (change > 20).mean() > 0.05, "walls"
        assert (change < 0).mean() > 0.05, "holes"
        assert depth[comb.mask & LUNGS].mean() < depth[LUNGS].mean(), "below the pleura"
        assert rise(emphysema)[emphysema.mask].mean() < -5
        back = np.argwhere(signs[Mimic.EFFUSION].mask)[:, 0].mean()
        assert back > np.argwhere(LUNGS)[:, 0].mean() + 10, "fluid lies at the back"
    assert rise(paint(Mimic.EMPHYSEMA, 1)).max() <= 1, "nothing is brighter"
    assert max(share[Mimic.NODULE]) < 0.08
    assert 0.01 < np.mean(share[Mimic.MASS]) < 0.25
    assert np.mean(share[Mimic.LOBAR_CONSOLIDATION]) > 0.1
    assert max(share[Mimic.LOBAR_CONSOLIDATION]) < 0.6, "one lung only"


SIDE = st.integers(1, 60)


@given(SIDE, SIDE, st.floats(0, 1), st.sampled_from([*Kind, *Mimic]), st.integers(0, 999))
@settings(max_examples=100, deadline=None)
def test_any_picture_can_be_painted(
    height: int, width: int, severity: float, what: Kind | Mimic, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels, lungs = rng.integers(0, 256, (height, width), np.uint8), rng.random((height, width)) < 0.5
    painted = paint(what, seed, severity, pixels, lungs)
    assert painted.pixels.shape == painted.mask.shape == pixels.shape
    painted = paint(what, seed, severity, pixels, np.zeros_like(lungs))
    np.testing.assert_array_equal(painted.pixels, pixels, "without lungs nothing is painted")
    assert not painted.mask.any()
