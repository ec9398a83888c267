"""Trainings end to end on phantoms: learning, repeating, resuming after a kill, processes side by side."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from safetensors.numpy import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from groundglass.data.load import load_dataset
from groundglass.errors import GroundglassError, RecipeError, RunError
from groundglass.imaging.read import read_slice
from groundglass.models.catalogue import entries
from groundglass.training.recipe import Recipe, load_recipe
from groundglass.training.run import Run
from groundglass.training.train import plan, train, train_job, trained

from . import distributed
from .conftest import QUICK, job, kill_after_an_epoch

HERE = Path(__file__).parent


@pytest.mark.slow
def test_it_learns_phantoms_and_predicts_them_as_it_trained(
    phantoms: Path, lesion_free: Path, tmp_path: Path
) -> None:
    settings = [
        "training.epochs=5",
        "training.batch_size=8",
        "synthesis.slices_per_epoch=8",
        "synthesis.mimics=0.5",
        "preprocessing.size=96",
    ]
    recipe = load_recipe("phantom-demo", [*settings, "training.ema_decay=0.7"])
    run = train_job(job(recipe, phantoms, tmp_path / "run", lesion_free=lesion_free))
    history = run.history()
    assert [row["epoch"] for row in history] == [0, 1, 2, 3, 4]
    assert history[-1]["val_auc"] >= 0.9
    records = [record for record in load_dataset(phantoms).records if record.split == "val"]
    predictions = run.predict(read_slice(record.path) for record in records)
    truth = np.array([record.label == "COVID" for record in records])
    loss = -np.log(np.where(truth, predictions.probability, 1 - predictions.probability)).mean()
    # The stored weights, preprocessing and reading give what validation measured during training.
    assert loss == pytest.approx(history[-1]["val_loss"], abs=1e-3)
    assert np.stack([cut.pixels for cut in predictions.cuts]).shape == (8, 96, 96)
    assert predictions.lesion_map is not None
    assert predictions.lesion_map.shape == (8, 24, 24)
    assert run.info["finished"]
    assert run.info["format"] == 3
    assert run.info["selected_epoch"] == 4
    assert run.info["counts"] == {"train": 24, "val": 8, "lesion_free": 6}


def command(phantoms: Path, output: Path, *more: str) -> list[str]:
    overrides = [part for setting in (*QUICK, "training.selection=val_loss") for part in ("--set", setting)]
    common = ["--recipe", "phantom-demo", "--data", str(phantoms), "--threads", "1", "--quiet", "--no-audit"]
    places = ["--output", str(output), "--cache", str(output.parent / "cache"), "--accelerator", "cpu"]
    return [sys.executable, "-m", "groundglass.cli.main", "train", *common, *places, *overrides, *more]


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_weights(
    phantoms: Path, quick: Recipe, through: Run, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    kill_after_an_epoch(command(phantoms, killed), killed)
    assert not (killed / "weights.safetensors").exists()
    assert not json.loads((killed / "run.json").read_text())["finished"]
    with pytest.raises(RunError, match="not finished"):
        _ = Run.open(killed).network
    resumed = trained(job(quick, phantoms, killed, resume=True))
    one, other = (load_file(run.path / "weights.safetensors") for run in (through, resumed))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    rows = [run.history() for run in (through, resumed)]
    assert [[row["epoch"], row["lr"], row["train_loss"], row["val_loss"]] for row in rows[0]] == [
        [row["epoch"], row["lr"], row["train_loss"], row["val_loss"]] for row in rows[1]
    ]


@pytest.mark.slow
def test_an_interrupt_ends_in_one_line_that_names_resume(phantoms: Path, tmp_path: Path) -> None:
    ended = kill_after_an_epoch(command(phantoms, tmp_path / "run"), tmp_path / "run", signal.SIGINT)
    assert ended == (130, f"{tmp_path / 'run'}: interrupted, continue it with --resume\n")


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = [sys.executable, str(HERE / "distributed.py"), str(phantoms), str(tmp_path / "2"), "2"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    monkeypatch.setattr("groundglass.training.train.build_network", lambda _: distributed.Small())
    train_job(distributed.small_job(phantoms, tmp_path / "1", 1))
    one, two = (load_file(tmp_path / devices / "weights.safetensors") for devices in ("1", "2"))
    assert Run.open(tmp_path / "2").info["processes"] == 2
    for key in one:
        np.testing.assert_allclose(one[key], two[key], atol=1e-5, err_msg=key)


@pytest.mark.slow
def test_a_finished_run_is_opened_and_no_other_is_mixed_with_it(
    phantoms: Path, quick: Recipe, through: Run
) -> None:
    before = (through.path / "weights.safetensors").stat().st_mtime_ns
    assert trained(job(quick, phantoms, through.path)).info == through.info
    with pytest.raises(RunError, match="--resume"):
        train_job(job(quick, phantoms, through.path))
    with pytest.raises(RunError, match="seed was 0, is 1"):
        trained(job(quick, phantoms, through.path, seed=1))
    with pytest.raises(RunError, match="recipe has changed"):
        train_job(job(load_recipe("phantom-demo", QUICK), phantoms, through.path, resume=True))
    assert (through.path / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_what_is_damaged_is_named(phantoms: Path, quick: Recipe, through: Run, tmp_path: Path) -> None:
    run = shutil.copytree(through.path, tmp_path / "run")
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(RunError, match=r"last\.ckpt: damaged"):
        train_job(job(quick, phantoms, run, resume=True))
    (run / "weights.safetensors").write_bytes(b"junk")
    with pytest.raises(RunError, match=r"weights\.safetensors: damaged"):
        _ = Run.open(run).network
    (run / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged run"):
        Run.open(run)


@pytest.mark.slow
def test_a_run_of_an_older_format_is_refused(through: Run, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: mine\nnetwork: {name: resnet-18, mirror: true}\n")
    info = {key: value for key, value in through.info.items() if key != "format"}
    (tmp_path / "run.json").write_text(json.dumps(info))
    with pytest.raises(
        RunError, match="a run of format 1, this version of groundglass reads 3; train it again"
    ):
        Run.open(tmp_path)


def test_a_folder_of_anything_else_is_left_alone(phantoms: Path, quick: Recipe, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="holds no run"):
        train_job(job(quick, phantoms, tmp_path))
    with pytest.raises(RunError, match="no run here"):
        Run.open(tmp_path)


def test_what_cannot_be_trained_is_refused_before_slices_are_read_and_leaves_nothing_behind(
    phantoms: Path, lesion_free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_(*settings: str) -> Recipe:
        return load_recipe("phantom-demo", [*QUICK, *settings])

    quick, nowhere = with_(), with_("network.weights=/nowhere/weights.safetensors")
    (tmp_path / "file").touch()
    no_val = phantoms.parent / "no-val.csv"
    no_val.write_text(phantoms.read_text().replace(",val", ",train"))
    monkeypatch.setattr("groundglass.training.train.load_cropped", None)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**12, 0, 10**11))
    attempts: list[tuple[Recipe, Path, dict[str, object], str]] = [
        (quick, lesion_free, {}, "."),
        (quick, no_val, {}, "split official leaves nothing for the part val; training needs train and val"),
        (nowhere, phantoms, {}, "nowhere"),
        (quick, phantoms, {"devices": 3}, "cannot be shared by 3 processes"),
        (with_("optimiser.name=adamv"), phantoms, {}, "timm has no such optimiser; it has adam"),
        (with_("trainer.loggers=[mlflow]"), phantoms, {}, "mlflow is not installed; `pip install mlflow`"),
        (with_("network.name=nowhere:Net"), phantoms, {}, "network nowhere:Net: cannot be made"),
        (with_("augmenter=nowhere:Own"), phantoms, {}, "augmenter=nowhere:Own"),
        (quick, phantoms, {"accelerator": "moon"}, "--accelerator moon --devices 1: not on this machine"),
        (quick, phantoms, {"output": tmp_path / "file" / "run"}, "choose another --output"),
        (quick, phantoms, {"cache": tmp_path / "file"}, "choose another --cache"),
    ]
    if not torch.cuda.is_available():
        attempts.append((quick, phantoms, {"accelerator": "gpu"}, "not on this machine"))

    def refused(recipe: Recipe, data: Path, changes: dict[str, object], message: str) -> None:
        with pytest.raises(GroundglassError, match=message) as error:
            train_job(job(recipe, data, **{"output": tmp_path / "run", **changes}))  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()

    for attempt in attempts:
        refused(*attempt)
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    refused(quick, phantoms, {}, "1 MB are free and its checkpoints need 167")


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_training_in_one_line(
    phantoms: Path, quick: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672]\nNo space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(RunError, match=r"best\.ckpt: cannot be written .*--resume$") as error:
            train_job(job(quick, phantoms, tmp_path / "run"))
    assert "\n" not in str(error.value)
    assert train_job(job(quick, phantoms, tmp_path / "run", resume=True)).info["finished"]


@pytest.mark.slow
def test_own_network_augmentation_callbacks_and_loggers_are_trained_from_python(
    phantoms: Path, tmp_path: Path
) -> None:
    epochs: list[int] = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: object) -> None:
            epochs.append(trainer.current_epoch)

    settings = [
        "network.name=tests.training.distributed:Small",
        "augmenter=tests.training.distributed:Still",
        "trainer={loggers: [tensorboard, csv], accumulate_grad_batches: 2, precision: bf16-mixed}",
        # Nothing is learned, and so the second epoch is the last.
        "training.selection=val_auc",
        "training.early_stopping=1",
        "optimiser.lr=1e-12",
    ]
    cache, output = tmp_path / "cache", tmp_path / "run"
    run = train(
        "phantom-demo", phantoms, output, overrides=[*QUICK, *settings], threads=1, accelerator="cpu",
        cache=cache, callbacks=[Watch()],
    )  # fmt: skip
    assert epochs == [row["epoch"] for row in run.history()] == [0, 1]
    assert run.predict([phantoms.parent / "0.png"]).probability.shape == (1,)
    assert [axes.get_title() for axes in run.plot().axes[:2]] == ["Loss", "Validation"]
    assert (output / "curves.svg").read_text().startswith("<?xml")
    assert "lr-AdamW" in (output / "csv" / "metrics.csv").read_text().splitlines()[0]
    logged = EventAccumulator(str(output / "tensorboard")).Reload().Tags()["scalars"]
    assert any(tag.startswith("lr-AdamW") for tag in logged)
    assert "phantom-demo" in (output / "tensorboard" / "hparams.yaml").read_text()
    with pytest.raises(RecipeError, match="overrides change a recipe that is named"):
        train(run.recipe, phantoms, output, overrides=["training.epochs=2"])


@pytest.mark.slow
def test_workers_change_nothing(phantoms: Path, quick: Recipe, through: Run, tmp_path: Path) -> None:
    two = quick.model_copy(update={"trainer": quick.trainer.model_copy(update={"workers": 2})})
    run = train_job(job(two, phantoms, tmp_path / "run"))
    one, other = (load_file(each.path / "weights.safetensors") for each in (through, run))
    assert all(np.array_equal(one[key], other[key]) for key in one)
    assert trained(job(quick, phantoms, run.path)).info["finished"], "and may differ where it is resumed"


def test_a_plan_counts_times_and_leaves_nothing(phantoms: Path, quick: Recipe, tmp_path: Path) -> None:
    known = plan(job(quick, phantoms, tmp_path / "run"))
    parts = {(part, label): count for (part, _, label), count in known.counts.items()}
    assert parts == {
        ("train", "COVID"): 12,
        ("train", "NonCOVID"): 12,
        ("val", "COVID"): 4,
        ("val", "NonCOVID"): 4,
    }
    assert known.batches == 3
    assert known.seconds > 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings end where they would begin to learn."""

    def stop(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("groundglass.training.train.fit", stop)


def test_weights_pretrained_with_another_normalisation_are_warned_of(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, stopped: None
) -> None:
    def warnings(name: str, *settings: str) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING), pytest.raises(InterruptedError):
            train_job(job(load_recipe("phantom-demo", [*QUICK, *settings]), phantoms, tmp_path / name))
        return [each.getMessage() for each in caplog.records if each.name.startswith("groundglass")]

    (warning,) = warnings("c2l", "network.weights=c2l")
    assert "weights c2l were pretrained with normalisation two-anchor" in warning
    assert "has zero-mean" in warning
    assert "\n" not in warning
    assert warnings("none", "network.weights=none") == []


def test_without_lesion_free_slices_nothing_is_painted_and_that_is_said(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, stopped: None
) -> None:
    settings = [each for each in QUICK if "batch" not in each]
    with pytest.raises(InterruptedError):
        train_job(job(load_recipe("mask-efficientnet", settings), phantoms, tmp_path / "run"))
    assert Run.open(tmp_path / "run").recipe.synthesis.slices_per_epoch == 0
    assert "trained without lesion synthesis" in caplog.text


def test_every_recipe_normalises_as_the_code_and_pretraining_do() -> None:
    from groundglass.imaging.crop import Preprocessing
    from groundglass.training.recipe import load_pretrain_recipe, recipe_names

    recipes = [load_recipe(name) for name in (*recipe_names(), *(entry.name for entry in entries()))]
    used = {recipe.preprocessing.normalisation for recipe in (*recipes, load_pretrain_recipe("c2l"))}
    assert used == {Preprocessing().normalisation} == {"zero-mean"}
