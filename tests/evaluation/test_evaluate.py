"""Evaluating a run: what is measured, written, refused and warned of."""

from __future__ import annotations

import base64
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

import cv2
import numpy as np
import pytest

from groundglass.data.manifest import Label, Manifest, read_record
from groundglass.errors import DataError, ImageError, RunError
from groundglass.evaluation.evaluate import Evaluation, NetworkOutputs, evaluate
from groundglass.evaluation.metrics import TITLES
from groundglass.evaluation.report import tables, write_report
from groundglass.evaluation.segmentation import SEGMENTATION_TITLES
from groundglass.imaging.slice import CTSlice
from groundglass.inference.calibration import Calibration

from .conftest import BrightnessRun, lungs_of

MakeManifest = Callable[..., Manifest]
Go = Callable[..., Evaluation]


class Page(HTMLParser):
    """What a page holds: its tags with attributes, and its text."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.html = file.read_text()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture
def go(run: BrightnessRun, tmp_path: Path) -> Go:
    """Evaluates the run on a data set's test part, or another, and writes the report into ``out``."""

    def go(
        manifest: Manifest,
        part: str = "test",
        split: str | None = "official",
        out: str = "out",
        run: BrightnessRun = run,
        **more: Any,
    ) -> Evaluation:
        evaluation = evaluate(run, manifest, split, part, tmp_path / out, resamples=200, **more)
        write_report(run, evaluation, tmp_path / out)
        return evaluation

    return go


def sha256_of(manifest: Manifest, split: str) -> list[str]:
    files = [record.path for record in manifest if record.split == split]
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]


def test_writes_what_it_measured(go: Go, make_manifest: MakeManifest, tmp_path: Path) -> None:
    evaluation = go(make_manifest())
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(document["metrics"]) == list(TITLES)
    assert document["metrics"]["accuracy"]["value"] == pytest.approx(9 / 12)
    assert document["confusion"] == {
        "true_positive": 5, "false_positive": 2, "true_negative": 4, "false_negative": 1,
    }  # fmt: skip
    assert (document["data"]["slices"], document["data"]["patients"]) == (12, 6)
    assert document["run"] | {"path": ""} == {
        "path": "", "recipe": "brightness", "network": "mean-grey", "seed": 0, "split": "official",
        "training_seconds": None, "versions": None,
    }  # fmt: skip
    assert document["threshold"] == 0.5
    rows = list(csv.DictReader(io.StringIO((tmp_path / "out" / "predictions.csv").read_text())))
    assert ",".join(rows[0]) == "file,label,patient_id,source,split,probability,logit,prediction"
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert right / len(rows) == evaluation.measured.metrics["accuracy"].value
    assert (rows[0]["file"], rows[0]["split"]) == ("slice 00.png", "test")
    assert float(rows[0]["probability"]) == pytest.approx(evaluation.probability[0])
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["metrics.json", "predictions.csv", "report.html"]


