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


def run(name: str, finished: bool, history: list[dict[str, float]], *overrides: str) -> Any:
    return SimpleNamespace(
        path=Path(name),
        recipe=load_recipe("mask-efficientnet", overrides),
        info={"finished": finished, "seed": 3, "split": "official-cv:1/3", "training_sha256": ["a"]},
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
