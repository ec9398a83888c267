"""Copies on disk: found whatever was done to them, told from neighbouring slices, and nothing else found."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from groundglass.audit.duplicates import Pair, Trace, copies_of, find_pairs, groups_of, read_all, take_trace
from groundglass.data.manifest import Label, Record, unknown_patient
from groundglass.errors import ImageError
from groundglass.imaging.phantom import make_phantom

Grey = NDArray[np.uint8]


@pytest.fixture(scope="module")
def phantoms() -> list[Grey]:
    return [make_phantom(np.random.default_rng([7, n]), size=288).slice.pixels for n in range(16)]


def save(pixels: Grey, path: Path, label: Label | None = None, split: str | None = None) -> Record:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return Record(path, label, unknown_patient(path.name), "source", split)


@pytest.fixture
def records(phantoms: list[Grey], tmp_path: Path) -> list[Record]:
    return [save(pixels, tmp_path / f"{number}.png") for number, pixels in enumerate(phantoms)]


def pairs_of(records: Sequence[Record]) -> list[Pair]:
    return find_pairs([trace for trace in read_all(records, take_trace) if isinstance(trace, Trace)])


def recoded(pixels: Grey) -> Grey:
    small = cv2.resize(pixels, (200, 230), interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE))


def windowed(pixels: Grey) -> Grey:
    return np.clip((pixels.astype(float) - 20) * 1.3, 0, 255).astype(np.uint8)


def cropped(pixels: Grey) -> Grey:
    return np.ascontiguousarray(pixels[30:250, 35:270])


def a_part(pixels: Grey) -> Grey:
    return np.ascontiguousarray(cv2.resize(pixels[60:250, 20:170], None, fx=1.6, fy=1.6))


def annotated(pixels: Grey) -> Grey:
    drawn = cv2.arrowedLine(pixels.copy(), (90, 130), (110, 150), 255, 2, tipLength=0.4)
    cv2.putText(drawn, "C", (8, 30), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 2)
    return np.asarray(cv2.copyMakeBorder(drawn, 12, 5, 9, 20, cv2.BORDER_CONSTANT, value=255))


def mirrored(pixels: Grey) -> Grey:
    return np.ascontiguousarray(recoded(pixels)[:, ::-1])


def turned(pixels: Grey) -> Grey:
    turn = cv2.getRotationMatrix2D((144, 144), 3, 1)
    return np.asarray(cv2.warpAffine(pixels, turn, (288, 288), borderMode=cv2.BORDER_REPLICATE))


@pytest.mark.parametrize("alter", [recoded, windowed, cropped, a_part, annotated, mirrored, turned])
def test_an_altered_copy_is_found_and_nothing_else(
    records: list[Record], phantoms: list[Grey], tmp_path: Path, alter: Callable[[Grey], Grey]
) -> None:
    copy = save(alter(phantoms[3]), tmp_path / "copy.png")
    pairs = pairs_of([*records, copy])
    assert [(pair.first, pair.second, pair.kind) for pair in pairs] == [(records[3], copy, "copy")]
    assert pairs[0].correlation >= 0.9
    assert pairs[0].mirrored == (alter is mirrored)


def test_the_same_file_and_the_same_pixels(
    records: list[Record], phantoms: list[Grey], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "pictures.zip", "w") as archive:
        archive.write(records[0].path, "inside/again.png")
    again = replace(records[0], path=tmp_path / "pictures.zip!inside/again.png")
    other_file_format = save(phantoms[1], tmp_path / "other.bmp")
    pairs = pairs_of([*records, again, other_file_format])
    assert [(pair.first, pair.second, pair.kind, pair.correlation) for pair in pairs] == [
        (records[0], again, "file", 1.0),
        (records[1], other_file_format, "pixels", 1.0),
    ]


def test_neighbouring_slices_of_a_patient_are_no_copies_and_their_likeness_is_expected(
    dicom_samples: Path,
) -> None:
    files = sorted((dicom_samples / "lung-series").glob("*.dcm"))
    records = [Record(path, None, unknown_patient(path.name), "source", None) for path in files]
    pairs = pairs_of(records)
    assert len(pairs) > 10
    assert {pair.kind for pair in pairs} == {"lookalike"}
    assert pairs_of([replace(record, patient_id="one") for record in records]) == []


def test_many_identical_slices_are_one_group(phantoms: list[Grey], tmp_path: Path) -> None:
    records = [save(phantoms[0], tmp_path / f"{number}.png") for number in range(40)]
    pairs = pairs_of(records)
    assert len(pairs) == 39
    (group,) = groups_of(pairs)
    assert {record.path for record in group} == {record.path for record in records}


def test_what_cannot_be_read_is_passed_over_unless_it_is_held_out(
    records: list[Record], phantoms: list[Grey], tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    broken = replace(records[0], path=tmp_path / "broken.png")
    assert copies_of(records[:2], [broken, records[5]]) == []
    with pytest.raises(ImageError, match=r"broken\.png"):
        copies_of([records[1], broken], records[2:4])
    copy = save(recoded(phantoms[0]), tmp_path / "copy.png")
    traces = [trace for trace in read_all([*records, copy], take_trace) if isinstance(trace, Trace)]
    copy.path.unlink()
    assert find_pairs(traces) == [], "gone after it was read"


@pytest.mark.slow
def test_no_luna_slice_is_taken_for_another(luna_slices: Path) -> None:
    files = sorted(luna_slices.glob("*.png"))[:400]
    assert pairs_of([Record(path, None, unknown_patient(path.name), "luna", None) for path in files]) == []
