"""C2L: what is compared with what, and trainings that resume exactly."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Record
from groundglass.errors import DataError, RunError
from groundglass.models.registry import build
from groundglass.training.c2l import BACKBONE, C2L, info_nce, pretrain, unlabelled_slices
from groundglass.training.recipe import PretrainRecipe, load_pretrain_recipe, load_recipe
from groundglass.training.run import WEIGHTS, read_history, read_info
from groundglass.training.train import _normalisation_warning

from .conftest import assert_same_weights, command, job, kill_after_an_epoch

SMALL = (
    *("network.weights=none", "preprocessing.size=64", "training.batch_size=8", "training.epochs=4"),
    "contrast={hidden: 16, dimensions: 8, momentum: 0.9}",
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


def no_copies(*_: Sequence[Record]) -> list[tuple[Record, Record]]:
    return []


def unit(*shape: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape), dim=-1)


def test_info_nce_is_the_textbook_formula() -> None:
    torch.manual_seed(0)
    query, key, queue = unit(5, 8), unit(5, 8), unit(7, 8)
    allowed = torch.ones(5, 7, dtype=torch.bool)
    for others in (queue, torch.cat([queue[:3], queue[4:]])):
        own = torch.exp((query * key).sum(dim=1) / 0.07)
        expected = -torch.log(own / (own + torch.exp(query @ others.T / 0.07).sum(dim=1))).mean()
        torch.testing.assert_close(info_nce(query, key, queue, allowed, 0.07), expected)
        allowed[:, 3] = False


def test_no_slice_meets_its_own_key_or_an_empty_place(module: C2L, monkeypatch: pytest.MonkeyPatch) -> None:
    module._enqueue([unit(3, 8) for _ in range(3)], torch.tensor([4, 9, 4]))
    seen: list[torch.Tensor] = []

    def noted(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[3].clone())
        return info_nce(*arguments)

    monkeypatch.setattr("groundglass.training.c2l.info_nce", noted)
    monkeypatch.setattr(C2L, "current_epoch", 0)
    module.training_step((torch.randn(2, 1, 64, 64), torch.randn(2, 1, 64, 64), torch.tensor([4, 7])), 0)
    expected = [[False, True, False] + [False] * 9, [True, True, True] + [False] * 9]
    assert [allowed.tolist() for allowed in seen] == [expected] * 3


def test_the_teacher_follows_and_gives_the_keys_that_the_paper_compares(module: C2L) -> None:
    before = [parameter.clone() for parameter in module.teacher.parameters()]
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.add_(0.01)
    images, partner = torch.randn(4, 1, 64, 64), torch.tensor([1, 2, 3, 0])
    keys = module._keys(images, 0.7, partner)
    parameters = zip(before, module.teacher.parameters(), module.student.parameters(), strict=True)
    for was, now, learned in parameters:
        torch.testing.assert_close(now, 0.9 * was + 0.1 * learned)
        assert not now.requires_grad
    assert module.teacher.training, "the statistics are the batch's"
    with torch.no_grad():
        plain = module.teacher(images)
        mixed = module.teacher(0.7 * images + 0.3 * images[partner])
    torch.testing.assert_close(keys[0], F.normalize(plain), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(keys[1], F.normalize(mixed), atol=1e-4, rtol=1e-3)
    blended = 0.7 * plain + 0.3 * plain[partner]
    torch.testing.assert_close(keys[2], F.normalize(blended), atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def done(phantoms: Path, small: PretrainRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained to its end; not to be written to."""
    output = tmp_path_factory.mktemp("done") / "run"
    pretrain(job(small, phantoms, output), no_copies)
    return output


@pytest.mark.slow
def test_it_learns_to_tell_slices_apart(done: Path, phantoms: Path, small: PretrainRecipe) -> None:
    # With 12 negatives, chance is log 13 = 2.6; the queue fills in the first epoch.
    _, second, _, last = (row["train_loss"] for row in read_history(done))
    assert last < second
    info = read_info(done)
    assert (info["finished"], info["kind"]) == (True, "pretraining")
    assert info["slices"] == 24, "the training part alone"
    assert info["preprocessing"] == {"size": 64, "crop": True, "margin": 0.06, "normalisation": "zero-mean"}
    with pytest.raises(RunError, match="cannot resume, seed was 0, is 1"):
        pretrain(job(small, phantoms, done, seed=1, resume=True), no_copies)


