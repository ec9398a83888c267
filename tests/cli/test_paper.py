"""The command paper as a user meets it: stopped and resumed, rendered, refused in one line."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.cli.test_main import WITHOUT_TORCH, groundglass
from tests.conftest import wait_for
from tests.experiments.results_factory import seeds, write
from tests.training.conftest import write_data_set
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.errors import GroundglassError

SETTINGS = (
    *("synthesis.slices_per_epoch=0", "training.batch_size=8", "training.ema_decay=0.5"),
    "preprocessing.size=64",
)
NETWORK = "efficientnet-lite0"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    parts = ("val", "test", "train", "train")
    write_data_set(folder, 24, 96, lambda number: f"ward {number // 12},{parts[number // 2 % 4]}")
    return folder


def arguments(experiment: str, data: Path, place: Path, *more: str, epochs: int = 1) -> list[str]:
    sets = [part for setting in (*SETTINGS, f"training.epochs={epochs}") for part in ("--set", setting)]
    where = ["--data", str(data), "--runs", str(place / "runs"), "--output", str(place / "results")]
    small = ["--threads", "1", "--accelerator", "cpu", "--quiet"]
    return ["paper", experiment, *where, "--cache", str(data.parent / "cache"), *small, *sets, *more]


def saved(place: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((place / "results" / f"{name}.json").read_text()))


def invoke(*words: str) -> str:
    return CliRunner().invoke(app, list(words), catch_exceptions=False).stdout


@pytest.mark.slow
def test_ablation_seeds_and_convergence_from_training_to_table(data: Path, tmp_path: Path) -> None:
    words = arguments("ablation", data, tmp_path, "--only", "default,no-mask", "--protocols", "left-out")
    words += ["--seeds", "0", "--set", "network.weights=none", "--left-out", "ward 1"]
    planned = invoke(*words, "--dry-run")
    assert "left-out/no-mask-seed-0: to do" in planned
    assert re.search(r"^2 runs to be trained: about \d+ s$", planned, re.MULTILINE)
    assert not (tmp_path / "results").exists(), "a dry run writes nothing"
    out = invoke(*words)
    assert "[2/2] left-out/no-mask-seed-0" in out
    assert "split `leave-source-out:ward 1`" in out
    assert "| no mask branch | 0 |" in out
    mask, without = (saved(tmp_path, f"left-out/{row}-seed-0")["cost"] for row in ("default", "no-mask"))
    assert without["parameters"] < mask["parameters"]
    words = arguments("seeds", data, tmp_path / "seeds", "--recipe", NETWORK, "--set", "network.weights=none")
    assert f"{NETWORK}, recipe `{NETWORK}`, 64 × 64 pixels, 1 epoch" in invoke(*words, "--seeds", "3")
    assert saved(tmp_path / "seeds", "summary")["seeds"] == [3]
    place = tmp_path / "convergence"
    words = arguments("convergence", data, place, "--networks", NETWORK, "--weights", "none", "--seeds", "0")
    assert f"| {NETWORK} | none | 0 |" in invoke(*words)
    run = saved(place, f"official/{NETWORK}-none-seed-0")
    assert run["predictions"] == {}, "no test slice is evaluated"


@pytest.mark.slow
def test_stopped_and_started_again_it_ends_where_it_would_have(data: Path, tmp_path: Path) -> None:
    """Two runs, of which the second is stopped, and beside them the second where nobody stops it."""

    def command(place: Path, numbers: str) -> list[str]:
        more = ("--protocols", "official", "--networks", NETWORK, "--weights", "none", "--seeds", numbers)
        own = arguments("table1", data, place, *more, epochs=3)
        return [sys.executable, "-m", "groundglass.cli.main", *own]

    words, pipe = command(tmp_path, "0-1"), subprocess.PIPE
    with subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True) as process:
        wait_for((tmp_path / f"runs/official/{NETWORK}-none-seed-1/checkpoints/last.ckpt").exists, 240)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate()
    assert "Traceback" not in err
    assert process.returncode == 130
    assert "stopped; the same command resumes it" in out
    first, second = (f"official/{NETWORK}-none-seed-{seed}" for seed in (0, 1))
    before = saved(tmp_path, first)
    assert not (tmp_path / "results" / f"{second}.json").exists()
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    assert f"[1/2] {first}: exists already" in done.stdout
    assert saved(tmp_path, first) == before
    subprocess.run(command(tmp_path / "through", "1"), check=True, capture_output=True)
    whole, resumed = (saved(place, second) for place in (tmp_path / "through", tmp_path))
    assert resumed["predictions"] == whole["predictions"]
    assert [row["val_loss"] for row in resumed["history"]] == [row["val_loss"] for row in whole["history"]]
    assert len(resumed["history"]) == 3


def test_rendering_needs_no_torch(tmp_path: Path) -> None:
    write(tmp_path, *seeds("vgg-16-none", 1.0, experiment="table1"))
    words = ("paper", "table1", "--render-only", "--output", tmp_path)
    done = groundglass(*words, start=("-c", WITHOUT_TORCH))
    assert done.returncode == 0, done.stderr
    assert "vgg-16" in done.stdout
    assert (tmp_path / "table1.md").read_text().strip() == done.stdout.strip()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("table1", "name the data set with --data"),
        ("table1 --render-only --output nowhere", "nowhere: holds no result of a run yet"),
        ("table1 --data nowhere --lesion-free x", "nowhere: no such folder or file"),
        ("table1 --data . --seeds a", "--seeds a: expected a range"),
        ("table1 --data . --networks ,", "expected words with commas"),
        ("convergence --data . --weights no.safetensors", "'no.safetensors': no such file; kinds are"),
    ],
)
def test_one_line_says_what_is_wrong(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GroundglassError, match=message) as caught:
        invoke("paper", *words.split())
    assert "\n" not in str(caught.value)
