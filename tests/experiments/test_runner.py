"""Lists of trainings: what is kept, what is skipped, and what an interrupted list resumes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.experiments.results_factory import document, write
from tests.training.conftest import write_data_set

from groundglass.data.load import load_pool
from groundglass.data.manifest import read_record
from groundglass.errors import DataError, RecipeError, RunError, WeightsError
from groundglass.evaluation.metrics import compute_metrics
from groundglass.experiments import runner
from groundglass.experiments.plan import Task, table1_tasks
from groundglass.experiments.results import read_run_result, write_run_result
from groundglass.experiments.runner import ExperimentPaths, check, run_all
from groundglass.models.registry import measure
from groundglass.training.run import Run

LITE = "efficientnet-lite0"
QUICK = (
    *("preprocessing.size=64", "training.batch_size=8", "training.epochs=2", "training.ema_decay=0.5"),
    "synthesis.slices_per_epoch=0",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight phantoms with all three parts, one slice a patient, as a folder with a manifest."""
    folder, parts = tmp_path_factory.mktemp("experiment-data"), ("val", "test", "train", "train")
    write_data_set(folder, 48, 96, lambda number: f"ward,{parts[number // 2 % 4]}")
    return folder


@pytest.fixture
def paths(data: Path, tmp_path: Path) -> ExperimentPaths:
    """Folders of a test's own, and a cache that all tests share."""
    runs, output, cache = tmp_path / "runs", tmp_path / "results", data.parent / "cache"
    return ExperimentPaths((data,), runs, output, threads=1, accelerator="cpu", cache=cache, progress=False)


