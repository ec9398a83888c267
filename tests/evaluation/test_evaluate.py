"""Evaluating runs and bundles, from Python and as a command: what is measured, written, refused and warned of."""

import base64
import csv
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from tests.conftest import Page, Patch, accept_all, tiny_parts
from typer.testing import CliRunner, Result

from groundglass.cli.main import app
from groundglass.data.manifest import Label, Manifest, Record, content_hash, read_record, write_manifest
from groundglass.errors import DataError, GroundglassError, ImageError, RunError
from groundglass.evaluation.bundled import BundledRun
from groundglass.evaluation.calibration import fit_reference
from groundglass.evaluation.evaluate import Evaluation, NetworkOutputs, evaluate
from groundglass.evaluation.metrics import TITLES
from groundglass.evaluation.report import tables, write_report
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.read import read_slice
from groundglass.imaging.slice import CTSlice
from groundglass.inference.bundle import Bundle, save_arrays, write_bundle
from groundglass.inference.classifier import Classifier
from groundglass.reporting.html import CITATION

Make = Callable[..., Manifest]
Go = Callable[..., Evaluation]
INFO = {"finished": True, "recipe": "brightness", "network": "mean-grey", "seed": 0, "split": "official"}


def predict(slices: Iterable[CTSlice]) -> NetworkOutputs:
    """Takes bright lungs for COVID, and finds lesions in the left half of every crop."""
    cuts = [Preprocessing(size=64).apply(each.pixels, lungs_of(each.pixels)) for each in slices]
    grey = np.array([cut.pixels[16:48, 16:48].mean() for cut in cuts])
    lesion_map = np.array([[[5, 6, -5, -5]] * 4] * len(cuts), np.float32)
    return NetworkOutputs((grey - 100) / 20, expit((grey - 100) / 20), lesion_map, cuts)


def lungs_of(pixels: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """The lungs of a drawn slice: darker than the body, brighter than the air around it."""
    return (pixels > 25) & (pixels < 150)


def draw(path: Path, grey: int, seed: int) -> None:
    """A bright body with two dark lungs of about the given grey."""
    pixels = np.full((96, 128), 10, np.uint8)
    for middle, axes, value in ((64, (56, 42), 200), (42, (18, 26), grey), (86, (18, 26), grey)):
        cv2.ellipse(pixels, (middle, 48), axes, 0, 0, 360, value, -1)
    noise = np.random.default_rng(seed).normal(0, 4, pixels.shape)
    path.write_bytes(cv2.imencode(".png", np.clip(pixels + noise, 0, 255).astype(np.uint8))[1])


@pytest.fixture
def run(tmp_path: Path) -> Any:
    """A finished run in a folder of its own."""
    (path := tmp_path / "run").mkdir()
    return SimpleNamespace(path=path, info=dict(INFO), predict=predict, calibration=None)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes a data set of drawn slices: 12 test, 4 val and 8 train slices, two per patient, both labels."""
    (tmp_path / "data").mkdir()

    def make(names: dict[int, str] | None = None, **changes: Any) -> Manifest:
        records = []
        for number in range(24):
            split = "test" if number < 12 else "val" if number < 16 else "train"
            label = Label.COVID if number // 2 % 2 else Label.NON_COVID
            path = tmp_path / "data" / (names or {}).get(number, f"slice {number:02}.png")
            # Three of the test part look like the other class.
            draw(path, 95 if (label is Label.COVID) != (number in {0, 1, 2}) else 40, number)
            records.append(replace(Record(path, label, f"patient {number // 2}", "drawn", split), **changes))
        return Manifest("drawn", tmp_path / "data", tuple(records))

    return make


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def document(out: Path) -> Any:
    return json.loads((out / "metrics.json").read_text())


def page_of(out: Path) -> Page:
    return Page((out / "report.html").read_text())


@pytest.fixture(autouse=True)
def _quick_figures(monkeypatch: Patch) -> None:
    """Real ones take a second each."""
    monkeypatch.setattr("groundglass.evaluation.report.svg", lambda figure: "<svg></svg>")


@pytest.fixture
def go(run: Any, out: Path) -> Go:
    """Evaluates the run on a data set's test part, or another, and writes the report into ``out``."""

    def go(manifest: Manifest, part: str = "test", split: str | None = "official", **more: Any) -> Evaluation:
        evaluation = evaluate(run, manifest, split, part, out, resamples=200, **more)
        write_report(run, evaluation, out)
        return evaluation

    return go


def test_writes_what_it_measured(run: Any, go: Go, make: Make, out: Path) -> None:
    evaluation, written = go(replace(make(), name="drawn \udcff"), seed=5), document(out)
    assert written["metrics"]["accuracy"]["value"] == pytest.approx(9 / 12)
    assert list(written["confusion"].values()) == [5, 2, 4, 1]
    assert [written["data"][key] for key in ("name", "slices", "patients")] == ["drawn \udcff", 12, 6]
    assert written["run"].items() >= run.info.items() - {("finished", True)}
    mean, covid = evaluation.probability.reshape(6, 2).mean(axis=1), evaluation.part.label[::2] == 1
    auc = np.mean(mean[covid][:, None] > mean[~covid])  # of the series scores of two slices each
    assert (written["by_patient"]["patients"], written["by_patient"]["auc"]["value"]) == (6, auc)
    rows = list(csv.DictReader(io.StringIO((out / "predictions.csv").read_text())))
    assert ",".join(rows[0]) == "file,label,patient_id,source,split,probability,logit,prediction"
    assert sum(row["label"] == row["prediction"] for row in rows) == 9
    assert (rows[0]["file"], rows[0]["split"]) == ("slice 00.png", "test")
    assert float(rows[0]["probability"]) == pytest.approx(evaluation.probability[0])
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "predictions.csv", "report.html"]


