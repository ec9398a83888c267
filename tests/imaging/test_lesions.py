"""The lesion painter: in the lungs, by severity, the same for the same seed."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundglass.imaging.crop import find_lungs
from groundglass.imaging.lesions import (
    Distribution,
    Kind,
    meshes,
    paint_ground_glass,
    paint_lesion,
    smooth_noise,
)
from groundglass.imaging.phantom import make_phantom


@pytest.fixture(scope="module")
def healthy() -> tuple[np.ndarray, np.ndarray]:
    phantom = make_phantom(np.random.default_rng(5), level=0.5)
    return phantom.slice.pixels, phantom.lungs


def test_paint_stays_in_the_lungs_and_only_brightens(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lungs = healthy
    painted = paint_ground_glass(pixels, lungs, 0.6, np.random.default_rng(0))
    near = cv2.dilate(lungs.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert painted.mask.any()
    assert (painted.pixels[~near] == pixels[~near]).all()
    assert (painted.pixels >= pixels).all()
    assert not (painted.mask & ~near).any()


def test_the_mask_is_where_grey_rose(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lungs = healthy
    painted = paint_ground_glass(pixels, lungs, 0.5, np.random.default_rng(1))
    rise = painted.pixels.astype(int) - pixels
    assert rise[painted.mask].mean() > 15
    assert rise[~painted.mask].mean() < 3


def test_severity_sets_extent(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lungs = healthy
    extents = [
        np.mean(
            [
                paint_ground_glass(pixels, lungs, severity, np.random.default_rng(seed)).mask.sum()
                / lungs.sum()
                for seed in range(12)
            ]
        )
        for severity in (0.0, 0.1, 0.4, 0.9)
    ]
    assert extents[0] == 0
    assert extents == sorted(extents)
    assert extents[1] < 0.2
    assert extents[3] > 0.35


def test_severity_zero_leaves_the_slice(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lungs = healthy
    painted = paint_ground_glass(pixels, lungs, 0.0, np.random.default_rng(0))
    np.testing.assert_array_equal(painted.pixels, pixels)
    assert painted.pixels is not pixels


def test_one_seed_paints_one_lesion(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lungs = healthy
    first, again, other = (
        paint_ground_glass(pixels, lungs, 0.5, np.random.default_rng(s)) for s in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.pixels, again.pixels)
    assert (first.pixels != other.pixels).any()


def test_vessels_shine_through(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lungs = healthy
    painted = paint_ground_glass(pixels, lungs, 0.9, np.random.default_rng(2))
    bright = lungs & (pixels > 220)
    np.testing.assert_array_equal(painted.pixels[bright], pixels[bright])


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=100, deadline=None)
def test_any_picture_can_be_painted(height: int, width: int, severity: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width), np.uint8)
    lungs = rng.random((height, width)) < 0.5
    painted = paint_ground_glass(pixels, lungs, severity, rng)
    assert painted.pixels.shape == painted.mask.shape == pixels.shape
    assert np.isfinite(painted.opacity).all()
    assert painted.opacity.min() >= 0
    assert painted.opacity.max() <= 1.001


@pytest.mark.parametrize("severity", [-0.1, 1.1, float("nan")])
def test_severity_out_of_range_is_an_error(severity: float) -> None:
    with pytest.raises(ValueError, match="severity"):
        paint_ground_glass(
            np.zeros((9, 9), np.uint8), np.ones((9, 9), np.bool_), severity, np.random.default_rng()
        )


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        paint_ground_glass(
            np.zeros((9, 9), np.uint8), np.ones((9, 8), np.bool_), 0.5, np.random.default_rng()
        )


def test_noise_is_smooth_with_zero_mean_and_unit_variance() -> None:
    field = smooth_noise((120, 90), 6, np.random.default_rng(0))
    assert field.shape == (120, 90)
    assert field.mean() == pytest.approx(0, abs=1e-4)
    assert field.std() == pytest.approx(1, abs=1e-3)
    assert np.abs(np.diff(field, axis=0)).mean() < 0.2


def test_found_lungs_can_be_painted(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, _ = healthy
    lungs, found = find_lungs(pixels)
    assert found
    assert paint_ground_glass(pixels, lungs, 0.5, np.random.default_rng(0)).mask.any()


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_paints_opacity_into_the_lungs(healthy: tuple[np.ndarray, np.ndarray], kind: Kind) -> None:
    pixels, lungs = healthy
    near = cv2.dilate(lungs.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    painted = paint_lesion(pixels, lungs, kind, 0.5, np.random.default_rng(1))
    rise = painted.pixels.astype(int) - pixels
    assert rise[painted.mask].mean() > 15
    np.testing.assert_array_equal(painted.pixels[~near], pixels[~near])
    again = paint_lesion(pixels, lungs, kind, 0.5, np.random.default_rng(1))
    np.testing.assert_array_equal(painted.pixels, again.pixels)


def test_consolidation_is_denser_and_hides_vessels(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lungs = healthy
    solid, glass = (
        paint_lesion(pixels, lungs, kind, 0.9, np.random.default_rng(2))
        for kind in (Kind.CONSOLIDATION, Kind.GROUND_GLASS)
    )
    both = solid.mask & glass.mask
    assert solid.pixels[both].mean() > glass.pixels[both].mean() + 10
    bright = lungs & (pixels > 220) & (solid.opacity > 0.5)
    assert bright.any()
    assert (solid.pixels[bright] < pixels[bright]).mean() > 0.5


def test_mixed_lies_between(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    pixels, lungs = healthy
    means = [
        np.mean(
            [
                paint_lesion(pixels, lungs, kind, 0.6, np.random.default_rng(seed)).pixels[lungs].mean()
                for seed in range(10)
            ]
        )
        for kind in (Kind.GROUND_GLASS, Kind.MIXED, Kind.CONSOLIDATION)
    ]
    assert means == sorted(means)


def placed(healthy: tuple[np.ndarray, np.ndarray], distribution: Distribution) -> list[np.ndarray]:
    pixels, lungs = healthy
    return [
        paint_lesion(pixels, lungs, Kind.GROUND_GLASS, 0.3, np.random.default_rng(seed), distribution).mask
        & lungs
        for seed in range(12)
    ]


def test_distributions_lie_where_they_say(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    lungs = healthy[1]
    depth = cv2.distanceTransform(lungs.astype(np.uint8), cv2.DIST_L2, 3)

    def depths(distribution: Distribution) -> float:
        return float(np.mean([depth[mask].mean() for mask in placed(healthy, distribution)]))

    def rows(distribution: Distribution) -> float:
        return float(np.mean([np.argwhere(mask)[:, 0].mean() for mask in placed(healthy, distribution)]))

    def imbalance(distribution: Distribution) -> float:
        middle = lungs.shape[1] // 2
        left = np.array([mask[:, :middle].sum() for mask in placed(healthy, distribution)])
        right = np.array([mask[:, middle:].sum() for mask in placed(healthy, distribution)])
        return float(np.mean(np.abs(left - right) / (left + right)))

    assert depths(Distribution.PERIPHERAL) < 0.8 * depths(Distribution.DIFFUSE)
    assert rows(Distribution.BASAL) > rows(Distribution.DIFFUSE) + 20
    assert imbalance(Distribution.UNILATERAL) > 2 * imbalance(Distribution.BILATERAL)


def test_meshes_close_and_leave_room(healthy: tuple[np.ndarray, np.ndarray]) -> None:
    walls = meshes((160, 200), 20, np.random.default_rng(0))
    assert walls.shape == (160, 200)
    assert 0 <= walls.min() <= walls.max() <= 1.0001
    count = cv2.connectedComponents((walls < 0.2).astype(np.uint8), connectivity=4)[0] - 1
    assert 100 < count < 400, "about 20 x 16 meshes"
