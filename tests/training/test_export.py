"""A run becomes a bundle that says the same without torch."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
import torch
from groundglass.training.average import Average, average

import groundglass
from groundglass.data.load import load_dataset
from groundglass.data.manifest import read_pixels, read_record
from groundglass.data.splits import make_split
from groundglass.errors import DataError, RunError
from groundglass.evaluation.bundled import BundledRun
from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.phantom import make_phantom
from groundglass.inference import reference
from groundglass.inference.bundle import Bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.engine import Engine
from groundglass.models.layers import Mirrored
from groundglass.models.registry import build
from groundglass.training import export as exporting
from groundglass.training.export import Export, export
from groundglass.training.onnx import CLOSE, OPSET, largest_difference, quantise, to_onnx
from groundglass.training.recipe import load_recipe
from groundglass.training.run import Run
from groundglass.training.train import Job, train

from .conftest import QUICK

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight phantoms, half of them diseased, with all three parts."""
    folder = tmp_path_factory.mktemp("phantoms")
    lines = ["path,label,patient_id,source,split"]
    for number in range(48):
        rng = np.random.default_rng(number)
        phantom = make_phantom(rng, severity=0.8 * (number % 2), level=0.5, size=128)
        cv2.imwrite(str(folder / f"{number}.png"), phantom.slice.pixels)
        part = ("val", "test", "train")[min(number // 12, 2)]
        label = "COVID" if number % 2 else "NonCOVID"
        lines.append(f"{number}.png,{label},p{number},phantom,{part}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Mask-EfficientNet after two epochs, averaged with the mirror image."""
    folder = tmp_path_factory.mktemp("run")
    recipe = load_recipe("phantom-demo", [*QUICK, "training.epochs=2", "network.mirror=true"])
    return train(
        Job(
            recipe,
            data,
            "official",
            0,
            folder / "run",
            threads=1,
            accelerator="cpu",
            cache=folder,
            progress=False,
        )
    )


@pytest.fixture(scope="module")
def bundle(run: Run, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both models, whatever INT8 loses on twelve phantoms."""
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporting, "LARGEST_LOSS", 1.0)
        patch.setattr(reference, "FEWEST", 10)
        export(Export(run, path, data, cache=path.parent), lambda _: None)
    return path


def test_the_bundle_says_what_the_run_says(run: Run, bundle: Path, data: Path) -> None:
    records = [record for record in load_dataset(data).records if record.split == "test"]
    expected = run.predict(read_pixels(record) for record in records)
    classifier = Classifier(Bundle.open(bundle, "fp32"))
    images = run.preprocessing.normalise(expected.cropped)
    outputs = classifier.bundle.engine().run(images)
    np.testing.assert_allclose(outputs.logit, expected.logit, atol=CLOSE, rtol=CLOSE)
    np.testing.assert_allclose(outputs.activation_map, expected.activation_map, atol=CLOSE, rtol=CLOSE)
    prediction = classifier.predict(records[0].path, evidence=True)
    assert prediction.evidence is None or prediction.evidence.logit == pytest.approx(
        expected.logit[0], abs=1e-3
    )


def test_an_average_says_of_which_seeds(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "FEWEST", 10)
    recipe = load_recipe("phantom-demo", [*QUICK, "training.epochs=2", "network.start=0"])
    plain = Job(recipe, data, "official", 0, tmp_path, threads=1, accelerator="cpu", cache=tmp_path / "cache")
    runs = [
        train(replace(plain, seed=seed, output=tmp_path / f"seed-{seed}", progress=False)) for seed in (3, 4)
    ]
    averaged = average(Average(runs, data, tmp_path / "average", threads=1, cache=tmp_path / "cache"))
    path = tmp_path / "bundle"
    export(Export(averaged, path, data, precisions=("fp32",), cache=tmp_path / "cache"), lambda _: None)
    info = Bundle.open(path).info
    assert info.name == "mask-efficientnet-lite0, split official, mean of 2 seeds"
    assert info.training["averaged"] == [3, 4]
    assert info.training["epochs"] == 2
    assert (
        "2 epochs, split `official`, weights averaged over seeds 3, 4 |"
        in (path / "MODEL_CARD.md").read_text()
    )


def test_it_carries_everything_a_reader_asks_for(run: Run, bundle: Path) -> None:
    info = Bundle.open(bundle).info
    assert info.preprocessing.size == run.preprocessing.size
    assert info.onnx["opset"] == OPSET
    assert info.training["fingerprint"] == run.info["fingerprint"]
    assert info.training["slices"] == {"train": 24, "val": 12, "test": 12}
    assert set(info.files) == {"MODEL_CARD.md", "model.int8.onnx", "model.onnx", "selftest.npz", "trust.npz"}
    for precision in ("fp32", "int8"):
        assert info.metrics[precision]["test"]["slices"] == 12
        assert set(info.calibration[precision].quantiles) == {"COVID", "NonCOVID"}
    model = onnx.load(bundle / "model.onnx")
    assert [item.version for item in model.opset_import if item.domain == ""] == [OPSET]
    onnx.checker.check_model(model)


def test_the_card_is_made_of_the_measured_figures(bundle: Path) -> None:
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    metrics = json.loads((bundle / "bundle.json").read_text())["metrics"]
    for precision in ("fp32", "int8"):
        for part in ("val", "test"):
            auc = metrics[precision][part]["metrics"]["auc"]
            assert f"{auc['value']:.3f}" in card
    assert "no medical device" in card
    assert "None" not in card


def test_int8_is_smaller_and_close(bundle: Path, run: Run, data: Path) -> None:
    assert (bundle / "model.int8.onnx").stat().st_size < 0.5 * (bundle / "model.onnx").stat().st_size
    operators = {node.op_type for node in onnx.load(bundle / "model.int8.onnx").graph.node}
    assert {"QuantizeLinear", "GlobalAveragePool"} <= operators
    images = run.preprocessing.normalise(
        np.stack(
            [run.preprocessing.apply(read_pixels(record)).pixels for record in load_dataset(data).records]
        )
    )
    fp32, int8 = (Bundle.open(bundle, precision).engine().run(images).logit for precision in ("fp32", "int8"))
    assert np.corrcoef(fp32, int8)[0, 1] > 0.9


def test_models_say_nothing_of_the_machine_they_were_made_on(bundle: Path) -> None:
    for name in ("model.onnx", "model.int8.onnx"):
        content = (bundle / name).read_bytes()
        assert str(Path(groundglass.__file__).parent).encode() not in content
        assert b"stack_trace" not in content


def test_each_model_knows_where_its_training_data_lie(bundle: Path, data: Path) -> None:
    references = [Bundle.open(bundle, precision).reference for precision in ("fp32", "int8")]
    for each in references:
        assert each is not None
        assert int(each.slices) == 24
        assert len(each.held_out) == 12
    fp32, int8 = references
    assert not np.array_equal(fp32.embedding.centre, int8.embedding.centre)
    np.testing.assert_array_equal(fp32.quantiles, int8.quantiles)
    slices = [read_record(record) for record in load_dataset(data).records if record.split == "val"]
    _, placement = BundledRun(Bundle.open(bundle, "fp32")).predict_placed(slices)
    assert placement.places is not None
    np.testing.assert_array_equal(placement.places.statistics, fp32.held_out_statistics)
    np.testing.assert_allclose(placement.places.coordinates, fp32.held_out, rtol=0.02, atol=0.05)


def test_an_int8_model_that_loses_too_much_is_not_written(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "quantise", lambda model, *_: blinded(model))
    told: list[str] = []
    kept = export(Export(run, tmp_path / "both", data, cache=tmp_path), told.append)
    assert kept == ("fp32",)
    assert any("INT8 left out" in line for line in told)
    assert any("too few validation slices" in line for line in told), "twelve, and twenty are needed"
    assert Bundle.open(tmp_path / "both").reference is None
    assert not (tmp_path / "both" / "model.int8.onnx").exists()
    assert Bundle.open(tmp_path / "both").precision == "fp32"
    with pytest.raises(RunError, match=r"differs by 0\.\d+ from fp32 \(limit 0\.005\)"):
        export(Export(run, tmp_path / "int8", data, precisions=("int8",), cache=tmp_path), told.append)
    assert not (tmp_path / "int8").exists()


def blinded(model: bytes) -> bytes:
    """The model with the sign of its logit turned: an AUC as far from the right one as can be."""
    proto = onnx.load_from_string(model)
    (last,) = [node for node in proto.graph.node if "logit" in node.output]
    last.output[list(last.output).index("logit")] = "logit_before"
    proto.graph.node.append(onnx.helper.make_node("Neg", ["logit_before"], ["logit"]))
    return bytes(proto.SerializeToString())


def test_each_export_counts_as_a_look_at_the_test_part(run: Run, bundle: Path) -> None:
    entries = json.loads((run.path / "evaluations.json").read_text())["evaluations"]
    assert any(entry["part"] == "test" and entry["output"] == str(bundle) for entry in entries)


def test_other_data_and_unfinished_runs_are_refused(run: Run, data: Path, tmp_path: Path) -> None:
    lines = data.read_text().splitlines()
    other = data.parent / "other.csv"
    other.write_text("\n".join(lines[:-2]) + "\n")
    with pytest.raises(DataError, match="not the data"):
        export(Export(run, tmp_path / "x", other, cache=tmp_path), lambda _: None)
    unfinished = Run(run.path, run.recipe, {**run.info, "finished": False})
    with pytest.raises(RunError, match="has not finished"):
        export(Export(unfinished, tmp_path / "x", data, cache=tmp_path), lambda _: None)
    assert not (tmp_path / "x").exists()


def test_of_a_network_of_two_outputs_a_bundle_carries_the_first() -> None:
    torch.manual_seed(0)
    network = Mirrored(build("mask-efficientnet-lite0", opacity=True)).eval()
    for parameter in network.network.head.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    model = to_onnx(network, 64)
    images = np.random.default_rng(0).normal(size=(3, 64, 64)).astype(np.float32)
    assert largest_difference(network, Engine(model), images) < CLOSE
    assert not any("opacity" in tensor.name for tensor in onnx.load_from_string(model).graph.initializer)


def test_the_default_network_is_exported_faithfully_on_real_slices(covid_ct: Path) -> None:
    torch.manual_seed(0)
    network = build("mask-efficientnet-lite0", weights="imagenet")
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    asked = Mirrored(network).eval()
    preprocessing, manifest = Preprocessing(), load_dataset(covid_ct)
    chosen = make_split(manifest, "official").parts["train"][:12]
    pixels = np.stack([preprocessing.apply(read_pixels(manifest.records[index])).pixels for index in chosen])
    images = preprocessing.normalise(pixels)
    model = to_onnx(asked, preprocessing.size)
    assert largest_difference(asked, Engine(model), images) < CLOSE
    assert largest_difference(asked, Engine(model), images[:1]) < CLOSE, "a batch of one"
    int8 = Engine(quantise(model, images, images)).run(images).logit
    assert np.corrcoef(int8, Engine(model).run(images).logit)[0, 1] > 0.9
