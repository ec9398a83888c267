"""Training from the command line: what ``train`` says before it trains, and ``paper``, stopped and resumed."""

import json
import signal
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import cv2
import pytest
from tests.conftest import Command, Patch
from tests.training.conftest import QUICK, command, kill_after_an_epoch, write_data_set

from groundglass.errors import RunError
from groundglass.training.recipe import load_recipe

NETWORK = "efficientnet-lite0"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms; ``leaking.csv`` holds in the test part a copy of a training slice, of another patient by its name."""
    folder = tmp_path_factory.mktemp("data")
    parts = ("val", "val", "test", "test", "train", "train", "train", "train")
    write_data_set(folder, 16, 96, lambda number: f"phantom,{parts[number // 2]}")
    pixels = cv2.imread(str(folder / "13.png"), cv2.IMREAD_GRAYSCALE)
    cv2.imwrite(str(folder / "again [x].jpg"), cv2.resize(pixels, (88, 84), interpolation=cv2.INTER_AREA))
    lines = (folder / "manifest.csv").read_text()
    (folder / "leaking.csv").write_text(f"{lines}again [x].jpg,NonCOVID,other,phantom,test\n")
    return folder


@pytest.fixture
def train(data: Path, tmp_path: Path, run_command: Command) -> Command:
    def run(*more: str, manifest: str = "manifest.csv", recipe: str = "phantom-demo") -> tuple[int, str, str]:
        settings = QUICK if recipe == "phantom-demo" else ()
        words = command("train", data / manifest, tmp_path / "run", settings, "--recipe", recipe, *more)
        return run_command(*words[3:])

    return run


def test_train_warns_of_what_parts_share(data: Path, train: Command, tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr("groundglass.training.train.train_job", Mock(side_effect=RunError("begun")))

    def warnings(*more: str, manifest: str = "manifest.csv") -> list[str]:
        _, out, err = train(*more, manifest=manifest)
        *said, last = err.splitlines()
        assert (out, last) == ("", "error: begun")
        return said

    pair = "13.png and again [x].jpg."
    assert warnings(manifest="leaking.csv") == [
        f"warning: 1 pair of slices in different parts show the same slice: {pair}",
        f"warning: 1 pair of slices with opposite labels show the same slice: {pair}",
        "warning: 1 pair of slices of different patients show the same slice, so that splits by patient do not keep "
        f"them together: {pair}",
    ]
    assert warnings() == warnings("--no-audit", manifest="leaking.csv") == []
    lines, other = (data / "leaking.csv").read_text().splitlines(), tmp_path / "other.csv"
    other.write_text(f"{lines[0]}\n{data}/{lines[-1]}\n")
    assert f"same slice: {data.name}/13.png and {data.name}/again [x].jpg." in warnings("--data", str(other))[0]
    _, _, err = train("--no-audit", "--held-out", str(other))
    assert err.startswith(f"error: {data}/13.png: shows the same slice as {data}/again [x].jpg, which is held out")
    other.write_text("\n".join([lines[0], *(f"{data}/{line}" for line in lines[1:-1] if line.endswith("test"))]))
    assert warnings("--no-audit", "--held-out", str(other)) == []
    painted = ("--set", "synthesis.slices_per_epoch=4", "--lesion-free", str(other))
    assert "4 pairs of slices in different parts show the same slice" in warnings(*painted)[0]
    for variable in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "1")
            assert warnings(manifest="leaking.csv") == [], "only the first process warns"


def test_without_lesion_free_slices_it_is_resumed_too(train: Command, monkeypatch: Patch) -> None:
    monkeypatch.setattr("groundglass.training.trainer.Job.fit", Mock(side_effect=RunError("begun")))
    for _ in range(2):
        assert train("--resume", "--set", "synthesis.slices_per_epoch=8")[2].splitlines()[-1] == "error: begun"


def test_a_dry_run_prints_a_recipe_to_train_with(train: Command, tmp_path: Path) -> None:
    _, out, err = train("--dry-run")
    (tmp_path / "mine.yaml").write_text(out)
    assert load_recipe(str(tmp_path / "mine.yaml")) == load_recipe("phantom-demo", QUICK)
    assert "3 epochs of 1 batches" in err
    assert not (tmp_path / "run").exists()
    counted = [line.replace("│", "").split() for line in err.splitlines() if "phantom" in line]
    sizes, labels = {"train": "4", "val": "2", "test": "2"}, ("NonCOVID", "COVID")
    assert counted == [[part, "phantom", label, size] for part, size in sizes.items() for label in labels]


def test_options_that_will_not_do_are_refused_before_slices_are_read(train: Command, monkeypatch: Patch) -> None:
    monkeypatch.setattr("groundglass.audit.audit.audit", lambda *_, **__: pytest.fail("read"))
    for recipe, options, said in (
        ("phantom-demo", "--devices 0", "'--devices': Input should be greater than or equal to 1"),
        ("phantom-demo", "--seed 4294967296", "'--seed': Input should be less than or equal to 4294967295"),
        ("phantom-demo", "--output .", "is not empty and holds no run"),
        ("phantom-demo", "--set augmenter=os:system", "augmenter=os:system"),
        ("phantom-demo", "--dry-run --devices 2 --accelerator moon", "moon --devices 2: not on this"),
        *(("lungs", option, "are for classifiers") for option in ("--dry-run", "--devices 2")),
    ):
        status, _, err = train(*options.split(), recipe=recipe)
        assert (status, said in err) == (2, True), options


@pytest.fixture(scope="module")
def wards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    parts = ("val", "test", "train", "train")
    write_data_set(folder, 24, 96, lambda number: f"ward {number // 12},{parts[number // 2 % 4]}")
    return folder


def arguments(experiment: str, data: Path, place: Path, more: str, epochs: int = 1) -> list[str]:
    scratch = QUICK if experiment == "ablation" else QUICK[1:]  # the others name their weights
    sets = "synthesis.slices_per_epoch=0", *scratch, f"training.epochs={epochs}"
    where = ["--data", str(data), "--runs", str(place / "runs"), "--output", str(place / "results")]
    small = ["--cache", str(data.parent / "cache"), "--threads", "1", "--accelerator", "cpu", "--quiet"]
    return ["paper", experiment, *where, *small, *(part for each in sets for part in ("--set", each)), *more.split()]


def saved(place: Path, name: str) -> dict[str, Any]:
    return dict(json.loads((place / "results" / f"{name}.json").read_text()))


@pytest.mark.slow
def test_ablation_and_convergence(wards: Path, tmp_path: Path, run_command: Command) -> None:
    words = arguments("ablation", wards, tmp_path, "--only default,no-mask --protocols left-out --seeds 0")
    words += ["--left-out", "ward 1"]
    _, planned, _ = run_command(*words, "--dry-run")
    assert "left-out/no-mask-seed-0: to do" in planned
    assert "2 runs to be trained\n" in planned
    assert not (tmp_path / "results").exists(), "a dry run writes nothing"
    _, out, _ = run_command(*words)
    for said in ("[2/2] left-out/no-mask-seed-0", "split `leave-source-out:ward 1`", "| no mask branch | 0 |"):
        assert said in out
    mask, without = (saved(tmp_path, f"left-out/{row}-seed-0")["cost"] for row in ("default", "no-mask"))
    assert without["parameters"] < mask["parameters"]
    before = saved(tmp_path, "left-out/default-seed-0")
    _, again, _ = run_command(*words)
    assert again.count(": exists already") == 2
    assert saved(tmp_path, "left-out/default-seed-0") == before
    place = tmp_path / "convergence"
    words = arguments("convergence", wards, place, f"--networks {NETWORK} --weights none --seeds 0")
    assert f"| {NETWORK} | none | 0 |" in run_command(*words)[1]
    assert saved(place, f"official/{NETWORK}-none-seed-0")["predictions"] == {}, "no test slice is evaluated"


@pytest.mark.slow
def test_stopped_it_goes_on_where_it_was(wards: Path, tmp_path: Path, run_command: Command) -> None:
    name = f"official/{NETWORK}-none-seed-0"
    more = f"--protocols official --networks {NETWORK} --weights none --seeds 0"
    words = [sys.executable, "-m", "groundglass.cli.main", *arguments("table1", wards, tmp_path, more, 3)]
    run = tmp_path / "runs" / name
    status, out, err = kill_after_an_epoch(words, run, signal.SIGINT)
    assert (status, "Traceback" in err) == (130, False)
    assert "stopped; the same command resumes it" in out
    begun = (run / "history.csv").read_text().splitlines()[:2]
    assert not (tmp_path / "results" / f"{name}.json").exists()
    assert run_command(*words[3:]).status == 0
    assert (run / "history.csv").read_text().splitlines()[:2] == begun, "its first epoch is not trained again"
    assert len(saved(tmp_path, name)["history"]) == 3


def test_one_line(tmp_path: Path, monkeypatch: Patch, run_command: Command) -> None:
    monkeypatch.chdir(tmp_path)
    for words, message in (
        ("table1", "name the data set with --data"),
        ("table1 --render-only --output nowhere", "nowhere: holds no result of a run yet"),
        ("table1 --data . --seeds 0-99999", "--seeds 0-99999: expected a range"),
        ("table1 --data . --networks ,", "expected words with commas"),
        ("convergence --data . --weights no.safetensors", "'no.safetensors': no such file; kinds are"),
    ):
        status, _, err = run_command("paper", *words.split())
        assert (status, message in err, len(err.splitlines())) == (2, True, 1), words
