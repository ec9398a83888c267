"""Curves over epochs: what is called faster, and when it is not tested."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from tests.experiments.results_factory import document, write

from groundglass.experiments.tables import render_convergence


def run(weights: str, speed: float, seed: int, network: str = "resnet-18", epochs: int = 6) -> dict[str, Any]:
    """A run whose AUC rises towards 0.9 by ``speed``, its loss falling with it."""
    rng = np.random.default_rng([seed, len(weights)])
    auc = 0.9 - 0.4 * np.exp(-speed * np.arange(epochs)) + rng.normal(0, 0.004, epochs)
    history = [
        {"epoch": float(epoch), "val_auc": float(value), "val_loss": float(1 - value)}
        for epoch, value in enumerate(auc)
    ]
    row = f"{network}-{weights}"
    return {
        **document(row, 1.0, seed=seed, experiment="convergence", network=network, weights=weights),
        "history": history,
        "predictions": {},
        "parts": {},
    }


def test_the_faster_weights_are_named(tmp_path: Path) -> None:
    runs = [run(kind, speed, seed) for kind, speed in (("none", 0.2), ("c2l", 1.5)) for seed in range(4)]
    text = render_convergence(write(tmp_path, *runs))
    (said,) = [line for line in text.splitlines() if line.startswith("- resnet-18, c2l against none")]
    assert ": c2l is faster (mean AUC over epochs +0." in said
    kept = json.loads((tmp_path / "convergence.json").read_text())
    (compared,) = kept["comparisons"]
    area = [
        [np.mean([row["val_auc"] for row in each["history"]]) for each in runs[i : i + 4]] for i in (0, 4)
    ]
    expected = stats.ttest_rel(area[1], area[0])
    assert compared["p"] == pytest.approx(expected.pvalue)
    assert compared["auc"] == pytest.approx(np.mean(area[1]) - np.mean(area[0]))
    interval = expected.confidence_interval()
    assert (compared["auc_low"], compared["auc_high"]) == pytest.approx((interval.low, interval.high))
    assert compared["loss"] == pytest.approx(-compared["auc"])
    none, c2l = kept["curves"]
    assert (none["weights"], c2l["weights"]) == ("none", "c2l")
    assert max(c2l["epochs_to_target"]) < min(none["epochs_to_target"])
    assert none["target_auc"] == c2l["target_auc"]
    assert "c2l" in (tmp_path / "convergence.svg").read_text()
    assert len((tmp_path / "convergence.csv").read_text().splitlines()) == 1 + 8 * 6


def test_alike_and_untested(tmp_path: Path) -> None:
    text = render_convergence(
        write(tmp_path / "alike", *(run(k, 0.5, s) for k in ("none", "c2l") for s in range(4)))
    )
    assert "no difference shown" in text
    assert "is faster" not in text
    few = [run(kind, speed, seed) for kind, speed in (("none", 0.2), ("c2l", 2.0)) for seed in range(2)]
    text = render_convergence(write(tmp_path / "few", *few))
    assert "fewer than 3 seeds in common, not tested" in text
    assert "is faster" not in text


def test_what_has_learned_nothing_is_not_fast(tmp_path: Path) -> None:
    runs = [run(kind, speed, seed) for kind, speed in (("none", 0.2), ("c2l", 1.5)) for seed in range(4)]
    for each in runs:
        for row in each["history"]:
            row["val_auc"] -= 0.4
    text = render_convergence(write(tmp_path, *runs))
    (said,) = [line for line in text.splitlines() if line.startswith("- resnet-18, c2l against none")]
    assert "c2l has the higher AUC (mean AUC over epochs +0." in said
    assert "neither learned" in said
    assert "is faster" not in text


def test_networks_do_not_mix_and_one_kind_alone_is_drawn(tmp_path: Path) -> None:
    runs = [run("none", 0.5, 0), run("imagenet", 0.5, 0, network="efficientnet-lite0")]
    (tmp_path / "not-run.json").write_text(json.dumps({"official/resnet-18-imagenet-seed-0": "no hub"}))
    text = render_convergence(write(tmp_path, *runs))
    assert json.loads((tmp_path / "convergence.json").read_text())["comparisons"] == []
    assert "Not run: `resnet-18-imagenet`: no hub." in text
    assert "| resnet-18 | none | 0 |" in text
    assert "| efficientnet-lite0 | imagenet | 0 |" in text


def test_seeds_may_be_of_different_length(tmp_path: Path) -> None:
    text = render_convergence(write(tmp_path, run("none", 0.5, 0), run("none", 0.5, 1, epochs=4)))
    assert "| resnet-18 | none | 0, 1 |" in text
