"""Rendered experiments: what tables, tests and figures say follows from the results and from nothing else."""

from __future__ import annotations

import csv
import json
import re
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pytest
from tests.experiments.results_factory import document, seeds, write

from groundglass.errors import DataError
from groundglass.experiments.tables import render_convergence, render_rows, render_seeds

MASK = "mask-efficientnet-lite0"


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A strong Mask-EfficientNet, an equal EfficientNet and a weak VGG under two protocols."""
    for own in ({"protocol": "random"}, {"protocol": "official"}):
        for row in (f"{MASK}-imagenet", "efficientnet-lite0-imagenet"):
            write(tmp_path, *seeds(row, 3.0, weights="imagenet", **own))
        write(tmp_path, document("vgg-16-none", 0.4, **own))
    return tmp_path


def test_rows_columns_and_files(results: Path) -> None:
    def files() -> dict[str, str]:
        return {path.name: path.read_text() for path in results.iterdir() if path.is_file()}

    text, written = render_rows(results), files()
    figures = ("random-test.svg", "official-test.svg")
    assert set(written) == {"table1.md", "table1.csv", "comparisons.json", *figures}
    assert written["table1.md"] == text
    rows = read_csv(results / "table1.csv")
    # The paper's order of protocols and of networks.
    names = ["vgg-16-none", "efficientnet-lite0-imagenet", f"{MASK}-imagenet"]
    ordered = [(protocol, name) for protocol in ("random", "official") for name in names]
    assert [(row["protocol"], row["row"]) for row in rows] == ordered
    mean, sd, low, high = (float(rows[2][f"accuracy_{key}"]) for key in ("mean", "sd", "low", "high"))
    accuracy = f"{mean:.3f} ± {sd:.3f} ({low:.3f}–{high:.3f})"
    for words in (
        f"| {MASK} (imagenet) | 0–2 | 3.40 | 0.20 | {accuracy} |",
        "| 2.0 | 0.921 |",
        "100 slices (50 COVID) of 50 patients",
        "of the whole slice, normalisation zero-mean, 14 epochs in batches of 32, learning rate 0.0003, 320 slices",
        "Linux x86_64, 2 cores, no accelerator, 2 threads, torch 2.9",
    ):
        assert words in text
    assert text.count("accuracy in the paper") == 1, "beside the paper's protocol only"
    for words in ("vgg-16 (none)", "Accuracy", "#ffffff"):
        assert words in written["random-test.svg"]
    assert render_rows(results) == text
    assert files() == written


def test_every_row_is_tested_against_one_reference(results: Path) -> None:
    text = render_rows(results)
    tests = json.loads((results / "comparisons.json").read_text())
    others = ("vgg-16-none", "efficientnet-lite0-imagenet")
    expected = [(way, f"{MASK}-imagenet", other) for way in ("random", "official") for other in others]
    assert [(each["protocol"], each["first"], each["second"]) for each in tests] == expected
    for test in (test for each in tests for test in each["measures"].values()):
        assert (test["verdict"] in {"better", "worse"}) == (test["p_corrected"] < 0.05)
        assert test["p_corrected"] >= max(test["p_slices"], test["p_patients"])
    assert f"| {MASK} (imagenet) against | seeds |" in text
    compared = text[text.index("p corrected") :].split("\n\n")[0].splitlines()
    for row, verdict in (
        ("vgg-16 (none)", "better"),
        ("efficientnet-lite0 (imagenet)", "no difference shown"),
    ):
        (line,) = (line for line in compared if line.startswith(f"| {row} |"))
        assert line.count(f"| {verdict} |") == 2
    text = render_rows(results, reference="vgg-16-none")
    assert "| vgg-16 (none) against |" in text
    assert text.count("| worse |") == 8
    with pytest.raises(DataError, match="no row is called 'vgg-16'; there are efficientnet-lite0-imagenet, "):
        render_rows(results, reference="vgg-16")


def test_folds_that_are_missing_are_named(tmp_path: Path) -> None:
    own = {"protocol": "patients", "folds": 5}
    runs = [(seed, fold) for seed in (0, 1) for fold in range(1, 6)]
    folds = [document(f"{MASK}-none", 2.0, seed=seed, fold=fold, **own) for seed, fold in runs]
    text = render_rows(write(tmp_path, *folds[:8]))
    assert "100 slices (50 COVID)" in text
    assert f"Not in the table yet: {MASK}-none, seed 1, 3 of 5 folds." in text
    assert [row["seeds"] for row in read_csv(tmp_path / "table1.csv")] == ["0"]
    for number, each in enumerate(folds[:2]):
        each["parts"]["test"]["warnings"] = [f"{number} of 20 slices were met in training"]
    begun = render_rows(write(tmp_path / "begun", *folds[:2]))
    assert "0 of 20 slices" in begun, "what is said of a fold by all of its rows stands under the table"
    assert "40 slices" in begun
    assert "folds 1, 2 of 5" in begun


def test_what_could_not_be_run_and_what_differs_is_said(results: Path) -> None:
    reasons = {f"official/resnet-50-imagenet-seed-{seed}": "the hub cannot be reached" for seed in range(3)}
    (results / "not-run.json").write_text(json.dumps(reasons))
    odd = document("vgg-16-none", 1.0, warnings=["97 of 187 slices belong to known patients."])
    odd["recipe"]["training"] = {"epochs": 3, "batch_size": 32, "new_field": True}
    write(results, odd, document("squeezenet-none", 1.0))
    paper, official = render_rows(results).split("**official-test**")
    assert "Not run: `resnet-50-imagenet`: the hub cannot be reached." in official
    assert "Not run" not in paper
    assert "vgg-16 (none) differs in `training.epochs=3`." in official
    assert "differs in" not in paper
    assert "known patients" not in official, "only what every run warned of"
    assert "| squeezenet (none) |" in official


@pytest.mark.parametrize(
    ("pretraining", "said"),
    [
        (None, True),
        ({"data": "covid-ct", "split": "official"}, False),
        ({"data": "covid-ct", "split": "random:0"}, True),
        ({"data": None, "split": None}, False),
    ],
)
def test_pretraining_that_may_have_met_the_slices_is_named(
    tmp_path: Path, pretraining: dict[str, Any] | None, said: bool
) -> None:
    run = document(f"{MASK}-c2l", 1.0, weights="c2l", pretraining=pretraining, warnings=["Beware."])
    text = render_rows(write(tmp_path, run))
    assert ("without their labels" in text) == said
    assert text.count("Beware.") == 1


def variant(row: str, skill: float, seed: int, protocol: str, **changes: Any) -> dict[str, Any]:
    more = {"experiment": "ablation", "network": MASK, "parts": ("val", "test"), **changes}
    return document(row, skill, protocol=protocol, seed=seed, **more)


def test_the_ablation_tests_every_variant_against_the_default(tmp_path: Path) -> None:
    rows = {"default": 3.0, "no-mask": 3.0, "weights-none": 0.4}
    for (row, skill), seed, protocol in product(rows.items(), range(3), ("official", "left-out")):
        write(tmp_path, variant(row, skill, seed, protocol))
    text = render_rows(tmp_path)
    for view in ("official-val", "official-test", "left-out-test"):
        assert f"**{view}**" in text
        assert (tmp_path / f"{view}.svg").exists()
    assert "left-out-val" not in text
    for row, verdict in (("no-mask", "no difference shown"), ("weights-none", "worse")):
        assert len(re.findall(rf"\| {row} \| 0–2 \|.*{verdict}", text)) == 3, row
    assert {each["second"] for each in json.loads((tmp_path / "comparisons.json").read_text())} == {"default"}
    for path in tmp_path.glob("*/default-seed-*.json"):
        path.unlink()
    assert "p corrected" not in render_rows(tmp_path)


def test_mean_and_standard_deviation_over_seeds(tmp_path: Path) -> None:
    runs = seeds("mask-efficientnet", 1.0, (10, 2), experiment="seeds", network=MASK, predictions={})
    for run in runs:
        run["recipe"]["name"] = "mask-efficientnet"
    runs[0]["parts"]["test"]["metrics"]["auc"] = {"value": None}
    text = render_seeds(write(tmp_path, *runs))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["seeds"] == [2, 10]
    accuracy = summary["parts"]["test"]["metrics"]["accuracy"]
    assert (accuracy["mean"], accuracy["values"]) == (pytest.approx(0.86), pytest.approx([0.82, 0.9]))
    assert accuracy["sd"] == pytest.approx(0.0566, abs=1e-4)
    assert (tmp_path / "summary.md").read_text() == text
    assert "| Accuracy | 0.860 ± 0.057 |" in text
    assert "| AUC (ROC) | – |" in text
    assert "test (100 slices, 50 patients)" in text
    runs[1]["recipe"] = {**runs[1]["recipe"], "training": {"epochs": 3}}
    with pytest.raises(DataError, match="differs in its recipe or split"):
        render_seeds(write(tmp_path, *runs))
    with pytest.raises(DataError, match="holds no result"):
        render_seeds(tmp_path / "nothing")


def curve(weights: str, speed: float, seed: int, epochs: int = 6) -> dict[str, Any]:
    """A run of ResNet-18 whose AUC rises towards 0.9 by ``speed``."""
    rng = np.random.default_rng([seed, len(weights)])
    auc = 0.9 - 0.4 * np.exp(-speed * np.arange(epochs)) + rng.normal(0, 0.004, epochs)
    history = [{"epoch": float(i), "val_auc": float(x), "val_loss": float(1 - x)} for i, x in enumerate(auc)]
    row, more = f"resnet-18-{weights}", {"history": history, "predictions": {}, "parts": {}}
    return document(row, 1.0, seed=seed, experiment="convergence", weights=weights, **more)


def test_weights_are_compared_by_their_curves(tmp_path: Path) -> None:
    """None is tested, so that none is called faster or better."""
    (tmp_path / "not-run.json").write_text(json.dumps({"official/resnet-18-imagenet-seed-0": "no hub"}))
    runs = [curve("none", 0.2, 0), curve("none", 0.2, 1, epochs=4), curve("c2l", 1.5, 0)]
    text = render_convergence(write(tmp_path, *runs))
    assert (tmp_path / "convergence.md").read_text() == text
    aucs = [[row["val_auc"] for row in run["history"]] for run in runs[:2]]
    best, mean = ([of(curve) for curve in aucs] for of in (max, fmean))
    near = [min(i for i, auc in enumerate(curve, 1) if auc >= 0.95 * curve[-1]) for curve in aucs]
    cells = (f"{fmean(each):.3f} ± {stdev(each):.3f}" for each in (near, best, mean))
    assert f"| resnet-18 | none | 0, 1 | {' | '.join(cells)} |" in text
    assert f"| {max(row['val_auc'] for row in runs[2]['history']):.3f} |" in text
    assert not re.search(r"faster|better", text)
    assert "Not run: `resnet-18-imagenet`: no hub." in text
    figure = (tmp_path / "convergence.svg").read_text()
    assert "c2l" in figure
    assert "Validation AUC" in figure
