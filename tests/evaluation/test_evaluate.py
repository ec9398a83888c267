"""Evaluating a run: what is measured, written, refused and warned of."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundglass.data.manifest import Label, Manifest
from groundglass.errors import DataError, ImageError, RunError
from groundglass.evaluation.evaluate import Evaluation, NetworkOutputs, evaluate
from groundglass.evaluation.metrics import TITLES
from groundglass.evaluation.report import tables, write_report
from groundglass.imaging.slice import CTSlice
from groundglass.inference.calibration import Calibration

from .conftest import BrightnessRun

MakeManifest = Callable[..., Manifest]


class Page(HTMLParser):
    """What a page holds: its tags with attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def go(
    run: Any,
    manifest: Manifest,
    output: Path,
    split: str | None = "official",
    part: str = "test",
    **more: Any,
) -> Evaluation:
    evaluation = evaluate(run, manifest, split, part, output, resamples=200, **more)
    write_report(run, evaluation, output)
    return evaluation


def sha256_of(manifest: Manifest, split: str) -> list[str]:
    files = [record.path for record in manifest if record.split == split]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_writes_what_it_measured(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    evaluation = go(run, make_manifest(), tmp_path / "out")
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(document["metrics"]) == list(TITLES)
    assert document["metrics"]["accuracy"]["value"] == pytest.approx(9 / 12)
    assert document["confusion"] == {
        "true_positive": 5, "false_positive": 2, "true_negative": 4, "false_negative": 1,
    }  # fmt: skip
    assert document["data"]["slices"] == 12
    assert document["data"]["patients"] == 6
    assert document["run"] | {"path": ""} == {
        "path": "", "recipe": "brightness", "network": "mean-grey", "seed": 0, "split": "official",
        "training_seconds": None, "versions": None,
    }  # fmt: skip
    assert document["threshold"] == 0.5
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "predictions.csv").read_text())))
    assert ",".join(rows[0]) == "file,label,patient_id,source,split,probability,logit,prediction"
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == evaluation.measured.metrics["accuracy"].value
    assert rows[0]["file"] == "slice 00.png"
    assert rows[0]["split"] == "test"
    assert float(rows[0]["probability"]) == pytest.approx(evaluation.probability[0])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "metrics.json",
        "predictions.csv",
        "report.html",
    ]


