"""What ``groundglass train`` says of the split before it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import pytest
from tests.training.conftest import QUICK, command, write_data_set
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.errors import RunError
from groundglass.training.recipe import load_recipe
from groundglass.training.trainer import Job


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    parts = ("val", "val", "test", "test", "train", "train", "train", "train")
    write_data_set(folder, 16, 96, lambda number: f"phantom,{parts[number // 2]}")
    return folder


@pytest.fixture(scope="module")
def leaking(data: Path) -> Path:
    """The same with a training slice in the test part, smaller, as JPEG, and under another patient's name."""
    pixels = cv2.imread(str(data / "13.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(data / "again [x].jpg"), cv2.resize(pixels, (88, 84), interpolation=cv2.INTER_AREA))
    lines = (data / "manifest.csv").read_text()
    (data / "leaking.csv").write_text(f"{lines}again [x].jpg,NonCOVID,other,phantom,test\n")
    return data / "leaking.csv"


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    return command("train", data, output, QUICK, "--recipe", "phantom-demo", *more)[3:]


@pytest.fixture
def warnings_before_training(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What ``groundglass train`` has said on standard error when the training begins."""

    def begin(job: Job) -> None:
        raise RunError("begun")

    monkeypatch.setattr("groundglass.training.train.train_job", begin)

    def start(data: Path, *more: str) -> list[str]:
        result = CliRunner().invoke(app, arguments(data, data.parent / "run", *more))
        assert str(result.exception) == "begun"
        assert result.stdout == ""
        return result.stderr.splitlines()

    return start


def test_train_warns_of_what_parts_share_and_trains_all_the_same(
    data: Path, leaking: Path, warnings_before_training: Callable[..., list[str]], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # The copy stands under another patient's name, which splits by patient would not notice.
    pair = "13.png and again [x].jpg."
    assert warnings_before_training(leaking) == [
        f"warning: 1 pair of slices in different parts show the same slice: {pair}",
        f"warning: 1 pair of slices with opposite labels show the same slice: {pair}",
        "warning: 1 pair of slices of different patients show the same slice, so that splits by patient do not keep "
        f"them together: {pair}",
    ]
    assert warnings_before_training(data / "manifest.csv") == []
    assert warnings_before_training(leaking, "--no-audit") == []
    lines, other = leaking.read_text().splitlines(), tmp_path / "other.csv"
    other.write_text(f"{lines[0]}\n{data}/{lines[-1]}\n")
    (said, *_) = warnings_before_training(data / "manifest.csv", "--data", str(other))
    pair = f"{data.name}/13.png and {data.name}/again [x].jpg."
    assert f"in different parts show the same slice: {pair}" in said
    # The two slices are of the official train and test parts, of which the last is in no part of this split.
    assert not any(
        "parts" in said for said in warnings_before_training(leaking, "--split", "official-source-cv:1/2")
    )
    for variable in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert warnings_before_training(leaking) == [], "only the first process warns"


def test_a_dry_run_prints_a_recipe_to_train_with(data: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, arguments(data, tmp_path / "run", "--dry-run"))
    (tmp_path / "mine.yaml").write_text(result.stdout)
    assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe("phantom-demo", QUICK)
    assert "3 epochs of 1 batches: about " in result.stderr
    assert not (tmp_path / "run").exists()
    counted = [line.replace("│", "").split() for line in result.stderr.splitlines() if "phantom" in line]
    sizes, labels = {"train": "4", "val": "2", "test": "2"}, ("NonCOVID", "COVID")
    assert counted == [[part, "phantom", label, size] for part, size in sizes.items() for label in labels]
    for wrong, said in (
        ("both", "--devices both: expected a number such as 2, or GPUs"),
        ("0,2", "--accelerator moon --devices [0, 2]: not on this machine"),
    ):
        words = arguments(data, tmp_path / "run", "--devices", wrong, "--accelerator", "moon", "--dry-run")
        assert said in str(CliRunner().invoke(app, words).exception)


@pytest.mark.parametrize("option", ["--split=random", "--devices=2", "--lesion-free=x", "--dry-run"])
def test_what_a_training_of_lungs_has_no_use_for_is_refused(data: Path, tmp_path: Path, option: str) -> None:
    result = CliRunner().invoke(
        app, command("train", data, tmp_path / "run", (), "--recipe", "lungs", option)[3:]
    )
    assert option.partition("=")[0] in str(result.exception)
    assert "are for classifiers" in str(result.exception)
