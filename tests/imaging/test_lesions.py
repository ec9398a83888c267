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

Slice = tuple[NDArray[np.uint8], NDArray[np.bool_]]
SEEDS = range(8)
SOLID = (Mimic.NODULE, Mimic.MASS, Mimic.LOBAR_CONSOLIDATION, Mimic.EFFUSION)


@pytest.fixture(scope="module")
def healthy() -> Slice:
    phantom = make_phantom(np.random.default_rng(5), level=0.5, size=256)
    return phantom.slice.pixels, phantom.lungs


def paint(healthy: Slice, what: Kind | Mimic, seed: int, severity: float = 0.5) -> Painted:
    rng = np.random.default_rng(seed)
    return (
        paint_lesion(*healthy, what, severity, rng)
        if isinstance(what, Kind)
        else paint_mimic(*healthy, what, rng)
    )


def rise(healthy: Slice, painted: Painted) -> NDArray[np.int64]:
    return painted.pixels.astype(int) - healthy[0]


@pytest.mark.parametrize("what", [*Kind, *Mimic])
def test_paint_stays_in_and_about_the_lungs_and_follows_from_the_seed(
    healthy: Slice, what: Kind | Mimic
) -> None:
    pixels, lungs = healthy
    near = cv2.dilate(lungs.astype(np.uint8), np.ones((9, 9), np.uint8)) > 0
    for seed in SEEDS:
        painted = paint(healthy, what, seed)
        assert painted.pixels.dtype == np.uint8
        assert painted.mask.any()
        assert not (painted.mask & ~near).any()
        np.testing.assert_array_equal(painted.pixels[~near], pixels[~near])
        np.testing.assert_array_equal(painted.pixels, paint(healthy, what, seed).pixels)
        assert (painted.pixels != paint(healthy, what, seed + 100).pixels).any()


@pytest.mark.parametrize("what", [*Kind, *SOLID])
def test_the_mask_is_where_grey_rose(healthy: Slice, what: Kind | Mimic) -> None:
    painted = paint(healthy, what, 1)
    changed = rise(healthy, painted)
    assert changed[painted.mask & healthy[1]].mean() > 10
    assert changed[~painted.mask].mean() < 3


def test_severity_sets_extent_and_zero_leaves_the_slice(healthy: Slice) -> None:
    extents = [
        np.mean([paint(healthy, Kind.GROUND_GLASS, seed, severity).mask.sum() for seed in SEEDS])
        / healthy[1].sum()
        for severity in (0.0, 0.1, 0.4, 0.9)
    ]
    assert extents[0] == 0
    assert extents == sorted(extents)
    assert extents[1] < 0.2
    assert extents[3] > 0.35
    untouched = paint(healthy, Kind.MIXED, 0, severity=0.0)
    np.testing.assert_array_equal(untouched.pixels, healthy[0])
    assert untouched.pixels is not healthy[0]


def test_vessels_shine_through_ground_glass_and_consolidation_is_denser_and_hides_them(
    healthy: Slice,
) -> None:
    pixels, lungs = healthy
    solid, glass = (paint(healthy, kind, 2, severity=0.9) for kind in (Kind.CONSOLIDATION, Kind.GROUND_GLASS))
    both = solid.mask & glass.mask
    assert solid.pixels[both].mean() > glass.pixels[both].mean() + 10
    bright = lungs & (pixels > 220) & solid.mask
    assert (solid.pixels[bright] < pixels[bright]).mean() > 0.5
    assert rise(healthy, glass).min() == 0
    np.testing.assert_array_equal(glass.pixels[bright], pixels[bright])


def test_signs_of_other_diseases_look_like_themselves(healthy: Slice) -> None:
    lungs = healthy[1]
    depth = cv2.distanceTransform(lungs.astype(np.uint8), cv2.DIST_L2, 3)
    share: dict[Mimic, list[float]] = {mimic: [] for mimic in Mimic}
    for seed in SEEDS:
        signs = {mimic: paint(healthy, mimic, seed) for mimic in Mimic}
        for mimic, painted in signs.items():
            share[mimic].append(painted.mask.sum() / lungs.sum())
        comb, emphysema = signs[Mimic.HONEYCOMBING], signs[Mimic.EMPHYSEMA]
        inside = comb.mask & lungs
        change = rise(healthy, comb)[inside]
        assert (change > 20).mean() > 0.05, "walls"
        assert (change < 0).mean() > 0.05, "holes"
        assert depth[inside].mean() < depth[lungs].mean(), "below the pleura"
        assert rise(healthy, emphysema)[emphysema.mask].mean() < -5
        back = np.argwhere(signs[Mimic.EFFUSION].mask)[:, 0].mean()
        assert back > np.argwhere(lungs)[:, 0].mean() + 10, "fluid lies at the back"
    assert rise(healthy, paint(healthy, Mimic.EMPHYSEMA, 1)).max() <= 1, "nothing is brighter"
    assert max(share[Mimic.NODULE]) < 0.08
    assert 0.01 < np.mean(share[Mimic.MASS]) < 0.25
    assert np.mean(share[Mimic.LOBAR_CONSOLIDATION]) > 0.1
    assert max(share[Mimic.LOBAR_CONSOLIDATION]) < 0.6, "one lung only"


@given(
    st.integers(1, 60),
    st.integers(1, 60),
    st.floats(0, 1),
    st.sampled_from([*Kind, *Mimic]),
    st.integers(0, 999),
)
@settings(max_examples=100, deadline=None)
def test_any_picture_can_be_painted(
    height: int, width: int, severity: float, what: Kind | Mimic, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width), np.uint8)
    painted = paint((pixels, rng.random((height, width)) < 0.5), what, seed, severity)
    assert painted.pixels.shape == painted.mask.shape == pixels.shape
    painted = paint((pixels, np.zeros(pixels.shape, np.bool_)), what, seed, severity)
    np.testing.assert_array_equal(painted.pixels, pixels, "without lungs nothing is painted")
    assert not painted.mask.any()
