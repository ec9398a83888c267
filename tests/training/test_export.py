"""A run becomes a bundle that says the same without torch."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import torch
from joblib import Parallel, delayed
from numpy.typing import NDArray

import groundglass
from groundglass.data.load import load_dataset
from groundglass.data.manifest import read_pixels, read_record
from groundglass.data.splits import make_split
from groundglass.errors import DataError, ImageError, RunError
from groundglass.evaluation import calibration as fitting
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import shipped
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.inference.bundle import Bundle, Engine
from groundglass.inference.classifier import Classifier
from groundglass.inference.input_check import appearance, unfit
from groundglass.models.registry import build
from groundglass.training import export as exporting
from groundglass.training.export import Export, export
from groundglass.training.input_check_fit import gather_examples
from groundglass.training.onnx import CLOSE, OPSET, largest_difference, quantise, to_onnx
from groundglass.training.recipe import load_recipe
from groundglass.training.run import Run
from groundglass.training.train import train_job

from .conftest import QUICK, job, write_data_set

pytestmark = pytest.mark.slow

PREPROCESSING = Preprocessing(size=64)
Write = Callable[..., list[str]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight phantoms, half of them diseased, with all three parts."""
    folder = tmp_path_factory.mktemp("phantoms")
    parts = ["val", "test", "train", "train"]
    write_data_set(folder, 48, 128, lambda number: f"phantom,{parts[number // 12]}")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Mask-EfficientNet after one epoch."""
    recipe = load_recipe("phantom-demo", [*QUICK, "training.epochs=1"])
    return train_job(job(recipe, data, tmp_path_factory.mktemp("run") / "run"))


@pytest.fixture(scope="module")
def bundle(run: Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In single precision."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "FEWEST", 10)
        written = Export(run, path, (data,), precision="fp32", cache=path.parent)
        assert export(written, lambda _: None) == "fp32"
    return path


@pytest.fixture
def write(run: Run, data: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Export the run to ``tmp_path / "bundle"`` with the model that is there already; what was told."""
    monkeypatch.setattr(exporting, "to_onnx", lambda *_: (bundle / "classifier.onnx").read_bytes())

    def exported(**changes: Any) -> list[str]:
        told: list[str] = []
        export(replace(Export(run, tmp_path / "bundle", (data,), cache=tmp_path), **changes), told.append)
        return told

    return exported


def test_the_bundle_says_what_the_run_says(run: Run, bundle: Path, data: Path) -> None:
    expected = run.predict(read_record(record) for record in load_dataset(data) if record.split == "test")
    cropped = np.stack([cut.pixels for cut in expected.cuts])
    outputs = Bundle.open(bundle).engine().run(run.preprocessing.normalise(cropped))
    np.testing.assert_allclose(outputs.logit, expected.logit, atol=CLOSE, rtol=CLOSE)
    np.testing.assert_allclose(outputs.lesion_map, expected.lesion_map, atol=CLOSE, rtol=CLOSE)


def test_it_carries_everything_a_reader_asks_for(run: Run, bundle: Path, data: Path) -> None:
    opened = Bundle.open(bundle)
    info, reference, model = opened.info, opened.reference, onnx.load(bundle / "classifier.onnx")
    assert info.training["fingerprint"] == run.info["fingerprint"]
    assert info.training["slices"] == {"train": 24, "val": 12, "test": 12}
    assert (info.precision, set(info.validation_auc)) == ("fp32", {"fp32"})
    opsets = [each.version for each in model.opset_import if each.domain == ""]
    assert opsets == [info.onnx["opset"]] == [OPSET]
    onnx.checker.check_model(model)
    assert str(Path(groundglass.__file__).parent).encode() not in model.SerializeToString(), "of this machine"
    assert reference is not None
    assert (int(reference.slices), len(reference.held_out)) == (24, 12)
    val = [read_pixels(record) for record in load_dataset(data) if record.split == "val"]
    assert opened.lungs.sha256 == run.lungs.sha256 == info.training["lungs"]["sha256"]
    cropped = np.stack([run.preprocessing.apply(pixels, opened.lungs(pixels)).pixels for pixels in val])
    embedding = opened.engine().run(run.preprocessing.normalise(cropped)).embedding
    np.testing.assert_allclose(reference.distance(embedding), reference.held_out, rtol=1e-3)
    entries = json.loads((run.path / "evaluations.json").read_text())["evaluations"]
    assert any(entry["part"] == "test" and entry["output"] == str(bundle) for entry in entries)


