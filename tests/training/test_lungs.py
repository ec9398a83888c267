"""LungNet from slices with masks to the model that finds lungs everywhere else."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.errors import DataError, RunError
from groundglass.imaging.lungs import SIDE, LungSegmenter, squared
from groundglass.imaging.phantom import Phantom, make_phantom
from groundglass.models.lung_net import LungNet
from groundglass.training import lungs as training
from groundglass.training.lungs import LungSamples, LungTrainer, load_lung_slice, train_lungs
from groundglass.training.recipe import LungsRecipe, load_lungs_recipe
from groundglass.training.run import WEIGHTS, read_info

from .conftest import assert_same_weights, command, job

SETTINGS = ("draws=32", "training.epochs=2", "training.batch_size=8", "phantoms=0.125", "empty=0.125")


@pytest.fixture(scope="module", autouse=True)
def _few_synthetic() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_PHANTOMS", "_EMPTY"):
            patch.setattr(training, name, 4)
        yield


def phantom(number: int) -> Phantom:
    return make_phantom(np.random.default_rng(number), 0.5 * (number % 2), 0.5, size=128)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten phantoms with lung masks, one that tests, two with lesion masks alone, and one with neither."""
    folder = tmp_path_factory.mktemp("lungs")
    lines = ["path,patient_id,source,split,lung_mask,lesion_mask"]
    for number in range(14):
        drawn = phantom(number)
        masks = f"{number}-lungs.png," if number < 11 else f",{number}-lungs.png" if number < 13 else ","
        cv2.imwrite(str(folder / f"{number}.png"), drawn.slice.pixels)
        cv2.imwrite(str(folder / f"{number}-lungs.png"), drawn.lungs.astype(np.uint8) * 255)
        lines.append(f"{number}.png,p{number},ward,{'test' if number == 10 else ''},{masks}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


def recipe() -> LungsRecipe:
    made = load_lungs_recipe("lungs", SETTINGS)
    assert made is not None
    return made


@pytest.fixture(scope="module")
def through(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained to its end by the command; not to be written to."""
    run = tmp_path_factory.mktemp("through") / "run"
    result = CliRunner().invoke(app, command("train", data, run, SETTINGS, "--recipe", "lungs")[3:])
    assert result.exit_code == 0, result.output
    assert "lung-net, Dice" in result.output
    return run


@pytest.mark.slow
def test_a_run_says_what_it_learned_from_and_is_exported(through: Path, tmp_path: Path) -> None:
    info = read_info(through)
    assert (info["kind"], info["finished"], info["sources"]) == ("lungs", True, ["ward"])
    # Two of ten patients are held out; two slices with lesion masks teach, the test part is left alone.
    assert info["counts"] == {"train": 10, "val": 2}
    assert info["parameters"] < 500_000
    result = CliRunner().invoke(app, ["export", str(through), "--output", str(tmp_path / "lungs.onnx")])
    assert result.exit_code == 0, result.output
    segmenter = LungSegmenter((tmp_path / "lungs.onnx").read_bytes())
    assert segmenter.notes["fingerprint"] == info["fingerprint"]
    network = LungNet().eval()
    network.load_state_dict(load_file(through / WEIGHTS))
    pixels = phantom(0).slice.pixels
    slices = squared(pixels)[None, None] / np.float32(255)
    with torch.no_grad():
        expected = network(torch.from_numpy(slices)).numpy()
    np.testing.assert_allclose(segmenter._session.run(None, {"slice": slices})[0], expected, atol=1e-3)
    assert segmenter(pixels).shape == (128, 128)


@pytest.mark.slow
def test_stopped_and_resumed_it_ends_with_the_same_weights(
    data: Path, through: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(self: LungTrainer) -> None:
        if self.current_epoch == 1:
            raise LookupError

    with monkeypatch.context() as patch:
        patch.setattr(LungTrainer, "on_train_epoch_start", stop, raising=False)
        with pytest.raises(LookupError):
            train_lungs(job(recipe(), data, tmp_path / "run"))
    with pytest.raises(RunError, match="has not finished"):
        training.export_lungs(tmp_path / "run", tmp_path / "lungs.onnx")
    train_lungs(job(recipe(), data, tmp_path / "run", resume=True))
    assert_same_weights(through, tmp_path / "run")


@pytest.mark.parametrize(("kept", "message"), [(0, "a column lung_mask"), (2, "too few patients")])
def test_too_little_to_learn_from_is_said(data: Path, tmp_path: Path, kept: int, message: str) -> None:
    lines, few = data.read_text().splitlines(), data.with_name(f"few-{kept}.csv")
    few.write_text("\n".join([*lines[: kept + 1], lines[-1]]) + "\n")
    with pytest.raises(DataError, match=message):
        train_lungs(job(recipe(), few, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_is_known_of_a_slice_is_augmented_with_lungs_in_sight_and_disease_in_them(data: Path) -> None:
    records = load_dataset(data).records
    whole, partial = load_lung_slice(records[0]), load_lung_slice(records[11])
    assert (whole.partial, partial.partial) == (False, True)
    assert whole.lungs.mean() == pytest.approx(phantom(0).lungs.mean(), rel=0.02)
    slices, lungs, known = LungSamples([whole, partial])[[(0, (0, 0, 1)), (1, (0, 0, 2))]]
    assert slices.shape == lungs.shape == known.shape == (2, 1, SIDE, SIDE)
    assert 0 <= slices.min() < slices.max() <= 1
    assert set(lungs.unique().tolist()) == {0, 1}
    assert known[0].all()
    assert torch.equal(known[1], lungs[1])
    seen = [training.augmented(whole, np.random.default_rng(seed)) for seed in range(12)]
    for pixels, lungs in seen:
        assert pixels.shape == lungs.shape == (SIDE, SIDE)
        assert 0.03 < lungs.mean() < 0.9
    np.testing.assert_array_equal(seen[3], training.augmented(whole, np.random.default_rng(3)))
    inside, pixels = whole.lungs > 0, whole.pixels.astype(int)
    solid = training._solid(whole.pixels, inside, np.random.default_rng(0)).astype(int)
    assert solid[inside].mean() > pixels[inside].mean() + 20
    np.testing.assert_allclose(solid[:20], pixels[:20], atol=1)


def test_the_loss_counts_known_places_alone() -> None:
    made = LungTrainer(recipe(), 4)
    made.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    logit = torch.zeros(1, 1, 4, 4)
    logit[..., 2:, :] = 9.0
    made.network.forward = lambda slices: logit  # type: ignore[method-assign]
    lungs, known = torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    known[..., 2:, :] = 0
    expected = math.log(2) + 1 - (2 * 8 * 0.5 + 50) / (8 * 0.5 + 8 + 50)
    assert made.training_step((logit, lungs, known), 0).item() == pytest.approx(expected, rel=1e-5)
