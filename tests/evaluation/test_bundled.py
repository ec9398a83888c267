"""Bundles are evaluated as their users ask them, and without torch."""

from __future__ import annotations

import html
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from tests.inference.conftest import tiny_parts, with_reference
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.manifest import Label, Manifest, Record, read_pixels, write_manifest
from groundglass.evaluation.evaluate import BundledRun
from groundglass.evaluation.part import content_hash
from groundglass.imaging.read import read_slice
from groundglass.inference.bundle import Bundle, write_bundle
from groundglass.inference.classifier import Classifier
from groundglass.inference.prediction import Status
from groundglass.inference.reference import Embedded, describe_slices, embed

from .conftest import draw


@pytest.fixture
def data(make_manifest: Callable[..., Manifest], tmp_path: Path) -> Path:
    path = tmp_path / "data" / "manifest.csv"
    write_manifest(make_manifest(), path)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_bundle(tmp_path / "bundle", *tiny_parts())
    return tmp_path / "bundle"


@pytest.fixture
def placing_bundle(bundle: Path, tmp_path: Path) -> Path:
    """A bundle that knows its training data: slices as the data set's, of other patients."""
    opened = Bundle.open(bundle)

    def embedded(start: int) -> Embedded:
        names = [f"{number}.png" for number in range(start, start + 60)]
        records = []
        for number, name in enumerate(names, start):
            draw(tmp_path / "known" / name, (95, 40)[number % 2], number)
            records.append(Record(tmp_path / "known" / name, Label.COVID, name, "drawn", None))
        described = describe_slices(opened.preprocessing, map(read_pixels, records), names)
        return embed(opened.engine(), opened.preprocessing, described)

    fields, contents = tiny_parts()
    write_bundle(tmp_path / "placing", fields, with_reference(contents, embedded(1000), embedded(2000)))
    return tmp_path / "placing"


def _evaluate(bundle: Path, data: Path, output: Path) -> dict[str, Any]:
    words = ["evaluate", str(bundle), "--data", str(data), "--output", str(output), "--bootstrap", "50"]
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0
    return {**json.loads((output / "metrics.json").read_text()), "stdout": " ".join(result.stdout.split())}


def test_data_alike_and_data_from_elsewhere(placing_bundle: Path, data: Path, tmp_path: Path) -> None:
    alike = _evaluate(placing_bundle, data, tmp_path / "alike")
    assert alike["distance"]["verdict"] == "alike"
    assert "the data look like the training data" in alike["stdout"]
    for path in (tmp_path / "data").glob("*.png"):
        turned = np.ascontiguousarray(np.rot90(read_slice(path).pixels))
        cv2.imwrite(str(path), 255 - turned // 3)
    far = _evaluate(placing_bundle, data, tmp_path / "far")
    assert far["distance"]["verdict"] == "far"
    assert "do not carry over to these data" in far["stdout"]
    assert far["distance"]["placed"]["embedding"]["beyond_95"]["value"] > 0.9


@pytest.mark.usefixtures("drawn_figures")
def test_the_report_says_how_far_the_data_lie(placing_bundle: Path, data: Path, tmp_path: Path) -> None:
    document = _evaluate(placing_bundle, data, tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    section = page[page.index('aria-labelledby="distance"') : page.index('aria-labelledby="figures"')]
    assert document["distance"]["words"] in html.unescape(section)
    assert section.count("<table>") == 2
    assert 'role="img" aria-label="Where the slices lie' in section
    assert "<svg" in section
    assert "&lt;svg" not in page


def test_an_older_bundle_says_that_it_does_not_know(bundle: Path, data: Path, tmp_path: Path) -> None:
    document = _evaluate(bundle, data, tmp_path / "out")
    assert document["distance"]["placed"] is None
    assert document["distance"]["refused"]["value"] == 0.0
    assert "carries no statistics of its training data" in document["stdout"]
    assert "carries no statistics" in (tmp_path / "out" / "report.html").read_text()


def test_it_refuses_what_the_classifier_refuses(bundle: Path, make_manifest: Callable[..., Manifest]) -> None:
    opened = Bundle.open(bundle)
    slices = [read_slice(record.path) for record in make_manifest().records[:3]]
    slices.insert(1, replace(slices[0], pixels=np.full((90, 90), 7, np.uint8)))
    _, placement = BundledRun(opened).predict_placed(iter(slices))
    predictions = list(Classifier(opened).predict_slices(slices))
    assert [prediction.status is Status.REFUSED for prediction in predictions] == [False, True, False, False]
    assert list(placement.reason) == [prediction.reason for prediction in predictions]


def test_it_says_what_the_classifier_says(bundle: Path, make_manifest: Callable[..., Manifest]) -> None:
    opened = Bundle.open(bundle)
    slices = [read_slice(record.path) for record in make_manifest().records[:5]]
    predictions = BundledRun(opened).predict(piece.pixels for piece in slices)
    predictions = list(Classifier(opened).predict_slices(slices))
    np.testing.assert_allclose(predictions.probability, [f.probability for f in predictions], atol=1e-6)
    assert predictions.activation_map.shape == (5, 8, 8)
    assert predictions.cropped.shape == (5, 64, 64)


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
