"""The linear model behind the gate, on numbers whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.inference.input_check import (
    LUNG,
    Examples,
    OutOfDistributionModel,
    fit_foreign_model,
    held_out_distance_from_lung,
)

COUNT = 40


def _cloud(rng: np.random.Generator, number: int, middle: float, direction: int) -> NDArray[np.float64]:
    points = rng.normal(0, 1, (number, COUNT))
    points[:, direction] += middle
    return points


@pytest.fixture(scope="module")
def examples() -> Examples:
    """Lung slices around the origin, two foreign kinds 6 spreads away in directions of their own."""
    rng = np.random.default_rng(0)
    features = np.concatenate([_cloud(rng, 300, 0, 0), _cloud(rng, 60, 6, 0), _cloud(rng, 60, -6, 1)])
    kind = (LUNG,) * 300 + ("chart",) * 60 + ("head",) * 60
    return Examples(features, kind, np.arange(420) // 3, np.ones(420))


@pytest.fixture(scope="module")
def model(examples: Examples) -> OutOfDistributionModel:
    return fit_foreign_model(examples)


def test_kinds_are_told_apart(model: OutOfDistributionModel) -> None:
    rng = np.random.default_rng(1)
    assert model.kinds.tolist() == ["chart", "head"]
    assert (model.distance_from_lung(_cloud(rng, 200, 0, 0)) < 0).mean() > 0.97
    for number, (middle, direction) in enumerate([(6, 0), (-6, 1)]):
        points = _cloud(rng, 200, middle, direction)
        assert (model.distance_from_lung(points) > 0).mean() > 0.97
        assert (model.odds(points).argmax(axis=1) == number).mean() > 0.97


def test_what_resembles_nothing_is_foreign(model: OutOfDistributionModel) -> None:
    """Far away in a direction that no example of any kind ever took: the distances alone tell it."""
    rng = np.random.default_rng(2)
    lung = model.distance_from_lung(_cloud(rng, 200, 0, 0))
    far = model.distance_from_lung(rng.normal(0, 5, (200, COUNT)))
    assert np.median(far) > np.quantile(lung, 0.99)


def test_arrays_bring_back_the_same_model(model: OutOfDistributionModel) -> None:
    again = OutOfDistributionModel(**model.as_arrays())
    points = np.random.default_rng(3).normal(0, 3, (10, COUNT))
    np.testing.assert_array_equal(model.odds(points), again.odds(points))
    assert all(not array.dtype.hasobject for array in model.as_arrays().values())


def test_arrays_that_do_not_fit_together_are_refused(model: OutOfDistributionModel) -> None:
    with pytest.raises(ValueError, match="weights is of shape"):
        replace(model, weights=model.weights[:-1])


def test_the_fit_is_reproducible(examples: Examples, model: OutOfDistributionModel) -> None:
    for name, array in fit_foreign_model(examples).as_arrays().items():
        np.testing.assert_array_equal(array, getattr(model, name))


@pytest.mark.parametrize("kept", [(LUNG,), ("chart", "head")])
def test_one_side_alone_cannot_be_learnt_from(examples: Examples, kept: tuple[str, ...]) -> None:
    chosen = np.array([kind in kept for kind in examples.kind])
    with pytest.raises(ValueError, match="examples of lung slices and of foreign"):
        fit_foreign_model(examples.take(chosen))


def test_a_number_that_never_varies_does_no_harm(examples: Examples) -> None:
    constant = np.concatenate([examples.features, np.ones((420, 1))], axis=1)
    model = fit_foreign_model(replace(examples, features=constant))
    assert np.isfinite(model.distance_from_lung(constant * 1e6)).all()


def test_held_out_slices_were_not_seen(examples: Examples) -> None:
    """Slices that say nothing about each other: seen, each would be known; held out, they are not."""
    rng = np.random.default_rng(5)
    features = rng.normal(0, 1, (120, 400))
    kind = (LUNG,) * 60 + ("other",) * 60
    weight = np.ones(120)
    alone = Examples(features, kind, np.arange(120), weight)
    seen = fit_foreign_model(alone).distance_from_lung(features[:60])
    held_out = held_out_distance_from_lung(alone)
    assert held_out.shape == (120,)
    assert np.median(held_out[:60]) > np.median(seen) + 1
    # Every slice beside an identical one of its own patient: only whole patients held out keep the secret.
    twins = Examples(
        np.repeat(features, 2, axis=0), tuple(np.repeat(kind, 2)), np.repeat(np.arange(120), 2), np.ones(240)
    )
    assert np.median(held_out_distance_from_lung(twins)[:120]) > np.median(seen) + 1


def test_one_patient_alone_cannot_be_held_out(examples: Examples) -> None:
    with pytest.raises(ValueError, match="examples of lung slices"):
        held_out_distance_from_lung(replace(examples, group=np.zeros(420, np.int64)))
