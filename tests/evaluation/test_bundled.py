"""Bundles are evaluated as their users ask them, and without torch."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tests.inference.conftest import tiny_parts
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.manifest import Manifest, write_manifest
from groundglass.evaluation.bundled import BundledRun
from groundglass.evaluation.part import content_hash
from groundglass.imaging.read import read_slice
from groundglass.inference.bundle import Bundle, write_bundle
from groundglass.inference.classifier import Classifier


@pytest.fixture
def data(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    path = tmp_path / "data" / "manifest.csv"
    write_manifest(make_manifest(), path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", *tiny_parts())
    return tmp_path / "bundle"


def test_it_says_what_the_classifier_says(bundle: Path, make_manifest: Callable[..., Manifest]) -> None:
    opened = Bundle.open(bundle)
    slices = [read_slice(record.path) for record in make_manifest().records[:5]]
    predictions = BundledRun(opened).predict(piece.pixels for piece in slices)
    findings = list(Classifier(opened).predict_slices(slices))
    np.testing.assert_allclose(predictions.probability, [f.probability for f in findings], atol=1e-6)
    assert predictions.activation_map.shape == (5, 8, 8)
    assert predictions.framed.shape == (5, 64, 64)


def test_the_command_takes_a_bundle_and_writes_nothing_into_it(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    before = sorted(path.name for path in bundle.iterdir())
    words = ["evaluate", str(bundle), "--data", str(data), "--output", str(tmp_path / "out"), "--json"]
    result = CliRunner().invoke(app, [*words, "--bootstrap", "20"], catch_exceptions=False)
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["data"]["slices"] == 24
    assert document["run"]["network"] == "tiny"
    assert (tmp_path / "out" / "report.html").exists()
    assert sorted(path.name for path in bundle.iterdir()) == before


def test_training_slices_are_recognised(
    data: Path, make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    fields, contents = tiny_parts()
    fields["training"] = {"sha256": [content_hash(record) for record in make_manifest().records[:3]]}
    write_bundle(tmp_path / "trained.zip", fields, contents)
    words = ["evaluate", str(tmp_path / "trained.zip"), "--data", str(data), "--bootstrap", "20"]
    result = CliRunner().invoke(app, [*words, "--output", str(tmp_path / "out")], catch_exceptions=False)
    assert result.exit_code == 0
    assert "3 of 24 slices have the same content" in " ".join(result.stderr.split())


def test_no_torch_is_asked_for(bundle: Path, data: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom groundglass.cli.main import main\n"
        f"sys.argv = ['groundglass', 'evaluate', {str(bundle)!r}, '--data', {str(data)!r}, "
        f"'--output', {str(tmp_path / 'out')!r}, '--bootstrap', '20']\nmain()\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_damaged_bundle_is_one_line(bundle: Path, data: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(bundle, tmp_path / "broken"))
    (broken / "model.onnx").write_bytes(b"x")
    command = [sys.executable, "-m", "groundglass.cli.main", "evaluate", str(broken), "--data", str(data)]
    command += ["--output", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "model.onnx" in done.stderr
    assert not (tmp_path / "out").exists()
