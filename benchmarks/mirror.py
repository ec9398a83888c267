"""What averaging a network's judgement over a slice and its mirror image gains on validation slices."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Manifest
from groundglass.evaluation.part import select_part
from groundglass.models.layers import Mirrored
from groundglass.training.run import Run
from groundglass.training.samples import load_cropped
from record import RESULTS, Table, report

_BATCH = 32


@dataclass(frozen=True)
class Gain:
    """AUC of one run on its validation part: asked once a slice, and averaged with its mirror image."""

    run: str
    split: str
    slices: int
    once: float
    averaged: float


def main(
    runs: Annotated[list[Path], typer.Argument(help="Runs; each is judged on its own validation part.")],
    data: Annotated[Path, typer.Option(help="The data set they were trained on.")],
    output: Annotated[Path, typer.Option(help="Folder of the record.")] = RESULTS,
) -> None:
    """Measure what the mirror image is worth; `network.mirror=true` averages with it."""
    manifest = load_dataset(data)
    gains = [_measure(Run.open(path), manifest) for path in runs]
    differences = [gain.averaged - gain.once for gain in gains]
    mean, spread = statistics.mean(differences), statistics.stdev(differences)
    measured = {"runs": [asdict(gain) for gain in gains], "mean_gain": mean, "standard_deviation": spread}
    rows = [
        (gain.run, gain.split, str(gain.slices), f"{gain.once:.4f}", f"{gain.averaged:.4f}", f"{more:+.4f}")
        for gain, more in zip(gains, differences, strict=True)
    ]
    rows.append(("mean and standard deviation", "", "", "", "", f"{mean:+.4f} and {spread:.4f}"))
    columns = ("run", "split", "validation slices", "AUC, once", "AUC, averaged", "gain")
    report("mirror", output, measured, [], [Table("Validation AUC", columns, rows)])


def _measure(run: Run, manifest: Manifest) -> Gain:
    part = select_part(manifest, run.split_spec, "val", run.seed)
    cropped = run.preprocessing.normalise(load_cropped(part.records, run.preprocessing, 0.0, None).pixels)
    network = run.network.network if isinstance(run.network, Mirrored) else run.network
    once, averaged = (
        float(roc_auc_score(part.label, _logits(asked, cropped))) for asked in (network, Mirrored(network))
    )
    return Gain(f"{run.path.parent.name}/{run.path.name}", run.split_spec, len(part.records), once, averaged)


@torch.inference_mode()
def _logits(network: torch.nn.Module, cropped: NDArray[np.float32]) -> NDArray[np.float32]:
    images = torch.from_numpy(cropped).unsqueeze(1)
    starts = range(0, len(images), _BATCH)
    return np.concatenate([network(images[start : start + _BATCH]).logit.numpy() for start in starts])


if __name__ == "__main__":
    typer.run(main)
