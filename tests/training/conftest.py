"""A small data set of phantoms, recipes that train in seconds, a network of one's own, and a run that tests share."""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.conftest import Done, stop_when
from torch import Tensor, nn

from groundglass.imaging.phantom import make_phantom, write_png
from groundglass.models.layers import NetworkOutput
from groundglass.training.recipe import AnyRecipe_co, load_recipe
from groundglass.training.run import Run
from groundglass.training.train import train_job
from groundglass.training.trainer import Job

QUICK = (
    *("network.weights=none", "preprocessing.size=64", "training.batch_size=8", "training.epochs=3"),
    "training.ema_decay=0.5",
)
BEST = (*QUICK, "training.selection=val_loss")
QUICK_RECIPE = load_recipe("phantom-demo", BEST)
"""Mask-EfficientNet at 64 pixels from scratch, three epochs of which the best is kept, no lesion synthesis."""


class Small(nn.Module):
    """Without batch statistics, which depend on who sees which part of a batch; one layer, of two names, is unused."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.GELU(), nn.Conv2d(4, 8, 5, 4), nn.GELU())
        self.classifier = nn.Linear(8, 1)
        self.unused = self.tied = nn.Linear(1, 1)

    def forward(self, images: Tensor) -> NetworkOutput:
        embedding = self.features(images).mean((2, 3))
        return NetworkOutput(self.classifier(embedding)[:, 0], None, embedding)


def write_data_set(folder: Path, count: int, size: int, place: Callable[[int], str]) -> None:
    """Healthy and diseased phantoms in turn, each a patient of its own; ``place`` gives the source and part of each."""
    lines = ["path,label,patient_id,source,split"]
    for number in range(count):
        label = ("NonCOVID", "COVID")[number % 2]
        phantom = make_phantom(np.random.default_rng(number), 0.8 * (number % 2), 0.5, size=size)
        write_png(phantom, folder / f"{number}.png")
        lines.append(f"{number}.png,{label},p{number},{place(number)}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")


def job(recipe: AnyRecipe_co, data: Path | None, output: Path, **changes: object) -> Job[AnyRecipe_co]:
    """A quiet training or pretraining on one thread."""
    plain = {"seed": 0, "threads": 1, "accelerator": "cpu", "progress": False}
    return Job(recipe, (data,) if data else (), "official", output=output, **plain | changes)


def command(name: str, data: Path, output: Path, settings: Sequence[str], *more: str) -> list[str]:
    """The same from the command line."""
    quiet = ["--threads", "1", "--accelerator", "cpu", "--quiet"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    start = [sys.executable, "-m", "groundglass.cli.main", name, *quiet, "--data", str(data)]
    return [*start, "--output", str(output), *overrides, *more]


def kill_after_an_epoch(command: list[str], run: Path, by: int = signal.SIGKILL) -> Done:
    """Start a training and end it as soon as there is a checkpoint to resume from."""
    return stop_when((run / "checkpoints" / "last.ckpt").exists, command, by)


def assert_same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    weights, others = (load_file(run / "weights.safetensors") for run in (one, other))
    assert weights.keys() == others.keys()
    for name in weights:
        np.testing.assert_allclose(weights[name], others[name], rtol=0, atol=tolerance, err_msg=name)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty healthy and twenty diseased phantoms, of which 24 train, 8 validate and 8 test, as a manifest."""
    folder, parts = tmp_path_factory.mktemp("phantoms"), ("val", "train", "train", "train", "test")
    write_data_set(folder, 40, 128, lambda number: f"phantom,{parts[number // 8]}")
    return folder / "manifest.csv"


@pytest.fixture(scope="session")
def lesion_free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six healthy phantoms without labels."""
    folder = tmp_path_factory.mktemp("lesion-free")
    for number in range(100, 106):
        write_png(make_phantom(np.random.default_rng(number), level=0.5, size=128), folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def done(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The quick recipe trained to its end; not to be written to."""
    return train_job(job(QUICK_RECIPE, phantoms, tmp_path_factory.mktemp("done") / "run"))
