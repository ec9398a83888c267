"""Rows over seeds and folds, their intervals, and when one is called better."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.experiments.results_factory import document, seeds, write

from groundglass.errors import DataError
from groundglass.evaluation.bootstrap import bootstrap
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.paired import delong_test, holm, mcnemar
from groundglass.experiments.comparison import PairedRows
from groundglass.experiments.results import read_run_results


def paired(folder: Path, *documents: dict[str, Any]) -> PairedRows:
    return PairedRows(read_run_results(write(folder, *documents)), "test")


def test_mean_spread_and_interval_over_seeds(tmp_path: Path) -> None:
    rows = paired(tmp_path, *seeds("vgg-16-none", 1.5))
    spread, own = rows.summary("vgg-16-none")["accuracy"], rows.rows["vgg-16-none"].predictions
    values = [compute_metrics(each.label, each.probability)["accuracy"].value for each in own.values()]
    assert spread.values == pytest.approx(values)
    assert (spread.mean, spread.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (spread.low or 1) < np.mean(values) < (spread.high or 0)
    # One seed has the interval of its evaluation.
    rows = paired(tmp_path / "one", document("vgg-16-none", 1.5))
    own = rows.rows["vgg-16-none"].predictions[0]
    expected = bootstrap(own.label, own.probability, own.patient).metrics
    for measure, spread in rows.summary("vgg-16-none").items():
        assert (spread.low, spread.high) == pytest.approx((expected[measure].low, expected[measure].high))
        assert spread.sd is None


def test_the_tests_are_those_of_the_averaged_probabilities(tmp_path: Path) -> None:
    names = ("resnet-50-none", "vgg-16-none")
    rows = paired(
        tmp_path,
        *seeds(names[0], 1.2, (0, 1, 5)),
        *seeds(names[1], 0.6),
        document("vgg-11-none", 1.0, seed=7),
    )
    (compared,) = rows.compare([names, ("vgg-16-none", "vgg-11-none")])  # the second pair has no common seed
    assert compared.seeds == (0, 1)
    label = rows.slices.label
    mean = [
        np.mean([rows.rows[name].predictions[seed].probability for seed in (0, 1)], axis=0) for name in names
    ]
    auc, right = compared.measures["auc"], [(each >= 0.5) == (label == 1) for each in mean]
    assert (auc.difference, auc.p_slices) == pytest.approx(delong_test(label, *mean))
    assert compared.measures["accuracy"].p_slices == pytest.approx(mcnemar(*right))


def test_the_correction_grows_with_the_family(tmp_path: Path) -> None:
    rows = paired(tmp_path, *(document(f"vgg-{depth}-none", 1.0) for depth in (11, 13, 16, 19)))
    pairs = [("vgg-11-none", f"vgg-{depth}-none") for depth in (13, 16, 19)]
    (alone,), compared = rows.compare(pairs[:1]), rows.compare(pairs)
    for measure, test in alone.measures.items():
        family = [each.measures[measure] for each in compared]
        p = [max(each.p_slices or 0, each.p_patients or 0) for each in family]
        assert test.p_corrected == p[0]
        assert [each.p_corrected for each in family] == holm(p)


def test_folds_are_pooled(tmp_path: Path) -> None:
    whole = document("vgg-16-none", 1.0)
    more = {"protocol": "patients", "weights": "c2l", "folds": 5}
    folds = [document("vgg-16-c2l", 1.0, fold=fold, **more) for fold in (5, 3, 1, 2, 4)]
    rows = paired(tmp_path / "folds", *folds)
    own = rows.rows["vgg-16-c2l"].predictions[0]
    assert own.file == tuple(row[0] for row in whole["predictions"]["test"])
    expected = {row[0]: row[3] for each in folds for row in each["predictions"]["test"]}
    assert list(own.logit) == [expected[file] for file in own.file]
    others = [document("vgg-11-c2l", 1.0, fold=fold, **more) for fold in (1, 2, 3, 4)]
    rows = paired(tmp_path / "four", *folds, *others)
    assert list(rows.rows) == ["vgg-16-c2l"]
    assert rows.incomplete == {"vgg-11-c2l, seed 0": "4 of 5 folds"}
    assert [*paired(tmp_path / "same", *folds[1:], *others).rows] == ["vgg-11-c2l", "vgg-16-c2l"]


def test_one_class_has_no_auc_and_one_patient_no_interval(tmp_path: Path) -> None:
    rows = paired(tmp_path, *seeds("vgg-16-none", 1.0, covid=0.0), *seeds("vgg-11-none", 1.0, covid=0.0))
    assert rows.summary("vgg-16-none")["auc"].mean is None
    (compared,) = rows.compare([("vgg-16-none", "vgg-11-none")])
    assert compared.measures["auc"].difference is None
    assert compared.measures["auc"].verdict == "no difference shown"
    assert compared.measures["accuracy"].p_corrected is not None
    alone = [document(name, 1.0) for name in ("vgg-16-none", "vgg-11-none")]
    for each in alone:
        for row in each["predictions"]["test"]:
            row[2] = "the same"
    rows = paired(tmp_path / "alone", *alone)
    assert rows.summary("vgg-16-none")["accuracy"].low is None
    (compared,) = rows.compare([("vgg-16-none", "vgg-11-none")])
    assert compared.measures["accuracy"].p_corrected is None


def first_slices(field: int, *values: str) -> Callable[[dict[str, Any]], None]:
    """Change a field of a run's first slices: file, label or patient."""

    def change(run: dict[str, Any]) -> None:
        for row, value in zip(run["predictions"]["test"], values, strict=False):
            row[field] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (first_slices(0, "other.png"), "seed 1 was evaluated on other slices than .*vgg-16"),
        (first_slices(1, "COVID", "NonCOVID"), "other slices"),
        (first_slices(0, "twice.png", "twice.png"), "evaluated twice"),
        (lambda run: run["recipe"]["training"].update(epochs=3), r"seed-1\.json: differs in its recipe"),
        (lambda run: run["recipe"]["training"].update(older_runs_lack_it=1.0), None),
    ],
)
def test_only_the_same_slices_and_recipes_are_compared(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str | None
) -> None:
    other = document("vgg-16-none", 1.0, seed=1)
    change(other)
    with nullcontext() if message is None else pytest.raises(DataError, match=message):
        assert paired(tmp_path, document("vgg-16-none", 1.0), other).rows["vgg-16-none"].seeds == (0, 1)