def test_the_card_is_made_of_the_measured_figures(bundle: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    document = json.loads((bundle / "bundle.json").read_text())
    for part in ("val", "test"):
        assert f"{document['metrics'][part]['metrics']['auc']['value']:.3f}" in card
    low, high = Bundle.open(bundle).info.calibration.uncertain
    assert f"COVID above a calibrated probability of {high:.3f}, NonCOVID below {low:.3f}" in card
    assert "no medical device" in card
    assert not re.search("None|COVID-CT", card)
    by_source = document["metrics"]["test"]["by_source"]["phantom"]
    assert {truth: sum(given.values()) for truth, given in by_source.items()} == {"COVID": 6, "NonCOVID": 6}
    assert f"| phantom | COVID | 6 | {by_source['COVID'].get('COVID', 0)} |" in card
    assert "The weights were learned from phantom" in card


def test_the_documented_lines_do(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")
    lines = page.partition("## From the files of a bundle")[2].partition("```python\n")[2].partition("```")[0]
    assert sum(bool(line) for line in lines.splitlines()) == 20, "the page says how many they are"
    (tmp_path / "first").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    classifier = Classifier(Bundle.open(bundle))
    for number, record in enumerate(load_dataset(data).records[:4]):
        cv2.imwrite("slice.png", read_pixels(record)[: 128 - 8 * number, 3 * number :])
        known: dict[str, Any] = {}
        exec(lines, known)  # noqa: S102
        said = classifier.predict("slice.png")
        assert known["p"] == pytest.approx(said.probability, abs=1e-4)
        assert set(known["labels"]) <= set(said.prediction_set), "flags only add to it"


def test_a_split_without_test_part_is_exported(data: Path, tmp_path: Path, write: Write) -> None:
    untested = data.parent / "untested.csv"
    untested.write_text("".join(f"{line}\n" for line in data.read_text().split() if "test" not in line))
    told = write(data=(untested,), precision="fp32")
    assert [line.split()[0] for line in told[:4]] == ["cropping", "gathering", "exporting", "predicting"]
    opened = Bundle.open(tmp_path / "bundle")
    assert set(opened.info.metrics) == {"val"}
    assert "The split has no test part" in opened.card


def test_what_cannot_be_exported_is_refused(run: Run, data: Path, tmp_path: Path, write: Write) -> None:
    other = data.parent / "other.csv"
    other.write_text("\n".join(data.read_text().splitlines()[:-2]) + "\n")
    (zipped := tmp_path / "again.zip").touch()
    for changes, error, said in (
        ({"data": (other,)}, DataError, "not the data"),
        ({"run": Run(run.path, run.recipe, {**run.info, "finished": False})}, RunError, "has not finished"),
        ({"output": data / "x"}, RunError, "cannot be written"),
        ({"output": zipped, "data": (other,)}, DataError, "not the data"),
        ({"cache": data}, RunError, "cannot be written"),
    ):
        with pytest.raises(error, match=said):
            write(**changes)
        assert not (tmp_path / "bundle").exists()


def named_int8(model: bytes, *_: object) -> bytes:
    """Stands for quantisation."""
    proto = onnx.load_from_string(model)
    proto.doc_string = "int8"
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(("gain", "kept"), [(0.2, "int8"), (-0.1, "fp32")])
def test_int8_is_chosen_on_validation_and_a_better_one_is_kept(
    tmp_path: Path, write: Write, monkeypatch: pytest.MonkeyPatch, gain: float, kept: str
) -> None:
    """The test part's AUC is never asked for."""
    aucs = iter((0.7, 0.7 + gain, 0.7))
    monkeypatch.setattr(exporting, "_FEWEST_SEEN", 12)
    monkeypatch.setattr(exporting, "quantise", named_int8)
    monkeypatch.setattr(exporting, "roc_auc_score", lambda *_: next(aucs))
    told, opened = write(), Bundle.open(tmp_path / "bundle")
    assert opened.info.precision == kept
    assert (onnx.load(tmp_path / "bundle" / "classifier.onnx").doc_string == "int8") is (kept == "int8")
    assert opened.info.validation_auc == {"fp32": 0.7, "int8": pytest.approx(0.7 + gain)}
    assert any("INT8 loses 0.1000 of the validation AUC" in line for line in told) is (kept == "fp32")
    assert any("too few validation slices" in line for line in told), "twelve, and twenty are needed"
    assert opened.reference is None
    if kept == "fp32":
        (tmp_path / "bundle").rename(tmp_path / "kept")
        monkeypatch.setattr(exporting, "_FEWEST_SEEN", 13)
        assert any(line.startswith("12 validation slices are too few to see") for line in write())
        assert Bundle.open(tmp_path / "bundle").info.validation_auc == {"fp32": 0.7}
        (tmp_path / "bundle").rename(tmp_path / "few")
        aucs = iter((0.7, 0.6))
        with pytest.raises(RunError, match=r"INT8 loses 0\.1000 .* \(limit 0\.005\); export fp32"):
            write(precision="int8")
        assert not (tmp_path / "bundle").exists()


def test_the_default_network_is_exported_faithfully_and_quantised(covid_ct: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build("mask-efficientnet-lite0", weights="imagenet")
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    network.eval()
    preprocessing, manifest = Preprocessing(normalisation="zero-mean"), load_dataset(covid_ct)
    chosen = make_split(manifest, "official").parts["train"][:12]
    sources = [read_pixels(manifest.records[index]) for index in chosen]
    pixels = np.stack([preprocessing.apply(source, shipped()(source)).pixels for source in sources])
    images = preprocessing.normalise(pixels)
    model = to_onnx(network, preprocessing.size)
    assert largest_difference(network, Engine(model), images) < CLOSE
    assert largest_difference(network, Engine(model), images[:1]) < CLOSE, "a batch of one"
    int8 = quantise(model, images, images)
    assert len(int8) < 0.5 * len(model)
    operators = {node.op_type for node in onnx.load_from_string(int8).graph.node}
    assert {"QuantizeLinear", "GlobalAveragePool"} <= operators
    coarse, fine = (Engine(each).run(images) for each in (int8, model))
    for name in ("logit", "lesion_map"):
        assert np.corrcoef(getattr(coarse, name).ravel(), getattr(fine, name).ravel())[0, 1] > 0.9


# What the input check learns from.


def embed(cropped: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Stands for a network: the embedding is the coarse picture."""
    images = PREPROCESSING.normalise(cropped)
    return images.reshape(len(images), 8, 8, 8, 8).mean(axis=(2, 4)).reshape(len(images), 64)


def test_the_fitted_check_accepts_phantoms_and_nothing_else(data: Path) -> None:
    gathered = gather_examples(PREPROCESSING, shipped(), load_dataset(data).records)
    check = gathered.fit(embed(gathered.cropped))

    def refused(pixels: NDArray[np.uint8]) -> bool:
        cropped = PREPROCESSING.apply(pixels, shipped()(pixels))
        if unfit(CTSlice(pixels, Origin("a", "PNG")), cropped):
            return True
        return check.refusal(appearance(pixels, cropped), embed(cropped.pixels[None])[0]) is not None

    fresh = [make_phantom(np.random.default_rng([9, seed]), 0.3, 0.5, size=160) for seed in range(12)]
    slices = [phantom.slice.pixels for phantom in fresh]
    assert sum(refused(pixels) for pixels in slices) <= 1
    assert sum(refused(np.ascontiguousarray(np.rot90(pixels))) for pixels in slices) >= 11
    noise = np.random.default_rng(0).integers(0, 256, (12, 160, 160), np.uint8)
    assert sum(refused(pixels) for pixels in noise) >= 11


def test_a_slice_that_vanished_is_named_by_the_process_that_gathers(data: Path) -> None:
    records = load_dataset(data).records
    records = (replace(records[0], path=data / "gone.png"), *records[1:])
    gather = delayed(gather_examples)(PREPROCESSING, shipped(), records)
    with pytest.raises(ImageError, match=r"gone\.png: "):
        Parallel(2)([gather])


def test_an_interrupt_is_for_the_export_and_not_for_its_children() -> None:
    with exporting._deaf_children():
        says = "import signal as s; print(s.getsignal(s.SIGINT) is s.SIG_IGN)"
        assert b"True" in subprocess.check_output([sys.executable, "-c", says])
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
