"""Painted slices differ from the untouched ones in the lesion alone, and are the same for the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from groundglass.data.manifest import Label, Record, unknown_patient
from groundglass.errors import DataError
from groundglass.evaluation.painted_slices import (
    KINDS,
    LEAST_LESION,
    SEVERITIES,
    PaintedSlice,
    paint_records,
    scan_phantoms,
)
from groundglass.imaging.lesions import Kind
from groundglass.imaging.phantom import make_phantom


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Record, ...]:
    """Two healthy slices of one series, two of another, and one without lungs."""
    folder = tmp_path_factory.mktemp("slices")
    made = []
    for name in ("1.2.840_1", "1.2.840_12", "1.2.999_1", "1.2.999_2"):
        rng = np.random.default_rng([len(made)])
        pixels = make_phantom(rng, level=0.5, size=160).slice.pixels
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
        made.append(folder / f"{name}.png")
    cv2.imwrite(str(folder / "none_1.png"), np.full((160, 160), 120, np.uint8))
    made.append(folder / "none_1.png")
    return tuple(Record(path, None, unknown_patient(path.name), "cut", None) for path in made)


@pytest.fixture(scope="module")
def painted(records: tuple[Record, ...]) -> list[PaintedSlice]:
    return list(paint_records(records, 10, seed=1))


def test_every_kind_at_every_severity(painted: list[PaintedSlice]) -> None:
    assert len(painted) == 4, "what shows no lung is passed over"
    for piece in painted:
        made = {(painting.kind, painting.severity) for painting in piece.paintings}
        assert len(made) == len(piece.paintings)
        assert len(made) > 0.9 * len(KINDS) * len(SEVERITIES)


def test_nothing_but_the_lesion_differs(painted: list[PaintedSlice]) -> None:
    for piece in painted:
        for painting in piece.paintings:
            changed = np.abs(painting.pixels.astype(int) - piece.pixels) > 0
            around = cv2.dilate(piece.lungs.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
            assert not changed[~around].any()
            assert not painting.lesion[~piece.lungs].any()
            assert painting.lesion.sum() > LEAST_LESION * piece.lungs.sum()
            inside = np.abs(painting.pixels.astype(float) - piece.pixels)[painting.lesion].mean()
            outside = np.abs(painting.pixels.astype(float) - piece.pixels)[piece.lungs & ~painting.lesion]
            assert inside > 5 * (outside.mean() if outside.size else 0)


def test_graver_lesions_are_larger(painted: list[PaintedSlice]) -> None:
    shares = [
        np.mean(
            [each.lesion.sum() for piece in painted for each in piece.paintings if each.severity == level]
        )
        for level in SEVERITIES
    ]
    assert shares == sorted(shares)
    assert shares[-1] > 3 * shares[0]


def test_slices_of_a_series_are_one_patient(painted: list[PaintedSlice]) -> None:
    assert sorted(piece.patient for piece in painted) == ["1.2.840"] * 2 + ["1.2.999"] * 2


def test_a_patient_of_the_manifest_counts_more_than_the_name(records: tuple[Record, ...]) -> None:
    known = [replace(record, patient_id=f"p{number}") for number, record in enumerate(records)]
    assert {piece.patient for piece in paint_records(known, 10)} == {"p0", "p1", "p2", "p3"}


def test_seeds(records: tuple[Record, ...], painted: list[PaintedSlice]) -> None:
    again = list(paint_records(records, 10, seed=1))
    other = {piece.record: piece for piece in paint_records(records, 10, seed=2)}
    for one, two in zip(painted, again, strict=True):
        assert one.record == two.record
        for first, second in zip(one.paintings, two.paintings, strict=True):
            np.testing.assert_array_equal(first.pixels, second.pixels)
        strange = other[one.record]
        assert not np.array_equal(one.paintings[0].pixels, strange.paintings[0].pixels)


def test_fewer_slices_are_drawn_over_the_whole_folder(records: tuple[Record, ...]) -> None:
    drawn = {piece.record for seed in range(6) for piece in paint_records(records, 1, seed)}
    assert len(drawn) > 1
    assert len(list(paint_records(records, 2))) == 2


def test_a_slice_with_the_disease_is_refused(records: tuple[Record, ...]) -> None:
    sick = [*records, replace(records[0], label=Label.COVID)]
    with pytest.raises(DataError, match=r"1\.2\.840_1\.png: labelled COVID"):
        list(paint_records(sick, 1))


def test_phantoms_carry_their_own_lesions() -> None:
    first, second = scan_phantoms(2, seed=3)
    assert first.patient != second.patient
    assert first.record is None
    assert [painting.severity for painting in first.paintings] == list(SEVERITIES)
    for painting in first.paintings:
        assert painting.kind is Kind.GROUND_GLASS
        assert not painting.lesion[~first.lungs].any()
        difference = np.abs(painting.pixels.astype(float) - first.pixels)
        far = cv2.dilate(painting.lesion.astype(np.uint8), np.ones((41, 41), np.uint8)) == 0
        assert difference[painting.lesion].mean() > 10
        assert difference[far].mean() < 1, "the same patient, scanner and noise"


def test_phantom_seeds() -> None:
    (one,), (same,), (other,) = (list(scan_phantoms(1, seed)) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.pixels, same.pixels)
    assert not np.array_equal(one.pixels, other.pixels)


def test_real_slices(luna_slices: Path) -> None:
    paths = sorted(luna_slices.glob("*.png"))[:40]
    records = [Record(path, None, unknown_patient(path.name), "luna", None) for path in paths]
    pieces = list(paint_records(records, 4))
    assert len(pieces) == 4
    assert all(len(piece.paintings) > 12 for piece in pieces)
    assert all(piece.patient.startswith("1.3.6.1.4") and "_" not in piece.patient for piece in pieces)
