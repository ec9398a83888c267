"""Trainings end to end on phantoms: learning, resuming after a kill, processes side by side; and what runs predict."""

from __future__ import annotations

import json
import logging
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.errors import BundleError, GroundglassError, RecipeError, RunError
from groundglass.files import write_json
from groundglass.imaging.lungs import shipped
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.read import read_slice
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.models.layers import NetworkOutput
from groundglass.models.registry import build
from groundglass.training.recipe import Recipe, load_recipe
from groundglass.training.run import LUNGS, Run
from groundglass.training.samples import to_images
from groundglass.training.train import train, train_job

from .conftest import QUICK, assert_same_weights, command, job, kill_after_an_epoch

DEMO = ("--recipe", "phantom-demo", "--no-audit")


def demo(*settings: str) -> Recipe:
    return load_recipe("phantom-demo", [*QUICK, *settings])


@pytest.mark.slow
def test_it_learns_phantoms(phantoms: Path, lesion_free: Path, tmp_path: Path) -> None:
    settings = ["network.weights=imagenet", "training.epochs=5", "training.ema_decay=0.7"]
    recipe = demo(*settings, "preprocessing.size=96", "synthesis={slices_per_epoch: 8, mimics: 0.5}")
    run = train_job(job(recipe, phantoms, tmp_path / "run", lesion_free=lesion_free))
    last = run.history()[-1]
    assert last["val_auc"] >= 0.9
    records = [record for record in load_dataset(phantoms).records if record.split == "val"]
    predictions = run.predict(read_slice(record.path) for record in records)
    truth = np.array([record.label == "COVID" for record in records])
    loss = -np.log(np.where(truth, predictions.probability, 1 - predictions.probability)).mean()
    # The stored weights, preprocessing and reading give what validation measured during training.
    assert loss == pytest.approx(last["val_loss"], abs=1e-3)
    assert np.shape(predictions.lesion_map) == (8, 24, 24)
    assert (run.info["finished"], run.info["format"], run.info["selected_epoch"]) == (True, 3, 4)
    assert run.info["counts"] == {"train": 24, "val": 8, "lesion_free": 6}


@pytest.mark.slow
def test_killed_it_is_resumed(phantoms: Path, quick: Recipe, through: Run, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    started = command("train", phantoms, killed, [*QUICK, "training.selection=val_loss"], *DEMO)
    kill_after_an_epoch(started, killed)
    assert not (killed / "weights.safetensors").exists()
    assert not json.loads((killed / "run.json").read_text())["finished"]
    with pytest.raises(RunError, match="not finished"):
        _ = Run.open(killed).network
    resumed = train_job(job(quick, phantoms, killed, resume=True))
    assert_same_weights(through.path, resumed.path)
    measured = [
        [[row[key] for key in ("epoch", "lr", "train_loss", "val_loss")] for row in run.history()]
        for run in (through, resumed)
    ]
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_an_interrupt_ends_in_one_line_that_names_resume(phantoms: Path, tmp_path: Path) -> None:
    interrupted = command("train", phantoms, tmp_path / "run", QUICK, *DEMO)
    ended = kill_after_an_epoch(interrupted, tmp_path / "run", signal.SIGINT)
    assert ended == (130, f"{tmp_path / 'run'}: interrupted, continue it with --resume\n")


@pytest.mark.slow
def test_two_processes_train_what_one_does(phantoms: Path, tmp_path: Path) -> None:
    small = ("network.name=tests.training.conftest:Small", "training.epochs=2")
    asked = command("train", phantoms, tmp_path / "2", [*QUICK, *small], *DEMO, "--devices", "2")
    here = Path(__file__).parents[2]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300, check=False, cwd=here)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("2 epochs, validation AUC") == 1, "only the first process says how it ended"
    alone = command("train", phantoms, tmp_path / "1", [*QUICK, *small], *DEMO)[3:]
    assert "2 epochs, validation AUC" in CliRunner().invoke(app, alone).stdout
    assert Run.open(tmp_path / "2").info["processes"] == 2
    assert_same_weights(tmp_path / "1", tmp_path / "2", tolerance=1e-5)


@pytest.mark.slow
def test_a_finished_run_is_mixed_with_no_other(phantoms: Path, quick: Recipe, through: Run) -> None:
    before = (through.path / "weights.safetensors").stat().st_mtime_ns
    assert train_job(job(quick, phantoms, through.path, resume=True)).info == through.info
    with pytest.raises(RunError, match="--resume"):
        train_job(job(quick, phantoms, through.path))
    with pytest.raises(RunError, match="seed was 0, is 1"):
        train_job(job(quick, phantoms, through.path, seed=1, resume=True))
    with pytest.raises(RunError, match="recipe has changed"):
        train_job(job(demo(), phantoms, through.path, resume=True))
    assert (through.path / "weights.safetensors").stat().st_mtime_ns == before


