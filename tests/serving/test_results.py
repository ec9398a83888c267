"""Results in memory: bounded in number, size and time."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.inference.prediction import Evidence
from groundglass.serving.results import KeptSlice, Results
from groundglass.serving.schemas import Problem
from groundglass.serving.settings import Settings


class Clock:
    """Seconds that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def evidence() -> Evidence:
    phantom = make_phantom(np.random.default_rng(0), 0.5, 0.5, size=96).slice
    return Evidence(phantom, Preprocessing(size=64).apply(phantom.pixels), np.ones((8, 8), np.float32))


@pytest.fixture(scope="module")
def kept(evidence: Evidence) -> KeptSlice:
    return KeptSlice.of(evidence)


def test_results_expire(kept: KeptSlice) -> None:
    clock = Clock()
    results = Results(Settings(kept_seconds=10), clock)
    result = results.begin("bundle", keep=True)
    results.keep_slice(result, 0, kept)
    clock.now = 9.9
    assert results.slice(result.id, 0) is kept
    with pytest.raises(Problem, match="no slice of this number"):
        results.slice(result.id, 1)
    clock.now = 10
    with pytest.raises(Problem):
        results.get(result.id)
    assert (len(results), results.size) == (0, 0)


def test_the_oldest_makes_room(kept: KeptSlice) -> None:
    results = Results(Settings(kept_bytes=3 * kept.size, kept_results=3))
    first, second = (results.begin("bundle", keep=True) for _ in range(2))
    for number in range(2):
        assert results.keep_slice(first, number, kept)
    assert results.keep_slice(second, 0, kept)
    assert results.keep_slice(second, 1, kept), "the first one is forgotten for it"
    with pytest.raises(Problem):
        results.get(first.id)
    assert results.keep_slice(second, 2, kept)
    assert not results.keep_slice(second, 3, kept), "one result alone cannot grow without bounds"
    assert results.size == 3 * kept.size
    assert not results.keep_slice(first, 5, kept)
    for _ in range(3):
        results.begin("bundle", keep=True)
    assert len(results) == 3
    assert results.size == 0
