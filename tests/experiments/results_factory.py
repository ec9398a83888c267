"""Results of experiments without training: what a row says of each slice is drawn from a skill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from groundglass.experiments.results import FORMAT, write_run_result

RECIPE = {
    "name": "mask-efficientnet",
    "network": {"name": "mask-efficientnet-lite0", "weights": "none", "mirror": True},
    "preprocessing": {"size": 160, "normalisation": "zero-mean"},
    "synthesis": {"slices_per_epoch": 320, "severity": [0.08, 0.8]},
    "training": {"epochs": 14, "batch_size": 32},
}


def document(
    row: str,
    skill: float,
    *,
    seed: int = 0,
    experiment: str = "table1",
    protocol: str = "official",
    part: str = "test",
    network: str | None = None,
    weights: str = "none",
    slices: int = 200,
    fold: int | None = None,
    folds: int | None = None,
    covid: float = 0.5,
    noise: int = 0,
    **changes: Any,
) -> dict[str, Any]:
    """A result whose logits are ``skill`` apart between the classes; patients have two slices each."""
    rng = np.random.default_rng([seed, sum(map(ord, row)), noise])
    label = (np.arange(slices) // 2 % 100 < covid * 100).astype(int)
    label = label[np.random.default_rng(7).permutation(slices // 2).repeat(2) * 2]
    logit = (label - 0.5) * skill + rng.normal(size=slices)
    chosen = [
        index for index in range(slices) if fold is None or folds is None or index // 2 % folds == fold - 1
    ]
    rows = [
        [f"{index:04}.png", "COVID" if label[index] else "NonCOVID", f"p{index // 2}", float(logit[index])]
        for index in chosen
    ]
    network = network or row.removesuffix(f"-{weights}")
    recipe = {
        **RECIPE,
        "name": network,
        "network": {**RECIPE["network"], "name": network, "weights": weights},
    }
    history = [
        {
            "epoch": float(epoch),
            "val_loss": 0.7 / (1 + skill * epoch / 14),
            "val_auc": 1 - 0.5 / (1 + skill * epoch),
        }
        for epoch in range(14)
    ]
    return {
        "format": FORMAT,
        "experiment": experiment,
        "protocol": protocol,
        "row": row,
        "title": f"{network} ({weights})",
        "seed": seed,
        "fold": fold,
        "folds": folds,
        "network": network,
        "weights": weights,
        "pretraining": None,
        "split": {"specification": protocol, "train_and_val": "0" * 64, "parts": {}},
        "run": {
            "seed": seed,
            "split": protocol,
            "data": "drawn",
            "counts": {"train": 400, "val": 100},
            "machine": {"system": "Linux", "architecture": "x86_64", "cores": 2, "accelerator": "none"},
            "versions": {"torch": "2.9"},
            "threads": 2,
            "training_seconds": 120.0 + seed,
        },
        "cost": {"parameters": 3_400_000, "macs": 200_000_000, "input_size": 160},
        "inference": {
            "images_per_second": 50.0 + seed,
            "batch_size": 16,
            "rounds": 9,
            "device": "CPU",
            "threads": 2,
        },
        "recipe": recipe,
        "history": history,
        "parts": {part: {"warnings": []}},
        "predictions": {part: rows},
        **changes,
    }


def write(folder: Path, *documents: dict[str, Any]) -> Path:
    """Write results where an experiment would."""
    for each in documents:
        fold = "" if each["fold"] is None else f"-fold-{each['fold']}"
        write_run_result(folder / each["protocol"] / f"{each['row']}-seed-{each['seed']}{fold}.json", each)
    return folder


def seeds(row: str, skill: float, which: Sequence[int] = (0, 1, 2), **changes: Any) -> list[dict[str, Any]]:
    """The same row with several seeds."""
    return [document(row, skill, seed=seed, **changes) for seed in which]
