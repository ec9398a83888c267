"""Results of runs: what goes in comes out, and what is damaged is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tests.evaluation.conftest import BrightnessRun
from tests.experiments.results_factory import document, write

from groundglass.data.manifest import Manifest
from groundglass.errors import DataError, RunError
from groundglass.evaluation.evaluate import evaluate
from groundglass.evaluation.metrics import compute_metrics
from groundglass.experiments.results import (
    Identity,
    read_not_run,
    read_run_result,
    read_run_results,
    run_result_document,
    write_run_result,
)

IDENTITY = Identity("table1", "official", "mean-grey-none", "mean-grey (none)", 3)


@pytest.fixture
def finished(run: BrightnessRun) -> BrightnessRun:
    run.recipe = SimpleNamespace(
        name="brightness", network=SimpleNamespace(name="mean-grey"), model_dump=lambda mode: {"mode": mode}
    )
    run.info = {"finished": True, "training_sha256": ["0" * 64], "fingerprint": "f", "threads": 2}
    run.rows = [{"epoch": 0.0, "val_loss": 0.5, "val_auc": 0.9}]
    return run


def kept(run: BrightnessRun, manifest: Manifest, tmp_path: Path) -> dict[str, object]:
    evaluations = {
        part: evaluate(run, manifest, "official", part, tmp_path / part, resamples=50)
        for part in ("val", "test")
    }
    return run_result_document(
        IDENTITY, run, evaluations, weights="none", cost={"parameters": 1}, inference=None, pretraining=None
    )


def test_everything_can_be_computed_again_from_the_file(
    finished: BrightnessRun, make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    manifest = make_manifest({0: "Lunge 'ä', \"1\"\n.png"})
    written = kept(finished, manifest, tmp_path)
    path = tmp_path / f"{IDENTITY.name}.json"
    write_run_result(path, written)
    assert json.loads(path.read_text()) == written
    read = read_run_result(path)
    assert read.identity == IDENTITY
    assert read.path == tmp_path / "official/mean-grey-none-seed-3.json"
    test = read.judged["test"]
    assert len(test.file) == 12
    assert "Lunge 'ä', \"1\"\n.png" in test.file
    # Every measure from the slices alone, as evaluation measured it from the network.
    measured = {name: entry["value"] for name, entry in read.parts["test"]["metrics"].items()}
    again = compute_metrics(test.label, test.probability).values()
    assert {name: value for name, value in again.items() if value is not None} == pytest.approx(
        {name: value for name, value in measured.items() if value is not None}
    )
    assert set(again) == set(measured)
    assert "training_sha256" not in read.run
    assert read.run["versions"]["scikit-learn"]
    # One line per slice keeps a change of one slice readable.
    assert sum(line.startswith("      [") for line in path.read_text().splitlines()) == 16


def test_a_float32_logit_survives_the_file(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(size=200).astype(np.float32)
    entry = document("vgg-16-none", 1.0)
    for row, logit in zip(entry["predictions"]["test"], logits, strict=True):
        row[3] = float(f"{logit:.9g}")
    write(tmp_path, entry)
    read = read_run_result(tmp_path / "official" / "vgg-16-none-seed-0.json").judged["test"].logit
    np.testing.assert_array_equal(read.astype(np.float32), logits)


def test_a_training_that_went_astray_is_not_kept(
    finished: BrightnessRun, make_manifest: Callable[..., Manifest], tmp_path: Path
) -> None:
    finished.rows.append({"epoch": 1.0, "val_loss": float("nan")})
    with pytest.raises(RunError, match="epoch 1 has no finite loss"):
        kept(finished, make_manifest(), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[: len(text) // 2], "no readable result"),
        (lambda text: "", "no readable result"),
        (lambda text: "[]", "no readable result"),
        (lambda text: text.replace('"cost"', '"price"'), "'cost' is missing"),
        (lambda text: text.replace('"NonCOVID"', '"healthy"'), "no readable result"),
        (lambda text: text.replace('"format": 1', '"format": 2'), "format 2, this version reads 1"),
        (lambda text: text.replace('"p0", ', '"p0", "x", '), "no readable result"),
    ],
)
def test_a_damaged_result_is_named(tmp_path: Path, change: Callable[[str], str], message: str) -> None:
    write(tmp_path, document("vgg-16-none", 1.0))
    path = tmp_path / "official" / "vgg-16-none-seed-0.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(DataError, match=message) as caught:
        read_run_results(tmp_path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no result"):
        read_run_results(tmp_path / "nothing")


def test_runs_made_since_are_no_longer_missing(tmp_path: Path) -> None:
    assert read_not_run(tmp_path) == {}
    reasons = {"official/vgg-16-none-seed-0": "no hub", "official/vgg-16-c2l-seed-0": "no file"}
    (tmp_path / "not-run.json").write_text(json.dumps(reasons))
    assert read_not_run(tmp_path) == reasons
    write(tmp_path, document("vgg-16-none", 1.0))
    assert list(read_not_run(tmp_path)) == ["official/vgg-16-c2l-seed-0"]
    (tmp_path / "not-run.json").write_text("{")
    with pytest.raises(DataError, match=r"not-run\.json"):
        read_not_run(tmp_path)
