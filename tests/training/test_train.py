"""Trainings end to end on phantoms: learning, resuming after a kill, processes side by side; of LungNet as well."""

import logging
import math
import shutil
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import cv2
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tests.conftest import Patch
from torch import Tensor, nn
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.errors import DataError, GroundglassError, RecipeError, RunError
from groundglass.files import locked, write_json
from groundglass.imaging.lungs import SIDE, LungSegmenter, shipped, squared
from groundglass.imaging.phantom import Phantom, make_phantom
from groundglass.imaging.read import read_slice
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.models.lung_net import LungNet
from groundglass.models.registry import build
from groundglass.training import lungs as lung
from groundglass.training.classify import Classifier
from groundglass.training.recipe import Recipe, load_lungs_recipe, load_recipe
from groundglass.training.run import WEIGHTS, Run, read_info
from groundglass.training.samples import SampleKey
from groundglass.training.train import plan, train, train_job

from .conftest import BEST, QUICK, QUICK_RECIPE, Small, assert_same_weights, command, job, kill_after_an_epoch

DEMO = ("--recipe", "phantom-demo", "--no-audit")
SMALL = "network.name=tests.training.conftest:Small"
LUNG_SETTINGS = ("draws=32", "training.epochs=2", "training.batch_size=8", "phantoms=0.125", "empty=0.125")
LUNG_RECIPE: Any = load_lungs_recipe("lungs", LUNG_SETTINGS)


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
    assert len(set(run.info["training_sha256"])) == 24 + 6, "what was painted into taught, too"


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGINT])
def test_stopped_it_is_resumed(phantoms: Path, done: Run, tmp_path: Path, by: signal.Signals) -> None:
    path = tmp_path / "run"
    stopped = kill_after_an_epoch(command("train", phantoms, path, BEST, *DEMO), path, by)
    if by is signal.SIGINT:
        assert (stopped.status, stopped.err) == (130, f"{path}: interrupted, continue it with --resume\n")
    with pytest.raises(RunError, match="not finished"):
        _ = Run.open(path).network
    with locked(path), pytest.raises(RunError, match="another process trains in it; wait until it has ended"):
        train_job(job(QUICK_RECIPE, phantoms, path, resume=True))
    if by is signal.SIGKILL:
        full = RuntimeError("[enforce fail at inline_container.cc:672]\nNo space left on device")
        with patch("torch.save", side_effect=full), pytest.raises(RunError, match=r"ckpt: cannot be .*--resume$"):
            train_job(job(QUICK_RECIPE, phantoms, path, resume=True))
        (path / "checkpoints" / "last.ckpt").unlink()  # without which it starts anew
    # Worker processes change nothing of the result, and may differ where a run is resumed.
    recipe = load_recipe("phantom-demo", [*BEST, f"trainer.workers={2 * (by is signal.SIGINT)}"])
    resumed = train_job(job(recipe, phantoms, path, resume=True))
    assert_same_weights(done.path, resumed.path)
    before, after = ([{**row, "seconds": 0} for row in run.history()] for run in (done, resumed))
    assert before == after


@pytest.mark.slow
def test_two_processes_train_what_one_does(phantoms: Path, tmp_path: Path) -> None:
    own, outputs = [*QUICK, SMALL, "training.epochs=2"], (tmp_path / "1", tmp_path / "2")
    alone, asked = (command("train", phantoms, each, own, *DEMO, "--devices", each.name) for each in outputs)
    here = Path(__file__).parents[2]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=300, check=False, cwd=here)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("2 epochs, validation AUC") == 1, "only the first process says how it ended"
    assert "2 epochs, validation AUC" in CliRunner().invoke(app, alone[3:]).stdout
    assert Run.open(outputs[1]).info["processes"] == 2
    assert_same_weights(*outputs, tolerance=1e-5)


def test_on_several_gpus_normalisations_keep_their_activations(tmp_path: Path, monkeypatch: Patch) -> None:
    module, images = Classifier(build("resnet-18"), QUICK_RECIPE, 1, 0, 0.5).eval(), torch.randn(2, 1, 64, 64)
    before = module.network(images).embedding
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("groundglass.training.trainer.Trainer", Mock(side_effect=LookupError))
    with pytest.raises(LookupError):
        job(QUICK_RECIPE, None, tmp_path, accelerator="gpu", devices=2, loggers=()).fit(module, Mock())
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in module.network.modules())
    assert torch.equal(module.network(images).embedding, before)


