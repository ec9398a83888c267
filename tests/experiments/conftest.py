"""A data set of phantoms with all three parts, several sources and folds, and folders of a test."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.training.conftest import write_data_set

from groundglass.experiments.runner import ExperimentPaths

QUICK = (
    "preprocessing.size=64",
    "training.batch_size=8",
    "training.epochs=2",
    "training.ema_decay=0.5",
    "synthesis.slices_per_epoch=0",
)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight phantoms, one slice a patient, as a folder with a manifest."""
    folder = tmp_path_factory.mktemp("experiment-data")
    parts = ("val", "test", "train", "train")
    write_data_set(folder, 48, 96, lambda number: f"ward {number // 12},{parts[number // 2 % 4]}")
    return folder


@pytest.fixture
def paths(data: Path, tmp_path: Path) -> ExperimentPaths:
    """Folders of a test's own, and a cache that all tests share."""
    runs, output, cache = tmp_path / "runs", tmp_path / "results", data.parent / "cache"
    return ExperimentPaths((data,), runs, output, threads=1, accelerator="cpu", cache=cache, progress=False)