@pytest.mark.slow
def test_what_is_damaged_is_named(phantoms: Path, quick: Recipe, through: Run, tmp_path: Path) -> None:
    run = shutil.copytree(through.path, tmp_path / "run")
    write_json(run / "run.json", {**through.info, "finished": False})
    checkpoint = run / "checkpoints" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    with pytest.raises(RunError, match=r"last\.ckpt: damaged"):
        train_job(job(quick, phantoms, run, resume=True))
    (run / "weights.safetensors").write_bytes(b"junk")
    with pytest.raises(RunError, match=r"weights\.safetensors: damaged"):
        _ = Run.open(run).network
    (run / "recipe.yaml").write_text("name: mine\nnetwork: {name: resnet-18, mirror: true}\n")
    write_json(run / "run.json", {key: value for key, value in through.info.items() if key != "format"})
    with pytest.raises(RunError, match="a run of format 1, this version of groundglass reads 3; train it"):
        Run.open(run)
    (run / "run.json").write_text("{")
    with pytest.raises(RunError, match="damaged run"):
        Run.open(run)
    with pytest.raises(RunError, match="no run here"):
        Run.open(tmp_path)


def test_what_cannot_be_trained_is_refused_before_slices_are_read_and_leaves_nothing_behind(
    phantoms: Path, lesion_free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, nowhere = demo(), demo("network.weights=/nowhere/weights.safetensors")
    (tmp_path / "file").touch()
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("precious")
    no_val = phantoms.parent / "no-val.csv"
    no_val.write_text(phantoms.read_text().replace(",val", ",train"))
    monkeypatch.setattr("groundglass.training.train.load_cropped", None)
    attempts: list[tuple[Recipe, Path, dict[str, object], str]] = [
        (quick, lesion_free, {}, "slices have no label"),
        (quick, no_val, {}, "split official leaves nothing for the part val; training needs train and val"),
        (nowhere, phantoms, {}, "nowhere"),
        (quick, phantoms, {"devices": 3}, "cannot be shared by 3 processes"),
        (demo("optimiser.name=adamv"), phantoms, {}, "timm has no such optimiser; it has adam"),
        (demo("trainer.loggers=[mlflow]"), phantoms, {}, "mlflow is not installed; `pip install mlflow`"),
        (demo("network.name=nowhere:Net"), phantoms, {}, "network nowhere:Net: cannot be made"),
        (demo("augmenter=nowhere:Own"), phantoms, {}, "augmenter=nowhere:Own"),
        (quick, phantoms, {"accelerator": "moon"}, "--accelerator moon --devices 1: not on this machine"),
        (quick, phantoms, {"output": tmp_path / "file" / "run"}, "choose another --output"),
        (quick, phantoms, {"output": tmp_path / "papers"}, "holds no run"),
        (quick, phantoms, {"cache": tmp_path / "file"}, "choose another --cache"),
        (quick, phantoms, {}, "1 MB are free and its checkpoints need 167"),
    ]
    if not torch.cuda.is_available():
        attempts.append((quick, phantoms, {"accelerator": "gpu"}, "not on this machine"))
    for recipe, data, changes, message in attempts:
        disk = shutil._ntuple_diskusage(10**12, 0, 10**6 if "free" in message else 10**11)
        monkeypatch.setattr("shutil.disk_usage", lambda _, disk=disk: disk)
        with pytest.raises(GroundglassError, match=message) as error:
            train_job(job(recipe, data, **{"output": tmp_path / "run", **changes}))  # type: ignore[arg-type]
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_disk_that_fills_up_ends_the_training_in_one_line(
    phantoms: Path, quick: Recipe, through: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672]\nNo space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("torch.save", full)
        with pytest.raises(RunError, match=r"best\.ckpt: cannot be written .*--resume$") as error:
            train_job(job(quick, phantoms, tmp_path / "run"))
    assert "\n" not in str(error.value)
    # Worker processes change nothing of the result, and may differ where a run is resumed.
    two = quick.model_copy(update={"trainer": quick.trainer.model_copy(update={"workers": 2})})
    assert_same_weights(through.path, train_job(job(two, phantoms, tmp_path / "run", resume=True)).path)


@pytest.mark.slow
def test_own_networks_callbacks_and_loggers_are_trained_from_python(phantoms: Path, tmp_path: Path) -> None:
    epochs: list[int] = []

    class Watch(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: object) -> None:
            epochs.append(trainer.current_epoch)

    settings = [
        "network.name=tests.training.conftest:Small",
        "augmenter=tests.training.conftest:Still",
        "trainer={loggers: [tensorboard, csv], accumulate_grad_batches: 2, precision: bf16-mixed}",
        # Nothing is learned, and so the second epoch is the last.
        "training.selection=val_auc",
        "training.early_stopping=1",
        "optimiser.lr=1e-12",
    ]
    output = tmp_path / "run"
    own: dict[str, Any] = {"threads": 1, "accelerator": "cpu", "callbacks": [Watch()]}
    run = train("phantom-demo", phantoms, output, overrides=[*QUICK, *settings], **own)
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


def test_what_is_changed_or_doubtful_is_said_before_it_begins(
    phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise InterruptedError

    monkeypatch.setattr("groundglass.training.trainer.Job.fit", stop)

    def warnings(recipe: Recipe, name: str) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING), pytest.raises(InterruptedError):
            train_job(job(recipe, phantoms, tmp_path / name))
        return [each.getMessage() for each in caplog.records if each.name.startswith("groundglass")]

    (warning,) = warnings(demo("network.weights=c2l", "preprocessing.normalisation=min-max"), "c2l")
    assert "weights c2l were pretrained with normalisation zero-mean" in warning
    assert "has min-max" in warning
    assert "\n" not in warning
    assert warnings(demo(), "none") == []
    (warning,) = warnings(load_recipe("mask-efficientnet", [*QUICK, "training.batch_size=32"]), "painted")
    assert "trained without lesion synthesis" in warning
    assert Run.open(tmp_path / "painted").recipe.synthesis.slices_per_epoch == 0


# What a run says of slices, and on which device.


def run_of(network: nn.Module) -> Run:
    """A run at 64 pixels with that network, whose files do not exist."""
    run = Run(Path("run"), load_recipe("phantom-demo", ["preprocessing.size=64"]), {})
    run.__dict__.update(network=network, lungs=shipped())
    return run


@pytest.mark.parametrize("lesions", [True, False])
def test_batches_say_what_single_slices_say(lesions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundglass.training.run._BATCH", 2)
    network = build("mask-efficientnet-lite0", lesions=lesions).eval()
    nn.init.normal_(network.head.classifier.weight, std=0.05)
    phantoms = [make_phantom(np.random.default_rng(seed), level=0.5, size=128).slice for seed in range(3)]
    run = run_of(network)
    said = run.predict(phantoms)
    with torch.no_grad():
        single = [network(to_images(cut.pixels[None], run.preprocessing)) for cut in said.cuts]
    np.testing.assert_allclose(said.logit, torch.cat([each.logit for each in single]), rtol=1e-4, atol=1e-5)
    assert said.logit.std() > 0
    assert said.probability == pytest.approx(1 / (1 + np.exp(-said.logit)))
    assert (said.lesion_map is not None) == lesions
    if said.lesion_map is not None:
        maps = torch.cat([each.lesion_map for each in single])
        np.testing.assert_allclose(said.lesion_map, maps, rtol=1e-4, atol=1e-4)
    for phantom, cut in zip(phantoms, said.cuts, strict=True):
        np.testing.assert_array_equal(cut.lungs, shipped()(phantom.pixels))
    none = run.predict([])
    assert (none.logit.shape, none.lesion_map, none.cuts) == ((0,), None, [])


def test_a_run_finds_lungs_with_its_own_model(tmp_path: Path) -> None:
    run = Run(tmp_path, load_recipe("phantom-demo"), {})
    with pytest.raises(BundleError, match=r"lungs\.onnx: cannot be read"):
        _ = run.lungs
    (tmp_path / LUNGS).write_bytes(shipped().model)
    assert run.lungs.sha256 == shipped().sha256


class Elsewhere(nn.Module):
    """Moved to a GPU, it is on a device that tests have everywhere; it notes where its images are, and is very sure."""

    seen: str

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))

    def to(self, device: str) -> Elsewhere:  # type: ignore[override]
        assert device == "cuda"
        self.weight = nn.Parameter(torch.empty(1, device="meta"))
        return self

    def forward(self, images: Tensor) -> NetworkOutput:
        Elsewhere.seen = images.device.type
        return NetworkOutput(torch.full((len(images),), -2000.0), None, torch.zeros(len(images), 1))


def test_a_run_predicts_on_the_gpu_where_there_is_one_and_confident_logits_do_not_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_of(Elsewhere())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with np.errstate(all="raise", under="ignore"):
        said = run.predict([CTSlice(np.zeros((64, 64), np.uint8), Origin("x", "PNG"))] * 2)
    assert said.probability.tolist() == [0.0] * 2
    assert Elsewhere.seen == "meta"
    assert next(run.network.parameters()).device.type == "cpu", "what is exported stays where it is"