@pytest.mark.slow
def test_a_finished_run_is_mixed_with_no_other(phantoms: Path, done: Run) -> None:
    assert train_job(job(QUICK_RECIPE, phantoms, done.path, resume=True)).info == done.info
    for recipe, changes, said in (
        (QUICK_RECIPE, {}, "--resume"),
        (QUICK_RECIPE, {"seed": 1, "resume": True}, "seed was 0, is 1"),
        (demo(), {"resume": True}, "recipe has changed"),
        (QUICK_RECIPE, {"data": (Path("other.csv"),), "resume": True}, r"data was \['"),
    ):
        with pytest.raises(RunError, match=said):
            train_job(replace(job(recipe, phantoms, done.path), **changes))


@pytest.mark.slow
def test_what_is_damaged_is_named(phantoms: Path, done: Run, tmp_path: Path) -> None:
    run = shutil.copytree(done.path, tmp_path / "run")
    write_json(run / "run.json", {**done.info, "finished": False})
    for name, use in (
        ("checkpoints/last.ckpt", lambda: train_job(job(QUICK_RECIPE, phantoms, run, resume=True))),
        ("weights.safetensors", lambda: Run.open(run).network),
        ("lungs.onnx", lambda: Run.open(run).lungs),
    ):
        (run / name).write_bytes(b"junk")
        with pytest.raises(GroundglassError, match=rf"{name}: (damaged|cannot be)"):
            use()
    (run / "recipe.yaml").write_text("name: mine\nnetwork: {name: resnet-18, mirror: true}\n")
    for info, said in (("{}", "a run of format 1, this version of groundglass reads"), ("{", "damaged run")):
        (run / "run.json").write_text(info)
        with pytest.raises(RunError, match=said):
            Run.open(run)
    with pytest.raises(RunError, match="no run here"):
        Run.open(tmp_path)


