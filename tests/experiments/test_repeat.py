"""Results over seeds: mean and spread, the table, and what refuses to be averaged."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from groundglass.errors import DataError
from groundglass.evaluation.metrics import TITLES
from groundglass.experiments.results import BEGIN, END, summarise, summary_table, update_readme, write_summary


def document(seed: int, accuracy: float, auc: float | None) -> dict[str, Any]:
    metrics = {name: {"value": 0.5} for name in TITLES} | {
        "accuracy": {"value": accuracy},
        "auc": {"value": auc},
    }
    return {
        "seed": seed,
        "run": {"split": "official", "training_seconds": 60.0 + seed},
        "recipe": {
            "name": "r",
            "network": {"name": "n"},
            "preprocessing": {"size": 160},
            "training": {"epochs": 14},
        },
        "parts": {"test": {"data": {"slices": 203, "patients": 100}, "metrics": metrics}},
    }


def write(folder: Path, *documents: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for each in documents:
        (folder / f"seed-{each['seed']}.json").write_text(json.dumps(each))


def test_mean_and_standard_deviation(tmp_path: Path) -> None:
    write(tmp_path, document(10, 0.8, 0.9), document(2, 0.9, None))
    summary = summarise(tmp_path)
    assert summary["seeds"] == [2, 10]
    accuracy = summary["parts"]["test"]["metrics"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(0.85)
    assert accuracy["sd"] == pytest.approx(0.0707, abs=1e-4)
    assert summary["parts"]["test"]["metrics"]["auc"] == {"mean": 0.9, "sd": None, "values": [0.9]}


def test_the_table_says_what_was_measured(tmp_path: Path) -> None:
    write(tmp_path, document(0, 0.8, None), document(1, 0.9, None))
    table = summary_table(summarise(tmp_path))
    assert "| Accuracy | 0.850 ± 0.071 |" in table
    assert "| AUC (ROC) | – |" in table
    assert "test (203 slices, 100 patients)" in table
    assert "seeds 0, 1" in table


@pytest.mark.parametrize(
    ("change", "message"),
    [(("recipe", "name"), "differ in their recipe"), (("run", "split"), "differ in their split")],
)
def test_what_differs_is_not_averaged(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    other = copy.deepcopy(document(1, 0.9, 0.9))
    other[change[0]][change[1]] = "other"
    write(tmp_path, document(0, 0.8, 0.9), other)
    with pytest.raises(DataError, match=message):
        summarise(tmp_path)


def test_an_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"seed-\*\.json"):
        summarise(tmp_path)


def test_the_readme_keeps_everything_but_the_table(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    update_readme(readme, "new\n")
    assert readme.read_text() == f"before\n{BEGIN}\nnew\n{END}\nafter\n"
    readme.write_text("no markers")
    with pytest.raises(DataError, match="results:begin"):
        update_readme(readme, "new\n")
    assert readme.read_text() == "no markers"


def test_summary_files_agree(tmp_path: Path) -> None:
    write(tmp_path, document(0, 0.8, 0.9))
    summary = write_summary(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert (tmp_path / "summary.md").read_text() == summary_table(summary)
