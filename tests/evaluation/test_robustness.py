"""One look, several conditions: containers, conflicting twins, differences, and the record of the look."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.evaluation.test_conflicts import pair, write_pairs
from tests.inference.conftest import tiny_parts
from typer.testing import CliRunner, Result

from groundglass.cli.main import app
from groundglass.cli.robustness import parse_qualities
from groundglass.data.manifest import Manifest, read_pixels, write_manifest
from groundglass.errors import DataError, RunError
from groundglass.evaluation.alterations import compressed
from groundglass.evaluation.conditions import Condition, ConditionFigures
from groundglass.evaluation.evaluate import evaluate
from groundglass.evaluation.ledger import read_entries
from groundglass.evaluation.model_rows import ModelRow
from groundglass.evaluation.robustness import Robustness, RobustnessJob, measure_robustness
from groundglass.inference.bundle import write_bundle

MakeManifest = Callable[..., Manifest]

WRONG = frozenset({"slice 00.png", "slice 01.png", "slice 02.png", "slice 20.png"})
"""The test part's slices whose looks belie their label, and one of the train part."""


def _measure(run: Any, manifest: Manifest, output: Path, **changes: Any) -> Robustness:
    job = RobustnessJob((ModelRow.of("one", [run]),), manifest, "official", "test", WRONG, resamples=300)
    return measure_robustness(replace(job, **changes), output)


def _condition(report: Robustness, title: str, row: int = 0) -> ConditionFigures:
    (figures,) = (each for each in report.rows[row].conditions if each.title == title)
    return figures


