"""C2L: what is compared with what, and trainings that resume exactly."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from torch.nn.functional import normalize
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.errors import GroundglassError, RunError
from groundglass.models.registry import build
from groundglass.training.c2l import BACKBONE, C2L, info_nce, pretrain, unlabelled_slices
from groundglass.training.recipe import load_pretrain_recipe
from groundglass.training.run import WEIGHTS, Run, read_history, read_info

from .conftest import QUICK, assert_same_weights, command, job, kill_after_an_epoch

SETTINGS = (*QUICK[:3], "training.epochs=4", "contrast={hidden: 16, dimensions: 8, momentum: 0.9}")
SMALL = load_pretrain_recipe("c2l", SETTINGS)


@pytest.fixture
def module() -> C2L:
    torch.manual_seed(0)
    made = C2L(build("efficientnet-lite0"), SMALL, steps_per_epoch=4, queue=12, seed=0)
    made.log = lambda *_, **__: None
    made.__dict__["_trainer"] = None
    return made


def test_info_nce_is_the_textbook_formula() -> None:
    torch.manual_seed(0)
    query, key, queue = (normalize(torch.randn(count, 8)) for count in (5, 5, 7))
    allowed = torch.ones(5, 7, dtype=torch.bool)
    for others in (queue, torch.cat([queue[:3], queue[4:]])):
        own = torch.exp((query * key).sum(dim=1) / 0.07)
        expected = -torch.log(own / (own + torch.exp(query @ others.T / 0.07).sum(dim=1))).mean()
        torch.testing.assert_close(info_nce(query, key, queue, allowed, 0.07), expected)
        allowed[:, 3] = False


def test_no_slice_meets_its_own_key_or_an_empty_place(module: C2L, monkeypatch: pytest.MonkeyPatch) -> None:
    # In mixed precision keys are of another type than the queue.
    module._enqueue([normalize(torch.randn(3, 8)).bfloat16() for _ in range(3)], torch.tensor([4, 9, 4]))
    compared = Mock(wraps=info_nce)
    monkeypatch.setattr("groundglass.training.c2l.info_nce", compared)
    monkeypatch.setattr(C2L, "current_epoch", 0)
    module.training_step((torch.randn(2, 1, 64, 64), torch.randn(2, 1, 64, 64), torch.tensor([4, 7])), 0)
    allowed = [call.args[3].tolist() for call in compared.call_args_list]
    assert allowed == [[[False, True, False] + [False] * 9, [True, True, True] + [False] * 9]] * 3


def test_the_teacher_follows_and_gives_the_keys_that_the_paper_compares(module: C2L) -> None:
    before = [parameter.clone() for parameter in module.teacher.parameters()]
    with torch.no_grad():
        for parameter in module.student.parameters():
            parameter.add_(0.01)
    images, partner = torch.randn(4, 1, 64, 64), torch.tensor([1, 2, 3, 0])
    keys = module._keys(images, 0.7, partner)
    for was, now, learned in zip(before, module.teacher.parameters(), module.student.parameters(), strict=True):
        torch.testing.assert_close(now, 0.9 * was + 0.1 * learned)
        assert not now.requires_grad
    assert module.teacher.training, "the statistics are the batch's"
    with torch.no_grad():
        plain, mixed = module.teacher(images), module.teacher(0.7 * images + 0.3 * images[partner])
    for key, expected in zip(keys, (plain, mixed, 0.7 * plain + 0.3 * plain[partner]), strict=True):
        torch.testing.assert_close(key, normalize(expected), atol=1e-4, rtol=1e-3)


@pytest.mark.slow
def test_it_learns_is_resumed_when_killed_and_starts_other_networks(phantoms: Path, tmp_path: Path) -> None:
    done, killed = tmp_path / "done", tmp_path / "killed"
    pretrain(job(SMALL, phantoms, done), lambda *_: ())
    # With 12 negatives, chance is log 13 = 2.6; the queue fills in the first epoch.
    _, second, _, last = (row["train_loss"] for row in read_history(done))
    assert last < second
    info = read_info(done)
    assert (info["finished"], info["kind"]) == (True, "pretraining")
    assert info["slices"] == 24, "the training part alone"
    assert info["preprocessing"] == {"size": 64, "crop": True, "margin": 0.06, "normalisation": "zero-mean"}
    kill_after_an_epoch(command("pretrain", phantoms, killed, SETTINGS), killed)
    assert len(read_history(killed)) < 4
    pretrain(job(SMALL, phantoms, killed, resume=True), lambda *_: ())
    assert_same_weights(done, killed)
    images, lite = torch.randn(2, 1, 64, 64), "efficientnet-lite0"
    starts = ((lite, str(done / WEIGHTS)), (f"mask-{lite}", str(done / BACKBONE)), (lite, "none"))
    with torch.no_grad():
        whole, mask, untrained = (build(*start).eval().features(images)[0] for start in starts)
    # Half precision rounds the backbone's weights; its start is otherwise the same.
    torch.testing.assert_close(mask, whole, atol=0.05, rtol=0.05)
    assert not torch.allclose(untrained, whole, atol=0.05)
    assert (done / BACKBONE).stat().st_size < 10e6
    pretrain(job(SMALL, phantoms, done, resume=True), lambda *_: ())
    assert read_info(done) == info, "it had finished"
    with pytest.raises(RunError, match="a run of pretraining, no classifier"):
        Run.open(done)


def test_no_held_out_slice_enters(phantoms: Path, lesion_free: Path, tmp_path: Path) -> None:
    train = {record.path for record in load_dataset(phantoms).records if record.split == "train"}
    first, second, *others = (record.path for record in load_dataset(lesion_free).records)
    other = tmp_path / "other.csv"
    other.write_text(f"path,label,split\n{first},NonCOVID,train\n{second},NonCOVID,test\n")
    with_images = job(SMALL, phantoms, tmp_path / "r", images=(lesion_free,))
    several = replace(with_images, data=(phantoms, other), images=())
    for asked, more in ((with_images, {first, second, *others}), (several, {first})):
        assert {record.path for record in unlabelled_slices(asked, lambda *_: ())} == train | more


def test_copies_of_held_out_slices_are_refused(phantoms: Path, lesion_free: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(lesion_free, tmp_path / "outside")
    for number in range(8):
        shutil.copy(phantoms.parent / f"{number}.png", folder / f"renamed-{number}.png")
    given = command("pretrain", phantoms, tmp_path / "run", (), "--images", str(folder))[3:]
    error = CliRunner().invoke(app, given).exception
    said = "which is held out for evaluation; remove it and 7 more such copies ("
    assert re.match(rf"\S*/renamed-\d\.png: shows the same slice as \S+, {re.escape(said)}.*$", str(error))
    assert not (tmp_path / "run").exists()


def test_too_few_slices_and_what_a_pretraining_has_not_are_refused(lesion_free: Path, tmp_path: Path) -> None:
    few = r"6 slices are too few to pretrain in batches of 8, 16 would do; or .*batch_size=3"
    lungs = load_pretrain_recipe("c2l", [*SETTINGS, "augmentation.lungs_only=0.5"])
    several, none = (SMALL, (), 2, "one process"), (SMALL, (), 1, "nothing to pretrain on")
    for recipe, images, devices, said in ((SMALL, (lesion_free,), 1, few), several, none, (lungs, (), 1, "lungs_only")):
        with pytest.raises(GroundglassError, match=said):
            pretrain(job(recipe, None, tmp_path / "run", images=images, devices=devices), lambda *_: ())
    assert not (tmp_path / "run").exists()
