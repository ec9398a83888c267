"""Lists of trainings worked off: what is kept, what is skipped, and what a list goes on from."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file
from tests.training.experiments.conftest import QUICK

from groundglass.data.load import load_dataset
from groundglass.data.manifest import read_pixels
from groundglass.errors import DataError, RecipeError, RunError
from groundglass.experiments import runner
from groundglass.experiments.plan import Task, table1_tasks
from groundglass.experiments.results import read_run_result, read_run_results
from groundglass.experiments.runner import ExperimentPaths, check, plan, run_all
from groundglass.experiments.tables import render_table1
from groundglass.models.registry import build, measure
from groundglass.training.run import Run

LITE = "efficientnet-lite0"


def tasks(*protocols: str, weights: tuple[str, ...] = ("none",), seeds: tuple[int, ...] = (0,)) -> list[Task]:
    return table1_tasks(protocols or ("official",), [LITE], weights, seeds, QUICK, folds=2)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No training and no clock: says which runs would have been trained."""
    called: list[str] = []

    def work(task: Task, *_: object) -> None:
        called.append(task.name)
        raise RunError("no training here")

    monkeypatch.setattr(runner, "_work", work)
    return called


@pytest.mark.slow
def test_a_run_is_kept_whole_and_not_made_twice(place: ExperimentPaths, data: Path) -> None:
    (task,) = tasks()
    said: list[str] = []
    assert run_all([task], place, said.append) == []
    outcome = read_run_result(place.result(task))
    assert outcome.identity == task.identity
    assert outcome.run["machine"]["cores"]
    assert outcome.run["versions"]["torch"]
    assert outcome.run["training_seconds"] > 0
    assert len(outcome.history) == 2
    assert outcome.cost == {
        "parameters": measure(LITE, 64).parameters,
        "macs": measure(LITE, 64).macs,
        "input_size": 64,
    }
    speed = outcome.inference
    assert speed is not None
    assert speed["images_per_second"] == pytest.approx(np.median(speed["rounds_images_per_second"]), abs=0.01)
    assert (speed["batch_size"], speed["threads"], speed["device"]) == (16, 1, "CPU")
    # The slices of the file are what the stored network says of them.
    run = Run.open(place.run(task))
    records = [record for record in load_dataset(data).records if record.split == "test"]
    judged = outcome.judged["test"]
    assert judged.file == tuple(record.path.name for record in records)
    np.testing.assert_array_equal(
        run.predict(read_pixels(record) for record in records).logit, judged.logit.astype(np.float32)
    )
    before = place.result(task).read_bytes()
    assert run_all([task], place, said.append) == []
    assert "is there already" in said[-1]
    assert place.result(task).read_bytes() == before
    assert json.loads((place.run(task) / "evaluations.json").read_text())["evaluations"][1]["part"] == "test"
    # Killed between the training and the writing of its result: nothing is trained again.
    place.result(task).unlink()
    weights = (place.run(task) / "weights.safetensors").stat().st_mtime_ns
    run_all([task], place, said.append)
    assert (place.run(task) / "weights.safetensors").stat().st_mtime_ns == weights
    again = read_run_result(place.result(task))
    assert list(again.judged["test"].logit) == list(judged.logit)
    # The test slices have been looked at twice now, and the result says so.
    assert again.parts["test"]["evaluations_of_these_slices"] == 2


@pytest.mark.slow
def test_all_protocols_end_in_one_table(place: ExperimentPaths) -> None:
    listed = tasks("paper", "official", "patients")
    run_all(listed, place, lambda _: None)
    outcomes = {outcome.identity.name: outcome for outcome in read_run_results(place.output)}
    assert len(outcomes) == 4
    text = render_table1(place.output)
    for protocol in ("paper", "official", "patients"):
        assert f"**Protocol `{protocol}`**" in text
    folds = [outcomes[f"patients/{LITE}-none-seed-0-fold-{fold}"] for fold in (1, 2)]
    files = [file for fold in folds for file in fold.judged["test"].file]
    assert sorted(files) == sorted(f"{number}.png" for number in range(48))
    assert all(each.state == "done" for each in plan(listed, place))


