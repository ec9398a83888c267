"""Series: what is counted where, the curve's order, and the series score as documented."""

import json
import random
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from groundglass.inference.calibration import Conformal, series_score
from groundglass.inference.prediction import Prediction, Status
from groundglass.inference.series import SeriesSummary, Totals, score_interval

RULE = Conformal(coverage=0.9, quantiles={"COVID": 0.4, "NonCOVID": 0.3})
USED = {1: 1, 2: 2, 3: 3, 15: 3, 16: 4, 20: 4, 21: 5, 100: 20, 101: 21}
OK = Prediction(Status.OK, "s/1.dcm", "b", None, 0.5, "NonCOVID", series="1.2")
NECK = Prediction(Status.REFUSED, "s/neck.dcm", "b", "outside the lungs: none", series="1.2")


def ok(file: str, probability: float = 0.5, position: float | None = None, **more: Any) -> Prediction:
    return replace(OK, file=file, probability=probability, position=position, **more)


def summary_of(predictions: Iterable[Prediction], rule: Conformal | None = None) -> SeriesSummary:
    (summary,) = Totals(rule, predictions).summaries()
    return summary


@pytest.mark.parametrize(("count", "used"), USED.items())
def test_the_score_is_the_mean_of_the_highest_fifth(count: int, used: int) -> None:
    values = [index / count for index in range(count)]
    random.Random(0).shuffle(values)
    expected = pytest.approx(sum(sorted(values)[-used:]) / used, abs=1e-12)
    summary = summary_of(ok(f"s/{n}", value) for n, value in enumerate(values))
    document = json.loads(json.dumps(summary.to_dict(), allow_nan=False))
    assert (document["slices_in_score"], document["series_score"]) == (used, expected)
    assert document["slices"] == document["classified"] == document["negative"] == count
    assert [each["probability"] for each in document["carriers"]] == sorted(values)[: -used - 1 : -1][:10]


def test_the_curve_runs_from_the_feet_to_the_head_else_by_frame_else_as_read() -> None:
    volume = [ok("v.nii", n / 10, series=None, frame=n) for n in (2, 0)]
    for predictions, place, axis, at, probability in (
        ([ok(f"s/{z}", 0.5 + z / 100, z) for z in (3, -2, 1)], "s", "mm", (-2, 1, 3), (0.48, 0.51, 0.53)),
        (volume, "v.nii", "frame", (0, 2), (0, 0.2)),
        ([ok("s.zip!a.dcm", 0.9, 1.0), ok("s.zip!b.dcm", 0.1)], "s.zip", "order", (0, 1), (0.9, 0.1)),
        ([ok("s.ZIP!a/b/1.dcm", 0.9, 1.0)], "s.ZIP!a/b", "mm", (1,), (0.9,)),
        ([ok(f"{__file__}!1.dcm", 0.9, 1.0)], __file__, "mm", (1,), (0.9,)),  # an archive, whatever its name
        ([ok("a/odd!name.dcm", 0.9, 1.0), replace(NECK, file="a/1")], "a", "mm", (1,), (0.9,)),
        ([replace(NECK, file="1.dcm")], ".", "mm", (), ()),
    ):
        summary = summary_of(predictions, RULE)
        assert (summary.place, summary.curve.axis, summary.curve.at) == (place, axis, at)
        assert summary.curve.probability == pytest.approx(probability)
        assert {each is None for each in (summary.label, summary.series_score)} == {at == ()}


def test_neck_and_abdomen_are_a_failure_beside_no_slice_of_their_series() -> None:
    chest = [ok(f"s/{z}.dcm", position=z) for z in range(3)]
    assert Totals(None, [NECK, *chest]).left_out == 0
    assert [Totals(None, [*chest, replace(NECK, file="t/1", series=uid)]).left_out for uid in ("9.9", None)] == [1, 1]


def test_another_image_of_the_same_uid_is_no_copy() -> None:
    for other, copies in (({}, 1), ({"probability": 0.500004}, 0), ({"opacity": 3.0}, 0), ({"lung_cm2": 90.0}, 0)):
        images = [ok("s/1", instance="1.9"), ok("s/2", **{"instance": "1.9", **other})]
        assert Totals(None, images).copies == copies


def test_the_label_of_a_series_follows_from_its_score_by_the_rule() -> None:
    for probability, opacity, slices, rule, label in (
        (0.9, 5.0, "NonCOVID", RULE, "COVID"),
        (0.1, 5.0, "NonCOVID", RULE, "NonCOVID"),
        (0.5, 5.0, "NonCOVID", RULE, "uncertain"),
        (0.1, 5.0, "uncertain", RULE, "uncertain"),
        (0.1, 40.0, "NonCOVID", RULE, "uncertain"),
        (0.1, None, "NonCOVID", RULE, "NonCOVID"),
        (0.9, 5.0, "NonCOVID", None, None),
    ):
        summary = summary_of((ok(f"s/{z}", probability, z, opacity=opacity, label=slices) for z in range(4)), rule)
        assert summary.label == summary.to_dict()["label"] == label
        assert summary.interval == pytest.approx((probability, probability))
    assert (
        summary_of((ok(str(z), 0.1, z, flags=("little-lung",) * (z < 3)) for z in range(4)), RULE).label == "uncertain"
    )


def test_the_interval_widens_where_the_score_hangs_on_single_slices() -> None:
    assert score_interval([0.7]) is None
    low, high = score_interval([0.5] * 19 + [0.6])
    assert 0.5 <= low <= series_score([0.5] * 19 + [0.6]) <= high <= 0.6
    # Of 20 slices with one of them at 1, the four highest hold between none and three copies of it.
    assert score_interval([0.0] * 19 + [1.0]) == pytest.approx((0, 0.75))
    long = summary_of(ok("v.nii", series=None, frame=frame) for frame in range(200))
    assert [each.frame for each in long.carriers] == list(range(10)), "of equal slices the first read"


def test_opacity_is_of_the_lungs_and_in_millilitres_where_the_spacing_is_known() -> None:
    for areas, positions, expected in (
        ((100.0, 300.0), (0.0, 10.0), (17.5, 400.0, 70.0)),
        ((100.0, 300.0, 50.0, 50.0), (0.0, 10.0, 20.0, 50.0), (18.0, 500.0, 90.0)),  # a slice was left out
        ((100.0, 300.0, 50.0), (0.0, 10.0, 40.0), (17.78, 450.0, 80.0)),
        ((100.0, 300.0, 100.0, 300.0), (0.0, 10.0, 0.0, 10.0), (18.75, 400.0, 75.0)),  # of two kernels
        ((100.0, 300.0, 100.0), (0.0, 10.0, 0.0), (18.0, 400.0, 75.0)),  # one place was imaged twice
        ((100.0, 300.0), (0.0, None), (17.5, None, None)),
        ((100.0, None), (0.0, 10.0), (15.0, None, None)),
    ):
        shares = (10.0, 20.0, 20.0, 20.0)
        known = zip(areas, positions, shares, strict=False)
        opacity = summary_of(ok("s/1", 0.5, at, opacity=share, lung_cm2=area) for area, at, share in known).opacity
        assert (opacity.percent, opacity.lung_ml, opacity.lesion_ml) == expected
