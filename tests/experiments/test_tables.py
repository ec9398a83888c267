"""Rendered experiments: what tables, tests and figures say follows from the results and from nothing else."""

from __future__ import annotations

import csv
import io
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


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A strong Mask-EfficientNet, an equal EfficientNet and a weak VGG under two protocols."""
    for protocol in ("random", "official"):
        for row in (f"{MASK}-imagenet", "efficientnet-lite0-imagenet"):
            write(tmp_path, *seeds(row, 3.0, weights="imagenet", protocol=protocol))
        write(tmp_path, document("vgg-16-none", 0.4, protocol=protocol))
    return tmp_path


def test_rows_columns_files_and_tests_against_one_reference(results: Path) -> None:
    text = render_rows(results)
    figures = ("random-test.svg", "official-test.svg")
    names = {path.name for path in results.iterdir() if path.is_file()}
    assert names == {"table1.md", "table1.csv", "comparisons.json", *figures}
    assert (results / "table1.md").read_text() == text
    rows = list(csv.DictReader(io.StringIO((results / "table1.csv").read_text())))
    # The paper's order of protocols and of networks.
    others, mask = ("vgg-16-none", "efficientnet-lite0-imagenet"), f"{MASK}-imagenet"
    expected = list(product(("random", "official"), (*others, mask)))
    assert [(row["protocol"], row["row"]) for row in rows] == expected
    mean, sd, low, high = (float(rows[2][f"accuracy_{key}"]) for key in ("mean", "sd", "low", "high"))
    for words in (
        f"| {MASK} (imagenet) | 0–2 | 3.40 | 0.20 | {mean:.3f} ± {sd:.3f} ({low:.3f}–{high:.3f}) |",
        "| 2.0 | 0.921 |",
        "100 slices (50 COVID) of 50 patients",
        "of the whole slice, normalisation zero-mean, 14 epochs in batches of 32, learning rate 0.0003, 320 slices",
        "Linux x86_64, 2 cores, no accelerator, 2 threads, torch 2.9",
    ):
        assert words in text
    assert text.count("accuracy in the paper") == 1, "beside the paper's protocol only"
    assert "vgg-16 (none)" in (results / figures[0]).read_text()
    tests = json.loads((results / "comparisons.json").read_text())
    compared = [(each["protocol"], each["first"], each["second"]) for each in tests]
    assert compared == [(way, mask, row) for way, row in expected if row != mask]
    for test in (test for each in tests for test in each["measures"].values()):
        assert (test["verdict"] in {"better", "worse"}) == (test["p_corrected"] < 0.05)
    section = text[text.index(f"| {MASK} (imagenet) against | seeds |") :].partition("\n\n")[0]
    for row, verdict in (
        ("vgg-16 (none)", "better"),
        ("efficientnet-lite0 (imagenet)", "no difference shown"),
    ):
        assert re.search(rf"\n\| {re.escape(row)} \|.*\| {verdict} \|.*\| {verdict} \|\n?", section)


def test_folds_that_are_missing_are_named(tmp_path: Path) -> None:
    own = {"protocol": "patients", "folds": 5}
    runs = [(seed, fold) for seed in (0, 1) for fold in range(1, 6)]
    folds = [document(f"{MASK}-none", 2.0, seed=seed, fold=fold, **own) for seed, fold in runs]
    text = render_rows(write(tmp_path, *folds[:8]))
    assert "100 slices (50 COVID)" in text
    assert f"Not in the table yet: {MASK}-none, seed 1, 3 of 5 folds." in text
    assert f"| {MASK} (none) | 0 |" in text
    for number, each in enumerate(folds[:2]):
        each["parts"]["test"]["warnings"] = [f"{number} of 20 slices were met in training"]
    begun = render_rows(write(tmp_path / "begun", *folds[:2]))
    assert "0 of 20 slices" in begun, "what is said of a fold by all of its rows stands under the table"
    assert "40 slices" in begun
    assert "folds 1, 2 of 5" in begun


def test_what_differs_is_said(results: Path) -> None:
    odd = document("vgg-16-none", 1.0)
    odd["recipe"]["training"] = {"epochs": 3, "batch_size": 32, "new_field": True}
    odd["parts"]["test"]["warnings"] = ["97 of 187 slices belong to known patients."]
    write(results, odd, document("squeezenet-none", 1.0))
    paper, official = render_rows(results).split("**official-test**")
    for words in ("vgg-16 (none) differs in `training.epochs=3`.", "| squeezenet (none) |"):
        assert words in official
        assert words not in paper
    assert "known patients" not in official, "only what every run warned of"


def test_pretraining_that_may_have_met_the_slices_is_named(tmp_path: Path) -> None:
    known = {"data": "covid-ct", "split": "official"}
    other, nothing = {**known, "split": "random:0"}, {**known, "data": None}
    for pretraining, said in ((None, True), (known, False), (other, True), (nothing, False)):
        run = document(f"{MASK}-c2l", 1.0, weights="c2l", pretraining=pretraining)
        assert ("without their labels" in render_rows(write(tmp_path, run))) == said


def test_the_ablation_tests_every_variant_against_the_default(tmp_path: Path) -> None:
    rows = {"default": 3.0, "no-mask": 3.0, "weights-none": 0.4}
    more: dict[str, Any] = {"experiment": "ablation", "network": MASK, "parts": ("val", "test")}
    for (row, skill), protocol in product(rows.items(), ("official", "left-out")):
        write(tmp_path, *seeds(row, skill, protocol=protocol, **more))
    text = render_rows(tmp_path)
    assert re.findall(r"\*\*(\S+)\*\*", text) == ["official-val", "official-test", "left-out-test"]
    assert len(list(tmp_path.glob("*.svg"))) == 3
    for row, verdict in (("no-mask", "no difference shown"), ("weights-none", "worse")):
        assert len(re.findall(rf"\| {row} \| 0–2 \|.*{verdict}", text)) == 3, row
    assert {each["second"] for each in json.loads((tmp_path / "comparisons.json").read_text())} == {"default"}
    for path in tmp_path.glob("*/default-seed-*.json"):
        path.unlink()
    assert "p corrected" not in render_rows(tmp_path)


def test_mean_and_standard_deviation_over_seeds(tmp_path: Path) -> None:
    runs = seeds("mask-efficientnet", 1.0, (10, 2), experiment="seeds", network=MASK, predictions={})
    runs[0]["parts"]["test"]["metrics"]["auc"] = {"value": None}
    text = render_seeds(write(tmp_path, *runs))
    summary = json.loads((tmp_path / "summary.json").read_text())
    accuracy = summary["parts"]["test"]["metrics"]["accuracy"]
    assert (summary["seeds"], accuracy["values"]) == ([2, 10], pytest.approx([0.82, 0.9]))
    assert (accuracy["mean"], accuracy["sd"]) == pytest.approx((0.86, 0.0566), abs=1e-4)
    assert (tmp_path / "summary.md").read_text() == text
    for words in ("| Accuracy | 0.860 ± 0.057 |", "| AUC (ROC) | – |", "test (100 slices, 50 patients)"):
        assert words in text
    runs[1]["recipe"] = {**runs[1]["recipe"], "training": {"epochs": 3}}
    with pytest.raises(DataError, match="differs in its recipe or split"):
        render_seeds(write(tmp_path, *runs))


def curve(weights: str, speed: float, seed: int, epochs: int = 6) -> dict[str, Any]:
    """A run of ResNet-18 whose AUC rises towards 0.9 by ``speed``."""
    rng = np.random.default_rng([seed, len(weights)])
    auc = 0.9 - 0.4 * np.exp(-speed * np.arange(epochs)) + rng.normal(0, 0.004, epochs)
    history = [{"epoch": float(i), "val_auc": float(x), "val_loss": float(1 - x)} for i, x in enumerate(auc)]
    row, more = f"resnet-18-{weights}", {"history": history, "predictions": {}, "parts": {}}
    return document(row, 1.0, seed=seed, experiment="convergence", weights=weights, **more)


def test_weights_are_compared_by_their_curves(tmp_path: Path) -> None:
    """None is tested, so that none is called faster or better."""
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
    assert "Validation AUC" in (tmp_path / "convergence.svg").read_text()