def test_figures_are_downloaded_as_svg_and_csv(go: Go, make: Make, out: Path) -> None:
    evaluation, names = go(make()), ("roc", "precision-recall", "reliability", "confusion")
    files = {str(each["download"]): str(each["href"]) for _, each in page_of(out).tags if "download" in each}
    assert files.keys() == {f"{name}.{suffix}" for name in names for suffix in ("svg", "csv")}
    text = {name: base64.b64decode(each.partition(",")[2]).decode() for name, each in files.items()}
    assert all(text[f"{name}.svg"].startswith("<svg") for name in names)
    table = {name: list(csv.DictReader(io.StringIO(text[f"{name}.csv"]))) for name in names}
    axes = ("false positive rate", "true positive rate")
    x, y = ([float(row[key]) for row in table["roc"] if row[key]] for key in axes)
    assert np.trapezoid(y, x) == pytest.approx(evaluation.measured.metrics["auc"].value)
    for curve in names[:2]:
        assert [float(row["low"]) <= float(row["high"]) for row in table[curve] if row["low"]] == [True] * 101
    assert [row["called COVID"] for row in table["confusion"]] == ["5", "2"]
    assert sum(int(row["count"]) for row in table["reliability"]) == 12


@pytest.mark.skipif(os.name == "nt", reason="file names are text on Windows")
def test_page_is_safe_and_accessible(run: Any, go: Go, make: Make, out: Path, monkeypatch: Patch) -> None:
    monkeypatch.undo()  # with real figures
    hostile = '<img src=x onerror=alert(1)> & "quoted".png'
    go(make({0: hostile, 1: os.fsdecode(b"caf\xe9.png")}, source="<script>alert(2)</script>"))
    assert "caf\\udce9.png" in (out / "predictions.csv").read_text(encoding="utf-8")
    page = page_of(out)
    for words in (hostile, "Research use only", "belong to their publishers", "with care", CITATION):
        assert words in page.text
    assert "default-src 'none'; img-src data:;" in page.html
    assert not {"script", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.tags}
    attributes = [pair for _, each in page.tags for pair in each.items()]
    assert "onerror" not in dict(attributes)
    addresses = {"src", "href", "xlink:href", "data", "action", "poster", "srcset"}
    assert all((value or "#").startswith(("data:", "#")) for name, value in attributes if name in addresses)
    assert not any(address in page.html for address in ("http:", "https:", "@import"))
    assert page.html.count("<image ") == 3, "each error once, with its outlines in layers"
    drawn = [attributes for tag, attributes in page.tags if tag == "img" or attributes.get("role") == "img"]
    assert len([each for each in drawn if each.get("aria-label") or each.get("alt")]) == len(drawn) == 3 + 4
    assert all(attributes.get("scope") in {"row", "col"} for tag, attributes in page.tags if tag == "th")
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_part_of_one_class_is_reported_with_reasons(go: Go, make: Make, out: Path) -> None:
    go(make(label=Label.NON_COVID), "all", None)
    text = page_of(out).text
    assert document(out)["interval"]["one_class_resamples"] == 200
    assert "There is no AUC: no COVID slice in the part." in text
    assert not any(words in text for words in ("ROC curve", "Missed"))


