"""Bundles are evaluated as their users run them, without torch; what the command takes for one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.inference.conftest import tiny_parts
from typer.testing import CliRunner, Result

from groundglass.cli.main import app
from groundglass.data.manifest import Manifest, write_manifest
from groundglass.evaluation.bundled import BundledRun
from groundglass.evaluation.part import content_hash
from groundglass.imaging.read import read_slice
from groundglass.inference.bundle import Bundle, write_bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Status


@pytest.fixture
def data(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    path = tmp_path / "data" / "manifest.csv"
    write_manifest(make_manifest(), path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", *tiny_parts())
    return tmp_path / "bundle"


def command(name: object, data: Path, output: Path, *more: str) -> Result:
    words = ["evaluate", str(name), "--data", str(data), "--output", str(output), "--bootstrap", "20", *more]
    return CliRunner().invoke(app, words, catch_exceptions=False)


def failing(name: object, data: Path, output: Path) -> str:
    """What the command says on standard error where it ends with status 2."""
    words = ["groundglass.cli.main", "evaluate", str(name), "--data", str(data), "--output", str(output)]
    done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not output.exists()
    return done.stderr


def test_it_says_what_the_classifier_says(bundle: Path, make_manifest: Callable[..., Manifest]) -> None:
    opened = Bundle.open(bundle)
    slices = [read_slice(record.path) for record in make_manifest().records[:4]]
    slices.insert(1, replace(slices[0], pixels=np.full((90, 90), 7, np.uint8)))
    run, predictions = BundledRun(opened), list(Classifier(opened).predict_slices(slices))
    outputs, examined = run.examine(iter(slices))
    assert [prediction.status is Status.REFUSED for prediction in predictions] == [False, True, *[False] * 3]
    assert list(examined.reason) == [prediction.reason for prediction in predictions]
    assert examined.percentile is None
    expected = [prediction.probability for prediction in predictions if prediction.probability is not None]
    np.testing.assert_allclose(np.delete(outputs.probability, 1), expected, atol=1e-6)
    again = run.predict(each.pixels for each in slices)
    np.testing.assert_array_equal(again.logit, outputs.logit)
    assert again.activation_map.shape == (5, 8, 8)
    assert again.cropped.shape == (5, 64, 64)


def test_the_command_takes_a_bundle_and_writes_nothing_into_it(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    before = sorted(path.name for path in bundle.iterdir())
    result = command(bundle, data, tmp_path / "out", "--json")
    assert result.exit_code == 0
    document: dict[str, Any] = json.loads(result.stdout)
    assert document["data"]["slices"] == 24
    assert document["run"]["network"] == "tiny"
    assert document["applicability"]["refused"]["value"] == 0.0
    assert document["applicability"]["beyond_95"] is None
    assert set(document["applicability"]["prediction_sets"]["coverage"]) == {"COVID", "NonCOVID"}
    assert "holds no reference of its training data" in (tmp_path / "out" / "report.html").read_text()
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_the_installed_bundle_is_called_default(
    bundle: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("groundglass.inference.bundle.DEFAULT", bundle)
    result = command("default", data, tmp_path / "out")
    assert result.exit_code == 0
    assert "Whether the bundle fits these slices" in result.stdout
    assert "Prediction sets" in result.stdout


def test_training_slices_are_recognised(
    data: Path, make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    fields, contents = tiny_parts()
    fields["training"] = {"sha256": [content_hash(record) for record in make_manifest().records[:3]]}
    write_bundle(tmp_path / "trained.zip", fields, contents)
    result = command(tmp_path / "trained.zip", data, tmp_path / "out")
    assert result.exit_code == 0
    assert "3 of 24 slices have the same content" in " ".join(result.stderr.split())


def test_no_torch_is_loaded(bundle: Path, data: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom groundglass.cli.main import main\n"
        f"sys.argv = ['groundglass', 'evaluate', {str(bundle)!r}, '--data', {str(data)!r}, "
        f"'--output', {str(tmp_path / 'out')!r}, '--bootstrap', '20']\nmain()\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_folder_that_is_neither_run_nor_bundle_is_said_to_be_neither(data: Path, tmp_path: Path) -> None:
    message = failing(data.parent, data, tmp_path / "out")
    assert str(data.parent) in message
    assert "neither a run nor a bundle" in message
    assert "torch" not in message


def test_a_damaged_bundle_is_named(bundle: Path, data: Path, tmp_path: Path) -> None:
    model = next(bundle.glob("*.onnx"))
    model.write_bytes(b"x")
    assert model.name in failing(bundle, data, tmp_path / "out")
