"""Copies on disk: found whatever was done to them, told from neighbouring slices, and nothing else found."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.conftest import make_zip

from groundglass.audit.duplicates import Pair, Trace, copies_of, find_pairs, read_all, take_trace
from groundglass.data.manifest import Label, Record, read_pixels, unknown_patient
from groundglass.errors import ImageError
from groundglass.imaging.phantom import make_phantom


def of(path: Path) -> Record:
    return Record(path, None, unknown_patient(path.name), "source", None)


def saved(pixels: Any, path: Path) -> Record:
    cv2.imwrite(str(path), np.ascontiguousarray(pixels))
    return of(path)


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("phantoms")
    phantoms = [make_phantom(np.random.default_rng([7, n]), size=288).slice.pixels for n in range(16)]
    return [saved(pixels, folder / f"{number}.png") for number, pixels in enumerate(phantoms)]


def traces_of(records: Sequence[Record]) -> list[Trace]:
    return [trace for trace in read_all(records, take_trace) if isinstance(trace, Trace)]


def seen(pairs: Sequence[Pair]) -> list[tuple[Record, Record, str]]:
    return [(pair.first, pair.second, pair.kind) for pair in pairs]


def recoded(pixels: np.ndarray) -> Any:
    small = cv2.resize(pixels, (200, 230), interpolation=cv2.INTER_AREA)
    return cv2.imdecode(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_GRAYSCALE)


def annotated(pixels: np.ndarray) -> Any:
    drawn = cv2.arrowedLine(pixels.copy(), (90, 130), (110, 150), 255, 2, tipLength=0.4)
    cv2.putText(drawn, "C", (8, 30), cv2.FONT_HERSHEY_SIMPLEX, 1, 255, 2)
    return cv2.copyMakeBorder(drawn, 12, 5, 9, 20, cv2.BORDER_CONSTANT, value=255)


def turned(pixels: np.ndarray) -> Any:
    turn = cv2.getRotationMatrix2D((144, 144), 3, 1)
    return cv2.warpAffine(pixels, turn, (288, 288), borderMode=cv2.BORDER_REPLICATE)


ALTERED: dict[str, Any] = {
    "recoded": recoded,
    "in another window": lambda pixels: np.clip((pixels.astype(float) - 20) * 1.3, 0, 255).astype(np.uint8),
    "cropped": lambda pixels: pixels[30:250, 35:270],
    "a part, larger": lambda pixels: cv2.resize(pixels[60:250, 20:170], None, fx=1.6, fy=1.6),
    "annotated": annotated,
    "turned": turned,
}


@pytest.mark.parametrize("how", ALTERED)
def test_an_altered_copy_is_found_and_nothing_else(records: list[Record], tmp_path: Path, how: str) -> None:
    copy = saved(ALTERED[how](read_pixels(records[3])), tmp_path / "copy.png")
    (pair,) = pairs = find_pairs(traces_of([*records, copy]))
    assert seen(pairs) == [(records[3], copy, "copy")]
    assert pair.correlation >= 0.9


def test_the_same_file_or_pixels_are_a_pair_with_the_first(records: list[Record], tmp_path: Path) -> None:
    make_zip(tmp_path / "pictures.zip", {"inside/again.png": records[0].path.read_bytes()})
    copies = [saved(read_pixels(records[0]), tmp_path / f"{number}.png") for number in range(40)]
    copies.append(replace(records[0], path=tmp_path / "pictures.zip!inside/again.png"))
    other_format = saved(read_pixels(records[1]), tmp_path / "other.bmp")
    pairs = find_pairs(traces_of([*records, *copies, other_format]))
    assert seen(pairs) == [*((records[0], copy, "file") for copy in copies), (records[1], other_format, "pixels")]
    assert {pair.correlation for pair in pairs} == {1.0}
    said = ((None, None), (Label.COVID, "train"), (Label.NON_COVID, "test"))
    known = [replace(records[0], label=label, split=part) for label, part in said]
    assert any(pair.across_parts and pair.across_labels for pair in find_pairs(traces_of(known)))


def test_neighbours_of_a_patient_are_no_copies_and_their_likeness_is_expected(dicom_samples: Path) -> None:
    series = traces_of([of(path) for path in sorted((dicom_samples / "lung-series").glob("*.dcm"))])
    pairs = find_pairs(series)
    assert len(pairs) > 10
    assert {pair.kind for pair in pairs} == {"lookalike"}
    assert find_pairs([replace(each, record=replace(each.record, patient_id="one")) for each in series]) == []


def test_what_is_unreadable_is_passed_over_unless_held_out(records: list[Record], tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    broken, copy = of(tmp_path / "broken.png"), saved(recoded(read_pixels(records[0])), tmp_path / "copy.png")
    assert seen(copies_of(records[:2], [broken, records[5], copy])) == [(records[0], copy, "copy")]
    with pytest.raises(ImageError, match=r"broken\.png"):
        copies_of([records[1], broken], records[2:4])
    traces = traces_of([*records, copy])
    copy.path.unlink()
    assert find_pairs(traces) == [], "gone after it was read"