def test_what_cannot_be_evaluated_is_refused(run: Any, go: Go, make: Make, tmp_path: Path, out: Path) -> None:
    manifest, broken = make(), tmp_path / "data" / "slice 05.png"
    run.predict = lambda slices: pytest.fail("predicted")
    for part, words in (
        ((replace(manifest, records=()), "all", None), r"drawn .* cannot be evaluated: it is empty"),
        ((make(label=None), "all", None), "none of its 24 slices has a label"),
        ((manifest, "tset", "official"), "has no part 'tset'"),
        ((manifest, "test", None), "part 'test' of which split"),
    ):
        with pytest.raises(DataError, match=words):
            go(*part)
    run.info["finished"] = False
    with pytest.raises(RunError, match=r"has not finished; finish it with `groundglass train --resume`$"):
        go(manifest)
    run.info["finished"] = True

    def unstable(slices: Iterable[CTSlice]) -> NetworkOutputs:
        outputs = predict(slices)
        outputs.logit[3] = outputs.probability[3] = float("nan")
        return outputs

    run.predict = unstable
    with pytest.raises(RunError, match=r"no valid probability for slice 03\.png"):
        go(manifest)
    run.predict = predict
    for damage in (lambda: broken.write_bytes(broken.read_bytes()[:200]), broken.unlink):
        damage()
        with pytest.raises(ImageError, match=r"slice 05\.png"):
            go(manifest)
    assert not (run.path / "evaluations.json").exists()
    (run.path / "evaluations.json").write_text("{")
    with pytest.raises(RunError, match=r"evaluations\.json"):
        go(make())
    assert not out.exists()


def test_evaluations_are_recorded(run: Any, go: Go, make: Make, tmp_path: Path, out: Path) -> None:
    manifest = make()
    for part, words, warned in (("test", "once", False), ("val", "once", False), ("test", "2 times", True)):
        warnings = go(manifest, part).document["warnings"]
        assert f"{words}, this time included" in page_of(out).text
        assert any("evaluated with this run 2 times" in warning for warning in warnings) == warned
    entries = json.loads((run.path / "evaluations.json").read_text())["evaluations"]
    expected = [(part, str(out)) for part in ("test", "val", "test")]
    assert [(entry["part"], entry["output"]) for entry in entries] == expected
    (tmp_path / "data").rename(tmp_path / "moved")
    records = tuple(replace(record, path=tmp_path / "moved" / record.path.name) for record in manifest)
    go(Manifest("renamed", tmp_path / "moved", tuple(reversed(records))))
    assert document(out)["evaluations_of_these_slices"] == 3, "the same slices wherever they lie"


