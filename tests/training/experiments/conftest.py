"""A data set of phantoms with all three parts, several sources and folds, and a place to work at."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from groundglass.imaging.phantom import make_phantom
from groundglass.training.experiments.runner import Workplace

QUICK = (
    "framing.size=64",
    "training.batch_size=8",
    "training.epochs=2",
    "training.ema_decay=0.5",
    "synthesis.slices_per_epoch=0",
)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight phantoms, one slice a patient, as a folder with a manifest."""
    folder = tmp_path_factory.mktemp("experiment-data")
    lines = ["path,label,patient_id,source,split"]
    for number in range(48):
        covid = number % 2 == 1
        rng = np.random.default_rng(number)
        phantom = make_phantom(rng, severity=0.8 if covid else 0.0, level=0.5, size=96)
        cv2.imwrite(str(folder / f"{number}.png"), phantom.slice.pixels)
        part = ("val", "test", "train", "train")[number // 2 % 4]
        lines.append(f"{number}.png,{'COVID' if covid else 'NonCOVID'},p{number},ward {number // 12},{part}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of framed slices that all tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def place(data: Path, cache: Path, tmp_path: Path) -> Workplace:
    """Folders of a test's own."""
    return Workplace(
        data,
        tmp_path / "runs",
        tmp_path / "results",
        threads=1,
        accelerator="cpu",
        cache=cache,
        progress=False,
    )
