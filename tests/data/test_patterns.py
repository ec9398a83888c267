"""Pictures without anatomy: the same for the same seed, different from one another, of every shape."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.data import out_of_distribution as patterns

Draw = Callable[[np.random.Generator], NDArray[np.uint8]]
ALL: list[Draw] = [
    patterns.blank,
    patterns.gradient,
    patterns.checkerboard,
    patterns.stripes,
    patterns.circles,
    patterns.noise,
    patterns.text_page,
    patterns.chart,
    patterns.scenery,
]


@pytest.mark.parametrize("draw", ALL, ids=lambda draw: draw.__name__)
def test_a_seed_draws_one_picture_and_seeds_differ(draw: Draw) -> None:
    first = [draw(np.random.default_rng(seed)) for seed in range(6)]
    again = [draw(np.random.default_rng(seed)) for seed in range(6)]
    for one, other in zip(first, again, strict=True):
        assert one.dtype == np.uint8
        assert one.ndim == 2
        assert min(one.shape) >= 150
        np.testing.assert_array_equal(one, other)
    assert len({picture.tobytes() for picture in first}) == 6
    assert len({picture.shape for picture in first}) > 1


@pytest.mark.parametrize("draw", ALL[1:], ids=lambda draw: draw.__name__)
def test_only_blank_pictures_are_blank(draw: Draw) -> None:
    assert all(draw(np.random.default_rng(seed)).std() > 1 for seed in range(20))


def test_noise_falls_with_frequency_as_asked() -> None:
    def fine(slope: float) -> float:
        picture = patterns.noise(np.random.default_rng(0), slope).astype(float)
        return float(np.diff(picture, axis=1).std() / picture.std())

    assert fine(0) > 1.2 > fine(1) > 3 * fine(2)


def test_white_noise_has_no_memory() -> None:
    picture = patterns.noise(np.random.default_rng(3), 0).astype(float)
    assert abs(np.corrcoef(picture[:, :-1].ravel(), picture[:, 1:].ravel())[0, 1]) < 0.05
