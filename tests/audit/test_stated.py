"""A network's figures are read from every file that states them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from groundglass.audit.shortcuts import Figure, read_stated
from groundglass.errors import DataError

RESULTS = Path(__file__).parents[2] / "results" / "official-split"


def test_a_result_of_several_seeds() -> None:
    stated = read_stated(RESULTS / "summary.json")
    assert stated.part == "test"
    assert stated.slices == 203
    assert stated.bounds == "one standard deviation over 5 seeds"
    summary = json.loads((RESULTS / "summary.json").read_text())["parts"]["test"]["metrics"]["auc"]
    assert stated.auc.value == summary["mean"]
    assert stated.auc.high == pytest.approx(summary["mean"] + summary["sd"])


def test_a_result_of_one_seed() -> None:
    stated = read_stated(RESULTS / "seed-0.json")
    assert stated.bounds == "95 % interval"
    assert stated.auc.low is not None
    assert stated.auc.low < stated.auc.value


def test_metrics_of_an_evaluation(tmp_path: Path) -> None:
    metrics = {
        "auc": {"value": 0.9, "low": None, "high": None},
        "accuracy": {"value": 0.8, "low": 0.7, "high": 0.9},
    }
    document = {"run": {"network": "net"}, "data": {"part": "val", "slices": 12}, "metrics": metrics}
    (tmp_path / "metrics.json").write_text(json.dumps(document))
    stated = read_stated(tmp_path / "metrics.json")
    assert (stated.name, stated.part, stated.slices) == ("net", "val", 12)
    assert stated.auc == Figure(0.9)
    assert stated.accuracy == Figure(0.8, 0.7, 0.9)


def test_predictions(tmp_path: Path) -> None:
    rows = ["file,label,patient_id,split,probability"]
    rows += [
        f"{n}.png,{'COVID' if n % 2 else 'NonCOVID'},p{n // 2},test,{0.9 if n % 2 else 0.2}"
        for n in range(20)
    ]
    (tmp_path / "predictions.csv").write_text("\n".join(rows))
    stated = read_stated(tmp_path / "predictions.csv")
    assert stated.part == "test"
    assert stated.slices == 20
    assert stated.auc == Figure(1.0, 1.0, 1.0)
    assert stated.accuracy.value == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", "{}"),
        ("metrics.json", "[1, 2]"),
        ("metrics.json", "not json"),
        ("metrics.json", '{"parts": {}}'),
        ("predictions.csv", ""),
        ("predictions.csv", "file,label,probability\na,COVID,high\n"),
        ("predictions.csv", "file,label,probability\na,COVID,0.5\n"),
        ("predictions.csv", "file,label,probability\na,perhaps,0.5\n"),
        ("predictions.csv", "file,label,probability\na,COVID,1.5\nb,NonCOVID,0\n"),
    ],
)
def test_what_holds_no_figures_is_one_clear_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=name):
        read_stated(tmp_path / name)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_stated(tmp_path / "none.json")