def test_as_they_are_is_what_evaluate_says(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest()
    report = _measure(run, manifest, tmp_path / "out")
    evaluation = evaluate(run, manifest, "official", "test", tmp_path / "other", resamples=300)
    plain = _condition(report, "as they are")
    for name, metric in evaluation.metrics:
        interval = evaluation.bootstrap.intervals[name]
        assert plain.measures[name].mean == pytest.approx(metric.value)
        assert (plain.measures[name].low, plain.measures[name].high) == pytest.approx(
            (interval.low, interval.high)
        )
    assert (plain.slices, plain.covid, plain.patients, plain.changed) == (12, 6, 6, (0,))
    assert report.sha256 == evaluation.sha256


def test_conditions_and_what_they_are_compared_with(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    report = _measure(run, make_manifest(), tmp_path / "out", qualities=(90,))
    compared = {
        each.title: list(dict.fromkeys(other.second for other in each.differences))
        for each in report.rows[0].conditions
    }
    alone, without = "JPEG of quality 90", "as they are, without conflicting twins"
    assert compared == {
        "as they are": [],
        alone: ["as they are"],
        without: ["as they are"],
        f"{alone}, without conflicting twins": [without, alone, "as they are"],
    }


def test_contradictions_are_left_out(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    report = _measure(run, make_manifest(), tmp_path / "out")
    plain, without = _condition(report, "as they are"), _condition(report, Condition(None, True).title)
    assert report.left_out == ("slice 00.png", "slice 01.png", "slice 02.png")
    assert (plain.slices, without.slices, without.covid) == (12, 9, 5)
    assert plain.measures["accuracy"].mean == 0.75
    assert without.measures["accuracy"].mean == without.measures["auc"].mean == 1
    (accuracy,) = (each for each in without.differences if each.measure == "accuracy")
    assert accuracy.value == 0.25
    assert accuracy.low is not None
    assert accuracy.low >= 0


def test_containers_go_to_the_network(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest()
    report = _measure(run, manifest, tmp_path / "out", qualities=(90, 1))
    assert run.predicted == 3 * 12
    gentle, coarse = (_condition(report, f"JPEG of quality {quality}") for quality in (90, 1))
    assert gentle.changed == (0,)
    assert gentle.measures["auc"].mean == pytest.approx(
        _condition(report, "as they are").measures["auc"].mean, abs=0.06
    )
    pixels = [read_pixels(record) for record in manifest.records[:12]]
    said = run.predict(map(compressed(1), pixels)).probability
    label = np.array([record.label == "COVID" for record in manifest.records[:12]])
    assert coarse.measures["accuracy"].mean == pytest.approx(np.mean((said >= 0.5) == label))
    assert coarse.measures["brier"].mean == pytest.approx(np.mean((said - label) ** 2))


def test_seeds_have_a_mean_and_a_spread(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    (tmp_path / "second").mkdir()
    other = replace(run, path=tmp_path / "second", seed=1)
    row = ModelRow.of("both", [run, other])
    plain = other.predict

    def timid(slices: Any) -> Any:
        said = plain(slices)
        said.logit = said.logit - 100
        said.probability = 1 / (1 + np.exp(-said.logit))
        return said

    other.predict = timid
    report = _measure(run, make_manifest(), tmp_path / "out", rows=(row,), conflicts=None)
    accuracy = _condition(report, "as they are").measures["accuracy"]
    assert accuracy.values == (0.75, 0.5)
    assert accuracy.mean == 0.625
    assert accuracy.sd == pytest.approx(0.25 / np.sqrt(2))
    assert report.left_out is None
    assert report.rows[0].looks == (1, 1)


def test_a_look_is_recorded_once(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest()
    evaluate(run, manifest, "official", "test", tmp_path / "first", resamples=20)
    report = _measure(run, manifest, tmp_path / "out")
    entries = read_entries(run.path)
    assert [Path(entry.output).name for entry in entries] == ["first", "out"]
    assert entries[0].fingerprint == entries[1].fingerprint == report.sha256
    assert report.rows[0].looks == (2,)
    assert "evaluated with this run 2 times" in report.rows[0].warnings[0]


def test_an_audit_of_other_data_costs_no_look(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"strange\.png"):
        _measure(run, make_manifest(), tmp_path / "out", conflicts=frozenset({"strange.png"}))
    assert run.predicted == 0
    assert read_entries(run.path) == ()


def test_an_unfinished_run(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    run.info["finished"] = False
    with pytest.raises(RunError, match="has not finished"):
        _measure(run, make_manifest(), tmp_path / "out")
    report = _measure(run, make_manifest(), tmp_path / "out", allow_unfinished=True)
    assert "has not finished" in report.rows[0].warnings[0]


def test_other_slices_cannot_be_compared(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    other = replace(run, path=tmp_path / "second", seed=1)
    rows = (ModelRow.of("one", [run]), ModelRow.of("two", [other]))
    with pytest.raises(DataError, match="has another test part"):
        _measure(run, make_manifest(), tmp_path / "out", rows=rows, split="random", conflicts=None)
    assert read_entries(run.path) == ()


def test_nothing_would_be_left(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    every = frozenset(f"slice {number:02}.png" for number in range(12))
    with pytest.raises(DataError, match="every slice has a copy"):
        _measure(run, make_manifest(), tmp_path / "out", conflicts=every)


def test_a_resample_may_hold_nothing(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    """Two slices of one patient are left: most resamples of six patients hold them, some do not."""
    most = frozenset(f"slice {number:02}.png" for number in range(10))
    report = _measure(run, make_manifest(), tmp_path / "out", conflicts=most)
    figures = _condition(report, Condition(None, True).title)
    assert (figures.slices, figures.patients) == (2, 1)
    assert figures.measures["accuracy"].mean == 1
    assert figures.measures["accuracy"].low is None
    assert figures.measures["auc"].mean is None
    assert {each.low for each in figures.differences} == {None}


@pytest.fixture
def data(make_manifest: MakeManifest, tmp_path: Path) -> Path:
    path = tmp_path / "data" / "manifest.csv"
    write_manifest(make_manifest(), path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", *tiny_parts())
    return tmp_path / "bundle"


def _run(bundle: Path, data: Path, output: Path, *options: str) -> Result:
    words = ["robustness", str(bundle), "--data", str(data), "--output", str(output), "--bootstrap", "50"]
    return CliRunner().invoke(app, [*words, *options], catch_exceptions=False)


def test_the_command_writes_tables_that_say_what_the_json_says(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    audit = write_pairs(tmp_path / "audit.json", pair("slice 00.png", "slice 20.png"))
    page = tmp_path / "page.md"
    page.write_text("<!-- robustness:begin -->\n<!-- robustness:end -->\n")
    options = ("--split", "official", "--audit", str(audit), "--docs", str(page), "--container", "80")
    done = _run(bundle, data, tmp_path / "out", *options)
    assert done.exit_code == 0
    assert "does not say which slices" in " ".join(done.stderr.split())
    document = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert document["data"]["left_out"] == ["slice 00.png"]
    assert (document["data"]["split"], document["data"]["part"]) == ("official", "test")
    (row,) = document["rows"]
    assert [each["slices"] for each in row["conditions"]] == [12, 12, 11, 11]
    tables = (tmp_path / "out" / "robustness.md").read_text()
    auc = row["conditions"][3]["measures"]["auc"]
    assert f"{auc['mean']:.3f} ({auc['low']:.3f}–{auc['high']:.3f})" in tables
    assert "JPEG of quality 80, without conflicting twins | 11 |" in tables
    assert "`slice 00.png`" in tables
    assert tables in page.read_text()


def test_without_an_audit_nothing_is_left_out(bundle: Path, data: Path, tmp_path: Path) -> None:
    assert _run(bundle, data, tmp_path / "out").exit_code == 0
    document = json.loads((tmp_path / "out" / "robustness.json").read_text())
    assert (document["data"]["part"], document["data"]["left_out"]) == ("all", None)
    assert [each["quality"] for each in document["rows"][0]["conditions"]] == [None, 90, 50]


@pytest.mark.parametrize("text", ["", "0", "101", "90;50", "high", "90,,50", "-5"])
def test_qualities_that_are_none(text: str) -> None:
    with pytest.raises(DataError, match="expected JPEG qualities"):
        parse_qualities(text)


def test_qualities() -> None:
    assert parse_qualities("90, 50,90") == (90, 50)
