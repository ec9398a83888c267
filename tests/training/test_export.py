"""A run becomes a bundle that says the same without torch."""

import json
import re
import shutil
from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from tests.conftest import Patch, tiny_model

import groundglass
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Record, read_pixels, read_record
from groundglass.errors import DataError, RunError
from groundglass.evaluation.part import Part
from groundglass.imaging.phantom import make_phantom
from groundglass.inference.bundle import Bundle, Engine
from groundglass.inference.classifier import Classifier
from groundglass.inference.input_check import LUNG
from groundglass.training import export as exporting
from groundglass.training.export import Export, export
from groundglass.training.input_check_fit import Examples
from groundglass.training.onnx import CLOSE, OPSET, largest_difference, quantise
from groundglass.training.run import Run

pytestmark = pytest.mark.slow

Write = Callable[..., list[str]]


@pytest.fixture(scope="module")
def bundle(done: Run, phantoms: Path, lesion_free: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    free = shutil.copytree(lesion_free, path.parent / "free" / "caf\udce9").parent
    with Patch.context() as patch:
        patch.setattr("groundglass.evaluation.calibration.FEWEST", 8)
        export(Export(done, path, (phantoms,), free, precision="fp32", cache=path.parent), print)
    return path


@pytest.fixture
def write(done: Run, phantoms: Path, bundle: Path, tmp_path: Path, monkeypatch: Patch) -> Write:
    """Export the run to ``tmp_path / "bundle"`` with the model and input check that are there already; what was told."""
    monkeypatch.setattr(exporting, "to_onnx", lambda *_: (bundle / "classifier.onnx").read_bytes())
    check, size = Bundle.open(bundle).input_check, done.preprocessing.size
    nothing = Examples(np.zeros((1, 0)), np.array([LUNG]), np.arange(1), np.ones(1), np.ones(1) > 0)
    monkeypatch.setattr(exporting, "gather_examples", lambda *_: (np.zeros((1, size, size), np.uint8), nothing))
    monkeypatch.setattr(exporting, "fit_input_check", lambda _: check)
    told, job = list[str](), Export(done, tmp_path / "bundle", (phantoms,), cache=tmp_path)

    def exported(**changes: Any) -> list[str]:
        export(replace(job, **changes), told.append)
        return told

    return exported


def test_it_says_what_the_run_says(done: Run, bundle: Path, phantoms: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("groundglass.training.run._BATCH", 5)
    opened, model = Bundle.open(bundle), (bundle / "classifier.onnx").read_bytes()
    expected = done.predict(read_record(each) for each in load_dataset(phantoms) if each.split == "val")
    images = done.preprocessing.normalise(np.stack([cut.pixels for cut in expected.cuts]))
    fine, int8 = Engine(model).run(images), quantise(model, images, images)
    for name in ("logit", "lesion_map"):
        exact, quantised, own = (getattr(each, name) for each in (fine, Engine(int8).run(images), expected))
        np.testing.assert_allclose(exact, own, atol=CLOSE, rtol=CLOSE)
        assert np.corrcoef(quantised.ravel(), exact.ravel())[0, 1] > 0.9
    assert largest_difference(done.network, Engine(model), images[:1]) < CLOSE, "a batch of one"
    damaged = deepcopy(done.network)
    next(damaged.head.parameters()).data.fill_(np.nan)
    assert np.isnan(largest_difference(damaged, Engine(model), images[:1]))
    assert len(int8) < 0.5 * len(model)
    nodes = onnx.load_from_string(int8).graph.node
    assert {"QuantizeLinear", "GlobalAveragePool"} <= {node.op_type for node in nodes}
    made = {output: node for node in nodes for output in node.output}
    assert made["logit"].op_type != "DequantizeLinear"
    wanted = [next(node for node in nodes if node.op_type == "ArgMax")]
    while wanted:  # the mask's threshold is made of whole counts
        node = wanted.pop()
        assert node.op_type != "DequantizeLinear"
        wanted += [made[name] for name in node.input if name in made]
    info, reference = opened.info, opened.reference
    assert reference is not None
    assert (int(reference.slices), len(reference.held_out)) == (24, 8)
    np.testing.assert_allclose(reference.distance(fine.embedding), reference.held_out, rtol=1e-3)
    own = {"fingerprint": done.info["fingerprint"], "slices": {"train": 24, "val": 8, "test": 8}}
    assert info.training.items() >= own.items()
    assert opened.lungs.sha256 == done.lungs.sha256 == info.training["lungs"]["sha256"]
    assert (info.precision, set(info.validation_auc)) == ("fp32", {"fp32"})
    opsets = [each.version for each in onnx.load_from_string(model).opset_import if each.domain == ""]
    assert opsets == [info.onnx["opset"]] == [OPSET]
    assert str(Path(groundglass.__file__).parent).encode() not in model, "of this machine"
    entries = json.loads((done.path / "evaluations.json").read_text())["evaluations"]
    assert any(entry["part"] == "test" and entry["output"] == str(bundle) for entry in entries)


def test_the_card_is_made_of_the_measured_figures(bundle: Path) -> None:
    card, info = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8"), Bundle.open(bundle).info
    for part in ("val", "test"):
        assert f"{info.metrics[part]['metrics']['auc']['value']:.3f}" in card
    low, high = info.calibration.uncertain
    assert f"COVID above a calibrated probability of {high:.3f}, NonCOVID below {low:.3f}" in card
    assert "no medical device" in card
    assert not re.search("None|COVID-CT", card)
    by_source = info.metrics["test"]["by_source"]["phantom"]
    assert {truth: sum(given.values()) for truth, given in by_source.items()} == {"COVID": 4, "NonCOVID": 4}
    assert f"| phantom | COVID | 4 | {by_source['COVID'].get('COVID', 0)} |" in card
    assert "The weights were learned from phantom" in card


def test_the_documented_lines_do(bundle: Path, phantoms: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    page = (Path(__file__).parents[2] / "docs" / "predict.md").read_text(encoding="utf-8")
    lines = page.partition("## From the files of a bundle")[2].partition("```python\n")[2].partition("```")[0]
    assert sum(bool(line) for line in lines.splitlines()) == 20, "the page says how many they are"
    (tmp_path / "first").symlink_to(bundle)
    monkeypatch.chdir(tmp_path)
    classifier = Classifier(Bundle.open(bundle))
    for number, record in enumerate(load_dataset(phantoms).records[:4]):
        cv2.imwrite("slice.png", read_pixels(record)[: 128 - 8 * number, 3 * number :])
        known: dict[str, Any] = {}
        exec(lines, known)  # noqa: S102
        said = classifier.predict("slice.png")
        assert known["p"] == pytest.approx(said.probability, abs=1e-4)
        assert set(known["labels"]) <= set(said.prediction_set), "flags only add to it"


def test_its_input_check_accepts_phantoms_and_nothing_else(bundle: Path) -> None:
    classifier = Classifier(Bundle.open(bundle))

    def refused(pictures: Iterable[NDArray[np.uint8]]) -> int:
        return sum(classifier.predict(pixels).status == "refused" for pixels in pictures)

    rngs = [np.random.default_rng([9, seed]) for seed in range(12)]
    slices = [make_phantom(rng, 0.3, 0.5, size=160).slice.pixels for rng in rngs]
    assert refused(slices) <= 1
    assert refused(np.ascontiguousarray(np.rot90(pixels)) for pixels in slices) >= 11
    assert refused(rng.integers(0, 256, (160, 160), np.uint8) for rng in rngs) >= 11


def test_sources_of_one_label_do_not_calibrate() -> None:
    def record(number: int, source: str, label: Label) -> Record:
        return Record(Path(f"{source}{number}.png"), label, f"{source}{number // 2}", source, None)

    both = tuple(record(number, "both", [*Label][number // 2 % 2]) for number in range(80))
    part = Part("x", Path(), None, "val", both + tuple(record(number, "one", Label.NON_COVID) for number in range(99)))
    logit = np.where(part.label, 1.0, -1.0).astype(np.float32) * np.r_[np.tile([*[1] * 7, -0.5], 10), np.full(99, 3.0)]
    calibration, (_, fitted) = exporting._calibrate(part, part, logit)
    assert (calibration.slices, fitted["patients"]) == (80, {"COVID": 20, "NonCOVID": 69})
    assert calibration.quantiles["NonCOVID"] > 0.5 > exporting.fit_calibration(logit, part.label).quantiles["NonCOVID"]
    hard = replace(part, records=(*both, *(replace(each, label=Label.COVID) for each in part.records[80:])))
    assert exporting._calibrate(hard, hard, logit)[0].quantiles["COVID"] > 0.9, "what is hard is not left out"


def test_a_split_without_test_part_is_exported(done: Run, phantoms: Path, tmp_path: Path, write: Write) -> None:
    untested = phantoms.parent / "untested.csv"
    untested.write_text("".join(f"{line}\n" for line in phantoms.read_text().split() if "test" not in line))
    # Of which lesions were painted into a slice, and whose source has a name that is not UTF-8.
    more = {"training_sha256": [*done.info["training_sha256"], 64 * "0"], "sources": {"caf\udce9": 24}}
    told = write(run=replace(done, info={**done.info, **more}), data=(untested,), precision="fp32")
    assert [line.split()[0] for line in told[:4]] == ["cropping", "gathering", "exporting", "predicting"]
    opened = Bundle.open(tmp_path / "bundle")
    assert (set(opened.info.metrics), opened.info.training["slices"]) == ({"val"}, {"train": 24, "val": 8})
    assert all(words in opened.card for words in ("The split has no test part", "learned from caf\\udce9"))


def test_what_cannot_be_exported_is_refused(done: Run, phantoms: Path, tmp_path: Path, write: Write) -> None:
    (zipped := tmp_path / "again.zip").touch()
    lines, other = phantoms.read_text().splitlines(), phantoms.parent / "other.csv"
    other.write_text("\n".join([*lines[:20], *lines[22:]]) + "\n")
    for changes, error, said in (
        ({"data": (other,)}, DataError, "not the data"),
        ({"run": replace(done, info={**done.info, "finished": False})}, RunError, "has not finished"),
        ({"output": zipped, "data": (other,)}, DataError, "not the data"),
        *(({option: phantoms / "x"}, RunError, "cannot be written") for option in ("output", "cache")),
    ):
        with pytest.raises(error, match=said):
            write(**changes)
        assert not (tmp_path / "bundle").exists()


def test_a_network_without_convolutions_is_quantised_in_batches(monkeypatch: Patch) -> None:
    images, run, model = np.random.default_rng(0).random((99, 64, 64), np.float32), Engine.run, tiny_model()
    with monkeypatch.context() as patch:
        patch.setattr(Engine, "run", lambda self, few: run(self, few) if len(few) < 99 else pytest.fail("all at once"))
        int8 = quantise(model, images, images)
    np.testing.assert_allclose(Engine(int8).run(images).logit, Engine(model).run(images).logit, atol=0.02)


def named_int8(model: bytes, *_: object) -> bytes:
    (proto := onnx.load_from_string(model)).doc_string = "int8"
    return bytes(proto.SerializeToString())


@pytest.mark.parametrize(
    ("int8", "seen", "kept", "said"),
    [
        (0.9, 8, "int8", "too few validation slices of other patients"),
        (0.6, 8, "fp32", "INT8 loses 0.1000 of the validation AUC"),
        (0.9, 9, "fp32", "8 validation slices are too few to see what INT8 loses"),
    ],
)
def test_int8_is_chosen_on_validation(
    tmp_path: Path, write: Write, monkeypatch: Patch, int8: float, seen: int, kept: str, said: str
) -> None:
    """The test part's AUC is never asked for."""
    aucs = iter((0.7, int8) * 2)
    monkeypatch.setattr(exporting, "_FEWEST_SEEN", seen)
    monkeypatch.setattr(exporting, "quantise", named_int8)
    monkeypatch.setattr(exporting, "roc_auc_score", lambda *_: next(aucs))
    assert any(said in line for line in write())
    opened = Bundle.open(tmp_path / "bundle")
    assert (opened.info.precision, opened.reference) == (kept, None)
    assert onnx.load(tmp_path / "bundle" / "classifier.onnx").doc_string == "int8" * (kept == "int8")
    assert opened.info.validation_auc == {"fp32": 0.7} | ({"int8": int8} if seen == 8 else {})
    if int8 < 0.7:
        with pytest.raises(RunError, match=r"INT8 loses 0\.1000 .* \(limit 0\.005\); export fp32"):
            write(precision="int8", output=tmp_path / "worse")
        assert not (tmp_path / "worse").exists()
