"""Results of experiments without training: what a row predicts of each slice is drawn from a skill."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from groundglass.evaluation.metrics import TITLES
from groundglass.experiments.results import FORMAT, Identity
from groundglass.files import write_text

MACHINE = {"system": "Linux", "architecture": "x86_64", "cores": 2, "accelerator": "none"}
RUN = {"counts": {"train": 400, "val": 100}, "machine": MACHINE, "versions": {"torch": "2.9"}, "threads": 2}
RECIPE = {
    "preprocessing": {"size": 160, "crop": False, "normalisation": "zero-mean"},
    "optimiser": {"lr": 0.0003},
    "synthesis": {"slices_per_epoch": 320, "severity": [0.08, 0.8]},
    "training": {"epochs": 14, "batch_size": 32},
}


def document(
    row: str, skill: float, *, seed: int = 0, experiment: str = "table1", protocol: str = "official",
    parts: Sequence[str] = ("test",), network: str | None = None, weights: str = "none",
    fold: int | None = None, folds: int = 1, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """A result whose logits are ``skill`` apart between the classes of 100 slices, two of each of 50 patients."""
    label = np.random.default_rng(7).permutation(50).repeat(2) % 2
    chosen = [index for index in range(100) if fold is None or index // 2 % folds == fold - 1]
    predictions = {}
    for number, part in enumerate(parts):
        noise = np.random.default_rng([seed, sum(map(ord, row)), number]).normal(size=100)
        logit = ((label - 0.5) * skill + noise).astype(np.float32)
        predictions[part] = [
            [f"{each:04}.png", "COVID" if label[each] else "NonCOVID", f"p{each // 2}", float(logit[each])]
            for each in chosen
        ]
    network = network or row.removesuffix(f"-{weights}")
    title = row if experiment == "ablation" else f"{network} ({weights})"
    identity = Identity(experiment, protocol, row, title, seed, fold, None if fold is None else folds)
    own = {"name": network, "network": {"name": network, "weights": weights}}
    metrics = {name: {"value": 0.8 + seed / 100} for name in TITLES}
    measured = {"slices": 100, "patients": 50, "metrics": metrics, "warnings": []}
    return {
        "format": FORMAT,
        **asdict(identity),
        "network": network,
        "weights": weights,
        "pretraining": None,
        "split": {"specification": protocol, "train_and_val": "0" * 64, "parts": {}},
        "run": {"seed": seed, "split": protocol, "data": "drawn", "training_seconds": 120.0 + seed, **RUN},
        "cost": {"parameters": 3_400_000, "macs": 200_000_000, "input_size": 160},
        "recipe": {**own, **{section: dict(fields) for section, fields in RECIPE.items()}},
        "history": [{"epoch": float(epoch), "val_loss": 0.7, "val_auc": 0.5} for epoch in range(14)],
        "parts": {part: dict(measured) for part in parts},
        "predictions": predictions,
        **changes,
    }


def write(folder: Path, *documents: dict[str, Any]) -> Path:
    for each in documents:
        name = Identity(**{key: each[key] for key in Identity.__dataclass_fields__}).name
        write_text(folder / f"{name}.json", json.dumps(each, ensure_ascii=False))
    return folder


def seeds(row: str, skill: float, which: Sequence[int] = (0, 1, 2), **changes: Any) -> list[dict[str, Any]]:
    return [document(row, skill, seed=seed, **changes) for seed in which]