@pytest.mark.usefixtures("drawn_figures")
def test_report_requests_nothing_and_is_accessible(
    run: BrightnessRun, go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    run.rows = [{"epoch": 0, "train_loss": 0.7, "val_loss": 0.6, "val_auc": 0.7}]
    go(make_manifest())
    page = Page(tmp_path / "out" / "report.html")
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action", "poster", "srcset"):
            value = attributes.get(name) or ""
            assert value == "" or value.startswith(("data:", "#"))
    assert not any(address in page.html for address in ("http:", "https:", "@import"))
    assert "Research use only" in page.text
    assert "belong to their publishers" in page.text
    assert page.html.count("<image ") == 3, "each error once, with its outlines in layers"
    drawn = [attributes for _, attributes in page.tags if attributes.get("role") == "img"]
    assert len(drawn) == 3 + 7
    assert all(attributes.get("aria-label") for attributes in drawn)
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in page.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.skipif(os.name == "nt", reason="file names are text on Windows")
def test_names_do_no_harm(go: Go, make_manifest: MakeManifest, tmp_path: Path) -> None:
    hostile = '<img src=x onerror=alert(1)> & "quoted".png'
    names = {0: hostile, 1: os.fsdecode(b"caf\xe9.png")}
    go(make_manifest(names, source="<script>alert(2)</script>"))
    page = Page(tmp_path / "out" / "report.html")
    assert hostile in page.text
    assert not any("onerror" in attributes for _, attributes in page.tags)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "caf\\udce9.png" in (tmp_path / "out" / "predictions.csv").read_text(encoding="utf-8")


def test_part_of_one_class_is_reported_with_reasons(
    go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    go(make_manifest(label=Label.NON_COVID), "all", None)
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["metrics"]["auc"]["value"] is None
    assert document["metrics"]["auc"]["reason"] == "no COVID slice in the part"
    assert document["interval"]["one_class_resamples"] == 200
    page = Page(tmp_path / "out" / "report.html")
    assert "cannot be said: no COVID slice in the part." in page.text
    assert "ROC curve" not in page.text
    assert "Missed" not in page.text, "nothing can be missed"


def test_command_can_be_typed_again(
    run: BrightnessRun, go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    evaluation = go(make_manifest(), out="out put", data=[tmp_path / "the data.csv"], seed=5)
    assert evaluation.command == (
        f"groundglass evaluate {run.path} --data '{tmp_path}/the data.csv' --split official --part test "
        f"--output '{tmp_path}/out put' --bootstrap 200 --seed 5"
    )
    whole = go(make_manifest(split=None), "all", None)
    assert len(whole.part.records) == 24
    assert "--part all" in whole.command
    assert "--split" not in whole.command


def test_a_part_without_labelled_slices_is_an_error(
    go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    for manifest, part, split, message in (
        (replace(make_manifest(), records=()), "all", None, r"drawn .* cannot be evaluated: it is empty"),
        (make_manifest(label=None), "all", None, "none of its 24 slices has a label"),
        (make_manifest(), "tset", "official", "has no part 'tset'"),
        (make_manifest(), "test", None, "part 'test' of which split"),
    ):
        with pytest.raises(DataError, match=message):
            go(manifest, part, split)
    assert not (tmp_path / "out").exists()


def test_unreadable_slice_is_named_and_nothing_is_written(
    run: BrightnessRun, go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest = make_manifest()
    broken = tmp_path / "data" / "slice 05.png"
    broken.write_bytes(broken.read_bytes()[:200])
    with pytest.raises(ImageError, match=r"slice 05\.png"):
        go(manifest)
    broken.unlink()
    with pytest.raises(ImageError, match=r"slice 05\.png"):
        go(manifest)
    assert not (tmp_path / "out").exists()
    assert not (run.path / "evaluations.json").exists()


def test_runs_that_cannot_be_evaluated_are_refused_with_what_mends_them(
    run: BrightnessRun, go: Go, make_manifest: MakeManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest, sound = make_manifest(), run.predict
    monkeypatch.setattr(run, "info", {"finished": False})
    with pytest.raises(RunError, match=r"has not finished; finish it with `groundglass train --resume`$"):
        go(manifest)
    assert run.predicted == 0
    monkeypatch.setattr(run, "info", {"finished": True})

    def unstable(slices: Iterable[CTSlice]) -> NetworkOutputs:
        outputs = sound(slices)
        outputs.logit[3] = outputs.probability[3] = float("nan")
        return outputs

    with monkeypatch.context() as patch:
        patch.setattr(run, "predict", unstable)
        with pytest.raises(RunError, match=r"no valid probability for slice 03\.png"):
            go(manifest)
    (run.path / "evaluations.json").write_text("{")
    with pytest.raises(RunError, match=r"evaluations\.json"):
        go(manifest)


def test_every_evaluation_is_recorded(
    run: BrightnessRun, go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest = make_manifest()
    first, _, second = go(manifest, out="first"), go(manifest, "val", out="val"), go(manifest, out="second")
    entries = json.loads((run.path / "evaluations.json").read_text())["evaluations"]
    assert [(entry["part"], Path(entry["output"]).name) for entry in entries] == [
        ("test", "first"), ("val", "val"), ("test", "second"),
    ]  # fmt: skip
    assert (first.times_evaluated, second.times_evaluated) == (1, 2)
    assert not any("evaluated with this run" in warning for warning in first.warnings)
    assert any("2 times" in warning for warning in second.warnings)
    assert "once, this time included" in (tmp_path / "first" / "report.html").read_text()
    assert "2 times, this time included" in (tmp_path / "second" / "report.html").read_text()
    (tmp_path / "data").rename(tmp_path / "moved")
    records = tuple(replace(record, path=tmp_path / "moved" / record.path.name) for record in manifest)
    moved = Manifest("renamed", tmp_path / "moved", tuple(reversed(records)))
    assert go(moved, out="third").times_evaluated == 3, "they are the same slices wherever they lie"


def test_training_slices_and_patients_are_recognised(
    run: BrightnessRun, go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    manifest = make_manifest()
    run.info["training_sha256"] = sha256_of(manifest, "train")
    assert go(manifest, out="test").warnings == ()
    assert "trained on these very slices" in go(manifest, "train", out="train").warnings[0]
    whole = go(manifest, "all", None)
    assert whole.warnings[0].startswith("8 of 24 slices have the same content")
    assert "8 of 24 slices have the same content" in (tmp_path / "out" / "report.html").read_text()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["warnings"] == list(whole.warnings)
    # The first training slice now shows the patient of the first two test slices.
    records = list(manifest.records)
    records[16] = replace(records[16], patient_id="patient 0")
    warnings = go(replace(manifest, records=tuple(records)), out="again").warnings
    assert any(each.startswith("2 of 12 slices belong to 1 patients") for each in warnings)


def test_what_is_not_known_is_said(go: Go, make_manifest: MakeManifest) -> None:
    manifest = make_manifest()
    records = tuple(
        replace(record, patient_id=f"unknown:{number}", label=record.label if number else None)
        for number, record in enumerate(manifest)
    )
    warnings = go(replace(manifest, records=records), "all", None).warnings
    assert any("does not say which slices it was trained on" in warning for warning in warnings)
    assert any("patient of 23 of 23 slices is not known" in warning for warning in warnings)
    assert any("1 slices without a label" in warning for warning in warnings)


class CheckedRun(BrightnessRun):
    """As a bundle does, it checks its input and knows how far a slice lies from its training data."""

    calibration = Calibration(temperature=1.0, coverage=0.9, quantiles={"COVID": 0.7, "NonCOVID": 0.7})

    def predict(self, slices: Iterable[CTSlice]) -> NetworkOutputs:
        outputs = super().predict(slices)
        count = len(outputs.logit)
        refused = ("blank: nearly all of it is one grey (3.1)", *[None] * (count - 1))
        return replace(outputs, refused=refused, percentile=np.linspace(0, 100, count))


def test_a_bundle_says_whether_it_fits_the_slices(
    run: BrightnessRun, go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    evaluation = go(make_manifest(), run=CheckedRun(run.path))
    applicability = json.loads((tmp_path / "out" / "metrics.json").read_text())["applicability"]
    assert applicability["refused"]["value"] == pytest.approx(1 / 12)
    assert applicability["reasons"] == {"blank": 1}
    assert applicability["beyond_95"]["value"] == pytest.approx(1 / 12)
    assert "5 % are expected" in applicability["beyond_95"]["meaning"]
    assert applicability["prediction_sets"]["nominal_coverage"] == 0.9
    assert len(list(tables(evaluation))) == 2
    page = Page(tmp_path / "out" / "report.html")
    assert "the input check refuses 8 %, and 8 % lie far from the training data" in page.text
    assert [tag for tag, _ in page.tags if tag in {"details", "summary"}] == ["details", "summary"]
    assert "Prediction sets that hold the label, COVID slices" in page.text


class LeftLungRun(BrightnessRun):
    """Finds lesions in the left half of the crop, which the drawn slices have in the middle."""

    def predict(self, slices: Iterable[CTSlice]) -> NetworkOutputs:
        outputs = super().predict(slices)
        lesion_map = np.array([[5, 6, -5, -5]] * 4, np.float32)
        return replace(outputs, lesion_map=lesion_map[None].repeat(len(outputs.logit), 0))


@pytest.fixture
def masked(make_manifest: MakeManifest, tmp_path: Path) -> Manifest:
    """The test part has masks: of the lungs, and in every other patient of lesions in the left half of them."""
    records = list(make_manifest())
    for number, record in enumerate(records[:12]):
        lungs = lungs_of(read_record(record).pixels)
        lesions = lungs & (number // 2 % 2 == 1) & (np.arange(128) < 64)
        names = [tmp_path / "masks" / f"{number}-{what}.png" for what in ("lungs", "lesions")]
        for path, mask in zip(names, (lungs, lesions), strict=True):
            path.parent.mkdir(exist_ok=True)
            cv2.imwrite(str(path), mask.astype(np.uint8))
        records[number] = replace(record, lung_mask=names[0], lesion_mask=names[1])
    return Manifest("masked", tmp_path / "data", tuple(records))


def test_masks_of_the_manifest_are_compared_with_what_is_found(
    run: BrightnessRun, go: Go, masked: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.evaluation.evaluate._BATCH", 5)
    evaluation = go(masked, run=LeftLungRun(run.path))
    section = json.loads((tmp_path / "out" / "metrics.json").read_text())["segmentation"]
    assert list(section) == list(SEGMENTATION_TITLES)
    assert section["lung_dice"] == {"value": 1.0, "low": 1.0, "high": 1.0, "slices": 12}
    assert section["lesion_dice"]["value"] > 0.97
    assert section["lesion_dice"]["low"] <= section["lesion_dice"]["value"] <= section["lesion_dice"]["high"]
    assert (section["pointing"]["value"], section["pointing"]["slices"]) == (1.0, 6)
    # On the patients without a lesion as much is found as on the others, nearly half of the lungs.
    assert section["lesion_dice_pooled"]["value"] == pytest.approx(2 / 3, abs=0.02)
    assert section["clear_opacity_median"]["value"] == pytest.approx(50, abs=2)
    assert section["opacity_error"]["value"] == pytest.approx(25, abs=2)
    assert len(list(tables(evaluation))) == 2
    text = Page(tmp_path / "out" / "report.html").text
    assert "Lungs and lesions against their masks" in text
    assert "Strongest place of the map lies in a lesion6 slices" in text
    assert text.index("Lung Dice") < text.index("Measures"), "on top too"


def test_without_masks_or_lesion_map_there_is_nothing_said_of_them(
    run: BrightnessRun, go: Go, masked: Manifest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go(masked, "train")
    assert "segmentation" not in json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "against their masks" not in Page(tmp_path / "out" / "report.html").text
    sound = run.predict
    monkeypatch.setattr(run, "predict", lambda slices: replace(sound(slices), lesion_map=None))
    section = go(masked, out="again").segmentation
    assert {name for name, each in section.items() if each.slices} == {"lung_dice", "lesion_in_lungs"}
    assert "Lesion Dice" not in Page(tmp_path / "again" / "report.html").text


def test_a_mask_of_another_size_is_named(go: Go, masked: Manifest, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "masks" / "3-lesions.png"), np.zeros((96, 96), np.uint8))
    with pytest.raises(ImageError, match=r"3-lesions\.png: a mask of 96 x 96 pixels for a slice of 128 x 96"):
        go(masked)
    assert not (tmp_path / "out").exists()


def test_figures_are_downloaded_as_svg_and_csv(go: Go, make_manifest: MakeManifest, tmp_path: Path) -> None:
    evaluation = go(make_manifest())
    files = {
        attributes["download"]: base64.b64decode(str(attributes["href"]).partition(",")[2]).decode()
        for _, attributes in Page(tmp_path / "out" / "report.html").tags
        if "download" in attributes
    }
    names = ("roc", "precision-recall", "reliability", "confusion", "histogram")
    assert sorted(map(str, files)) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("csv", "svg")
    )
    table = {name: list(csv.DictReader(io.StringIO(files[f"{name}.csv"]))) for name in names}
    x, y = (
        [float(row[key]) for row in table["roc"] if row[key]]
        for key in ("false positive rate", "true positive rate")
    )
    assert np.trapezoid(y, x) == pytest.approx(evaluation.measured.metrics["auc"].value)
    assert len([row for row in table["roc"] if float(row["low"]) <= float(row["high"])]) == 101
    assert [row["called COVID"] for row in table["confusion"]] == ["5", "2"]
    assert sum(int(row["count"]) for row in table["reliability"]) == len(table["histogram"]) == 12


@pytest.mark.parametrize(
    ("suffix", "words", "formats"),
    [
        ({Label.COVID: "png", Label.NON_COVID: "png"}, "one file format, which gives nothing away", 1),
        (
            {Label.COVID: "png", Label.NON_COVID: "jpg"},
            "no better, as far as these slices can show, than the file format alone",
            2,
        ),
    ],
)
def test_figures_stand_beside_what_the_file_format_alone_gives_away(
    go: Go, make_manifest: MakeManifest, tmp_path: Path, suffix: dict[Label, str], words: str, formats: int
) -> None:
    labels = [record.label for record in make_manifest()]
    names = {number: f"{number}.{suffix[label]}" for number, label in enumerate(labels) if label}
    evaluation = go(make_manifest(names))
    assert words in str(next(tables(evaluation)).caption)
    baseline = evaluation.file_format
    assert baseline is not None
    assert baseline.formats == formats
    assert baseline.metrics["auc"].value == {1: 0.5, 2: 1.0}[formats]
    document = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert document["file_format_baseline"]["metrics"]["auc"]["value"] == {1: 0.5, 2: 1.0}[formats]
    text = Page(tmp_path / "out" / "report.html").text
    assert words in text
    assert ("file format alone 1.000" in " ".join(text.split())) == (formats == 2)


def test_patients_are_told_apart_by_their_series_scores(
    go: Go, make_manifest: MakeManifest, tmp_path: Path
) -> None:
    evaluation = go(make_manifest())
    assert evaluation.by_patient is not None
    assert evaluation.by_patient.slices == 6
    mean = evaluation.probability.reshape(6, 2).mean(axis=1)
    covid = evaluation.part.label[::2] == 1
    assert evaluation.by_patient.estimate.value == np.mean(mean[covid][:, None] > mean[~covid])
    assert "AUC by patients" in Page(tmp_path / "out" / "report.html").text
    alone = [replace(record, patient_id=str(number)) for number, record in enumerate(make_manifest())]
    assert go(Manifest("alone", tmp_path / "data", tuple(alone)), out="again").by_patient is None


def test_large_parts_are_predicted_in_batches(
    go: Go, make_manifest: MakeManifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = go(make_manifest(), out="whole")
    monkeypatch.setattr("groundglass.evaluation.evaluate._BATCH", 5)
    seen: list[tuple[int, int]] = []
    batches = go(make_manifest(), progress=lambda done, total: seen.append((done, total)))
    assert batches.measured == whole.measured
    assert seen == [(number, 12) for number in range(1, 13)]