def test_training_slices_the_unknown_and_telling_sources_are_told(run: Any, go: Go, make: Make, out: Path) -> None:
    manifest = make()
    records = list(manifest)

    def warnings(part: str = "test", split: str | None = "official") -> Sequence[str]:
        return go(replace(manifest, records=tuple(records)), part, split).document["warnings"]

    files = [record.path for record in records if record.split == "train"]
    run.info["training_sha256"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert warnings() == []
    whole = warnings("all", None)
    assert whole[0].startswith("The network was trained on 8 of these 24 slices")
    assert whole[0] in page_of(out).text
    assert document(out)["warnings"] == whole
    # The first training slice now shows the patient of the first two test slices.
    records[16] = replace(records[16], patient_id="patient 0")
    assert any(each.startswith("2 of 12 slices belong to 1 patients") for each in warnings())
    del run.info["training_sha256"]
    records = [replace(each, patient_id=f"unknown:{number}") for number, each in enumerate(records)]
    records[0] = replace(records[0], label=None)
    expected = ("does not say which slices", "1 slices without a label", "patient of 23 of 23 slices is not known")
    for said, words in zip(warnings("all", None), expected, strict=True):
        assert words in said
    assert document(out)["by_patient"] is None
    run.info["training_sha256"] = ["0" * 64]
    (run.path / "evaluations.json").unlink()
    apart = [replace(one, source="Bern" if one.label is Label.COVID else "Rome") for one in manifest]
    warning, _ = go(replace(manifest, records=tuple(apart))).document["warnings"]
    assert warning.startswith("Slices of Bern (COVID), Rome (NonCOVID) have one label")
    mixed = tuple(replace(one, source="Rome") if number % 3 == 0 else one for number, one in enumerate(apart))
    words = "Without Bern (COVID) the AUC is 0."
    assert any(words in each for each in go(replace(manifest, records=mixed)).document["warnings"])


def test_masks_are_compared(run: Any, go: Go, make: Make, tmp_path: Path, out: Path, monkeypatch: Patch) -> None:
    """The test part has masks: of the lungs, and in every other patient of lesions in the left half of them."""
    monkeypatch.setattr("groundglass.evaluation.evaluate._BATCH", 5)
    records = list(make())
    for number, record in enumerate(records[:12]):
        lungs = lungs_of(read_record(record).pixels)
        lesions = lungs & (number // 2 % 2 == 1) & (np.arange(128) < 64)
        names = [tmp_path / f"{number}-{what}.png" for what in ("lungs", "lesions")]
        for path, mask in zip(names, (lungs, lesions), strict=True):
            cv2.imwrite(str(path), mask.astype(np.uint8))
        records[number] = replace(record, lung_mask=names[0], lesion_mask=names[1])
    masked = Manifest("masked", tmp_path / "data", tuple(records))
    seen: list[tuple[int, int]] = []
    evaluation = go(masked, progress=lambda *done: seen.append(done))
    assert seen == [(number, 12) for number in range(1, 13)]
    section = document(out)["segmentation"]
    assert section["lung_dice"] == {"value": 1.0, "low": 1.0, "high": 1.0, "slices": 12}
    assert section["lesion_dice"]["value"] > 0.97
    assert (section["pointing"]["value"], section["pointing"]["slices"]) == (1.0, 6)
    # On the patients without a lesion as much is found as on the others, nearly half of the lungs.
    assert section["opacity_error"]["value"] == pytest.approx(25, abs=2)
    assert len(list(tables(evaluation))) == 2
    text = page_of(out).text
    assert "Strongest place of the map lies in a lesion 6 slices" in text
    assert text.index("Lung Dice") < text.index("Measures"), "on top too"
    go(masked, "train")
    assert "segmentation" not in document(out), "without masks nothing is said of them"
    assert "against their masks" not in page_of(out).text
    run.predict = lambda slices: replace(predict(slices), lesion_map=None)
    found = go(masked).document["segmentation"]
    assert {name for name, each in found.items() if each["slices"]} == {"lung_dice", "lesion_in_lungs"}


def test_figures_stand_beside_what_the_file_format_alone_gives_away(go: Go, make: Make, out: Path) -> None:
    covid = [record.label is Label.COVID for record in make()]
    for suffix, formats, auc, words in (
        ("png", 1, 0.5, "one file format, which gives nothing away"),
        ("jpg", 2, 1.0, "no better than the file format alone"),
    ):
        names = {n: f"{n}.{'png' if ill else suffix}" for n, ill in enumerate(covid)}
        evaluation, text = go(make(names)), page_of(out).text
        assert words in str(next(tables(evaluation)).caption)
        assert words in text
        baseline = document(out)["file_format_baseline"]
        assert (baseline["formats"], baseline["metrics"]["auc"]["value"]) == (formats, auc)
        assert ("file format alone 1.000" in text) == (suffix == "jpg")
    # Whoever is not in the fold of patient a, of COVID slices alone, has hardly any of these.
    patients = zip(make(names), "bbaaccaaccab", strict=False)
    folds = tuple(replace(record, patient_id=patient) for record, patient in patients)
    assert go(Manifest("drawn", folds[0].path.parent, folds)).document["file_format_baseline"] is None


def command(name: object, manifest: Manifest, *more: str) -> Result:
    """Evaluates into the folder ``out`` beside the data's."""
    write_manifest(manifest, data := manifest.root / "manifest.csv")
    where = ["--data", str(data), "--output", str(data.parents[1] / "out"), "--bootstrap", "20"]
    result = CliRunner().invoke(app, ["evaluate", str(name), *where, *more], catch_exceptions=False)
    assert result.exit_code == 0
    return result


def test_which_part_is_meant(run: Any, make: Make, out: Path, monkeypatch: Patch) -> None:
    with pytest.raises(GroundglassError, match=f"{run.path}: neither a run nor a bundle"):
        command(run.path, make())
    assert not out.exists()
    module = SimpleNamespace(Run=SimpleNamespace(open=lambda path: run))
    monkeypatch.setitem(sys.modules, "groundglass.training.run", module)  # which would import torch
    (run.path / "run.json").write_text("{}")
    for options, split, part, slices in (
        ((), None, "all", 24),
        (("--part", "val"), "official", "val", 4),
        (("--split", "official"), "official", "test", 12),
    ):
        result = command(run.path, make(), "--json", *options)
        assert "does not say which slices" in result.stderr
        printed = json.loads(result.stdout)
        assert printed == document(out)
        assert printed["format"] == 2
        assert [printed["data"][name] for name in ("split", "part", "slices")] == [split, part, slices]


def test_a_bundle_says_what_the_classifier_says(tiny_bundle: Path, make: Make) -> None:
    opened = Bundle.open(tiny_bundle)
    slices = [read_slice(record.path) for record in make().records[:4]]
    slices.insert(1, replace(slices[0], pixels=np.full((90, 90), 7, np.uint8)))
    predictions = list(map(Classifier(opened).classify, slices))
    outputs = BundledRun(opened).predict(iter(slices))
    assert [reason is not None for reason in outputs.refused] == [False, True, False, False, False]
    assert outputs.refused == [prediction.reason for prediction in predictions]
    expected = [prediction.probability for prediction in predictions if prediction.probability is not None]
    np.testing.assert_allclose(np.delete(outputs.probability, 1), expected, atol=1e-6)
    assert (outputs.lesion_map.shape, len(outputs.cuts)) == ((5, 8, 8), 5)


def test_a_bundle_is_evaluated(tiny_bundle: Path, make: Make, out: Path, monkeypatch: Patch) -> None:
    before, manifest = sorted(path.name for path in tiny_bundle.iterdir()), make()
    cv2.imwrite(str(manifest.root / "slice 23.png"), np.full((90, 90), 7, np.uint8))
    printed = json.loads(command(tiny_bundle, manifest, "--json").stdout)
    assert printed["run"]["network"] == "tiny"
    fit = printed["applicability"]
    assert fit["refused"]["value"] == pytest.approx(1 / 24)
    assert (fit["reasons"], fit["beyond_95"]) == ({"blank": 1}, None)
    assert set(fit["prediction_sets"]["coverage"]) == {"COVID", "NonCOVID"}
    page = page_of(out)
    for words in ("the input check refuses 4 %", "no reference of its training data", "COVID slices", "not counted"):
        assert words in page.text
    assert "<details><summary>Of these slices the input check" in page.html, "folded under a sentence"
    assert sorted(path.name for path in tiny_bundle.iterdir()) == before, "nothing is written into it"
    monkeypatch.setattr("groundglass.inference.bundle.DEFAULT", tiny_bundle)
    table = command("default", manifest).stdout
    assert max(map(len, table.splitlines()[:-1])) == 80
    shown = " ".join(table.replace("│", " ").split())
    titles = list(TITLES.values())
    assert {word for title in titles for word in title.split()} <= set(shown.split()), "none is split"
    for words in ("24 slices of 12 patients", "Whether the bundle fits", *(each.split(" (")[0] for each in titles)):
        assert words in shown
    assert shown.endswith(f"Report: {out / 'report.html'}")


@pytest.mark.parametrize(("shift", "beyond"), [(0.0, 0.0), (9.0, 1.0)])
def test_a_zip_knows_its_training(make: Make, tiny_bundle: Path, tmp_path: Path, shift: float, beyond: float) -> None:
    """Which slices they were, and how far others lie from them."""
    (fields, contents), manifest, opened = tiny_parts(), make(), Bundle.open(tiny_bundle)
    slices = [read_slice(record.path).pixels for record in manifest]
    seen = np.stack([opened.preprocessing.apply(pixels, opened.lungs(pixels)).pixels for pixels in slices])
    embedding = opened.engine().run(opened.preprocessing.normalise(seen)).embedding
    held_out = embedding + np.random.default_rng(0).normal(0, 0.01, embedding.shape)
    reference = fit_reference(embedding + shift, held_out + shift)
    arrays = {**accept_all(channels=64).as_arrays(), **reference.as_arrays()}
    fields["training"] = {"sha256": [content_hash(record) for record in manifest.records[:3]]}
    write_bundle(tmp_path / "trained.zip", fields, {**contents, "reference.npz": save_arrays(arrays)})
    printed = json.loads(command(tmp_path / "trained.zip", manifest, "--json").stdout)
    assert printed["applicability"]["beyond_95"]["value"] == pytest.approx(beyond, abs=0.1)
    assert "5 % are expected" in printed["applicability"]["beyond_95"]["meaning"]
    assert "% lie far from the training data" in page_of(tmp_path / "out").text
    assert any("trained on 3 of these 24 slices" in warning for warning in printed["warnings"])
