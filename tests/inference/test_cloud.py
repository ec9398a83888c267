"""Distances from a cloud of points, and what they say of points of the same kind and of others."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.inference.reference import Cloud, percentile

DIMENSIONS = 40


def draw(count: int, seed: int) -> NDArray[np.float32]:
    """Points that vary along five directions and a little along all others."""
    mixing = np.random.default_rng(99).normal(0, 1, (5, DIMENSIONS))
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 1, (count, 5)) @ mixing + rng.normal(3, 0.3, (count, DIMENSIONS))).astype(
        np.float32
    )


@pytest.fixture(scope="module")
def cloud() -> Cloud:
    return Cloud.fit(draw(300, 0), draw(150, 1), directions=8)


def test_new_points_of_the_same_kind_fill_the_percentiles_evenly(cloud: Cloud) -> None:
    percentiles = cloud.percentile(cloud.distance(draw(2000, 2)))
    assert np.mean(percentiles >= 95) == pytest.approx(0.05, abs=0.04)
    assert np.median(percentiles) == pytest.approx(50, abs=10)


@pytest.mark.parametrize("change", ["moved", "spread", "beside"])
def test_points_of_another_kind_lie_farther(cloud: Cloud, change: str) -> None:
    points = draw(200, 3)
    if change == "moved":
        points = points + 4 * points.std(axis=0)
    elif change == "spread":
        points = points.mean(axis=0) + 3 * (points - points.mean(axis=0))
    else:  # off the directions in which the others vary
        points = points + np.random.default_rng(4).normal(0, 1.5, points.shape)
    percentiles = cloud.percentile(cloud.distance(points))
    assert np.mean(percentiles >= 95) > 0.5


def test_fitted_points_lie_nearer_than_new_ones() -> None:
    fitted = draw(60, 0)
    cloud = Cloud.fit(fitted, draw(500, 1), directions=24)
    assert np.median(cloud.percentile(cloud.distance(fitted))) < 40


def test_points_that_vary_in_no_direction_do_not_divide_by_nothing() -> None:
    points = np.tile(np.arange(4.0), (30, 1))
    cloud = Cloud.fit(points, points, directions=4)
    assert np.isfinite(cloud.distance(points + 1)).all()
    assert (cloud.distance(points + 1) > cloud.distance(points)).all()


def test_every_direction_may_be_principal() -> None:
    points, new = draw(300, 0)[:, :5], draw(200, 1)[:, :5]
    cloud = Cloud.fit(points, new, directions=5)
    centred = new - points.mean(axis=0)
    mahalanobis = np.sqrt(np.sum(centred @ np.linalg.inv(np.cov(points.T)) * centred, axis=1))
    np.testing.assert_allclose(cloud.distance(new), mahalanobis, rtol=0.02)


def test_one_broken_number_is_no_distance(cloud: Cloud) -> None:
    points = draw(5, 6)
    points[:, 0] = 1e30
    assert np.isfinite(cloud.distance(points)).all()


def test_it_survives_its_arrays(cloud: Cloud) -> None:
    again = Cloud.from_arrays(cloud.as_arrays())
    np.testing.assert_array_equal(again.distance(draw(20, 7)), cloud.distance(draw(20, 7)))
    with pytest.raises(ValueError, match="spread is of shape"):
        Cloud.from_arrays({**cloud.as_arrays(), "spread": np.ones(3, np.float32)})


def test_too_few_points_are_an_error() -> None:
    with pytest.raises(ValueError, match="too few"):
        Cloud.fit(draw(1, 0), draw(5, 1), directions=2)


def test_percentiles_are_conformal() -> None:
    held_out = np.arange(1.0, 20.0)
    # Of 20 exchangeable values, one is the largest: nothing below 19 held-out ones can be beyond 95 %.
    np.testing.assert_allclose(percentile(np.array([0.5, 10.5, 19.5]), held_out), [0.0, 50.0, 95.0])
    np.testing.assert_allclose(percentile(np.array([19.0]), held_out), [90.0])
