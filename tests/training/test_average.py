"""Runs that differ in their seed become one: its weights, its statistics, and what cannot be averaged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.conftest import QUICK
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.errors import DataError, RunError
from groundglass.imaging.read import read_slice
from groundglass.training import average as averaging
from groundglass.training.average import Average, average, mean_state
from groundglass.training.job import Job
from groundglass.training.recipe import load_recipe
from groundglass.training.run import Run
from groundglass.training.train import train

ONE_START = load_recipe("phantom-demo", [*QUICK, "training.epochs=2", "network.start=5"])


def trained(data: Path, output: Path, seed: int, **changes: object) -> Run:
    job = Job(ONE_START, data, "official", seed, output, threads=1, accelerator="cpu", progress=False)
    return train(replace(job, cache=output.parent / "cache", **changes))


@pytest.fixture(scope="module")
def runs(phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    """Two trainings from one start with different seeds."""
    folder = tmp_path_factory.mktemp("runs")
    return [trained(phantoms, folder / f"seed-{seed}", seed) for seed in (1, 2)]


def test_the_mean_of_tensors_and_the_first_of_counters() -> None:
    states = [
        {"weight": torch.tensor([value, 1.0]), "seen": torch.tensor(int(value))} for value in (2.0, 6.0)
    ]
    mean = mean_state(states)
    assert mean["weight"].tolist() == [4.0, 1.0]
    assert mean["seen"].item() == 2


@pytest.mark.slow
def test_the_average_is_a_run_that_says_what_was_measured_of_it(
    runs: list[Run], phantoms: Path, tmp_path: Path
) -> None:
    made = average(Average(runs, phantoms, tmp_path / "average", threads=1, cache=tmp_path / "cache"))
    assert made.info["averaged"] == [{"run": "seed-1", "seed": 1}, {"run": "seed-2", "seed": 2}]
    assert made.info["finished"]
    assert made.info["training_sha256"] == runs[0].info["training_sha256"]
    assert made.recipe == ONE_START
    records = [record for record in load_dataset(phantoms).records if record.split == "val"]
    said = made.predict(read_slice(record.path).pixels for record in records)
    truth = np.array([record.label == "COVID" for record in records])
    loss = -np.log(np.where(truth, said.probability, 1 - said.probability)).mean()
    (row,) = made.history()
    assert row["val_loss"] == pytest.approx(loss, abs=1e-4)
    assert row["val_accuracy"] == pytest.approx(((said.probability >= 0.5) == truth).mean())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["average", "cache"]


@pytest.mark.slow
def test_weights_are_averaged_and_statistics_taken_anew(
    runs: list[Run], phantoms: Path, tmp_path: Path
) -> None:
    made = average(Average(runs, phantoms, tmp_path / "average", threads=1, cache=tmp_path / "cache"))
    ours, (first, second) = made.weights(), (run.weights() for run in runs)
    learned = [name for name in ours if name.endswith(("weight", "bias"))]
    assert all(torch.allclose(ours[name], (first[name] + second[name]) / 2) for name in learned)
    assert any(not torch.equal(first[name], second[name]) for name in learned)
    # Each of the runs holds a decaying mean over its training, the average the mean over one epoch.
    name = "backbone.bn1.running_var"
    assert not torch.allclose(ours[name], (first[name] + second[name]) / 2, rtol=1e-3)


@pytest.mark.slow
def test_one_start_gives_different_seeds_the_same_parameters(phantoms: Path, tmp_path: Path) -> None:
    def stem(name: str, seed: int, *overrides: str) -> torch.Tensor:
        # So slow that what is left behind is what it began with.
        slow = [*QUICK, "training.epochs=1", "optimiser.lr=1e-9", *overrides]
        recipe = load_recipe("phantom-demo", slow)
        weights = trained(phantoms, tmp_path / name, seed, recipe=recipe).weights()
        return weights["backbone.conv_stem.weight"]

    first, second = (stem(f"one-{seed}", seed, "network.start=5") for seed in (1, 2))
    assert torch.allclose(first, second, atol=1e-5)
    assert not torch.allclose(first, stem("other", 2), atol=1e-5)


def changed(run: Run, folder: Path, info: dict[str, object], *recipe: tuple[str, str]) -> Run:
    """A copy of a run that says something else of itself."""
    shutil.copytree(run.path, folder)
    document = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**document, **info}))
    text = (folder / "recipe.yaml").read_text()
    for old, new in recipe:
        assert old in text
        text = text.replace(old, new)
    (folder / "recipe.yaml").write_text(text)
    return Run.open(folder)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("info", "recipe", "words"),
    [
        ({"seed": 1}, (), "each of a seed of its own"),
        ({"finished": False}, (), "other.*has not finished"),
        ({"fingerprint": "0"}, (), "other.*slices are not those of"),
        ({"split": "random:0"}, (), "official-source-cv:1/3:0"),
        ({}, (("lr: 0.001", "lr: 0.002"),), "other.*recipe is not that of"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(
    runs: list[Run],
    phantoms: Path,
    tmp_path: Path,
    info: dict[str, object],
    recipe: tuple[tuple[str, str], ...],
    words: str,
) -> None:
    other = changed(runs[1], tmp_path / "other", info, *recipe)
    with pytest.raises(RunError, match=words):
        average(Average([runs[0], other], phantoms, tmp_path / "average"))
    assert not (tmp_path / "average").exists()


@pytest.mark.slow
def test_one_run_many_starts_a_full_folder_and_other_data_are_refused(
    runs: list[Run], phantoms: Path, lesion_free: Path, tmp_path: Path
) -> None:
    target = tmp_path / "average"
    with pytest.raises(RunError, match="at least two runs"):
        average(Average(runs[:1], phantoms, target))
    apart = [changed(run, tmp_path / run.path.name, {}, ("start: 5", "start: null")) for run in runs]
    with pytest.raises(RunError, match=r"network\.start=0"):
        average(Average(apart, phantoms, target))
    with pytest.raises(RunError, match="is not empty"):
        average(Average(runs, phantoms, apart[0].path))
    fewer = tmp_path / "fewer.csv"
    lines = [line for line in phantoms.read_text().splitlines() if not line.startswith("31.png")]
    fewer.write_text("\n".join(lines).replace("\n", f"\n{phantoms.parent}/") + "\n")
    with pytest.raises(DataError, match=r"not the slices that .*seed-1 was trained on"):
        average(Average(runs, fewer, target, cache=tmp_path / "cache"))
    assert not target.exists()


@pytest.mark.slow
def test_a_fault_while_writing_leaves_nothing_behind(
    runs: list[Run], phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(averaging, "write_json", full)
    with pytest.raises(OSError, match="no space"):
        average(Average(runs, phantoms, tmp_path / "average", cache=tmp_path / "cache"))
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


@pytest.mark.slow
def test_the_command_averages_and_evaluates_what_it_made(
    runs: list[Run], phantoms: Path, tmp_path: Path
) -> None:
    made = tmp_path / "average"
    asked = ["average", *(str(run.path) for run in runs), "--data", str(phantoms), "--output", str(made)]
    answer = CliRunner().invoke(app, [*asked, "--threads", "1", "--cache", str(tmp_path / "cache")])
    assert answer.exit_code == 0, answer.output
    assert "validation AUC" in answer.output
    assert "AUC of each run" in answer.output
    report = tmp_path / "report"
    judged = ["evaluate", str(made), "--data", str(phantoms), "--part", "val", "--output", str(report)]
    answer = CliRunner().invoke(app, judged)
    assert answer.exit_code == 0, answer.output
    auc = json.loads((report / "metrics.json").read_text())["metrics"]["auc"]["value"]
    assert auc == pytest.approx(Run.open(made).history()[-1]["val_auc"], abs=1e-6)
