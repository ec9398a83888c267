"""Results of runs and their rows over seeds and folds: what is stored, the intervals, and when one is called better."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
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


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    known = document("vgg-16-none", 1.0)
    rows = known["predictions"]["test"]
    rows[0][0] = "Lunge 'ä', \"1\"\n.png"
    for row in rows:
        row[3] = float(np.float32(row[3]))  # a network's logits, which come back to the last bit
    first = read_run_result(write(tmp_path, known) / "official/vgg-16-none-seed-0.json")
    path = tmp_path / "again.json"
    write_run_result(replace(first, path=path))
    again = read_run_result(path).predictions["test"].logit.astype(np.float32)
    np.testing.assert_array_equal(again, first.predictions["test"].logit.astype(np.float32))
    stored = json.loads(path.read_text())
    for row in (*rows, *stored["predictions"]["test"]):
        row.pop()
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
    path = write(tmp_path, document("vgg-16-none", 1.0)) / "official/vgg-16-none-seed-0.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(DataError, match=rf"^{path}: .*{message}.*$"):
        read_run_results(tmp_path)


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
    expected = Resampling(own.patient).measure(own.label, own.probability).metrics
    for measure, spread in rows.summary("vgg-16-none").items():
        assert (spread.low, spread.high) == pytest.approx((expected[measure].low, expected[measure].high))
        assert spread.sd is None


def test_averaged_probabilities_are_tested_and_corrected_for_the_family(tmp_path: Path) -> None:
    first, others = "resnet-50-none", ("vgg-16-none", "vgg-13-none")
    runs = [*seeds(first, 1.2, (0, 1, 5)), *seeds(others[0], 0.6), *seeds(others[1], 1.0)]
    rows = paired(tmp_path, *runs, document("vgg-11-none", 1.0, seed=7))
    pairs = [(first, name) for name in (*others, "vgg-11-none")]
    compared, (alone, *_) = rows.compare(pairs), rows.compare(pairs[:1])
    assert [(each.second, each.seeds) for each in compared] == [(name, (0, 1)) for name in others]
    label = rows.slices.label
    for each in compared:
        one, other = (
            np.mean([rows.rows[name].predictions[seed].probability for seed in (0, 1)], axis=0)
            for name in (first, each.second)
        )
        auc, right = each.measures["auc"], [(mean >= 0.5) == (label == 1) for mean in (one, other)]
        assert (auc.difference, auc.p_slices) == pytest.approx(delong_test(label, one, other))
        assert each.measures["accuracy"].p_slices == pytest.approx(mcnemar(*right))
    for measure, single in alone.measures.items():
        family = [each.measures[measure] for each in compared]
        p = [max(test.p_slices or 0, test.p_patients or 0) for test in family]
        assert [test.p_corrected for test in family] == holm(p)
        assert single.p_corrected == max(single.p_slices or 0, single.p_patients or 0)


def test_folds_are_pooled(tmp_path: Path) -> None:
    whole = document("vgg-16-none", 1.0)
    more = {"protocol": "patients", "weights": "c2l", "folds": 5}
    folds = [document("vgg-16-c2l", 1.0, fold=fold, **more) for fold in (5, 3, 1, 2, 4)]
    others = [document("vgg-11-c2l", 1.0, fold=fold, **more) for fold in (1, 2, 3, 4)]
    rows = paired(tmp_path, *folds, *others)
    assert list(rows.rows) == ["vgg-16-c2l"]
    assert rows.incomplete == {"vgg-11-c2l, seed 0": "4 of 5 folds"}
    own = rows.rows["vgg-16-c2l"].predictions[0]
    assert own.file == tuple(row[0] for row in whole["predictions"]["test"])
    expected = {row[0]: row[3] for each in folds for row in each["predictions"]["test"]}
    assert list(own.logit) == [expected[file] for file in own.file]


@pytest.mark.parametrize("covid", [0.0, 0.5])
def test_one_class_has_no_auc_and_one_patient_no_interval(tmp_path: Path, covid: float) -> None:
    runs = [document(name, 1.0, covid=covid) for name in ("vgg-16-none", "vgg-11-none")]
    for row in (row for each in runs for row in each["predictions"]["test"] if covid):
        row[2] = "the same"
    rows = paired(tmp_path, *runs)
    accuracy, auc = (rows.summary("vgg-16-none")[measure] for measure in ("accuracy", "auc"))
    assert ((auc.mean is None), (accuracy.low is None)) == ((not covid), bool(covid))
    (compared,) = rows.compare([("vgg-16-none", "vgg-11-none")])
    assert (compared.measures["auc"].difference is None) is not bool(covid)
    assert (compared.measures["accuracy"].p_corrected is None) is bool(covid)
    assert compared.measures["auc"].verdict == "no difference shown"


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
