"""The commands train and repeat as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.cli.repeat import parse_seeds
from groundglass.errors import RecipeError
from groundglass.imaging.phantom import make_phantom

SETTINGS = ("network.weights=none", "framing.size=64", "training.batch_size=4", "training.epochs=1")


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


@pytest.mark.slow
def test_repeat_trains_judges_sums_up_and_goes_on(data: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    sets = [part for setting in SETTINGS for part in ("--set", setting)]
    arguments = ["repeat", "--recipe", "phantom-demo", "--data", str(data), "--runs", str(tmp_path / "runs")]
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
