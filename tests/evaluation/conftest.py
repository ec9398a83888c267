"""A tiny deterministic network and a small data set of drawn slices, for whatever evaluates a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import expit

from groundglass.data.manifest import Label, Manifest, Record
from groundglass.evaluation.evaluate import NetworkOutputs
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.slice import CTSlice
from groundglass.inference.calibration import Calibration

INFO = {"finished": True, "recipe": "brightness", "network": "mean-grey", "seed": 0, "split": "official"}


@dataclass
class BrightnessRun:
    """Takes bright lungs for COVID, and finds lesions in the left half of every crop."""

    path: Path
    info: dict[str, Any] = field(default_factory=lambda: dict(INFO))
    rows: list[dict[str, float]] = field(default_factory=list)
    predicted: int = 0
    preprocessing: ClassVar[Preprocessing] = Preprocessing(size=64)
    calibration: ClassVar[Calibration | None] = None

    @property
    def record_folder(self) -> Path:
        return self.path

    def history(self) -> list[dict[str, float]]:
        return self.rows

    def plot(self) -> Figure:
        return Figure()

    def predict(self, slices: Iterable[CTSlice]) -> NetworkOutputs:
        cuts = [self.preprocessing.apply(each.pixels, lungs_of(each.pixels)) for each in slices]
        cropped = np.array([cut.pixels for cut in cuts])
        self.predicted += len(cropped)
        grey = cropped[:, 16:48, 16:48].astype(float)
        lesion_map = np.array([[[5, 6, -5, -5]] * 4] * len(cropped), np.float32)
        logit = (grey.mean(axis=(1, 2)) - 100) / 20
        return NetworkOutputs(logit, expit(logit), lesion_map, cuts)


def lungs_of(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The lungs of a drawn slice: darker than the body, brighter than the air around it."""
    return (pixels > 25) & (pixels < 150)


def draw(path: Path, grey: int, seed: int) -> None:
    """A bright body with two dark lungs of about the given grey."""
    pixels = np.full((96, 128), 10, np.uint8)
    for middle, axes, value in ((64, (56, 42), 200), (42, (18, 26), grey), (86, (18, 26), grey)):
        cv2.ellipse(pixels, (middle, 48), axes, 0, 0, 360, value, -1)
    noise = np.random.default_rng(seed).normal(0, 4, pixels.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", np.clip(pixels + noise, 0, 255).astype(np.uint8))[1])


@pytest.fixture
def drawn_figures() -> None:
    """Reports get their real figures, which take a second each."""


@pytest.fixture(autouse=True)
def _quick_figures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "drawn_figures" not in request.fixturenames:
        monkeypatch.setattr("groundglass.evaluation.report.svg", lambda figure: "<svg></svg>")


@pytest.fixture
def run(tmp_path: Path) -> BrightnessRun:
    """A finished run in a folder of its own."""
    (tmp_path / "run").mkdir()
    return BrightnessRun(tmp_path / "run")


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Manifest]:
    """Makes a data set of drawn slices: 12 test, 4 val and 8 train slices, two per patient, both labels."""

    def make(names: dict[int, str] | None = None, **changes: Any) -> Manifest:
        records = []
        for number in range(24):
            split = "test" if number < 12 else "val" if number < 16 else "train"
            label = Label.COVID if number // 2 % 2 else Label.NON_COVID
            path = tmp_path / "data" / (names or {}).get(number, f"slice {number:02}.png")
            # Three of the test part look like the other class.
            bright = (label is Label.COVID) != (number in {0, 1, 2})
            draw(path, 95 if bright else 40, number)
            record = Record(path, label, f"patient {number // 2}", "drawn", split)
            records.append(replace(record, **changes))
        return Manifest("drawn", tmp_path / "data", tuple(records))

    return make
