"""Examples for an input check: lung slices stay lung slices, all else is what it is called, and refusal is measured."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from tests.data.documented_set import KINDS, write_documented_set
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data import out_of_distribution as examples
from groundglass.data.out_of_distribution import out_of_distribution_examples
from groundglass.imaging.phantom import make_phantom
from groundglass.inference.input_check import OTHER_PART

Grey = NDArray[np.uint8]
Example = tuple[str, Grey]


@pytest.fixture(scope="module")
def lungs() -> list[Grey]:
    return [make_phantom(np.random.default_rng(seed), level=0.5, size=160).slice.pixels for seed in range(6)]


@pytest.fixture(scope="module")
def taught(lungs: list[Grey]) -> list[Example]:
    return list(out_of_distribution_examples(lungs, 0, effort=0.03))


def test_every_kind_is_taught_and_follows_from_the_seed(lungs: list[Grey], taught: list[Example]) -> None:
    without_slices = {examples.TURNED, examples.OTHER_VIEW, examples.OTHER_PART, examples.NO_SCAN}
    assert {kind for kind, _ in taught} == {*without_slices, examples.INVERTED}
    known = [(kind, pixels.tobytes()) for kind, pixels in taught]
    again = out_of_distribution_examples(lungs, 0, effort=0.03)
    assert [(kind, pixels.tobytes()) for kind, pixels in again] == known
    other = {(kind, pixels.tobytes()) for kind, pixels in out_of_distribution_examples([], 1, effort=0.01)}
    assert {kind for kind, _ in other - {*known}} == without_slices
    assert examples.OTHER_PART == OTHER_PART, "the input check calls such a slice outside the lungs"


@pytest.mark.slow
def test_the_shipped_bundle_refuses_it(tmp_path: Path, dicom_samples: Path, taught: list[Example]) -> None:
    """341 of 355 (96.1 %), and no picture of the set is among the examples."""
    for package in ("skimage", "matplotlib"):
        pytest.importorskip(package, reason="its sample pictures are part of the set")
    files = write_documented_set(tmp_path, dicom_samples / "mixed")
    assert len(files) == 355
    pictures = (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in files if path.suffix == ".png")
    assert not {pixels.tobytes() for pixels in pictures} & {pixels.tobytes() for _, pixels in taught}
    done = CliRunner().invoke(app, ["predict", *map(str, files), "--json", "--quiet", "--threads", "1"])
    predictions = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(predictions) == 355
    refused = Counter(Path(each["file"]).parent.name for each in predictions if each["status"] == "refused")
    assert sum(refused.values()) / 355 == pytest.approx(341 / 355, abs=0.01)
    assert all(refused[kind.replace(" ", "-")] >= 17 for kind in KINDS), refused
