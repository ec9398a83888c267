"""``groundglass evaluate`` from the command line: runs and bundles, which part, and what is said of mistakes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from tests.conftest import tiny_parts
from typer.testing import CliRunner, Result

from groundglass.cli.main import app
from groundglass.data.manifest import Manifest, content_hash, write_manifest
from groundglass.errors import GroundglassError
from groundglass.evaluation.bundled import BundledRun
from groundglass.evaluation.calibration import fit_reference
from groundglass.evaluation.metrics import TITLES
from groundglass.imaging.read import read_slice
from groundglass.inference.bundle import Bundle
from groundglass.inference.bundle_writer import save_arrays, write_bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Status
from groundglass.training.input_check_fit import accept_all

MakeManifest = Callable[..., Manifest]


@pytest.fixture
def data(make_manifest: MakeManifest, tmp_path: Path) -> Path:
    """The drawn data set's manifest."""
    path = tmp_path / "data" / "manifest.csv"
    write_manifest(make_manifest(), path)
    return path


@pytest.fixture
def trained(run: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of a run whose network is as quick as it is simple."""
    module = SimpleNamespace(Run=SimpleNamespace(open=lambda path: run))
    monkeypatch.setitem(sys.modules, "groundglass.training.run", module)  # which would import torch
    (run.path / "run.json").write_text("{}")
    return Path(run.path)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", *tiny_parts())
    return tmp_path / "bundle"


def words(name: object, data: Path, *more: str) -> list[str]:
    """Of the command that evaluates into the folder ``out`` beside the data's."""
    where = ["--data", str(data), "--output", str(data.parents[1] / "out")]
    return ["evaluate", str(name), *where, "--bootstrap", "20", *more]


def command(name: object, data: Path, *more: str) -> Result:
    result = CliRunner().invoke(app, words(name, data, *more), catch_exceptions=False)
    assert result.exit_code == 0
    return result


@pytest.mark.parametrize(
    ("options", "split", "part", "slices"),
    [
        ((), None, "all", 24),
        (("--part", "val"), "official", "val", 4),
        (("--split", "official"), "official", "test", 12),
    ],
)
def test_which_part_is_meant(
    trained: Path, data: Path, options: tuple[str, ...], split: str | None, part: str, slices: int
) -> None:
    result = command(trained, data, "--json", *options)
    assert "does not say which slices" in result.stderr
    document = json.loads(result.stdout)
    assert document == json.loads((data.parents[1] / "out" / "metrics.json").read_text())
    assert document["format"] == 2
    found = document["data"]
    assert (found["split"], found["part"], found["slices"]) == (split, part, slices)


def test_a_bundle_says_what_the_classifier_says(bundle: Path, make_manifest: MakeManifest) -> None:
    opened = Bundle.open(bundle)
    slices = [read_slice(record.path) for record in make_manifest().records[:4]]
    slices.insert(1, replace(slices[0], pixels=np.full((90, 90), 7, np.uint8)))
    predictions = list(map(Classifier(opened).classify, slices))
    outputs = BundledRun(opened).predict(iter(slices))
    assert [prediction.status is Status.REFUSED for prediction in predictions] == [False, True, *[False] * 3]
    assert list(outputs.refused or ()) == [prediction.reason for prediction in predictions]
    expected = [prediction.probability for prediction in predictions if prediction.probability is not None]
    np.testing.assert_allclose(np.delete(outputs.probability, 1), expected, atol=1e-6)
    assert outputs.lesion_map is not None
    assert outputs.lesion_map.shape == (5, 8, 8)
    assert [cut.pixels.shape for cut in outputs.cuts] == [(64, 64)] * 5


def test_a_bundle_is_evaluated_and_nothing_written_into_it(
    bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(path.name for path in bundle.iterdir())
    cv2.imwrite(str(data.parent / "slice 23.png"), np.full((90, 90), 7, np.uint8))
    document: dict[str, Any] = json.loads(command(bundle, data, "--json").stdout)
    assert document["run"]["network"] == "tiny"
    fit = document["applicability"]
    assert fit["refused"]["value"] == pytest.approx(1 / 24)
    assert fit["reasons"] == {"blank": 1}
    assert fit["beyond_95"] is None
    assert set(fit["prediction_sets"]["coverage"]) == {"COVID", "NonCOVID"}
    page = (data.parents[1] / "out" / "report.html").read_text()
    expected = (
        "the input check refuses 4 %",
        "no reference of its training data",
        "<details",
        "COVID slices",
    )
    assert all(words in page for words in expected)
    assert sorted(path.name for path in bundle.iterdir()) == before
    monkeypatch.setattr("groundglass.inference.bundle.DEFAULT", bundle)
    printed = command("default", data).stdout
    shown = " ".join(printed.replace("│", " ").split())
    assert max(map(len, printed.splitlines()[:-1])) == 80
    assert {word for title in TITLES.values() for word in title.split()} <= set(shown.split()), (
        "none is split"
    )
    assert "24 slices of 12 patients" in shown
    assert all(title.split(" (")[0] in shown for title in TITLES.values())
    assert "Whether the bundle fits these slices" in shown
    assert shown.endswith(f"Report: {data.parents[1] / 'out' / 'report.html'}")


@pytest.mark.parametrize(("shift", "beyond"), [(0.0, 0.0), (9.0, 1.0)])
def test_a_zipped_bundle_knows_its_training_data(
    data: Path, make_manifest: MakeManifest, bundle: Path, tmp_path: Path, shift: float, beyond: float
) -> None:
    """Which slices they were, and how far others lie from them."""
    (fields, contents), manifest = tiny_parts(), make_manifest()
    opened = BundledRun(Bundle.open(bundle))
    slices = [read_slice(record.path).pixels for record in manifest]
    seen = [
        opened.bundle.preprocessing.apply(pixels, opened.bundle.lungs(pixels)).pixels for pixels in slices
    ]
    embedding = opened.bundle.engine().run(opened.bundle.preprocessing.normalise(np.stack(seen))).embedding
    held_out = embedding + np.random.default_rng(0).normal(0, 0.01, embedding.shape)
    reference = fit_reference(embedding + shift, held_out + shift)
    assert reference is not None
    arrays = {**accept_all(channels=64).as_arrays(), **reference.as_arrays()}
    fields["training"] = {"sha256": [content_hash(record) for record in manifest.records[:3]]}
    write_bundle(tmp_path / "trained.zip", fields, {**contents, "reference.npz": save_arrays(arrays)})
    document = json.loads(command(tmp_path / "trained.zip", data, "--json").stdout)
    assert document["applicability"]["beyond_95"]["value"] == pytest.approx(beyond, abs=0.1)
    assert "5 % are expected" in document["applicability"]["beyond_95"]["meaning"]
    assert "% lie far from the training data" in (data.parents[1] / "out" / "report.html").read_text()
    assert any("3 of 24 slices have the same content" in warning for warning in document["warnings"])


@pytest.mark.parametrize("damaged", [True, False], ids=["damaged bundle", "folder of pictures"])
def test_what_cannot_be_evaluated_is_named_in_one_line(damaged: bool, bundle: Path, data: Path) -> None:
    (bundle / "classifier.onnx").write_bytes(b"x")
    named = r"classifier\.onnx" if damaged else f"{data.parent}: neither a run nor a bundle"
    with pytest.raises(GroundglassError, match=named) as caught:
        command(bundle if damaged else data.parent, data)
    assert "\n" not in str(caught.value)
    assert not (data.parents[1] / "out").exists()