def test_it_learns_in_mixed_precision(phantoms: Path, tmp_path: Path) -> None:
    recipe = load_pretrain_recipe("c2l", (*SMALL, "training.epochs=1", "trainer.precision=bf16-mixed"))
    pretrain(job(recipe, phantoms, tmp_path / "run"), no_copies)
    assert read_history(tmp_path / "run")[0]["train_loss"] > 0


@pytest.mark.slow
def test_killed_it_is_resumed(phantoms: Path, small: PretrainRecipe, done: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    kill_after_an_epoch(command("pretrain", phantoms, killed, SMALL), killed)
    assert len(read_history(killed)) < 4
    pretrain(job(small, phantoms, killed, resume=True), no_copies)
    assert_same_weights(done, killed)


@pytest.mark.slow
def test_what_it_learned_starts_other_networks(done: Path) -> None:
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        whole = build("efficientnet-lite0", done / WEIGHTS).eval().features(images)[0]
        mask = build("mask-efficientnet-lite0", done / BACKBONE).eval().features(images)[0]
        untrained = build("efficientnet-lite0").eval().features(images)[0]
    # Half precision rounds the backbone's weights; its start is otherwise the same.
    torch.testing.assert_close(mask, whole, atol=0.05, rtol=0.05)
    assert not torch.allclose(untrained, whole, atol=0.05)
    assert (done / BACKBONE).stat().st_size < 10e6
    start = f"network.weights={done / BACKBONE}"
    assert _normalisation_warning(load_recipe("phantom-demo", [start])) is None
    other = load_recipe("phantom-demo", [start, "preprocessing.normalisation=min-max"])
    assert "normalisation zero-mean, recipe phantom-demo has min-max" in str(_normalisation_warning(other))


def test_no_held_out_slice_enters(
    phantoms: Path, lesion_free: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    train = {record.path for record in load_dataset(phantoms).records if record.split == "train"}
    first, second, *others = (record.path for record in load_dataset(lesion_free).records)
    other = tmp_path / "other.csv"
    other.write_text(f"path,label,split\n{first},NonCOVID,train\n{second},NonCOVID,test\n")
    with_images = job(small, phantoms, tmp_path / "r", images=(lesion_free,))
    several = replace(with_images, data=(phantoms, other), images=())
    for asked, more in ((with_images, {first, second, *others}), (several, {first})):
        assert {record.path for record in unlabelled_slices(asked, no_copies)} == train | more


def test_copies_of_held_out_slices_are_refused(phantoms: Path, lesion_free: Path, tmp_path: Path) -> None:
    held_out = [record.path for record in load_dataset(phantoms).records if record.split == "val"]
    folder = shutil.copytree(lesion_free, tmp_path / "outside")
    for number, path in enumerate(held_out):
        shutil.copy(path, folder / f"renamed-{number}.png")
    given = command("pretrain", phantoms, tmp_path / "run", (), "--images", str(folder))[3:]
    error = CliRunner().invoke(app, given).exception
    said = "which is held out for evaluation; remove it and 7 more such copies ("
    assert re.match(rf"\S*/renamed-\d\.png: shows the same slice as \S+, {re.escape(said)}.*$", str(error))
    assert not (tmp_path / "run").exists()


def test_too_few_slices(lesion_free: Path, small: PretrainRecipe, tmp_path: Path) -> None:
    few = r"6 slices are too few to pretrain in batches of 8, 16 would do; or .*batch_size=3"
    with pytest.raises(DataError, match=few):
        pretrain(job(small, None, tmp_path / "run", images=(lesion_free,)), no_copies)
    with pytest.raises(DataError, match="nothing to pretrain on"):
        pretrain(job(small, None, tmp_path / "run"), no_copies)
    assert not (tmp_path / "run").exists()