def test_weights_nobody_has_are_skipped_and_noted(
    place: ExperimentPaths, untrained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("groundglass.models.weights._require_hub", _no_hub)
    listed = table1_tasks(["official"], ["resnet-18"], ["imagenet"], [0, 1], QUICK)
    said: list[str] = []
    assert run_all(listed, place, said.append) == []
    assert untrained == []
    assert [line for line in said if "skipped, no hub here" in line] == said
    noted = json.loads((place.output / "not-run.json").read_text())
    assert noted == {task.name: "no hub here" for task in listed}
    assert [each.state for each in plan(listed, place)] == ["skipped", "skipped"]
    # Once the weights can be had, the note goes with the result.
    monkeypatch.undo()
    for task in listed:
        place.result(task).parent.mkdir(parents=True, exist_ok=True)
        place.result(task).write_text("{}")
    runner._forget_made(place.output)
    assert not (place.output / "not-run.json").exists()


def _no_hub(entry: object) -> None:
    from groundglass.errors import WeightsError

    raise WeightsError("no hub here")


def test_a_run_that_fails_does_not_stop_the_others(place: ExperimentPaths, untrained: list[str]) -> None:
    listed = tasks("official", "paper", seeds=(0, 1))
    failed = run_all(listed, place, lambda _: None)
    assert failed == untrained == [task.name for task in listed]
    noted = json.loads((place.output / "not-run.json").read_text())
    assert set(noted.values()) == {"no training here"}


@pytest.mark.slow
def test_an_unstable_training_is_noted(place: ExperimentPaths) -> None:
    listed = table1_tasks(
        ["official"], [LITE], ["none"], [0], [*QUICK, "optimiser.lr=1e30", "optimiser.gradient_clip=0"]
    )
    said: list[str] = []
    assert run_all(listed, place, said.append) == [f"official/{LITE}-none-seed-0"]
    assert "was the training stable?" in said[-1]
    assert not place.result(listed[0]).exists()


@pytest.mark.slow
def test_other_settings_are_refused_before_anything_is_trained(place: ExperimentPaths, data: Path) -> None:
    (task,) = tasks()
    run_all([task], place, lambda _: None)
    (longer,) = table1_tasks(["official"], [LITE], ["none"], [0], [*QUICK, "training.epochs=3"])
    for finished in (True, False):
        if not finished:
            place.result(task).unlink()
        with pytest.raises(RunError, match=r"training\.epochs was 2, is 3.*choose another --output"):
            check([longer], place)
        with pytest.raises(RunError, match="data was"):
            check([task], replace(place, data=data / "manifest.csv"))
        check([task], place)


def test_a_damaged_result_stops_the_list(place: ExperimentPaths, untrained: list[str]) -> None:
    (task,) = tasks()
    place.result(task).parent.mkdir(parents=True)
    place.result(task).write_text('{"format": 1')
    with pytest.raises(DataError, match=rf"{LITE}-none-seed-0\.json: no readable result"):
        run_all([task], place, lambda _: None)
    assert untrained == []


def test_splits_are_made_before_anything_is_trained(
    place: ExperimentPaths, untrained: list[str], tmp_path: Path, data: Path
) -> None:
    lines = (data / "manifest.csv").read_text().splitlines()
    bare = data / "no-test.csv"
    bare.write_text("\n".join(line for line in lines if not line.endswith(",test")) + "\n")
    with pytest.raises(DataError, match="has no part 'test'"):
        run_all(tasks("paper", "official"), replace(place, data=bare), lambda _: None)
    with pytest.raises(DataError, match="too few for 40 folds"):
        run_all(table1_tasks(["patients"], [LITE], ["none"], [0], QUICK, folds=40), place, lambda _: None)
    assert untrained == []


def test_lesion_synthesis_needs_its_slices(place: ExperimentPaths, untrained: list[str]) -> None:
    listed = table1_tasks(["official"], [LITE], ["none"], [0], [*QUICK, "synthesis.slices_per_epoch=8"])
    with pytest.raises(RecipeError, match="--lesion-free"):
        run_all(listed, place, lambda _: None)
    assert untrained == []


@pytest.mark.slow
def test_a_training_killed_before_its_first_file_was_whole_begins_anew(place: ExperimentPaths) -> None:
    (task,) = tasks()
    folder = place.run(task)
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", ".recipe.yaml.x.yaml", ".run.json.abc.json"):
        (folder / name).write_text("half")
    assert run_all([task], place, lambda _: None) == []
    assert place.result(task).exists()


def test_a_strangers_folder_is_left_alone(place: ExperimentPaths) -> None:
    (task,) = tasks()
    place.run(task).mkdir(parents=True)
    (place.run(task) / "thesis.txt").write_text("mine")
    assert run_all([task], place, lambda _: None) == [task.name]
    assert (place.run(task) / "thesis.txt").read_text() == "mine"


@pytest.mark.slow
def test_c2l_weights_from_a_file_say_what_they_saw(place: ExperimentPaths, tmp_path: Path) -> None:
    folder = tmp_path / "pretraining"
    folder.mkdir()
    file = folder / "backbone.safetensors"
    save_file({name: value.contiguous() for name, value in build(LITE).backbone.state_dict().items()}, file)
    seen = {"recipe": "c2l", "network": LITE, "data": "covid-ct", "split": "official", "slices": 1300}
    (folder / "run.json").write_text(json.dumps({**seen, "machine": "left out"}))
    (task,) = table1_tasks(["official"], [LITE], ["c2l"], [0], QUICK, files={LITE: file})
    run_all([task], place, lambda _: None)
    outcome = read_run_result(place.result(task))
    assert outcome.weights == "c2l"
    assert outcome.pretraining is not None
    assert outcome.pretraining["split"] == "official"
    assert len(outcome.pretraining["sha256"]) == 64
    assert "machine" not in outcome.pretraining
    # The same weights at another place are the same row.
    (moved,) = table1_tasks(["official"], [LITE], ["c2l"], [0], QUICK)
    check([moved], place)


@pytest.mark.slow
def test_time_is_estimated_from_what_is_done(place: ExperimentPaths) -> None:
    listed = tasks(seeds=(0, 1)) + table1_tasks(["official"], ["resnet-18"], ["none"], [0], QUICK)
    assert [each.seconds for each in plan(listed, place)] == [None] * 3
    run_all(listed[:1], place, lambda _: None)
    done, same, other = plan(listed, place)
    assert (done.state, done.seconds) == ("done", 0.0)
    seconds = read_run_result(place.result(listed[0])).run["training_seconds"]
    assert same.seconds == pytest.approx(seconds, rel=0.01)
    assert same.measured_on == "this network"
    ratio = measure("resnet-18", 64).macs / measure(LITE, 64).macs
    assert other.seconds == pytest.approx(seconds * ratio, rel=0.01)
    assert other.measured_on == "other networks"
    folder = place.run(listed[1])
    folder.mkdir(parents=True)
    (folder / "history.csv").write_text("epoch,val_loss,seconds\n0,0.5,7\n")
    begun = plan(listed, place)[1]
    assert (begun.state, begun.seconds, begun.measured_on) == ("begun, 1 of 2 epochs", 7.0, "itself")
