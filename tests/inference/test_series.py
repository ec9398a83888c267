"""Series: what is counted where, the curve's order, and the series score as documented."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from groundglass.inference.calibration import Conformal
from groundglass.inference.prediction import COPY, Prediction, Status
from groundglass.inference.series import Counts, Totals, score_interval, series_score, slices_in_score


def ok(
    file: str,
    probability: float,
    position: float | None = None,
    series: str | None = None,
    frame: int | None = None,
    label: str = "NonCOVID",
) -> Prediction:
    return Prediction(
        Status.OK, file, "b", None, probability, label, (label,), (), frame=frame, series=series, position=position
    )  # fmt: skip


def of(
    file: str, study: str = "1", series: str | None = "1.2", stack: str = "aaaa", z: float = 0.0
) -> Prediction:
    """A slice of a DICOM series."""
    return replace(ok(file, 0.5, z, series), study=study, stack=stack)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [
        ((of("a/1"), of("a/2", z=1)), [2]),
        ((of("a/1"), of("b/2", z=1), of("c/3", z=2)), [3]),  # in several folders
        ((of("a/1"), of("a/2", study="9")), [1, 1]),
        ((of("a/1"), of("a/2", series="1.9")), [1, 1]),
        ((of("a/1"), of("a/2", stack="bbbb")), [1, 1]),  # another patient or geometry
        ((of("a/1", series=None), of("a/2", series=None), of("b/1", series=None, z=7)), [2, 1]),
        ((of("a/1", series="REMOVED"), of("b/1", series="REMOVED", z=7)), [1, 1]),
        ((of("a/1"), of("a/2", z=1), of("b/1"), of("b/2", z=1), of("c/3", z=2)), [3, 2]),  # on each other: two scans
    ],
)  # fmt: skip
def test_what_is_one_series(predictions: tuple[Prediction, ...], expected: list[int]) -> None:
    totals = summed(*predictions)
    assert [summary.counts.ok for summary in totals.summaries()] == expected
    assert [len(summary.curve.at) for summary in totals.summaries()] == expected
    numbers = [totals.number(prediction) for prediction in predictions]
    assert [numbers.count(number) for number in range(1, len(expected) + 1)] == expected


def test_a_copy_counts_nowhere_and_is_mentioned() -> None:
    copy = Prediction(Status.REFUSED, "b/1", "b", f"{COPY} of a/1", series="1.2", stack="aaaa", study="1")
    totals = summed(of("a/1"), copy, of("a/2", z=1))
    assert (totals.counts.total, totals.left_out, totals.copies, totals.number(copy)) == (2, 0, 1, None)
    assert totals.summaries()[0].counts.total == 2
    assert totals.in_words.endswith("; 1 copy of these left out")


def failed(file: str) -> Prediction:
    return Prediction(Status.FAILED, file, "b", reason="damaged")


def summed(*predictions: Prediction) -> Totals:
    totals = Totals()
    for prediction in predictions:
        totals.add(prediction)
    return totals


@pytest.mark.parametrize(
    ("count", "used"), [(1, 1), (2, 2), (3, 3), (15, 3), (16, 4), (20, 4), (21, 5), (100, 20), (101, 21)]
)
def test_the_score_is_the_mean_of_the_highest_fifth(count: int, used: int) -> None:
    assert slices_in_score(count) == used
    values = [index / count for index in range(count)]
    random.Random(0).shuffle(values)
    expected = sum(sorted(values)[-used:]) / used
    assert series_score(values) == pytest.approx(expected, abs=1e-12)


def test_no_slices_no_score() -> None:
    assert series_score([]) is None
    summary = summed(Prediction(Status.REFUSED, "s/1.dcm", "b", reason="head", series="1.2")).summaries()[0]
    assert summary.series_score is None
    assert summary.curve.at == ()
    assert (summary.counts.refused, summary.counts.ok) == (1, 0)


def test_the_curve_runs_from_the_feet_to_the_head_whatever_the_order_of_the_files() -> None:
    predictions = [ok(f"s/{z}.dcm", 0.5 + z / 1000, float(z), "1.2") for z in (30, -20, 10, 0)]
    (summary,) = summed(*predictions).summaries()
    assert summary.curve.axis == "mm"
    assert summary.curve.at == (-20, 0, 10, 30)
    assert summary.curve.probability == pytest.approx((0.48, 0.5, 0.51, 0.53))
    assert summary.place == "s"


def test_without_positions_the_curve_follows_frames_then_reading() -> None:
    (volume,) = summed(*(ok("v.dcm", 0.1, frame=frame) for frame in (2, 0, 1))).summaries()
    assert (volume.curve.axis, volume.curve.at) == ("frame", (0, 1, 2))
    assert (volume.series, volume.place) == (None, "v.dcm")
    (series,) = summed(ok("s/a.dcm", 0.9, 1.0, "1.2"), ok("s/b.dcm", 0.1, None, "1.2")).summaries()
    assert (series.curve.axis, series.curve.at) == ("order", (0, 1))
    assert series.curve.probability == (0.9, 0.1)


def test_loose_pictures_are_no_series_but_are_counted() -> None:
    totals = summed(ok("a.png", 0.1), ok("b.png", 0.9, label="COVID"), failed("c.png"))
    assert totals.summaries() == []
    assert totals.counts == Counts(ok=2, failed=1, covid=1, non_covid=1)


def test_series_are_told_apart_by_their_uid_and_volumes_by_their_file() -> None:
    totals = summed(
        ok("d/1.dcm", 0.1, 0.0, "1.1", label="COVID"),
        ok("d/2.dcm", 0.2, 0.0, "1.2", label="uncertain"),
        ok("d/3.dcm", 0.3, 1.0, "1.1"),
        ok("v.nii", 0.4, 0.0, frame=0),
        ok("w.nii", 0.5, 0.0, frame=0),
    )
    one, two, v, w = totals.summaries()
    assert (one.series, one.counts) == ("1.1", Counts(ok=2, covid=1, non_covid=1))
    assert (two.series, two.counts) == ("1.2", Counts(ok=1, uncertain=1))
    assert (v.place, w.place) == ("v.nii", "w.nii")


def test_a_damaged_file_counts_with_the_one_series_of_its_folder() -> None:
    both = (ok("d/1.dcm", 0.1, 0.0, "1.1"), failed("d/2.dcm"))
    assert summed(*both).summaries()[0].counts.failed == 1
    assert summed(*reversed(both)).summaries()[0].counts.failed == 1, "in whatever order"
    other = ok("d/3.dcm", 0.1, 0.0, "1.9")
    assert [each.counts.failed for each in summed(*both, other).summaries()] == [0, 0], "which of the two?"
    picture = ok("d/4.png", 0.1)
    assert summed(*both, picture).summaries()[0].counts.failed == 0, "it may be a picture"
    assert summed(*both, failed("e/2.dcm")).summaries()[0].counts.failed == 1
    assert summed(*both, failed("e/2.dcm")).counts.failed == 2


def test_a_volume_damaged_half_way_counts_its_failure() -> None:
    volume = [ok("v.nii", 0.1, float(frame), frame=frame) for frame in range(3)]
    assert summed(*volume, failed("v.nii")).summaries()[0].counts.failed == 1
    multi = [ok("d/m.dcm", 0.1, float(frame), "1.1", frame) for frame in range(3)]
    assert summed(*multi, failed("d/m.dcm")).summaries()[0].counts.failed == 1


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("a/b/c.dcm", "a/b"), ("c.dcm", "."), ("x/s.zip!1.dcm", "x/s.zip"), ("s.ZIP!a/b/1.dcm", "s.ZIP!a/b"),
        ("a/odd!name.dcm", "a"),
    ],
)  # fmt: skip
def test_a_series_lies_in_the_folder_of_its_files(file: str, place: str) -> None:
    assert summed(ok(file, 0.1, series="1.2")).summaries()[0].place == place


def outside(file: str, series: str | None = "1.2") -> Prediction:
    return Prediction(Status.REFUSED, file, "b", reason="outside the lungs: this slice shows hardly any lung", series=series)  # fmt: skip


def test_neck_and_abdomen_of_a_classified_series_are_no_failure() -> None:
    chest = [ok(f"s/{z}.dcm", 0.5, float(z), "1.2") for z in range(3)]
    totals = summed(outside("s/neck.dcm"), *chest, outside("s/liver.dcm"))
    assert (totals.outside_lungs, totals.left_out, totals.counts.refused) == (2, 0, 2)
    assert totals.in_words == "5 slices: 3 classified (0 COVID, 3 NonCOVID, 0 uncertain), 2 outside the lungs"
    assert totals.summaries()[0].in_words == totals.in_words
    refused = Prediction(Status.REFUSED, "s/x.dcm", "b", reason="blank", series="1.2")
    totals = summed(*chest, outside("s/neck.dcm"), refused, failed("s/y.dcm"))
    assert totals.left_out == 2, "what else was not classified still is a failure"
    assert totals.in_words.endswith("1 outside the lungs, 1 refused, 1 failed")


@pytest.mark.parametrize("series", ["9.9", None])
def test_a_slice_outside_the_lungs_alone_is_a_failure(series: str | None) -> None:
    assert summed(ok("s/1.dcm", 0.5, series="1.2"), outside("t/1.dcm", series)).left_out == 1


def test_counts_in_words() -> None:
    assert Counts().in_words() == "0 slices: 0 classified"
    assert Counts(ok=1, covid=1).in_words() == "1 slice: 1 classified (1 COVID, 0 NonCOVID, 0 uncertain)"
    counts = Counts(ok=1200, refused=2, failed=1, non_covid=1199, uncertain=1)
    assert counts.in_words() == (
        "1,203 slices: 1,200 classified (0 COVID, 1,199 NonCOVID, 1 uncertain), 2 refused, 1 failed"
    )


def test_a_document_is_json_and_says_what_the_score_used() -> None:
    (summary,) = summed(*(ok(f"s/{z}.dcm", z / 100, float(z), "1.2") for z in range(20))).summaries()
    document = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert document["slices_in_score"] == 4
    assert document["series_score"] == pytest.approx((0.16 + 0.17 + 0.18 + 0.19) / 4)
    assert len(document["curve"]["at"]) == len(document["curve"]["probability"]) == 20
    assert document["slices"] == document["classified"] == document["negative"] == 20


RULE = Conformal(coverage=0.9, quantiles={"COVID": 0.4, "NonCOVID": 0.3})


@pytest.mark.parametrize(
    ("probability", "opacity", "label"),
    [
        (0.9, 5.0, "COVID"),
        (0.1, 5.0, "NonCOVID"),
        (0.5, 5.0, "uncertain"),
        # The network leans to NonCOVID in lungs full of lesions: no firm label.
        (0.1, 40.0, "uncertain"),
        (0.1, None, "NonCOVID"),
    ],
)
def test_the_label_of_a_series_follows_from_its_score_by_the_rule(
    probability: float, opacity: float | None, label: str
) -> None:
    totals = Totals(RULE)
    for z in range(4):
        totals.add(replace(ok(f"s/{z}.dcm", probability, float(z), "1.2"), opacity=opacity))
    (summary,) = totals.summaries()
    assert summary.label == summary.to_dict()["label"] == label
    assert summary.interval == pytest.approx((probability, probability))


def test_without_a_rule_or_a_classified_slice_a_series_has_no_label() -> None:
    assert summed(ok("s/1.dcm", 0.9, 1.0, "1.2")).summaries()[0].label is None
    totals = Totals(RULE)
    totals.add(Prediction(Status.REFUSED, "s/1.dcm", "b", reason="head", series="1.2"))
    (summary,) = totals.summaries()
    assert (summary.label, summary.interval, summary.carriers) == (None, None, ())


def test_the_interval_widens_where_the_score_hangs_on_single_slices() -> None:
    assert score_interval([0.7]) is None
    steady, single = score_interval([0.5] * 19 + [0.6]), score_interval([0.0] * 19 + [1.0])
    assert steady is not None
    assert single is not None
    assert 0.5 <= steady[0] <= series_score([0.5] * 19 + [0.6]) <= steady[1] <= 0.6
    # Of 20 slices with one of them at 1, the four highest hold between none and three copies of it.
    assert single == pytest.approx((0, 0.75))


def test_the_slices_that_carry_a_series_are_named_the_highest_first() -> None:
    values = {z: z / 40 for z in range(40)}
    order = list(values)
    random.Random(1).shuffle(order)
    (summary,) = summed(*(ok(f"s/{z}.dcm", values[z], float(z), "1.2") for z in order)).summaries()
    assert [each.file for each in summary.carriers] == [f"s/{z}.dcm" for z in range(39, 31, -1)]
    assert (summary.carriers[0].position, summary.carriers[0].probability) == (39.0, 39 / 40)
    (long,) = summed(*(ok("v.nii", 0.5, frame=frame) for frame in range(200))).summaries()
    # Equal ones: the first read.
    assert [each.frame for each in long.carriers] == list(range(10))
