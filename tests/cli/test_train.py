"""The commands train and repeat as a user meets them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from groundglass.cli.experiments import parse_seeds
from groundglass.cli.main import app
from groundglass.errors import RecipeError, RunError
from groundglass.imaging.phantom import make_phantom
from groundglass.training.train import Job

SETTINGS = ("network.weights=none", "preprocessing.size=64", "training.batch_size=4", "training.epochs=1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = ["path,label,patient_id,source,split"]
    for number in range(16):
        covid = number % 2 == 1
        phantom = make_phantom(
            np.random.default_rng(number), severity=0.8 if covid else 0.0, level=0.5, size=96
        )
        cv2.imwrite(str(folder / f"{number}.png"), phantom.slice.pixels)
        part = ("val", "val", "test", "test", "train", "train", "train", "train")[number // 2]
        lines.append(f"{number}.png,{'COVID' if covid else 'NonCOVID'},p{number},phantom,{part}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def leaking(data: Path) -> Path:
    """The same with a training slice in the test part, smaller, as JPEG, and under another patient's name."""
    pixels = np.asarray(cv2.imread(str(data / "9.png"), cv2.IMREAD_GRAYSCALE))
    cv2.imwrite(str(data / "again [x].jpg"), cv2.resize(pixels, (88, 84), interpolation=cv2.INTER_AREA))
    lines = (data / "manifest.csv").read_text()
    (data / "leaking.csv").write_text(f"{lines}again [x].jpg,NonCOVID,other,phantom,test\n")
    return data / "leaking.csv"


def arguments(data: Path, output: Path, *more: str) -> list[str]:
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    given = ["--recipe", "phantom-demo", "--data", str(data), "--output", str(output), "--threads", "1"]
    return ["train", *given, "--quiet", "--accelerator", "cpu", *sets, *more]


@pytest.fixture
def warnings_before_training(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """What ``groundglass train`` has said on standard error when the training begins."""

    def begin(job: Job) -> None:
        raise RunError("begun")

    monkeypatch.setattr("groundglass.training.train.train", begin)

    def start(data: Path, *more: str) -> list[str]:
        result = CliRunner().invoke(app, arguments(data, data.parent / "run", *more))
        assert str(result.exception) == "begun"
        assert result.stdout == ""
        return result.stderr.splitlines()

    return start


def test_train_warns_of_what_parts_share_and_trains_all_the_same(
    leaking: Path, warnings_before_training: Callable[..., list[str]]
) -> None:
    (warning,) = warnings_before_training(leaking)
    assert warning.startswith(
        "warning: 1 pair of slices in different parts show the same slice, 1 of them with opposite labels"
    )
    assert "9.png" in warning
    assert "again [x].jpg" in warning


def test_train_says_nothing_where_there_is_nothing_to_say(
    data: Path, leaking: Path, warnings_before_training: Callable[..., list[str]]
) -> None:
    assert warnings_before_training(data / "manifest.csv") == []
    assert warnings_before_training(leaking, "--no-audit") == []


def test_train_audits_the_split_that_it_trains_on(
    leaking: Path, warnings_before_training: Callable[..., list[str]]
) -> None:
    # The two slices are of the official train and test parts, of which the last is in no part of this split.
    assert warnings_before_training(leaking, "--split", "official-cv:1/2") == []


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "NODE_RANK"])
def test_only_the_first_process_warns(
    leaking: Path,
    warnings_before_training: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    variable: str,
) -> None:
    monkeypatch.setenv(variable, "1")
    assert warnings_before_training(leaking) == []
    monkeypatch.setenv(variable, "0")
    assert len(warnings_before_training(leaking)) == 1


@pytest.mark.slow
def test_two_processes_warn_once_and_train(leaking: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "groundglass.cli.main"]
    given = arguments(leaking, tmp_path / "run", "--devices", "2", "--cache", str(tmp_path / "cache"))
    done = subprocess.run([*command, *given], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr.count("warning: 1 pair of slices in different parts") == 1
    assert "validation AUC" in done.stdout
    assert (tmp_path / "run" / "weights.safetensors").exists()


@pytest.mark.slow
def test_repeat_trains_judges_sums_up_and_goes_on(data: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    arguments = [
        "paper",
        "seeds",
        "--recipe",
        "phantom-demo",
        "--data",
        str(data),
        "--runs",
        str(tmp_path / "runs"),
    ]
    arguments += ["--output", str(tmp_path / "results"), "--threads", "1", "--quiet", *sets]
    arguments += ["--cache", str(tmp_path / "cache"), "--readme", str(readme), "--seeds"]
    runner = CliRunner()
    assert runner.invoke(app, [*arguments, "0"], catch_exceptions=False).exit_code == 0
    first = (tmp_path / "results" / "seed-0.json").read_bytes()
    done = runner.invoke(app, [*arguments, "0-1"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "is there already" in done.stdout
    assert (tmp_path / "results" / "seed-0.json").read_bytes() == first
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    kept = json.loads(first)
    assert set(kept["parts"]) == {"val", "test"}
    assert kept["run"]["versions"]["torch"]
    assert "training_sha256" not in kept["run"]
    assert "| Accuracy |" in readme.read_text()
    looks = json.loads((tmp_path / "runs" / "seed-0" / "evaluations.json").read_text())
    assert "test" in json.dumps(looks)


def test_seeds_are_a_range_or_a_list() -> None:
    assert parse_seeds("0-4") == [0, 1, 2, 3, 4]
    assert parse_seeds("7,3") == [7, 3]
    for wrong in ("", "4-0", "a", "1-", "0--3"):
        with pytest.raises(RecipeError, match="--seeds"):
            parse_seeds(wrong)
