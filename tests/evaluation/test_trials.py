"""The log of trials: what was changed, how it ended."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from groundglass.errors import DataError
from groundglass.evaluation.trials import record_trial, trials_table
from groundglass.training.recipe import load_recipe, parse_recipe

DEFAULT = load_recipe("mask-efficientnet")


def run(name: str, finished: bool, history: list[dict[str, float]], *overrides: str, **info: object) -> Any:
    said = {"finished": finished, "seed": 3, "split": "official-cv:1/3", "training_sha256": ["a"], **info}
    return SimpleNamespace(
        path=Path(name),
        recipe=load_recipe("mask-efficientnet", overrides),
        info=said,
        history=lambda: history,
    )


def row(epoch: int, auc: float) -> dict[str, float]:
    return {"epoch": epoch, "val_loss": 0.4, "val_auc": auc, "val_accuracy": 0.8}


def test_a_trial_is_named_by_what_it_changes(tmp_path: Path) -> None:
    record_trial(run("plain", True, [row(0, 0.7), row(1, 0.9)]), tmp_path)
    stopped = run("mixed", False, [row(0, 0.8), row(1, 0.75)], "augmentation.mixup=0.4", "optimiser.lr=5e-4")
    kept = json.loads(record_trial(stopped, tmp_path).read_text())
    assert "training_sha256" not in kept["run"]
    table = trials_table(tmp_path, DEFAULT.model_dump(mode="json"))
    assert "| plain | `official-cv:1/3`, 3 | nothing | 2 | 0.400 | 0.900 | 0.800 | 0.900 (epoch 1) |" in table
    assert "`optimiser.lr=0.0005`, `augmentation.mixup=0.4`" in table or (
        "`augmentation.mixup=0.4`, `optimiser.lr=0.0005`" in table
    )
    assert "2 of 14, stopped" in table
    assert "0.800 (epoch 0)" in table


def test_a_field_that_a_trial_is_older_than_has_the_value_it_stands_for(tmp_path: Path) -> None:
    kept = record_trial(run("old", True, [row(0, 0.7)]), tmp_path)
    document = json.loads(kept.read_text())
    del document["recipe"]["synthesis"]["decoys"]
    kept.write_text(json.dumps(document))

    def complete(fields: dict[str, Any]) -> dict[str, Any]:
        return parse_recipe(fields, "old").model_dump(mode="json")

    assert "`synthesis.decoys=0.0`" in trials_table(tmp_path, DEFAULT.model_dump(mode="json"), complete)


def test_without_an_epoch_there_is_nothing_to_record(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no epoch"):
        record_trial(run("young", False, []), tmp_path)
    with pytest.raises(DataError, match="holds no trial"):
        trials_table(tmp_path, {})


def fold_runs(name: str, split: str, seed: int, aucs: tuple[float, ...], *overrides: str) -> list[Any]:
    return [
        run(f"{name}-{fold}", True, [row(0, auc)], *overrides, split=split.format(fold), seed=seed)
        for fold, auc in enumerate(aucs, start=1)
    ]


def test_recipes_tried_on_every_fold_stand_in_a_table_of_their_own(tmp_path: Path) -> None:
    tried = [
        # The folds of seed 0, once drawn by the run's seed and once by their own.
        *fold_runs("plain-0", "official-source-cv:{}/2", 0, (0.80, 0.90)),
        *fold_runs("plain-1", "official-source-cv:{}/2:0", 1, (0.82, 0.92)),
        # Better, but by one seed alone; and worse.
        *fold_runs("long-0", "official-source-cv:{}/2:0", 0, (0.9, 0.9), "training.epochs=20"),
        *fold_runs("short-0", "official-source-cv:{}/2:0", 0, (0.7, 0.7), "training.epochs=2"),
        # Not on every fold; on other folds; stopped.
        *fold_runs("wide-0", "official-source-cv:{}/2", 0, (0.95,), "framing.size=224"),
        *fold_runs("plain-2", "official-source-cv:{}/2", 2, (0.6, 0.7)),
        run("late-1", False, [row(0, 0.99)], "optimiser.lr=1e-4", split="official-source-cv:1/2", seed=0),
        run("late-2", True, [row(0, 0.99)], "optimiser.lr=1e-4", split="official-source-cv:2/2", seed=0),
    ]
    for trial in tried:
        record_trial(trial, tmp_path)
    table = trials_table(tmp_path, DEFAULT.model_dump(mode="json"))
    above = table.split("| trial |")[0].splitlines()[2:]
    assert above[:4] == [
        "| `official-source-cv:FOLD/2:0` | nothing | 0, 1 | 0.810, 0.910 | 0.860 ± 0.014 | 0.800 | 0.400 |",
        "| `official-source-cv:FOLD/2:0` | `training.epochs=20` | 0 | 0.900, 0.900 | 0.900 | 0.800 | 0.400 |",
        "| `official-source-cv:FOLD/2:0` | `training.epochs=2` | 0 | 0.700, 0.700 | 0.700 | 0.800 | 0.400 |",
        "| `official-source-cv:FOLD/2:2` | nothing | 2 | 0.600, 0.700 | 0.650 | 0.800 | 0.400 |",
    ]
    assert above[4] == ""


def test_an_average_of_weights_says_of_which_seeds(tmp_path: Path) -> None:
    averaged = [{"run": f"seed-{seed}", "seed": seed} for seed in (0, 1)]
    record_trial(run("mean", True, [row(13, 0.9)], averaged=averaged), tmp_path)
    table = trials_table(tmp_path, DEFAULT.model_dump(mode="json"))
    assert "| weights averaged over seeds 0, 1 | 14 each | 0.400 | 0.900 |" in table
    assert "FOLD" not in table