def tasks(*protocols: str, seeds: tuple[int, ...] = (0,), more: tuple[str, ...] = ()) -> list[Task]:
    return table1_tasks(protocols or ("official",), [LITE], ["none"], seeds, [*QUICK, *more], folds=2)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No training: says which runs would have been trained."""
    called: list[str] = []

    def work(task: Task, *_: object) -> None:
        called.append(task.name)
        raise RunError("no training here")

    monkeypatch.setattr(runner, "_work", work)
    return called


@pytest.mark.slow
def test_a_run_is_kept_whole_and_not_made_twice(paths: ExperimentPaths, data: Path) -> None:
    (task,) = tasks()
    folder, manifest = paths.run(task), load_pool([data])
    # Killed before its first file was whole.
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", ".recipe.yaml.x.yaml", ".run.json.abc.json"):
        (folder / name).write_text("half")
    assert run_all([task], paths, lambda _: None) == []
    result = read_run_result(paths.result(task))
    assert (result.identity, len(result.history)) == (task.identity, 2)
    assert result.run["machine"]["cores"]
    assert result.run["training_seconds"] > 0
    assert "training_sha256" not in result.run
    cost = measure(LITE, 64, lesions=False)
    assert result.cost == {"parameters": cost.parameters, "macs": cost.macs, "input_size": 64}
    # The slices of the file are what the stored network predicts of them, and give the measures again.
    records = [record for record in manifest.records if record.split == "test"]
    predictions = result.predictions["test"]
    assert predictions.file == tuple(record.path.name for record in records)
    logit = Run.open(folder).predict(read_record(record) for record in records).logit
    np.testing.assert_array_equal(logit, predictions.logit.astype(np.float32))
    measured = {name: entry["value"] for name, entry in result.parts["test"]["metrics"].items()}
    again = compute_metrics(predictions.label, predictions.probability)
    assert {name: each.value for name, each in again.items()} == pytest.approx(measured)
    # Killed between the training and the writing of its result: nothing is trained again, nor by a version that
    # knows more fields than its recipe was written with.
    paths.result(task).unlink()
    (recipe := folder / "recipe.yaml").write_text(recipe.read_text().replace("  gates: stages\n", ""))
    weights = (folder / "weights.safetensors").stat().st_mtime_ns
    run_all([task], paths, lambda _: None)
    assert (folder / "weights.safetensors").stat().st_mtime_ns == weights
    twice = read_run_result(paths.result(task))
    assert list(twice.predictions["test"].logit) == list(predictions.logit)
    assert twice.parts["test"]["evaluations_of_these_slices"] == 2
    (longer,) = tasks(more=("training.epochs=3",))
    for finished in (True, False):
        if not finished:
            paths.result(task).unlink()
        with pytest.raises(RunError, match=r"training\.epochs was 2, is 3.*choose another --output"):
            check([longer], paths, manifest)
        with pytest.raises(RunError, match="data was"):
            check([task], replace(paths, data=(data / "manifest.csv",)), manifest)
        check([task], paths, manifest)


def test_c2l_weights_from_a_file_say_what_they_saw(paths: ExperimentPaths, tmp_path: Path) -> None:
    (file := tmp_path / "backbone.safetensors").touch()
    seen = {"kind": "pretraining", "network": LITE, "data": "covid-ct", "split": "official", "slices": 1300}
    (tmp_path / "run.json").write_text(json.dumps({**seen, "machine": "left out"}))
    task, moved = (table1_tasks(["official"], [LITE], [kind], [0], QUICK)[0] for kind in (str(file), "c2l"))
    info = {"split": "official", "seed": 0, "data": [paths.data[0].name]}
    trained: Any = SimpleNamespace(info=info, history=list)
    write_run_result(runner.gather(paths.result(task), task, trained, {}))
    result = read_run_result(paths.result(task))
    assert (result.weights, (result.pretraining or {})["split"]) == ("c2l", "official")
    assert "machine" not in (result.pretraining or {})
    # The same weights at another place are the same row.
    check([moved], paths, load_pool(paths.data))


def test_weights_nobody_has_and_runs_that_fail_are_said_and_do_not_stop_the_others(
    paths: ExperimentPaths, untrained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_hub(_: object, weights: str) -> None:
        if weights == "imagenet":
            raise WeightsError("no hub here")

    monkeypatch.setattr("groundglass.models.weights.read_weights", no_hub)
    (missing,) = table1_tasks(["official"], ["resnet-18"], ["imagenet"], [0], QUICK)
    (painted,) = tasks(seeds=(2,), more=("synthesis.slices_per_epoch=8",))
    listed, said = tasks("official", "random", seeds=(0, 1)), list[str]()
    assert run_all([missing, *listed, painted], paths, said.append) == untrained == [t.name for t in listed]
    assert said[0].endswith("skipped, no hub here")
    assert said[-1].endswith("skipped, has no lesion-free slices to paint into")
    assert sum(line.endswith("failed, no training here") for line in said) == len(listed)


def test_a_training_without_a_finite_loss_is_not_kept() -> None:
    rows = [{"epoch": 0.0, "val_loss": 0.5}, {"epoch": 1.0, "val_loss": float("nan")}]
    unstable: Any = SimpleNamespace(path=Path("runs/first"), history=lambda: rows)
    with pytest.raises(RunError, match=r"runs/first: epoch 1 has no finite loss"):
        runner.gather(Path("result.json"), tasks()[0], unstable, {})


def test_faults_are_found_before_it_starts(paths: ExperimentPaths, untrained: list[str], data: Path) -> None:
    lines = (data / "manifest.csv").read_text().splitlines()
    bare = replace(paths, data=(data / "no-test.csv",))
    bare.data[0].write_text("\n".join(line for line in lines if not line.endswith(",test")) + "\n")
    write(paths.output, document(f"{LITE}-none", 1.0, seed=5))
    many = table1_tasks(["patients"], [LITE], ["none"], [0], QUICK, folds=40)
    for listed, place, error, match in (
        (tasks("official", "random"), bare, DataError, "has no part 'test'"),
        (many, paths, DataError, "too few for 40 folds"),
        (tasks(more=("synthesis.slices_per_epoch=8",)), paths, RecipeError, "--lesion-free"),
        (tasks(seeds=(5,)), paths, RunError, "has other settings"),
    ):
        with pytest.raises(error, match=match):
            run_all(listed, place, lambda _: None)
    assert untrained == []