@pytest.mark.usefixtures("drawn_figures")
def test_report_asks_nothing_of_anybody_and_is_accessible(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    run.rows = [{"epoch": 0, "train_loss": 0.7, "val_loss": 0.6, "val_auc": 0.7}]
    go(run, make_manifest(), tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:", "#"))
    assert "http:" not in html
    assert "https:" not in html
    assert "@import" not in html
    assert "Research use only" in page.text
    assert "belong to their publishers" in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) == 3 * 3  # original, cropped and overlay of each of the three errors
    assert all(attributes.get("alt") for attributes in images)
    drawn = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(drawn) == 7
    assert all(attributes.get("aria-label") for attributes in drawn)
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in page.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_hostile_names_stay_text(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    hostile = '<img src=x onerror=alert(1)> & "quoted".png'
    manifest = make_manifest({0: hostile}, source="<script>alert(2)</script>")
    go(run, manifest, tmp_path / "out")
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert hostile in page.text
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "script" not in {tag for tag, _ in page.tags}


@pytest.mark.skipif(os.name == "nt", reason="file names are text on Windows")
def test_names_that_are_no_text_are_written_all_the_same(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    go(run, make_manifest({0: os.fsdecode(b"caf\xe9.png")}), tmp_path / "out")
    assert "caf\\udce9.png" in (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")


def test_part_of_one_class_is_reported_with_reasons(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    evaluation = go(run, make_manifest(label=Label.NON_COVID), tmp_path / "out", split=None, part="all")
    assert evaluation.measured.metrics["auc"].value is None
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["metrics"]["auc"]["value"] is None
    assert document["metrics"]["auc"]["reason"] == "no COVID slice in the part"
    assert document["interval"]["one_class_resamples"] == 200
    assert (
        "Not drawn: no COVID slice in the part." in Page((tmp_path / "out" / "report.html").read_text()).text
    )


def test_command_can_be_typed_again(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    evaluation = go(run, make_manifest(), tmp_path / "out put", data=tmp_path / "the data.csv", seed=5)
    assert evaluation.command == (
        f"groundglass evaluate {run.path} --data '{tmp_path}/the data.csv' --split official --part test "
        f"--output '{tmp_path}/out put' --bootstrap 200 --seed 5"
    )
    whole = go(run, make_manifest(split=None), tmp_path / "out", split=None, part="all")
    assert len(whole.part.records) == 24
    assert "--part all" in whole.command
    assert "--split" not in whole.command


def test_empty_part_is_an_error(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"drawn .* cannot be evaluated: it is empty"):
        go(run, replace(make_manifest(), records=()), tmp_path / "out", split=None, part="all")
    with pytest.raises(DataError, match="none of its 24 slices has a label"):
        go(run, make_manifest(label=None), tmp_path / "out", split=None, part="all")
    with pytest.raises(DataError, match="has no part 'tset'"):
        go(run, make_manifest(), tmp_path / "out", part="tset")
    with pytest.raises(DataError, match="part 'test' of which split"):
        go(run, make_manifest(), tmp_path / "out", split=None)
    assert not (tmp_path / "out").exists()


def test_unreadable_slice_is_named_and_nothing_is_written(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest = make_manifest()
    broken = tmp_path / "data" / "slice 05.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"slice 05\.png"):
        go(run, manifest, tmp_path / "out")
    broken.unlink()
    with pytest.raises(ImageError, match=r"slice 05\.png"):
        go(run, manifest, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not (run.path / "evaluations.json").exists()


def test_a_run_that_was_killed_is_refused_with_what_mends_it(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    run.info = {"finished": False}
    with pytest.raises(RunError, match=r"has not finished; finish it with `groundglass train --resume`$"):
        go(run, make_manifest(), tmp_path / "out")
    assert run.predicted == 0


def test_network_that_gives_no_number_is_an_error(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    sound = run.predict

    def predict(slices: Any) -> Any:
        predictions = sound(slices)
        predictions.logit[3] = predictions.probability[3] = float("nan")
        return predictions

    run.predict = predict
    with pytest.raises(RunError, match=r"no valid probability for slice 03\.png"):
        go(run, make_manifest(), tmp_path / "out")


def test_every_evaluation_is_recorded(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest()
    first = go(run, manifest, tmp_path / "first")
    go(run, manifest, tmp_path / "val", part="val")
    second = go(run, manifest, tmp_path / "second")
    entries = json.loads((run.path / "evaluations.json").read_text())["evaluations"]
    assert [(entry["part"], Path(entry["output"]).name) for entry in entries] == [
        ("test", "first"), ("val", "val"), ("test", "second"),
    ]  # fmt: skip
    assert (first.times_evaluated, second.times_evaluated) == (1, 2)
    assert not any("evaluated with this run" in warning for warning in first.warnings)
    assert any("2 times" in warning for warning in second.warnings)
    assert "once, this time included" in (tmp_path / "first" / "report.html").read_text()
    assert "2 times, this time included" in (tmp_path / "second" / "report.html").read_text()


def test_evaluations_are_counted_wherever_the_slices_lie(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest = make_manifest()
    go(run, manifest, tmp_path / "first")
    (tmp_path / "data").rename(tmp_path / "moved")
    records = tuple(replace(record, path=tmp_path / "moved" / record.path.name) for record in manifest)
    moved = Manifest("renamed", tmp_path / "moved", tuple(reversed(records)))
    assert go(run, moved, tmp_path / "second").times_evaluated == 2


def test_damaged_record_is_an_error(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    (run.path / "evaluations.json").write_text("{")
    with pytest.raises(RunError, match=r"evaluations\.json"):
        go(run, make_manifest(), tmp_path / "out")


def test_training_slices_are_recognised(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest()
    run.info["training_sha256"] = sha256_of(manifest, "train")
    assert go(run, manifest, tmp_path / "test").warnings == ()
    evaluation = go(run, manifest, tmp_path / "train", part="train")
    assert "trained on these very slices" in evaluation.warnings[0]
    everything = go(run, manifest, tmp_path / "all", split=None, part="all")
    assert everything.warnings[0].startswith("8 of 24 slices have the same content")
    assert "8 of 24 slices have the same content" in (tmp_path / "all" / "report.html").read_text()
    assert json.loads((tmp_path / "all" / "metrics.json").read_text())["warnings"] == list(
        everything.warnings
    )


def test_patients_seen_in_training_are_recognised(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest = make_manifest()
    # The first training slice now shows the patient of the first two test slices.
    records = list(manifest.records)
    records[16] = replace(records[16], patient_id="patient 0")
    run.info["training_sha256"] = sha256_of(manifest, "train")
    evaluation = go(run, replace(manifest, records=tuple(records)), tmp_path / "out")
    assert evaluation.warnings[0].startswith("2 of 12 slices belong to 1 patients")


def test_what_is_not_known_is_said(run: Any, make_manifest: MakeManifest, tmp_path: Path) -> None:
    manifest = make_manifest()
    records = tuple(
        replace(record, patient_id=f"unknown:{number}", label=record.label if number else None)
        for number, record in enumerate(manifest)
    )
    warnings = go(run, replace(manifest, records=records), tmp_path / "out", split=None, part="all").warnings
    assert any("does not say which slices it was trained on" in warning for warning in warnings)
    assert any("patient of 23 of 23 slices is not known" in warning for warning in warnings)
    assert any("1 slices without a label" in warning for warning in warnings)


def test_large_parts_are_predicted_in_batches(
    run: Any, make_manifest: MakeManifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(run, make_manifest(), tmp_path / "whole")
    monkeypatch.setattr("groundglass.evaluation.evaluate._BATCH", 5)
    seen: list[tuple[int, int]] = []
    batches = go(
        run, make_manifest(), tmp_path / "batches", progress=lambda done, total: seen.append((done, total))
    )
    assert batches.measured == whole.measured
    assert seen == [(number, 12) for number in range(1, 13)]


class CheckedRun(BrightnessRun):
    """As a bundle does, it checks its input and knows how far a slice lies from its training data."""

    calibration = Calibration(1.0, 0.9, {"COVID": 0.7, "NonCOVID": 0.7})

    def predict(self, slices: Iterable[CTSlice]) -> NetworkOutputs:
        outputs = super().predict(slices)
        count = len(outputs.logit)
        refused = ("blank: nearly all of it is one grey (3.1)", *[None] * (count - 1))
        return replace(outputs, refused=refused, percentile=np.linspace(0, 100, count))


def test_a_bundle_is_asked_whether_it_fits_the_slices(
    run: Any, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    evaluation = go(CheckedRun(run.path), make_manifest(), tmp_path / "out")
    applicability = json.loads((tmp_path / "out" / "metrics.json").read_text())["applicability"]
    assert applicability["refused"]["value"] == pytest.approx(1 / 12)
    assert applicability["reasons"] == {"blank": 1}
    assert applicability["beyond_95"]["value"] == pytest.approx(1 / 12)
    assert "5 % are expected" in applicability["beyond_95"]["meaning"]
    assert applicability["prediction_sets"]["nominal_coverage"] == 0.9
    assert len(list(tables(evaluation))) == 2
    page = Page((tmp_path / "out" / "report.html").read_text())
    assert "Whether the bundle fits these slices" in page.text
    assert "Prediction sets that hold the label, COVID slices" in page.text
