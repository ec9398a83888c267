"""Trainings end to end on phantoms: learning, repeating, resuming after a kill, processes side by side."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from tests.training.conftest import QUICK
from torch import Tensor

from groundglass.data.load import load_dataset
from groundglass.errors import GroundglassError, RecipeError, RunError
from groundglass.imaging.read import read_slice
from groundglass.training.classify import Classifier
from groundglass.training.recipe import Recipe, load_recipe
from groundglass.training.run import Run
from groundglass.training.samples import Batch
from groundglass.training.train import Job, train

HERE = Path(__file__).parent


def job(recipe: Recipe, data: Path, output: Path, **changes: object) -> Job:
    plain = Job(recipe, data, "official", 0, output, threads=1, accelerator="cpu", progress=False)
    return replace(plain, cache=output.parent / "cache", **changes)


@pytest.mark.slow
def test_it_learns_phantoms_and_judges_them_as_it_trained(
    phantoms: Path, lesion_free: Path, tmp_path: Path
) -> None:
    settings = [
        "training.epochs=5",
        "training.batch_size=8",
        "synthesis.slices_per_epoch=8",
        "preprocessing.size=96",
    ]
    recipe = load_recipe("phantom-demo", [*settings, "training.ema_decay=0.7"])
    run = train(job(recipe, phantoms, tmp_path / "run", lesion_free=lesion_free))
    history = run.history()
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4]
    assert history[-1]["val_auc"] >= 0.9
    records = [record for record in load_dataset(phantoms).records if record.split == "val"]
    predictions = run.predict(read_slice(record.path).pixels for record in records)
    truth = np.array([record.label == "COVID" for record in records])
    loss = -np.log(np.where(truth, predictions.probability, 1 - predictions.probability)).mean()
    # The stored weights, preprocessing and reading give what validation measured during training.
    assert loss == pytest.approx(history[-1]["val_loss"], abs=1e-3)
    assert predictions.cropped.shape == (8, 96, 96)
    assert predictions.activation_map.shape[0] == 8
    assert run.info["finished"]
    assert run.info["selected_epoch"] == 4
    assert run.info["counts"] == {"train": 24, "val": 8, "lesion_free": 6}


@pytest.mark.slow
def test_one_seed_gives_one_network_and_another_another(
    phantoms: Path, quick: Recipe, tmp_path: Path
) -> None:
    short = quick.model_copy(update={"training": quick.training.model_copy(update={"epochs": 1})})
    first, again, other = (
        load_file(train(job(short, phantoms, tmp_path / name, seed=seed)).path / "weights.safetensors")
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert all(np.array_equal(first[key], again[key]) for key in first)
    assert any(not np.array_equal(first[key], other[key]) for key in first)


def command(phantoms: Path, output: Path, *more: str) -> list[str]:
    overrides = [part for setting in (*QUICK, "training.selection=val_loss") for part in ("--set", setting)]
    common = ["--recipe", "phantom-demo", "--data", str(phantoms), "--threads", "1", "--quiet"]
    places = ["--output", str(output), "--cache", str(output.parent / "cache"), "--accelerator", "cpu"]
    return [sys.executable, "-m", "groundglass.cli.main", "train", *common, *places, *overrides, *more]


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_weights(phantoms: Path, tmp_path: Path) -> None:
    subprocess.run(command(phantoms, tmp_path / "through"), check=True, capture_output=True)
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        command(phantoms, killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while not (killed / "checkpoints" / "last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "weights.safetensors").exists()
    assert not json.loads((killed / "run.json").read_text())["finished"]
    with pytest.raises(RunError, match="not finished"):
        _ = Run.open(killed).network
    subprocess.run(command(phantoms, killed, "--resume"), check=True, capture_output=True)
    through, resumed = (load_file(tmp_path / name / "weights.safetensors") for name in ("through", "killed"))
    assert all(np.array_equal(through[key], resumed[key]) for key in through)
    rows = [Run.open(tmp_path / name).history() for name in ("through", "killed")]
    assert [[row["epoch"], row["train_loss"], row["val_loss"]] for row in rows[0]] == [
        [row["epoch"], row["train_loss"], row["val_loss"]] for row in rows[1]
    ]


@pytest.mark.slow
def test_with_the_second_output_it_resumes_as_exactly(
    phantoms: Path, lesion_free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted = ("synthesis.slices_per_epoch=8", "synthesis.mimics=0.5", "synthesis.teaches=both")
    recipe = load_recipe("phantom-demo", [*QUICK, *painted, "network.opacity=true", "training.epochs=2"])
    through = train(job(recipe, phantoms, tmp_path / "through", lesion_free=lesion_free))
    step = Classifier.training_step

    def cut(module: Classifier, batch: Batch, number: int) -> Tensor:
        if (module.current_epoch, number) == (1, 2):
            raise InterruptedError("the power went")
        return step(module, batch, number)

    interrupted = job(recipe, phantoms, tmp_path / "cut", lesion_free=lesion_free)
    monkeypatch.setattr(Classifier, "training_step", cut)
    with pytest.raises(InterruptedError):
        train(interrupted)
    monkeypatch.undo()
    resumed = train(replace(interrupted, resume=True))
    one, other = (load_file(run.path / "weights.safetensors") for run in (through, resumed))
    assert one["head.opacity.weight"].any()
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert [row["train_loss"] for row in through.history()] == [
        row["train_loss"] for row in resumed.history()
    ]
    healthy = read_slice(lesion_free / "0.png").pixels
    assert np.array_equal(through.predict([healthy]).opacity, resumed.predict([healthy]).opacity)


@pytest.mark.slow
def test_two_processes_train_what_one_does(phantoms: Path, tmp_path: Path) -> None:
    for devices in ("1", "2"):
        script = [
            sys.executable,
            str(HERE / "distributed.py"),
            str(phantoms),
            str(tmp_path / devices),
            devices,
        ]
        done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-2000:]
    one, two = (load_file(tmp_path / devices / "weights.safetensors") for devices in ("1", "2"))
    assert Run.open(tmp_path / "2").info["processes"] == 2
    for key in one:
        np.testing.assert_allclose(one[key], two[key], atol=1e-5, err_msg=key)


def test_a_finished_or_foreign_folder_is_not_overwritten(
    phantoms: Path, quick: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="holds no run"):
        train(job(quick, phantoms, tmp_path / "mine"))
    short = quick.model_copy(update={"training": quick.training.model_copy(update={"epochs": 1})})
    train(job(short, phantoms, tmp_path / "run"))
    with pytest.raises(RunError, match="--resume"):
        train(job(short, phantoms, tmp_path / "run"))
    with pytest.raises(RunError, match="seed was 0, is 1"):
        train(job(short, phantoms, tmp_path / "run", seed=1, resume=True))
    with pytest.raises(RunError, match="recipe has changed"):
        train(job(quick, phantoms, tmp_path / "run", resume=True))
    (tmp_path / "run" / "weights.safetensors").write_bytes(b"junk")
    with pytest.raises(RunError, match=r"weights\.safetensors: damaged"):
        _ = Run.open(tmp_path / "run").network


def test_lesion_synthesis_asks_for_its_slices(phantoms: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--lesion-free"):
        train(job(load_recipe("mask-efficientnet"), phantoms, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_data_set_without_labels_is_refused(lesion_free: Path, quick: Recipe, tmp_path: Path) -> None:
    with pytest.raises(GroundglassError):
        train(job(quick, lesion_free, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_damaged_checkpoint_is_named(phantoms: Path, quick: Recipe, tmp_path: Path) -> None:
    short = quick.model_copy(update={"training": quick.training.model_copy(update={"epochs": 1})})
    train(job(short, phantoms, tmp_path / "run"))
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(RunError, match=r"last\.ckpt: damaged"):
        train(job(short, phantoms, tmp_path / "run", resume=True))


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run here"):
        Run.open(tmp_path)


def test_weights_that_cannot_be_had_leave_nothing_behind(phantoms: Path, tmp_path: Path) -> None:
    recipe = load_recipe(
        "phantom-demo", ["network.weights=/nowhere/weights.safetensors", "preprocessing.size=64"]
    )
    with pytest.raises(GroundglassError, match="nowhere"):
        train(job(recipe, phantoms, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
