"""What the gate learns from, and that a gate fitted to it does its work, on a network in miniature."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from groundglass.data.manifest import Label, Record
from groundglass.imaging.anatomy import Patient
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import Scanner, make_phantom, scan
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.engine import Outputs
from groundglass.inference.input_check import LUNG, InputCheck
from groundglass.training.export import Lessons, fit_gate, gather_lessons

pytestmark = pytest.mark.slow

PREPROCESSING = Preprocessing(size=64)


class CoarseEngine:
    """Stands for a network: its embedding is the coarse picture."""

    def run(self, images: NDArray[np.float32]) -> Outputs:
        embedding = images.reshape(len(images), 8, 8, 8, 8).mean(axis=(2, 4)).reshape(len(images), 64)
        return Outputs(embedding.mean(axis=1), embedding.reshape(-1, 8, 8), embedding)


def _write(path: Path, pixels: NDArray[np.uint8]) -> Path:
    cv2.imwrite(str(path), pixels)
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Forty phantoms of twenty patients."""
    folder = tmp_path_factory.mktemp("slices")
    result = []
    for number in range(20):
        rng = np.random.default_rng([number, 31])
        patient = Patient.draw(rng)
        scanner = Scanner.draw(patient, rng)
        for level in (0.4, 0.6):
            pixels = scan(patient, scanner, level, 0.5 * (number % 2), size=160).slice.pixels
            path = _write(folder / f"{number}-{level}.png", pixels)
            result.append(
                Record(path, Label.COVID if number % 2 else Label.NON_COVID, f"p{number}", "x", "train")
            )
    return result


@pytest.fixture(scope="module")
def lesion_free(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    """Two series, whose files are named as `groundglass data slices` names them, and a picture of nothing."""
    folder = tmp_path_factory.mktemp("lesion-free")
    result = []
    for series in range(2):
        for index in range(2):
            phantom = make_phantom(np.random.default_rng([series, index]), level=0.5, size=160)
            path = _write(folder / f"series{series}_{index:04d}.png", phantom.slice.pixels)
            result.append(Record(path, None, f"unknown:{path.name}", "x", None))
    flat = np.full((160, 160), 120, np.uint8)
    flat[40:120, 40:120] = 180
    result.append(Record(_write(folder / "series0_0009.png", flat), None, "unknown:flat", "x", None))
    return result


@pytest.fixture(scope="module")
def lessons(records: list[Record], lesion_free: list[Record]) -> Lessons:
    return gather_lessons(PREPROCESSING, records, lesion_free)


@pytest.fixture(scope="module")
def gate(lessons: Lessons) -> InputCheck:
    return fit_gate(lessons, CoarseEngine(), PREPROCESSING)  # type: ignore[arg-type]


def test_the_slices_themselves_decide_and_nothing_else(lessons: Lessons, records: list[Record]) -> None:
    assert int(lessons.deciding.sum()) == len(records)
    assert all(kind == LUNG for kind, decides in zip(lessons.kind, lessons.deciding, strict=True) if decides)
    assert {len(lessons.cropped), len(lessons.looks), len(lessons.group), len(lessons.weight)} == {
        len(lessons.kind)
    }


def test_everything_of_one_patient_is_of_one_group(lessons: Lessons) -> None:
    """Two slices, each as it is, varied, and sick: six pictures; the two series: two slices, two changed."""
    lung = np.array([kind == LUNG for kind in lessons.kind])
    sizes = np.unique(lessons.group[lung], return_counts=True)[1].tolist()
    assert sizes.count(6) == 20
    assert sizes.count(4) == 2


def test_what_was_cut_where_no_lung_is_counts_as_foreign(lessons: Lessons, lesion_free: list[Record]) -> None:
    import zlib

    lung = np.array([kind == LUNG for kind in lessons.kind])
    assert (lessons.group[~lung] == zlib.crc32(b"series0")).sum() == 1


def test_the_fitted_gate_tells_phantoms_from_the_rest(gate: InputCheck) -> None:
    def refused(pixels: NDArray[np.uint8]) -> bool:
        cropped = PREPROCESSING.apply(pixels)
        outputs = CoarseEngine().run(PREPROCESSING.normalise(cropped.pixels[None]))
        verdict = gate.look(CTSlice(pixels, Origin("a", "PNG")), cropped)
        return gate.judge(cropped, outputs.embedding[0], verdict).reason is not None

    fresh = [
        make_phantom(np.random.default_rng([9, seed]), 0.3, 0.5, size=160).slice.pixels for seed in range(12)
    ]
    assert sum(refused(pixels) for pixels in fresh) <= 1
    assert sum(refused(np.ascontiguousarray(np.rot90(pixels))) for pixels in fresh) >= 11
    noise = np.random.default_rng(0).integers(0, 256, (12, 160, 160), np.uint8)
    assert sum(refused(pixels) for pixels in noise) >= 11


def test_the_same_seed_teaches_the_same(
    lessons: Lessons, records: list[Record], lesion_free: list[Record]
) -> None:
    again = gather_lessons(PREPROCESSING, records, lesion_free)
    np.testing.assert_array_equal(again.looks, lessons.looks)
    assert again.kind == lessons.kind


def test_one_slice_is_enough_and_none_is_an_error(records: list[Record]) -> None:
    few = gather_lessons(PREPROCESSING, records[:1])
    assert fit_gate(few, CoarseEngine(), PREPROCESSING).limit >= 0  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="there are none"):
        gather_lessons(PREPROCESSING, [])