def test_what_cannot_be_trained(phantoms: Path, lesion_free: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    """It is refused before slices are read, and leaves nothing behind."""
    (file := tmp_path / "file").touch()
    (papers := tmp_path / "papers").mkdir()
    (papers / "thesis.txt").write_text("precious")
    (no_val := phantoms.parent / "no-val.csv").write_text(phantoms.read_text().replace(",val", ",train"))
    monkeypatch.setattr("groundglass.training.train.load_cropped", None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for setting, changes, message in (
        ("", {"data": (lesion_free,)}, "slices have no label"),
        ("", {"data": (no_val,)}, "leaves nothing for the part val; training needs train and val"),
        ("network.weights=/nowhere/weights.safetensors", {}, "nowhere"),
        *((f"{name}={{foo: 1}}", {}, f"{name}=.*foo") for name in ("network.options", "optimiser.schedule_options")),
        ("optimiser.options={eps: small}", {}, r"optimiser\.options=.*small"),
        *(("", {"devices": count}, f"cannot be shared by {count} processes") for count in (0, 3)),
        ("optimiser.name=adamv", {}, "timm has no such optimiser; it has adam"),
        ("trainer.loggers=[mlflow]", {}, "mlflow is not installed; `pip install mlflow`"),
        ("network.name=nowhere:Net", {}, "network nowhere:Net: cannot be made"),
        *((f"augmenter={own}", {}, f"augmenter={own}") for own in ("nowhere:Own", "os:system")),
        ("trainer.precision=16-mixed", {}, "16-mixed: needs a GPU"),
        ("sampling.leave_out=[phantom]", {}, "sampling.leave_out leaves no slice"),
        ("", {"accelerator": "moon"}, "--accelerator moon --devices 1: not on this machine"),
        *(("", {option: file / "x"}, f"choose another --{option}") for option in ("output", "cache")),
        ("", {"output": papers}, "holds no run"),
        ("", {}, "1 MB are free and its checkpoints need 167"),
    ):
        disk = shutil._ntuple_diskusage(10**12, 0, 10**6 if "free" in message else 10**11)
        monkeypatch.setattr("shutil.disk_usage", lambda _, disk=disk: disk)
        for begin in (plan, train_job):
            with pytest.raises(GroundglassError, match=message) as error:
                begin(replace(job(demo(*filter(None, [setting])), phantoms, tmp_path / "run"), **changes))
        assert "\n" not in str(error.value)
        assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_own_networks_callbacks_and_loggers_are_trained_from_python(phantoms: Path, tmp_path: Path) -> None:
    epochs, norms = list[int](), list[float]()

    def watched(_: Any, module: Any, optimiser: Any) -> None:
        assert optimiser.defaults["fused"]
        gradients = [each.grad for each in module.network.parameters() if each.grad is not None]
        norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    end: Any = {"on_train_epoch_end": lambda trainer, _: epochs.append(trainer.current_epoch)}
    watch = LambdaCallback(**end, on_before_zero_grad=watched)
    settings = [
        *(*QUICK, SMALL, "optimiser.gradient_clip=1e-3"),
        "trainer={accumulate_grad_batches: 2, precision: bf16-mixed}",
        # Nothing is learned, and so the second epoch is the last.
        *("training.selection=val_auc", "training.early_stopping=1", "optimiser.lr=1e-12"),
    ]
    output, own = tmp_path / "run", {"accelerator": "cpu", "callbacks": [watch]}
    run = train("phantom-demo", phantoms, output, overrides=settings, threads=1, **own)
    assert epochs == [row["epoch"] for row in run.history()] == [0, 1]
    assert max(norms) == pytest.approx(1e-3, rel=0.01), "of the clipped gradients"
    said = run.predict([phantoms.parent / "0.png"])
    assert (said.probability.shape, said.lesion_map) == ((1,), None)
    assert [axes.get_title() for axes in run.plot().axes[:2]] == ["Loss", "Validation"]
    assert (output / "curves.svg").read_text().startswith("<?xml")
    logged = EventAccumulator(str(output / "tensorboard")).Reload().Tags()["scalars"]
    assert any(tag.startswith("lr-AdamW") for tag in logged)
    assert "phantom-demo" in (output / "tensorboard" / "hparams.yaml").read_text()
    write_json(output / "run.json", {**run.info, "finished": False})
    train("phantom-demo", phantoms, output, overrides=settings, threads=1, resume=True, **own)
    assert epochs == [0, 1], "it had stopped before it was killed"
    with pytest.raises(RecipeError, match="overrides change a recipe that is named"):
        train(run.recipe, phantoms, output, overrides=["training.epochs=2"])


def test_doubts_are_said(phantoms: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Patch) -> None:
    """What is changed or doubtful is said before it begins."""
    monkeypatch.delattr("groundglass.training.trainer.Job.fit")

    def warnings(recipe: Recipe, name: str) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.WARNING), pytest.raises(AttributeError):
            train_job(job(recipe, phantoms, tmp_path / name))
        return [each.getMessage() for each in caplog.records if each.name.startswith("groundglass")]

    (warning,) = warnings(demo("network.weights=c2l", "preprocessing.normalisation=min-max"), "c2l")
    assert "weights c2l were pretrained with normalisation zero-mean, recipe phantom-demo has min-" in warning
    assert warnings(demo("optimiser.schedule=wsd"), "none") == []
    (warning,) = warnings(load_recipe("mask-efficientnet", [*QUICK, "training.batch_size=32"]), "painted")
    assert "trained without lesion synthesis" in warning
    assert Run.open(tmp_path / "painted").recipe.synthesis.slices_per_epoch == 0


def test_a_run_predicts_on_the_gpu_and_logits_do_not_overflow(monkeypatch: Patch) -> None:
    run, moved = Run(Path("run"), load_recipe("phantom-demo"), {}), list[tuple[object, bool]]()
    run.__dict__.update(network=Small(), lungs=shipped())
    nn.init.constant_(run.network.classifier.bias, -2000)
    for kind in (nn.Module, Tensor):
        monkeypatch.setattr(kind, "to", lambda self, device: moved.append((device, self is run.network)) or self)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with np.errstate(all="raise", under="ignore"):
        said = run.predict([CTSlice(np.zeros((64, 64), np.uint8), Origin("x", "PNG"))] * 2)
    assert said.probability.tolist() == [0.0] * 2
    # A copy of the network, as what is exported stays where it is; and the images to where the copy is.
    assert moved == [("cuda", False), (torch.device("cpu"), False)]


def phantom(number: int) -> Phantom:
    return make_phantom(np.random.default_rng(number), 0.5 * (number % 2), 0.5, size=128)


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten phantoms with lung masks, one that tests, two with lesion masks alone, and one with neither."""
    folder = tmp_path_factory.mktemp("lungs")
    lines = ["path,patient_id,source,split,lung_mask,lesion_mask"]
    for number in range(14):
        drawn, mask = phantom(number), f"{number}-lungs.png"
        masks = f"{mask}," if number < 11 else f",{mask}" if number < 13 else ","
        cv2.imwrite(str(folder / f"{number}.png"), drawn.slice.pixels)
        cv2.imwrite(str(folder / mask), drawn.lungs.astype(np.uint8) * 255)
        lines.append(f"{number}.png,p{number},ward,{'test' if number == 10 else ''},{masks}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


@pytest.mark.slow
def test_a_run_of_lungs_is_resumed_and_exported(masked: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(lung, "_PHANTOMS", 4)
    monkeypatch.setattr(lung, "_EMPTY", 4)
    run, stopped, model = tmp_path / "run", tmp_path / "stopped", tmp_path / "lungs.onnx"
    trained = CliRunner().invoke(app, command("train", masked, run, LUNG_SETTINGS, "--recipe", "lungs")[3:])
    assert trained.exit_code == 0, trained.output
    assert "lung-net, Dice" in trained.output
    info = read_info(run)
    assert (info["kind"], info["finished"], info["sources"]) == ("lungs", True, ["ward"])
    # Two of ten patients are held out; two slices with lesion masks teach, the test part is left alone.
    assert info["counts"] == {"train": 10, "val": 2}

    def stop(self: lung.LungTrainer) -> None:
        if self.current_epoch == 1:
            raise LookupError

    with patch.object(lung.LungTrainer, "on_train_epoch_start", stop), pytest.raises(LookupError):
        lung.train_lungs(job(LUNG_RECIPE, masked, stopped))
    with pytest.raises(RunError, match="not finished"):
        lung.export_lungs(stopped, model)
    lung.train_lungs(job(LUNG_RECIPE, masked, stopped, resume=True))
    assert_same_weights(run, stopped)
    exported = CliRunner().invoke(app, ["export", str(run), "--output", str(model)])
    assert exported.exit_code == 0, exported.output
    segmenter, network, pixels = LungSegmenter(model.read_bytes()), LungNet().eval(), phantom(0).slice.pixels
    assert segmenter.notes["fingerprint"] == info["fingerprint"]
    network.load_state_dict(load_file(run / WEIGHTS))
    slices = squared(pixels)[None, None] / np.float32(255)
    with torch.no_grad():
        expected = network(torch.from_numpy(slices)).numpy()
    np.testing.assert_allclose(segmenter._session.run(None, {"slice": slices})[0], expected, atol=1e-3)
    assert segmenter(pixels).shape == (128, 128)
    lung.train_lungs(job(LUNG_RECIPE, masked, run, resume=True))
    assert read_info(run) == info, "it had finished"


def test_too_little_to_learn_from_is_said(masked: Path, tmp_path: Path) -> None:
    lines, few = masked.read_text().splitlines(), masked.with_name("few.csv")
    for kept, message in ((0, "a column lung_mask"), (2, "too few patients")):
        few.write_text("\n".join([*lines[: kept + 1], lines[-1]]) + "\n")
        with pytest.raises(DataError, match=message):
            lung.train_lungs(job(LUNG_RECIPE, few, tmp_path / "run"))
    for setting in ("network.weights=imagenet", "network.options={width: 2}"):
        with pytest.raises(RecipeError, match="LungNet takes none"):
            lung.train_lungs(job(load_lungs_recipe("lungs", [*LUNG_SETTINGS, setting]), masked, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_is_known_of_a_slice_is_augmented_with_lungs_in_sight_and_disease_in_them(masked: Path) -> None:
    records = load_dataset(masked).records
    whole, partial = map(lung.load_lung_slice, (replace(records[0], collection="papers"), records[11]))
    assert (whole[0], whole.partial, partial[0], partial.partial) == ("papers", False, "ward", True)
    assert whole.lungs.mean() == pytest.approx(phantom(0).lungs.mean(), rel=0.02)
    slices, lungs, known = lung.LungSamples([whole, partial])[[SampleKey(n, False, False, (0, 0, n)) for n in (0, 1)]]
    assert slices.shape == lungs.shape == known.shape == (2, 1, SIDE, SIDE)
    assert 0 <= slices.min() < slices.max() <= 1
    assert set(lungs.unique().tolist()) == {0, 1}
    assert known[0].all()
    assert torch.equal(known[1], lungs[1])
    first, *others = [lung.augmented(whole, np.random.default_rng(seed)) for seed in (3, 3, *range(12))]
    np.testing.assert_array_equal(first, others[0])
    assert all(0.03 < seen.mean() < 0.9 for _, seen in others)
    inside, pixels = whole.lungs > 0, whole.pixels.astype(int)
    solid = lung._solid(whole.pixels, inside, np.random.default_rng(0)).astype(int)
    assert solid[inside].mean() > pixels[inside].mean() + 20
    np.testing.assert_allclose(solid[:20], pixels[:20], atol=1)


def test_the_loss_counts_known_places_alone() -> None:
    made, lungs = lung.LungTrainer(LUNG_RECIPE, 4, 0), torch.ones(1, 1, 4, 4)
    made.log = lambda *_, **__: None
    made.network.forward = lambda slices: torch.zeros(1, 1, 2, 2)
    known = lungs.clone()
    known[..., 2:, :] = 0
    expected = math.log(2) + 1 - (2 * 8 * 0.5 + 50) / (8 * 0.5 + 8 + 50)
    assert made.training_step((lungs, lungs, known), 0).item() == pytest.approx(expected, rel=1e-5)
