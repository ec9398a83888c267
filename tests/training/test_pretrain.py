"""C2L: what is compared with what, and trainings that resume exactly."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.numpy import load_file
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Record
from groundglass.errors import DataError, RunError
from groundglass.models.catalogue import entries, find
from groundglass.models.registry import build
from groundglass.training.c2l import BACKBONE, C2L, Encoder, info_nce, pretrain, unlabelled_slices
from groundglass.training.recipe import PretrainRecipe, load_pretrain_recipe, load_recipe
from groundglass.training.train import normalisation_warning
from groundglass.training.trainer import HISTORY, WEIGHTS, read_history, read_info

from .conftest import job, kill_after_an_epoch

SMALL = (
    "network.weights=none",
    "preprocessing.size=64",
    "training.batch_size=8",
    "training.epochs=4",
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


def no_copies(held_out: Sequence[Record], unlabelled: Sequence[Record]) -> list[tuple[Record, Record]]:
    return []


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


def test_no_slice_meets_its_own_key_or_an_empty_place(module: C2L, monkeypatch: pytest.MonkeyPatch) -> None:
    module._enqueue([unit(3, 8) for _ in range(3)], torch.tensor([4, 9, 4]))
    seen: list[torch.Tensor] = []

    def noted(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[3].clone())
        return info_nce(*arguments)

    monkeypatch.setattr("groundglass.training.c2l.info_nce", noted)
    monkeypatch.setattr(C2L, "current_epoch", 0)
    module.training_step((torch.randn(2, 1, 64, 64), torch.randn(2, 1, 64, 64), torch.tensor([4, 7])), 0)
    for allowed in seen:
        assert allowed[0].tolist() == [False, True, False] + [False] * 9
        assert allowed[1].tolist() == [True, True, True] + [False] * 9


def test_queues_are_rings_of_their_own(module: C2L) -> None:
    first, second = [unit(8, 8) for _ in range(3)], [unit(8, 8) for _ in range(3)]
    module._enqueue(first, torch.arange(8))
    module._enqueue(second, torch.arange(8, 16))
    assert int(module.pointer) == 4
    for number in range(3):
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
    torch.testing.assert_close(keys[0], F.normalize(plain), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(keys[1], F.normalize(mixed), atol=1e-4, rtol=1e-3)
    blended = 0.7 * plain + 0.3 * plain[partner]
    torch.testing.assert_close(keys[2], F.normalize(blended), atol=1e-5, rtol=1e-4)


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


@pytest.fixture(scope="module")
def done(phantoms: Path, small: PretrainRecipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pretrained to its end; not to be written to."""
    output = tmp_path_factory.mktemp("done") / "run"
    pretrain(job(small, phantoms, output), no_copies)
    return output


@pytest.mark.slow
def test_it_learns_to_tell_slices_apart_and_says_how(done: Path) -> None:
    losses = [row["train_loss"] for row in read_history(done / HISTORY)]
    assert len(losses) == 4
    # With 12 negatives, chance is log 13 = 2.6; the queue fills in the first epoch.
    assert losses[-1] < losses[1]
    info = read_info(done)
    assert info["finished"]
    assert info["slices"] == 24, "the training part alone"
    assert info["kind"] == "pretraining"
    assert info["preprocessing"] == {"size": 64, "crop": True, "margin": 0.06, "normalisation": "zero-mean"}


@pytest.mark.slow
def test_killed_and_resumed_it_ends_with_the_same_weights(
    phantoms: Path, small: PretrainRecipe, done: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "groundglass.cli.main", "pretrain", "--data", str(phantoms)]
    command += ["--output", str(tmp_path / "killed"), "--threads", "1", "--quiet", "--accelerator", "cpu"]
    command += ["--cache", str(tmp_path / "cache")]
    command += [part for each in SMALL for part in ("--set", each)]
    kill_after_an_epoch(command, tmp_path / "killed")
    assert len(read_history(tmp_path / "killed" / HISTORY)) < 4
    pretrain(job(small, phantoms, tmp_path / "killed", resume=True), no_copies)
    one, other = (load_file(run / WEIGHTS) for run in (done, tmp_path / "killed"))
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.slow
def test_what_it_learned_starts_other_networks(phantoms: Path, small: PretrainRecipe, done: Path) -> None:
    whole = build("efficientnet-lite0", done / WEIGHTS).eval()
    mask = build("mask-efficientnet-lite0", done / BACKBONE).eval()
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        # Half precision rounds the backbone's weights; its start is otherwise the same.
        torch.testing.assert_close(mask.features(images)[0], whole.features(images)[0], atol=0.05, rtol=0.05)
        untrained = build("efficientnet-lite0").eval().features(images)[0]
    assert not torch.allclose(untrained, whole.features(images)[0], atol=0.05)
    assert (done / BACKBONE).stat().st_size < 10e6
    with pytest.raises(RunError, match="holds a run already"):
        pretrain(job(small, phantoms, done), no_copies)
    with pytest.raises(RunError, match="cannot resume, seed was 0, is 1"):
        pretrain(job(small, phantoms, done, seed=1, resume=True), no_copies)


