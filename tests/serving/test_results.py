"""Results in memory: bounded in number, size and time."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.inference.prediction import Evidence, Prediction, Status
from groundglass.serving.problems import Problem
from groundglass.serving.results import KeptSlice, Results
from groundglass.serving.settings import Settings

PREDICTION = Prediction(Status.REFUSED, "a.png", "bundle", reason="no lungs")


@pytest.fixture(scope="module")
def kept() -> KeptSlice:
    phantom = make_phantom(np.random.default_rng(0), 0.5, 0.5, size=96).slice
    evidence = Evidence(phantom, Preprocessing(size=64).apply(phantom.pixels), np.ones((8, 8), np.float32))
    return KeptSlice.of(evidence)


def test_results_expire(kept: KeptSlice) -> None:
    now = 0.0
    results = Results(Settings(kept_seconds=10), lambda: now)
    result = results.begin("bundle", keep=True)
    results.add(result, PREDICTION, kept)
    now = 9.9
    assert results.get(result.id).slices == {0: kept}
    now = 10
    with pytest.raises(Problem):
        results.get(result.id)
    assert (len(results), results.size) == (0, 0)


def test_the_oldest_makes_room(kept: KeptSlice) -> None:
    results = Results(Settings(kept_bytes=3 * kept.size, kept_results=3))
    first, second = (results.begin("bundle", keep=True) for _ in range(2))
    for result in (first, first, second):
        results.add(result, PREDICTION, kept)
    assert results.size == 3 * kept.size
    for result in (second, second, second, first):
        results.add(result, PREDICTION, kept)
    with pytest.raises(Problem, match="Send the files again"):
        results.get(first.id)
    assert sorted(second.slices) == [0, 1, 2], "one result alone cannot grow without bounds"
    assert len(second.predictions) == 4
    for _ in range(3):
        results.begin("bundle", keep=True)
    assert (len(results), results.size) == (3, 0)
