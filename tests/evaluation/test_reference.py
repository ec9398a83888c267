"""Distances of embeddings from the training slices, and what they say of slices of the same kind and of others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.evaluation.calibration import fit_reference
from groundglass.inference.reference import EmbeddingReference


def draw(count: int, seed: int) -> NDArray[np.float32]:
    """Points in 40 dimensions that vary along five directions and a little along all others."""
    mixing = np.random.default_rng(99).normal(0, 1, (5, 40))
    rng = np.random.default_rng(seed)
    points = rng.normal(0, 1, (count, 5)) @ mixing + rng.normal(3, 0.3, (count, 40))
    return points.astype(np.float32)


def fit(training: NDArray[np.floating], held_out: NDArray[np.floating]) -> EmbeddingReference:
    reference = fit_reference(training, held_out)
    assert reference is not None
    return reference


@pytest.fixture(scope="module")
def reference() -> EmbeddingReference:
    return fit(draw(300, 0), draw(150, 1))


def test_new_points_of_the_same_kind_fill_the_percentiles_evenly(reference: EmbeddingReference) -> None:
    percentiles = reference.percentile(draw(2000, 2))
    assert np.mean(percentiles >= 95) == pytest.approx(0.05, abs=0.04)
    assert np.median(percentiles) == pytest.approx(50, abs=10)
    fitted = draw(60, 0)
    assert np.median(fit(fitted, draw(500, 1)).percentile(fitted)) < 40, "fitted points lie nearer"
    point = draw(1, 8)
    distance = reference.distance(point)[0]
    # Of 20 exchangeable values, one is the largest: nothing below 19 held-out ones can be beyond 95 %.
    for nearer, expected in ((0, 0.0), (10, 50.0), (19, 95.0)):
        held_out = np.where(np.arange(19) < nearer, distance / 2, distance * 2).astype(np.float32)
        assert replace(reference, held_out=held_out).percentile(point) == pytest.approx([expected])


def test_points_of_another_kind_lie_farther(reference: EmbeddingReference) -> None:
    points = draw(200, 3)
    moved = points + 4 * points.std(axis=0)
    spread = points.mean(axis=0) + 3 * (points - points.mean(axis=0))
    beside = points + np.random.default_rng(4).normal(
        0, 1.5, points.shape
    )  # off the directions of the others
    for other in (moved, spread, beside):
        assert np.mean(reference.percentile(other) >= 95) > 0.5


def test_degenerate_points_give_finite_distances(reference: EmbeddingReference) -> None:
    constant = np.tile(np.arange(4.0), (30, 1))
    flat = fit(constant, constant)
    assert (flat.distance(constant + 1) > flat.distance(constant)).all()
    assert np.isfinite(flat.distance(constant + 1)).all()
    broken = draw(5, 6)
    broken[:, 0] = 1e30
    assert np.isfinite(reference.distance(broken)).all()
    for training, held_out in ((19, 100), (100, 19)):
        assert fit_reference(draw(training, 0), draw(held_out, 1)) is None, "too few"


def test_with_every_direction_principal_it_is_mahalanobis_distance() -> None:
    points, new = draw(300, 0)[:, :5], draw(200, 1)[:, :5]
    centred = new - points.mean(axis=0)
    mahalanobis = np.sqrt(np.sum(centred @ np.linalg.inv(np.cov(points.T)) * centred, axis=1))
    np.testing.assert_allclose(fit(points, new).distance(new), mahalanobis, rtol=0.02)
