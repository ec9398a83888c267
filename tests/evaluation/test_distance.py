"""How far data lie from the training data: what is measured, called, and said."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from groundglass.evaluation.evaluate import Judged, Placement, measure_distance
from groundglass.evaluation.result import (
    ALIKE,
    FAR,
    FEWEST,
    TOLD,
    Distance,
    Share,
    distance_document,
    distance_rows,
    shift_rows,
    verdict_of,
)
from groundglass.inference.reference import STATISTICS, Embedded, Reference

REASON = "not recognised as an axial lung CT slice; looks like a chart (score 3.1, limit 0.2)"
Measure = Callable[..., Distance]


def draw(count: int, seed: int) -> Embedded:
    rng = np.random.default_rng(seed)
    grey = np.exp(rng.normal(3, 0.2, (count, len(STATISTICS)))).astype(np.float32)
    group = np.array([f"{seed}-{number // 2}" for number in range(count)])
    return Embedded(rng.normal(0, 1, (count, 16)).astype(np.float32), grey, group)


@pytest.fixture(scope="module")
def reference() -> Reference:
    found = Reference.fit(draw(150, 0), draw(120, 1))
    assert found is not None
    return found


@pytest.fixture
def measure(reference: Reference) -> Measure:
    def go(data: Embedded, refused: int = 0, *, known: bool = True) -> Distance:
        count = len(data.group)
        reasons = (*[REASON] * refused, *[None] * (count - refused))
        places = reference.place(data.embedding, data.grey)
        placement = Placement(reasons, reference, places) if known else Placement(reasons)
        label = (np.arange(count) % 2).astype(np.int8)
        # The refused are called wrongly, the others rightly.
        probability = np.where(np.arange(count) < refused, 1 - label, label).astype(float)
        return measure_distance(Judged(label, probability, data.group, placement), resamples=200)

    return go


def test_data_alike_are_alike(measure: Measure) -> None:
    distance = measure(draw(200, 2))
    assert distance.verdict == "alike"
    assert distance.words.endswith("the data look like the training data.")
    assert distance.placed is not None
    assert distance.placed.embedding.farther == pytest.approx(0.5, abs=0.1)
    outside = distance.placed.outside
    assert outside.low is not None
    assert outside.high is not None
    assert outside.low < outside.value < outside.high


def test_another_hospital_is_far(measure: Measure) -> None:
    data = draw(100, 3)
    distance = measure(replace(data, embedding=data.embedding + 2.5))
    assert distance.verdict == "far"
    assert "do not carry over to these data" in distance.words
    assert distance.placed is not None
    assert distance.placed.embedding.beyond_95.value > 0.9
    assert distance.placed.grey.beyond_95.value < 0.2


def test_what_moves_all_slices_a_little_is_told_apart(measure: Measure) -> None:
    data = draw(200, 4)
    grey = data.grey.copy()
    grey[:, 0] *= 1.35
    distance = measure(replace(data, grey=grey))
    placed = distance.placed
    assert placed is not None
    assert placed.outside.value < FAR
    assert placed.told_apart.auc is not None
    assert placed.told_apart.auc > TOLD
    assert distance.verdict == "doubtful"
    shift = placed.shifts[0]
    assert shift.statistic is STATISTICS[0]
    assert shift.shift > 1
    assert shift.outside.value > 0.3
    assert max(each.outside.value for each in placed.shifts[1:]) < 0.25


def test_refusals_count_as_outside_and_are_left_out_of_the_accepted(measure: Measure) -> None:
    distance = measure(draw(100, 5), refused=40)
    assert distance.refused.value == 0.4
    assert distance.reasons == {REASON.partition(" (")[0]: 40}
    assert distance.verdict == "far"
    assert distance.accepted is not None
    assert distance.accepted.slices == 60
    assert distance.accepted.metrics.accuracy.value == 1.0
    assert any("accepted" in row.title for row in distance_rows(distance))
    assert not any("accepted" in row.title for row in distance_rows(measure(draw(100, 5))))


def test_when_everything_is_refused_nothing_is_measured_of_the_accepted(measure: Measure) -> None:
    distance = measure(draw(40, 5), refused=40)
    assert distance.accepted is None
    assert distance.refused.value == 1.0
    assert distance.refused.low == pytest.approx(0.84, abs=0.01)  # Wilson's, of 20 patients


@pytest.mark.parametrize(("refused", "verdict"), [(0, "unknown"), (60, "far")])
def test_a_bundle_that_does_not_know_its_training_data_says_so(
    measure: Measure, refused: int, verdict: str
) -> None:
    distance = measure(draw(100, 6), refused, known=False)
    assert distance.verdict == verdict
    assert "carries no statistics of its training data" in distance.words
    assert distance.placed is None
    assert shift_rows(distance) == []
    assert distance_document(distance)["placed"] is None


def test_few_slices_get_no_verdict(measure: Measure) -> None:
    distance = measure(draw(FEWEST - 1, 7))
    assert distance.verdict == "unknown"
    assert "too few" in distance.words


def test_one_patient_has_no_interval_and_is_not_told_apart(measure: Measure) -> None:
    data = draw(30, 8)
    distance = measure(replace(data, group=np.full(30, "one")))
    assert distance.placed is not None
    assert distance.placed.outside.low is None
    assert distance.placed.told_apart.auc is None
    assert distance.verdict == "alike"


def test_the_slices_it_is_calibrated_by_are_noticed(measure: Measure) -> None:
    held_out = draw(120, 1)
    distance = measure(held_out)
    assert distance.placed is not None
    assert distance.placed.calibrating == 120
    assert distance.placed.told_apart.reason == "the same slices"
    assert "120 of them are held-out slices themselves" in distance.words
    half = measure(held_out.take(np.arange(120) < 60))
    assert half.placed is not None
    assert half.placed.calibrating == 60
    assert half.placed.told_apart.auc is not None


@pytest.mark.parametrize(
    ("outside", "told", "verdict"),
    [
        (ALIKE, None, "alike"),
        (ALIKE, TOLD - 0.01, "alike"),
        (ALIKE + 0.01, 0.5, "doubtful"),
        (0.0, TOLD, "doubtful"),
        (FAR, 0.5, "far"),
        (1.0, 1.0, "far"),
    ],
)
def test_limits_are_those_that_are_stated(outside: float, told: float | None, verdict: str) -> None:
    assert verdict_of(outside, told) == verdict


def test_the_document_is_plain_json_and_says_everything(measure: Measure) -> None:
    document = distance_document(measure(draw(100, 9), refused=3))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["refused"]["value"] == 0.03
    assert document["accepted"]["slices"] == 97
    placed = document["placed"]
    assert (placed["training_slices"], placed["held_out_slices"]) == (150, 120)
    assert [each["name"] for each in placed["grey"]["statistics"]] == [each.name for each in STATISTICS]
    assert set(placed["embedding"]) == {"beyond_95", "beyond_99", "median", "farther"}


def test_an_interval_of_none_is_not_certain(measure: Measure) -> None:
    distance = measure(draw(100, 10))
    assert distance.refused == Share(0.0, pytest.approx(0.0), pytest.approx(0.071, abs=0.002))