@pytest.mark.slow
def test_a_recipe_with_another_normalisation_is_warned_and_one_with_the_same_is_not(done: Path) -> None:
    start = f"network.weights={done / BACKBONE}"
    assert normalisation_warning(load_recipe("phantom-demo", [start])) is None
    other = load_recipe("phantom-demo", [start, "preprocessing.normalisation=min-max"])
    warning = normalisation_warning(other)
    assert warning is not None
    assert "normalisation zero-mean, recipe phantom-demo has min-max" in warning


def test_only_the_training_part_and_the_unlabelled_slices_enter(
    phantoms: Path, lesion_free: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    records = unlabelled_slices(job(small, phantoms, tmp_path / "r", images=(lesion_free,)), no_copies)
    train = {record.path for record in load_dataset(phantoms).records if record.split == "train"}
    outside = {record.path for record in load_dataset(lesion_free).records}
    assert {record.path for record in records} == train | outside


def test_of_several_data_sets_the_training_parts_enter(
    phantoms: Path, lesion_free: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    first, second, *_ = (record.path for record in load_dataset(lesion_free).records)
    other = tmp_path / "other.csv"
    other.write_text(f"path,label,split\n{first},NonCOVID,train\n{second},NonCOVID,test\n")
    several = replace(job(small, phantoms, tmp_path / "r"), data=(phantoms, other))
    train = {record.path for record in load_dataset(phantoms).records if record.split == "train"}
    assert {record.path for record in unlabelled_slices(several, no_copies)} == train | {first}


def test_copies_of_held_out_slices_are_refused_in_one_line(
    phantoms: Path, lesion_free: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    """The command hands in the audit's search, which knows recoded and altered copies."""
    held_out = [record.path for record in load_dataset(phantoms).records if record.split == "val"]
    folder = tmp_path / "outside"
    shutil.copytree(lesion_free, folder)
    for number, path in enumerate(held_out):
        shutil.copy(path, folder / f"renamed-{number}.png")
    command = [
        "pretrain",
        "--data",
        str(phantoms),
        "--images",
        str(folder),
        "--output",
        str(tmp_path / "run"),
    ]
    error = CliRunner().invoke(app, [*command, "--threads", "1"]).exception
    assert isinstance(error, DataError)
    first, _, rest = str(error).partition(": shows the same slice as ")
    assert Path(first).name.startswith("renamed-")
    assert "which is held out for evaluation; remove it and 7 more such copies (" in rest
    assert "\n" not in rest
    assert not (tmp_path / "run").exists()


def test_too_little_to_pretrain_on_is_said_in_one_line(
    lesion_free: Path, small: PretrainRecipe, tmp_path: Path
) -> None:
    with pytest.raises(
        DataError, match=r"6 slices are too few to pretrain in batches of 8, 16 would do; or .*batch_size=3"
    ):
        pretrain(job(small, None, tmp_path / "run", images=(lesion_free,)), no_copies)
    result = CliRunner().invoke(app, ["pretrain", "--output", str(tmp_path / "run")])
    assert isinstance(result.exception, DataError)
    assert "nothing to pretrain on" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_the_shipped_weights_say_how_they_were_made() -> None:
    path = find("mask-efficientnet-lite0").pretrained_file
    assert path is not None
    about = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert about["finished"]
    # The official split's training part alone, and slices without labels.
    assert (about["kind"], about["split"], about["network"]) == (
        "pretraining",
        "official",
        "efficientnet-lite0",
    )
    assert about["preprocessing"]["normalisation"] == "two-anchor"
    assert "no longer has" in about["note"]
    assert path.stat().st_size < 10e6
