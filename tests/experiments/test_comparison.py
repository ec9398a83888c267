"""Results of runs and their rows over seeds and folds: what is stored, the intervals, and when one is called better."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.experiments.results_factory import document, seeds, write

from groundglass.errors import DataError
from groundglass.evaluation.bootstrap import Resampling
from groundglass.evaluation.metrics import compute_metrics
from groundglass.evaluation.paired import delong_test, holm, mcnemar
from groundglass.experiments.comparison import PairedRows
from groundglass.experiments.results import read_run_result, read_run_results, write_run_result

VGG = "vgg-16-none"


def paired(folder: Path, *documents: dict[str, Any]) -> PairedRows:
    return PairedRows(read_run_results(write(folder, *documents)), "test")


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    known, path = document(VGG, 1.0), tmp_path / "again.json"
    known["predictions"]["test"][0][0] = "Lunge 'ä', \"1\"\n.png"
    first = read_run_result(write(tmp_path, known) / f"official/{VGG}-seed-0.json")
    write_run_result(replace(first, path=path))
    stored = json.loads(path.read_text())
    for row, again in zip(known["predictions"]["test"], stored["predictions"]["test"], strict=True):
        assert np.float32(again.pop()) == row.pop(), "to the last bit"
    assert stored == known
    # One line per slice keeps a change of one slice readable.
    assert sum(line.startswith("      [") for line in path.read_text().splitlines()) == 100


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("}", "", "no readable result"),
        ('"cost"', '"price"', "'cost' is missing"),
        ('"NonCOVID"', '"healthy"', "no readable result"),
        ('"format": 2', '"format": 1', "format 1, this version reads 2"),
        ('"p0", ', '"p0", "x", ', "no readable result"),
    ],
)
def test_a_damaged_or_older_result_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = write(tmp_path, document(VGG, 1.0)) / f"official/{VGG}-seed-0.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"^{path}: .*{message}.*$"):
        read_run_results(tmp_path)


def test_mean_spread_and_interval_over_seeds(tmp_path: Path) -> None:
    rows = paired(tmp_path, *seeds(VGG, 1.5))
    spread, own = rows.summary(VGG)["accuracy"], rows.rows[VGG].predictions.values()
    values = [compute_metrics(each.label, each.probability)["accuracy"].value for each in own]
    assert spread.values == pytest.approx(values)
    assert (spread.mean, spread.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (spread.low or 1) < np.mean(values) < (spread.high or 0)
    # One seed has the interval of its evaluation.
    alone, (first, *_) = paired(tmp_path / "one", document(VGG, 1.5)).summary(VGG), own
    expected = Resampling(first.patient).measure(first.label, first.probability).metrics
    for measure, spread in alone.items():
        assert (spread.low, spread.high) == pytest.approx((expected[measure].low, expected[measure].high))
        assert spread.sd is None


def test_averaged_probabilities_are_tested_and_corrected_for_the_family(tmp_path: Path) -> None:
    first, others = "resnet-50-none", (VGG, "vgg-13-none")
    runs = [*seeds(first, 1.2, (0, 1, 5)), *seeds(VGG, 0.6), *seeds(others[1], 1.0)]
    rows = paired(tmp_path, *runs, document("vgg-11-none", 1.0, seed=7))
    pairs = [(first, name) for name in (*others, "vgg-11-none")]
    compared, (alone, *_) = rows.compare(pairs), rows.compare(pairs[:1])
    assert [(each.second, each.seeds) for each in compared] == [(name, (0, 1)) for name in others]
    label = rows.slices.label
    for each in compared:
        predicted = [rows.rows[name].predictions for name in (first, each.second)]
        means = [(own[0].probability + own[1].probability) / 2 for own in predicted]
        auc, right = each.measures["auc"], [(mean >= 0.5) == (label == 1) for mean in means]
        assert (auc.difference, auc.p_slices) == pytest.approx(delong_test(label, *means))
        assert each.measures["accuracy"].p_slices == pytest.approx(mcnemar(*right))
    for measure, single in alone.measures.items():
        family = [each.measures[measure] for each in compared]
        p = [max(test.p_slices or 0, test.p_patients or 0) for test in family]
        assert [test.p_corrected for test in family] == holm(p)
        assert single.p_corrected == max(single.p_slices or 0, single.p_patients or 0)


def test_folds_are_pooled(tmp_path: Path) -> None:
    more = {"protocol": "patients", "weights": "c2l", "folds": 5}
    folds = [document("vgg-16-c2l", 1.0, fold=fold, **more) for fold in (5, 3, 1, 2, 4)]
    rows = paired(
        tmp_path, *folds, *(document("vgg-11-c2l", 1.0, fold=fold, **more) for fold in (1, 2, 3, 4))
    )
    assert list(rows.rows) == ["vgg-16-c2l"]
    assert rows.incomplete == {"vgg-11-c2l, seed 0": "4 of 5 folds"}
    own = rows.rows["vgg-16-c2l"].predictions[0]
    assert own.file == tuple(row[0] for row in document(VGG, 1.0)["predictions"]["test"])
    expected = {row[0]: row[3] for each in folds for row in each["predictions"]["test"]}
    assert list(own.logit) == [expected[file] for file in own.file]


@pytest.mark.parametrize("patients", [1, 50])
def test_one_class_has_no_auc_and_one_patient_no_interval(tmp_path: Path, patients: int) -> None:
    one_patient, runs = patients == 1, [document(name, 1.0) for name in (VGG, "vgg-11-none")]
    for row in (row for each in runs for row in each["predictions"]["test"]):
        row[1:3] = (row[1], "the same") if one_patient else ("NonCOVID", row[2])
    rows = paired(tmp_path, *runs)
    accuracy, auc = (rows.summary(VGG)[measure] for measure in ("accuracy", "auc"))
    assert (auc.mean is None, accuracy.low is None) == (not one_patient, one_patient)
    (compared,) = rows.compare([(VGG, "vgg-11-none")])
    assert (compared.measures["auc"].difference is None) is not one_patient
    assert (compared.measures["accuracy"].p_corrected is None) is one_patient
    assert compared.measures["auc"].verdict == "no difference shown"


@pytest.mark.parametrize(
    ("field", "values", "message"),
    [
        (0, ["other.png"], "seed 1 was evaluated on other slices than .*vgg-16"),
        (1, ["COVID", "NonCOVID"], "other slices"),
        (0, ["twice.png"] * 2, "evaluated twice"),
    ],
)
def test_only_the_same_slices_are_compared(
    tmp_path: Path, field: int, values: list[str], message: str
) -> None:
    other = document(VGG, 1.0, seed=1)
    for row, value in zip(other["predictions"]["test"], values, strict=False):
        row[field] = value
    with pytest.raises(DataError, match=message):
        paired(tmp_path, document(VGG, 1.0), other)


def test_only_runs_of_one_recipe_are_a_row_and_older_ones_may_lack_fields(tmp_path: Path) -> None:
    first, other = document(VGG, 1.0), document(VGG, 1.0, seed=1)
    other["recipe"]["training"]["older_runs_lack_it"] = 1.0
    assert paired(tmp_path, first, other).rows[VGG].seeds == (0, 1)
    other["recipe"]["training"]["epochs"] = 3
    with pytest.raises(DataError, match=r"seed-1\.json: differs in its recipe"):
        paired(tmp_path, first, other)
