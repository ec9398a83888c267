"""C2L: what is compared with what, and trainings that resume exactly."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from safetensors.numpy import load_file
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.errors import DataError, ImageError, RecipeError, RunError
from groundglass.models.catalogue import entries
from groundglass.models.registry import build
from groundglass.training.c2l import (
    C2L,
    TERMS,
    Encoder,
    PretrainJob,
    info_nce,
    open_pretrained,
    pretrain,
    unlabelled_slices,
)
from groundglass.training.recipe import PretrainRecipe, load_pretrain_recipe

Grey = NDArray[np.uint8]

SMALL = (
    "network.weights=none",
    "preprocessing.size=64",
    "training.batch_size=8",
    "training.epochs=2",
    "contrast.hidden=16",
    "contrast.dimensions=8",
    "contrast.momentum=0.9",
)


@pytest.fixture(scope="module")
def small() -> PretrainRecipe:
    return load_pretrain_recipe("c2l", SMALL)


@pytest.fixture
def module(small: PretrainRecipe) -> C2L:
    torch.manual_seed(0)
    made = C2L(build("efficientnet-lite0"), small, steps_per_epoch=4, queue=12, seed=0)
    made.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    made.__dict__["_trainer"] = None
    return made


def job(recipe: PretrainRecipe, data: Path, output: Path, **changes: object) -> PretrainJob:
    plain = PretrainJob(recipe, output, data, threads=1, accelerator="cpu", progress=False)
    return replace(plain, cache=output.parent / "cache", **changes)  # type: ignore[arg-type]


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_info_nce_is_the_textbook_formula() -> None:
    torch.manual_seed(0)
    query, key, queue = unit(5, 8), unit(5, 8), unit(7, 8)
    allowed = torch.ones(5, 7, dtype=torch.bool)
    expected = []
    for row in range(5):
        own = torch.exp(query[row] @ key[row] / 0.07)
        others = torch.exp(queue @ query[row] / 0.07).sum()
        expected.append(-torch.log(own / (own + others)))
    assert info_nce(query, key, queue, allowed, 0.07) == pytest.approx(float(torch.stack(expected).mean()))
    allowed[:, 3] = False
    without = torch.cat([queue[:3], queue[4:]])
    assert info_nce(query, key, queue, allowed, 0.07) == pytest.approx(
        float(info_nce(query, key, without, torch.ones(5, 6, dtype=torch.bool), 0.07))
    )


def test_no_slice_meets_its_own_key_or_an_empty_place(module: C2L) -> None:
    module._enqueue([unit(3, 8) for _ in TERMS], torch.tensor([4, 9, 4]))
    allowed = module._allowed(torch.tensor([4, 7]))
    assert allowed[0].tolist() == [False, True, False] + [False] * 9
    assert allowed[1].tolist() == [True, True, True] + [False] * 9


def test_queues_are_rings_of_their_own(module: C2L) -> None:
    first, second = [unit(8, 8) for _ in TERMS], [unit(8, 8) for _ in TERMS]
    module._enqueue(first, torch.arange(8))
    module._enqueue(second, torch.arange(8, 16))
    assert int(module.pointer) == 4
    for number in range(len(TERMS)):
        torch.testing.assert_close(module.queues[number, 8:], second[number][:4])
        torch.testing.assert_close(module.queues[number, :4], second[number][4:])
        torch.testing.assert_close(module.queues[number, 4:8], first[number][4:])
    assert module.owners.tolist() == [12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]


def test_the_teacher_follows_and_uses_the_batchs_statistics(module: C2L) -> None:
    before = [parameter.clone() for parameter in module.teacher.parameters()]
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.add_(1.0)
    images = torch.randn(4, 1, 64, 64)
    module._keys(images, 1.0, torch.arange(4))
    for was, now, learned in zip(
        before, module.teacher.parameters(), module.student.parameters(), strict=True
    ):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * learned)
    assert module.teacher.training
    assert not any(parameter.requires_grad for parameter in module.teacher.parameters())


def test_keys_are_what_the_paper_compares(module: C2L) -> None:
    images, partner = torch.randn(4, 1, 64, 64), torch.tensor([1, 2, 3, 0])
    keys = module._keys(images, 0.7, partner)
    with torch.no_grad():
        plain = module.teacher(images)
        mixed = module.teacher(0.7 * images + 0.3 * images[partner])
    torch.testing.assert_close(keys["plain"], F.normalize(plain), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(keys["mixed"], F.normalize(mixed), atol=1e-4, rtol=1e-3)
    blended = 0.7 * plain + 0.3 * plain[partner]
    torch.testing.assert_close(keys["feature_mixed"], F.normalize(blended), atol=1e-5, rtol=1e-4)


def test_the_share_is_of_the_slice_itself(small: PretrainRecipe, module: C2L) -> None:
    shares = []
    for batch in range(200):
        share, partner = C2L._mixture(
            type("At", (), {"seed": 0, "current_epoch": 0, "device": "cpu"})(),  # type: ignore[arg-type]
            6,
            batch,
        )
        shares.append(share)
        assert sorted(partner.tolist()) == list(range(6))
    assert min(shares) >= 0.5
    # Beta(1, 1) folded to the upper half is uniform on it.
    assert np.mean(shares) == pytest.approx(0.75, abs=0.03)


def test_it_works_for_every_family() -> None:
    families = {entry.family: entry.name for entry in reversed(entries())}
    with torch.device("meta"):
        for name in families.values():
            encoder = Encoder(build(name), 16, 8)
            assert encoder(torch.empty(2, 1, 64, 64)).shape == (2, 8)


@pytest.mark.slow
def test_it_learns_to_tell_slices_apart(phantoms: Path, small: PretrainRecipe, tmp_path: Path) -> None:
    longer = small.model_copy(update={"training": small.training.model_copy(update={"epochs": 6})})
    done = pretrain(job(longer, phantoms, tmp_path / "run"))
    losses = [row["train_loss"] for row in done.history]
    assert len(losses) == 6
    # With 12 negatives, chance is log 13 = 2.6.
    assert losses[-1] < losses[1]
    assert done.info["finished"]
    assert done.info["slices"] == 24, "the training part alone"
    assert done.info["kind"] == "pretraining"


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_weights(
    phantoms: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    longer = small.model_copy(update={"training": small.training.model_copy(update={"epochs": 4})})
    straight = pretrain(job(longer, phantoms, tmp_path / "straight"))
    command = [sys.executable, "-m", "groundglass.cli.main", "pretrain", "--data", str(phantoms)]
    command += ["--output", str(tmp_path / "killed"), "--threads", "1", "--quiet", "--accelerator", "cpu"]
    command += [part for each in (*SMALL, "training.epochs=4") for part in ("--set", each)]
    process = subprocess.Popen(command)
    checkpoint = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 240
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(open_pretrained(tmp_path / "killed").history) < 4
    resumed = pretrain(job(longer, phantoms, tmp_path / "killed", resume=True))
    one, other = load_file(straight.weights), load_file(resumed.weights)
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
def test_what_it_learned_starts_other_networks(phantoms: Path, small: PretrainRecipe, tmp_path: Path) -> None:
    done = pretrain(job(small, phantoms, tmp_path / "run"))
    whole = build("efficientnet-lite0", done.weights).eval()
    mask = build("mask-efficientnet-lite0", done.backbone).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        # Half precision rounds the backbone's weights; its start is otherwise the same.
        torch.testing.assert_close(mask.features(images), whole.features(images), atol=0.05, rtol=0.05)
        untrained = build("efficientnet-lite0").eval().features(images)
    assert not torch.allclose(untrained, whole.features(images), atol=0.05)
    assert done.backbone.stat().st_size < 10e6
    with pytest.raises(RunError, match="holds a run already"):
        pretrain(job(small, phantoms, tmp_path / "run"))
    with pytest.raises(RunError, match="cannot resume"):
        pretrain(job(small, phantoms, tmp_path / "run", seed=1, resume=True))


def test_only_the_training_part_and_the_unlabelled_slices_enter(
    phantoms: Path, lesion_free: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    records = unlabelled_slices(job(small, phantoms, tmp_path / "r", images=(lesion_free,)))
    train = {record.path for record in load_dataset(phantoms).records if record.split == "train"}
    outside = {record.path for record in load_dataset(lesion_free).records}
    assert {record.path for record in records} == train | outside


def test_a_copy_of_a_held_out_slice_is_refused(
    phantoms: Path, lesion_free: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    held_out = next(record.path for record in load_dataset(phantoms).records if record.split == "val")
    folder = tmp_path / "outside"
    shutil.copytree(lesion_free, folder)
    shutil.copy(held_out, folder / "renamed.png")
    with pytest.raises(DataError, match=r"renamed\.png.*held out"):
        pretrain(job(small, phantoms, tmp_path / "run", images=(folder,)))
    assert not (tmp_path / "run").exists()


def windowed(pixels: Grey) -> Grey:
    return np.clip((pixels.astype(float) - 25) * 1.3, 0, 255).astype(np.uint8)


def rescaled(pixels: Grey) -> Grey:
    return np.asarray(cv2.resize(pixels, (190, 175), interpolation=cv2.INTER_CUBIC))


def mirrored(pixels: Grey) -> Grey:
    return np.ascontiguousarray(pixels[:, ::-1])


def cropped(pixels: Grey) -> Grey:
    return np.ascontiguousarray(pixels[9:122, 6:115])


ALTERATIONS: dict[str, tuple[Callable[[Grey], Grey], str, list[int]]] = {
    "recoded": (lambda pixels: pixels, "copy.jpg", [cv2.IMWRITE_JPEG_QUALITY, 60]),
    "rescaled": (rescaled, "copy.png", []),
    "windowed": (windowed, "copy.png", []),
    "mirrored": (mirrored, "copy.bmp", []),
    "cropped": (cropped, "copy.png", []),
    "all": (
        lambda pixels: rescaled(windowed(mirrored(cropped(pixels)))),
        "copy.jpg",
        [cv2.IMWRITE_JPEG_QUALITY, 75],
    ),
}


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_altered_copy_of_a_held_out_slice_is_refused_and_one_of_a_training_slice_is_not(
    phantoms: Path, lesion_free: Path, small: PretrainRecipe, tmp_path: Path, alteration: str
) -> None:
    alter, name, options = ALTERATIONS[alteration]
    records = load_dataset(phantoms).records
    for part in ("train", "val"):
        original = next(record.path for record in records if record.split == part)
        pixels = np.asarray(cv2.imread(str(original), cv2.IMREAD_GRAYSCALE))
        (tmp_path / part).mkdir()
        cv2.imwrite(str(tmp_path / part / name), alter(pixels), options)
    unlabelled_slices(job(small, phantoms, tmp_path / "run", images=(lesion_free, tmp_path / "train")))
    with pytest.raises(DataError) as refusal:
        unlabelled_slices(job(small, phantoms, tmp_path / "run", images=(lesion_free, tmp_path / "val")))
    assert str(refusal.value) == (
        f"{tmp_path / 'val' / name}: shows the same slice as {original}, which is held out for judging; "
        "remove it from --images"
    )


def test_all_copies_are_counted_in_one_line(phantoms: Path, small: PretrainRecipe, tmp_path: Path) -> None:
    held_out = [record.path for record in load_dataset(phantoms).records if record.split == "val"]
    for number, path in enumerate(held_out):
        pixels = np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        (tmp_path / "outside").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "outside" / f"copy-{number}.jpg"), pixels)
    with pytest.raises(DataError) as refusal:
        unlabelled_slices(job(small, phantoms, tmp_path / "run", images=(tmp_path / "outside",)))
    assert f"and {len(held_out) - 1} more such copies (" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.slow
def test_luna_holds_no_slice_of_covid_ct_but_the_one_put_into_it(
    covid_ct: Path, luna_slices: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    test = [record.path for record in load_dataset(covid_ct).records if record.split == "test"]
    pixels = np.asarray(cv2.imread(str(test[50]), cv2.IMREAD_GRAYSCALE))
    planted = tmp_path / "outside" / "planted.jpg"
    planted.parent.mkdir()
    cv2.imwrite(str(planted), pixels, [cv2.IMWRITE_JPEG_QUALITY, 60])
    with pytest.raises(DataError) as refusal:
        unlabelled_slices(job(small, covid_ct, tmp_path / "run", images=(luna_slices, planted.parent)))
    # One slice alone is named: the thousand others are clean.
    assert str(refusal.value).startswith(f"{planted}: shows the same slice as {test[50]}")
    assert str(refusal.value).endswith("; remove it from --images")


def test_a_held_out_slice_that_cannot_be_read_is_named(
    phantoms: Path, lesion_free: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    head, *lines = phantoms.read_text().splitlines()
    rows = [head, *(f"{phantoms.parent}/{line}" for line in lines), "spoilt.png,COVID,p99,phantom,val"]
    (tmp_path / "manifest.csv").write_text("\n".join(rows))
    (tmp_path / "spoilt.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    with pytest.raises(ImageError, match=r"spoilt\.png"):
        unlabelled_slices(job(small, tmp_path / "manifest.csv", tmp_path / "run", images=(lesion_free,)))


def test_user_errors_are_one_line(lesion_free: Path, small: PretrainRecipe, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing to pretrain on"):
        unlabelled_slices(PretrainJob(small, tmp_path / "run"))
    with pytest.raises(DataError, match="6 slices are too few"):
        pretrain(PretrainJob(small, tmp_path / "run", images=(lesion_free,), cache=tmp_path))
    with pytest.raises(RecipeError, match="no pretraining recipe named 'c2k'; did you mean c2l"):
        load_pretrain_recipe("c2k")
    with pytest.raises(RecipeError, match=r"unknown key contrast\.temprature; did you mean"):
        load_pretrain_recipe("c2l", ["contrast.temprature=0.1"])
    result = CliRunner().invoke(app, ["pretrain", "--output", str(tmp_path / "run")])
    assert isinstance(result.exception, DataError)
    assert not (tmp_path / "run").exists()
