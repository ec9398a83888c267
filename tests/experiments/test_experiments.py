"""Experiments: which trainings they are, what is kept of them, what tables and tests say of it and of nothing else."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from tests.conftest import Patch
from tests.training.conftest import QUICK, write_data_set

from groundglass.data.load import load_dataset, load_pool
from groundglass.data.manifest import Label, read_record
from groundglass.data.splits import make_split
from groundglass.errors import DataError, GroundglassError, RecipeError, RunError, WeightsError
from groundglass.evaluation.bootstrap import Resampling
from groundglass.evaluation.metrics import TITLES, compute_metrics
from groundglass.evaluation.paired import delong_test, holm, mcnemar_test
from groundglass.experiments import plan, runner
from groundglass.experiments import results as stored
from groundglass.experiments.comparison import PairedRows
from groundglass.experiments.plan import Task, ablation_tasks, table1_tasks, variants
from groundglass.experiments.results import complete, read_run_result, read_run_results, write_run_result
from groundglass.experiments.runner import ExperimentPaths, check, run_all
from groundglass.experiments.tables import render_convergence, render_rows, render_seeds
from groundglass.files import write_text
from groundglass.training.recipe import AugmentationSection, Recipe, load_recipe
from groundglass.training.run import Run

# Results without training: what a row predicts of each slice is drawn from a skill.
MACHINE = {"system": "Linux", "architecture": "x86_64", "cores": 2, "accelerator": "none"}
RUN = {"counts": {"train": 400, "val": 100}, "machine": MACHINE, "versions": {"torch": "2.9"}, "threads": 2}
RECIPE = {
    "preprocessing": {"size": 160, "crop": False, "normalisation": "zero-mean"},
    "optimiser": {"lr": 0.0003},
    "synthesis": {"slices_per_epoch": 320, "severity": [0.08, 0.8]},
    "training": {"epochs": 14, "batch_size": 32},
}
DEFAULT, PAPER = load_recipe("mask-efficientnet"), load_recipe("paper")
LITE, MASK, VGG = "efficientnet-lite0", "mask-efficientnet-lite0", "vgg-16-none"
SETTINGS = (*QUICK[1:], "training.epochs=2", "synthesis.slices_per_epoch=0")  # weights are named


def document(
    row: str, skill: float, *, seed: int = 0, experiment: str = "table1", protocol: str = "official",
    parts: Sequence[str] = ("test",), network: str | None = None, weights: str = "none",
    fold: int | None = None, folds: int = 1, **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """A result whose logits are ``skill`` apart between the classes of 100 slices, two of each of 50 patients."""
    label = np.random.default_rng(7).permutation(50).repeat(2) % 2
    chosen = [index for index in range(100) if fold is None or index // 2 % folds == fold - 1]
    predictions = {}
    for number, part in enumerate(parts):
        noise = np.random.default_rng([seed, sum(map(ord, row)), number]).normal(size=100)
        logit = ((label - 0.5) * skill + noise).astype(np.float32)
        predictions[part] = [
            [f"{each:04}.png", "COVID" if label[each] else "NonCOVID", f"p{each // 2}", float(logit[each])]
            for each in chosen
        ]
    network = network or row.removesuffix(f"-{weights}")
    title = row if experiment == "ablation" else f"{network} ({weights})"
    identity = stored.Identity(experiment, protocol, row, title, seed, fold, None if fold is None else folds)
    own = {"name": network, "network": {"name": network, "weights": weights}}
    metrics = {name: {"value": 0.8 + seed / 100} for name in TITLES}
    measured = {"slices": 100, "patients": 50, "metrics": metrics, "warnings": []}
    known = {"format": stored.FORMAT, "network": network, "weights": weights, "pretraining": None}
    return {
        **asdict(identity),
        **known,
        "split": {"specification": protocol, "train_and_val": "0" * 64, "parts": {}},
        "run": {"seed": seed, "split": protocol, "data": "drawn", "training_seconds": 120.0 + seed, **RUN},
        "cost": {"parameters": 3_400_000, "macs": 200_000_000, "input_size": 160},
        "recipe": {**own, **{section: dict(fields) for section, fields in RECIPE.items()}},
        "history": [{"epoch": float(epoch), "val_loss": 0.7, "val_auc": 0.5} for epoch in range(14)],
        "parts": {part: dict(measured) for part in parts},
        "predictions": predictions,
        **changes,
    }


def write(folder: Path, *documents: dict[str, Any]) -> Path:
    for each in documents:
        name = stored.Identity(**{key: each[key] for key in stored.Identity.__dataclass_fields__}).name
        write_text(folder / f"{name}.json", json.dumps(each, ensure_ascii=False))
    return folder


def seeds(row: str, skill: float, which: Sequence[int] = (0, 1, 2), **changes: Any) -> list[dict[str, Any]]:
    return [document(row, skill, seed=seed, **changes) for seed in which]


def differing(recipe: Recipe, other: Recipe) -> set[str]:
    """Fields in which two recipes differ, as ``--set`` spells them."""
    own, theirs = (complete(each.model_dump(mode="json")) for each in (recipe, other))
    return {key for key in own | theirs if own.get(key) != theirs.get(key)}


def test_the_whole_table() -> None:
    tasks = table1_tasks()
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names) == 5 * 2 * 3 * (5 + 1) + 2 * 2 * 3 * 5
    assert {"official/vgg-16-c2l-seed-2", "patients/mask-efficientnet-b0-imagenet-seed-0-fold-5"} < {*names}
    assert not [name for name in names if name.startswith("patients/vgg")]
    folded = {way.format(fold) for fold in range(1, 6) for way in ("random:{}/5:0", "patients:{}/5")}
    assert {task.split for task in tasks} == {"official"} | folded
    assert all(task.allow_overlap == (task.identity.protocol == "random") for task in tasks)
    assert {task.parts for task in tasks} == {("val", "test")}
    # All networks have the paper's recipe, but for VGG's learning rate.
    tasks = table1_tasks(["official"], weights=["imagenet"], seeds=[0], overrides=["training.epochs=3"])
    recipe = load_recipe("paper", ["training.epochs=3"])
    changed = {task.recipe.network.name: differing(task.recipe, recipe) - {"network.name"} for task in tasks}
    assert list(changed) == list(plan.NETWORKS)
    assert {name: each for name, each in changed.items() if each} == {"vgg-16": {"optimiser.lr"}}


def test_what_cannot_be_is_named() -> None:
    makers: dict[str, Callable[[], object]] = {
        "there are random, official, patients": lambda: table1_tasks(["cv"]),
        "random, official, patients, left-out": lambda: ablation_tasks(DEFAULT, protocols=["paper"]),
        "did you mean": lambda: table1_tasks(networks=["vgg-17"]),
        "has no mask branch to leave out": lambda: ablation_tasks(load_recipe("resnet-18")),
        "--only resnet: matches no run; rows are vgg": lambda: plan.chosen(table1_tasks(), ["vgg*", "resnet"]),
    }
    for message, make in makers.items():
        with pytest.raises(GroundglassError, match=message):
            make()


def test_rows_of_one_seed_come_first_and_a_list_can_be_narrowed() -> None:
    networks = ["resnet-18", LITE]
    tasks = table1_tasks(["patients", "official"], networks, ["none"], seeds=[1, 0])
    ways = (*(f"patients/{{}}-none-seed-{{}}-fold-{fold}" for fold in range(1, 6)), "official/{}-none-seed-{}")
    expected = [way.format(network, seed) for seed in (0, 1) for way in ways for network in networks]
    assert [task.name for task in plan.chosen(tasks, ())] == expected
    assert len(plan.chosen(tasks, ["official/*", "official/resnet-18-none"])) == 4
    one = "official/resnet-18-none-seed-1"
    assert [task.name for task in plan.chosen(tasks, [one])] == [one]
    (mine,) = plan.seeds_tasks(DEFAULT.model_copy(update={"name": "mine/v2"}), "leave-source-out:a+b", [3], ["test"])
    assert (mine.name, mine.parts) == ("leave-source-out-a+b/mine-v2-seed-3", ("test",))


def test_every_variant_changes_one_thing() -> None:
    recipes = {each.row: each.recipe for each in variants(DEFAULT)}
    for recipe in recipes.values():
        assert type(recipe).model_validate(recipe.model_dump()) == recipe, "one that a file could hold"
    changed = {row: differing(recipe, DEFAULT) for row, recipe in recipes.items()}
    four = {f"augmentation.{name}" for name in ("translation", "rotation", "mirror", "noise")}
    every = {f"augmentation.{name}" for name in AugmentationSection.model_fields} - {"augmentation.lungs_only"}
    assert (changed.pop("augmentation-paper"), changed.pop("augmentation-none")) == (every - four, every)
    expected = (
        "default: no-mask:network.mask no-attention:network.attention no-histogram:network.histogram "
        "gates-blocks:network.gates no-crop:preprocessing.crop no-synthesis:synthesis.slices_per_epoch "
        "normalisation-min-max:preprocessing.normalisation weights-none:network.weights weights-c2l:network.weights"
    )
    assert {f"{row}:{' '.join(fields)}" for row, fields in changed.items()} == {*expected.split()}
    off = load_recipe("mask-efficientnet", ["network.mask=false", "synthesis.slices_per_epoch=0"])
    recipes = {each.row: each.recipe for each in variants(off)}
    assert recipes["with-mask"].network.mask
    assert recipes["with-synthesis"].synthesis.slices_per_epoch == 320


def test_the_papers_recipe_is_the_paper_and_nothing_else() -> None:
    rows = {each.row for each in variants(PAPER)}
    assert not {"augmentation-paper", "gates-blocks"} & rows, "no row is the default under another name"
    assert {"no-mask", "no-attention", "no-histogram", "with-crop", "with-synthesis"} < rows
    assert (PAPER.network.name, PAPER.preprocessing.size) == ("mask-efficientnet-b0", 224)
    assert (PAPER.preprocessing.crop, PAPER.synthesis.slices_per_epoch, PAPER.network.lesions) == (0, 0, 0)
    silent = PAPER.augmentation.model_dump(exclude={"translation", "rotation", "mirror", "noise"})
    assert silent.pop("smallest_crop") == 1
    assert set(silent.values()) == {0}


def test_on_covid_ct_a_collection_and_a_publication_are_left_out(covid_ct: Path) -> None:
    data = load_dataset(covid_ct)
    (task, *_) = ablation_tasks(DEFAULT, [0], protocols=["left-out"])
    assert (task.split, task.parts) == ("leave-source-out:2020.02.25.20021568+medpix", ("test",))
    assert {data.records[index].label for index in make_split(data, task.split).part("test")} == set(Label)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty-eight phantoms with all three parts, one slice a patient, as a folder with a manifest."""
    folder, parts = tmp_path_factory.mktemp("experiment-data"), ("val", "test", "train", "train")
    write_data_set(folder, 48, 96, lambda number: f"ward,{parts[number // 2 % 4]}")
    return folder


@pytest.fixture
def paths(data: Path, tmp_path: Path) -> ExperimentPaths:
    """Folders of a test's own, and a cache that all tests share."""
    runs, output, cache = tmp_path / "runs", tmp_path / "results", data.parent / "cache"
    return ExperimentPaths((data,), runs, output, threads=1, accelerator="cpu", cache=cache, progress=False)


def tasks(*protocols: str, numbers: Sequence[int] = (0,), more: Sequence[str] = ()) -> list[Task]:
    return table1_tasks(protocols or ("official",), [LITE], ["none"], numbers, [*SETTINGS, *more])


@pytest.fixture
def untrained(monkeypatch: Patch) -> Mock:
    """No training, but calls for it."""
    monkeypatch.setattr(runner, "_work", called := Mock(side_effect=RunError("no training here")))
    return called


@pytest.mark.slow
def test_a_run_is_kept_whole_and_not_made_twice(paths: ExperimentPaths, data: Path) -> None:
    (task,) = tasks()
    folder, manifest = paths.run(task), load_pool([data])
    # Killed before its first file was whole.
    folder.mkdir(parents=True)
    for name in ("recipe.yaml", ".recipe.yaml.x.yaml", ".run.json.abc.json"):
        (folder / name).write_text("half")
    assert run_all([task], paths, lambda _: None) == []
    result = read_run_result(paths.result(task))
    assert (result.identity, len(result.history)) == (task.identity, 2)
    assert "training_sha256" not in result.run
    # The slices of the file are what the stored network predicts of them, and give the measures again.
    records = [record for record in manifest.records if record.split == "test"]
    predictions = result.predictions["test"]
    assert predictions.file == tuple(record.path.name for record in records)
    logit = Run.open(folder).predict(read_record(record) for record in records).logit
    np.testing.assert_array_equal(logit, predictions.logit.astype(np.float32))
    measured = {name: entry["value"] for name, entry in result.parts["test"]["metrics"].items()}
    again = compute_metrics(predictions.label, predictions.probability)
    assert {name: each.value for name, each in again.items()} == pytest.approx(measured)
    # Killed between the training and the writing of its result: nothing is trained again, nor by a version that
    # knows more fields than its recipe was written with.
    paths.result(task).unlink()
    (recipe := folder / "recipe.yaml").write_text(recipe.read_text().replace("  gates: stages\n", ""))
    weights = (folder / "weights.safetensors").stat().st_mtime_ns
    run_all([task], paths, lambda _: None)
    assert (folder / "weights.safetensors").stat().st_mtime_ns == weights
    twice = read_run_result(paths.result(task))
    assert list(twice.predictions["test"].logit) == list(predictions.logit)
    assert twice.parts["test"]["evaluations_of_these_slices"] == 2
    (longer,) = tasks(more=["training.epochs=3"])
    for _ in ("the result", "the run alone"):
        with pytest.raises(RunError, match=r"training\.epochs was 2, is 3.*choose another --output"):
            check([longer], paths, manifest)
        with pytest.raises(RunError, match="data was"):
            check([task], replace(paths, data=(data / "manifest.csv",)), manifest)
        check(tasks(more=["trainer.workers=2"]), paths, manifest)
        paths.result(task).unlink(missing_ok=True)
    for name in ("recipe.yaml", "run.json"):
        (folder / name).write_text("[")
        with pytest.raises(RunError, match="damaged run"):
            check([task], paths, manifest)


def test_c2l_weights_are_kept_with_what_they_saw(paths: ExperimentPaths, tmp_path: Path) -> None:
    (file := tmp_path / "backbone.safetensors").touch()
    seen = {"kind": "pretraining", "network": LITE, "data": "covid-ct", "split": "official", "slices": 1300}
    (tmp_path / "run.json").write_text(json.dumps({**seen, "machine": "left out"}))
    task, moved = (table1_tasks(["official"], [LITE], [kind], [0], SETTINGS)[0] for kind in (str(file), "c2l"))
    info, rows = ({"split": "official", "seed": 0, "data": [paths.data[0].name]}, [{"epoch": 1.0, "val_loss": 0.5}])
    trained: Any = SimpleNamespace(path=Path("runs/first"), info=info, history=lambda: rows)
    write_run_result(runner.gather(paths.result(task), task, trained, {}))
    result = read_run_result(paths.result(task))
    assert (result.weights, result.pretraining["split"]) == ("c2l", "official")
    assert "machine" not in result.pretraining
    # The same weights at another place are the same row.
    check([moved], paths, load_pool(paths.data))
    rows[0]["val_loss"] = float("nan")
    with pytest.raises(RunError, match=r"runs/first: epoch 1 has no finite loss"):
        runner.gather(paths.result(task), task, trained, {})


def test_a_fault_stops_no_other(paths: ExperimentPaths, untrained: Mock, monkeypatch: Patch) -> None:
    def no_hub(_: object, weights: str) -> None:
        if weights == "imagenet":
            raise WeightsError("no hub here")

    monkeypatch.setattr("groundglass.models.weights.read_weights", no_hub)
    (missing,) = table1_tasks(["official"], ["resnet-18"], ["imagenet"], [0], SETTINGS)
    (painted,) = tasks(numbers=(2,), more=["synthesis.slices_per_epoch=8"])
    listed, said = tasks("official", "random", numbers=(0, 1)), list[str]()
    assert run_all([missing, *listed, painted], paths, said.append) == [task.name for task in listed]
    assert [call.args[0] for call in untrained.call_args_list] == listed
    assert said[0].endswith("skipped, no hub here")
    assert said[-1].endswith("skipped, has no lesion-free slices to paint into")
    assert sum(line.endswith("failed, no training here") for line in said) == len(listed)


def test_faults_are_found_before_it_starts(paths: ExperimentPaths, untrained: Mock, data: Path) -> None:
    lines = (data / "manifest.csv").read_text().splitlines()
    bare = replace(paths, data=(data / "no-test.csv",))
    bare.data[0].write_text("\n".join(line for line in lines if not line.endswith(",test")) + "\n")
    for listed, place, error, match in (
        (tasks("official", "random"), bare, DataError, "has no part 'test'"),
        ([replace(tasks()[0], split="patients:1/40")], paths, DataError, "too few for 40 folds"),
        (tasks(more=["synthesis.slices_per_epoch=8"]), paths, RecipeError, "--lesion-free"),
        (tasks(more=["trainer.devices=2"]), paths, RecipeError, "one process"),
    ):
        with pytest.raises(error, match=match):
            run_all(listed, place, lambda _: None)
    untrained.assert_not_called()


def paired(folder: Path, *documents: dict[str, Any]) -> PairedRows:
    return PairedRows(read_run_results(write(folder, *documents)), "test")


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    known, path = document(VGG, 1.0), tmp_path / "again.json"
    known["predictions"]["test"][0][0] = "Lunge 'ä', \"1\"\n.png"
    write_run_result(replace(read_run_result(write(tmp_path, known) / f"official/{VGG}-seed-0.json"), path=path))
    stored = json.loads(path.read_text())
    for row, again in zip(known["predictions"]["test"], stored["predictions"]["test"], strict=True):
        assert np.float32(again.pop()) == row.pop(), "to the last bit"
    assert stored == known
    # One line per slice keeps a change of one slice readable.
    assert sum(line.startswith("      [") for line in path.read_text().splitlines()) == 100


def test_a_damaged_or_older_result_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, document(VGG, 1.0)) / f"official/{VGG}-seed-0.json"
    sound = path.read_text()
    for old, new, message in (
        ("}", "", "no readable result"),
        ('"cost"', '"price"', "'cost' is missing"),
        ('"NonCOVID"', '"healthy"', "no readable result"),
        ('"format": 2', '"format": 1', "format 1, this version reads 2"),
        ('"p0", ', '"p0", "x", ', "no readable result"),
    ):
        path.write_text(sound.replace(old, new))
        with pytest.raises(DataError, match=rf"^{path}: .*{message}.*$"):
            read_run_results(tmp_path)


def test_mean_spread_and_interval_over_seeds(tmp_path: Path) -> None:
    rows = paired(tmp_path, *seeds(VGG, 1.5))
    spread, own = rows.summary(VGG)["accuracy"], rows.rows[VGG].predictions.values()
    values = [compute_metrics(each.label, each.probability)["accuracy"].value for each in own]
    assert spread.values == pytest.approx(values)
    assert (spread.mean, spread.sd) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    assert (spread.low or 1) < np.mean(values) < (spread.high or 0)
    # One seed has the interval of its evaluation.
    alone, (first, *_) = paired(tmp_path / "one", document(VGG, 1.5)).summary(VGG), own
    expected = Resampling(first.patient).measure(first.label, first.probability).metrics
    for name, spread in alone.items():
        assert (spread.low, spread.high) == pytest.approx((expected[name].low, expected[name].high))
        assert spread.sd is None
    auc = paired(tmp_path / "right", *seeds(VGG, 99.0)).summary(VGG)["auc"]
    assert (auc.mean, auc.sd, auc.low, auc.high) == (1, 0, None, None), "as in all resamples, but not for certain"


def test_averaged_probabilities_are_tested_and_corrected_for_the_family(tmp_path: Path) -> None:
    first, others = "resnet-50-none", (VGG, "vgg-13-none")
    runs = [*seeds(first, 1.2, (0, 1, 5)), *seeds(VGG, 0.6), *seeds(others[1], 1.0)]
    rows = paired(tmp_path, *runs, document("vgg-11-none", 1.0, seed=7))
    pairs = [(first, name) for name in (*others, "vgg-11-none")]
    compared, (alone, *_) = rows.compare(pairs), rows.compare(pairs[:1])
    assert [(each["second"], each["seeds"]) for each in compared] == [(name, (0, 1)) for name in others]
    for each in compared:
        predicted = [rows.rows[name].predictions for name in (first, each["second"])]
        means = [(own[0].probability + own[1].probability) / 2 for own in predicted]
        for measure, test in (("auc", delong_test), ("accuracy", mcnemar_test)):
            found = each["measures"][measure]
            assert (found["difference"], found["p_slices"]) == pytest.approx(test(rows.slices.label, *means))
    for name, single in alone["measures"].items():
        family = [each["measures"][name] for each in compared]
        p = [max(test["p_slices"], test["p_patients"]) for test in family]
        assert [test["p_corrected"] for test in family] == holm(p)
        assert single["p_corrected"] == max(single["p_slices"], single["p_patients"])


def test_one_class_has_no_auc_and_one_patient_no_interval(tmp_path: Path) -> None:
    for field, value in ((1, "NonCOVID"), (2, "the same")):
        one_class, runs = value == "NonCOVID", [document(name, 1.0) for name in (VGG, "vgg-11-none")]
        for row in (row for each in runs for row in each["predictions"]["test"]):
            row[field] = value
        rows = paired(tmp_path / value, *runs)
        accuracy, auc = (rows.summary(VGG)[name] for name in ("accuracy", "auc"))
        assert (auc.mean is None, accuracy.low is None) == (one_class, not one_class)
        (tests,) = (each["measures"] for each in rows.compare([(VGG, "vgg-11-none")]))
        assert (tests["auc"]["difference"] is None) is one_class
        assert (tests["accuracy"]["p_corrected"] is None) is not one_class
        assert tests["auc"]["verdict"] == "no difference shown"


def test_only_the_same_slices_and_recipes_are_compared(tmp_path: Path) -> None:
    for field, values, message in (
        (0, ["0000-other.png"], "seed 1 was evaluated on other slices than .*vgg-16"),
        (1, ["COVID", "NonCOVID"], "other slices"),
        (0, ["twice.png"] * 2, "evaluated twice"),
    ):
        other = document(VGG, 1.0, seed=1)
        for row, value in zip(other["predictions"]["test"], values, strict=False):
            row[field] = value
        with pytest.raises(DataError, match=message):
            paired(tmp_path, document(VGG, 1.0), other)
    other = document(VGG, 1.0, seed=1)
    other["recipe"]["training"]["older_runs_lack_it"] = 1.0
    assert paired(tmp_path, other).rows[VGG].seeds == (0, 1)
    other["recipe"]["training"]["epochs"] = 3
    with pytest.raises(DataError, match=r"seed-1\.json: differs in its recipe"):
        paired(tmp_path, other)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A strong Mask-EfficientNet, an equal EfficientNet and a weak VGG under two protocols."""
    for protocol in ("random", "official"):
        rows = [seeds(f"{name}-imagenet", 3.0, weights="imagenet", protocol=protocol) for name in (LITE, MASK)]
        write(tmp_path, *rows[0], *rows[1], document(VGG, 0.4, protocol=protocol))
    return tmp_path


def test_rows_columns_files_and_tests_against_one_reference(results: Path) -> None:
    text = render_rows(results)
    figures = ("random-test.svg", "official-test.svg")
    names = {path.name for path in results.iterdir() if path.is_file()}
    assert names == {"table1.md", "table1.csv", "comparisons.json", *figures}
    assert (results / "table1.md").read_text() == text
    rows = list(csv.DictReader(io.StringIO((results / "table1.csv").read_text())))
    # The paper's order of protocols and of networks.
    others, mask = (VGG, "efficientnet-lite0-imagenet"), f"{MASK}-imagenet"
    expected = list(product(("random", "official"), (*others, mask)))
    assert [(row["protocol"], row["row"]) for row in rows] == expected
    mean, sd, low, high = (float(rows[2][f"accuracy_{key}"]) for key in ("mean", "sd", "low", "high"))
    for words in (
        f"| {MASK} (imagenet) | 0–2 | 3.40 | 0.20 | {mean:.3f} ± {sd:.3f} ({low:.3f}–{high:.3f}) |",
        "| 2.0 | 0.921 |",
        "100 slices (50 COVID) of 50 patients",
        "of the whole slice, normalisation zero-mean, 14 epochs in batches of 32, learning rate 0.0003, 320 slices",
        "Linux x86_64, 2 cores, no accelerator, 2 threads, torch 2.9",
    ):
        assert words in text
    assert text.count("accuracy in the paper") == 1, "beside the paper's protocol only"
    assert "vgg-16 (none)" in (results / figures[0]).read_text()
    tests = json.loads((results / "comparisons.json").read_text())
    compared = [(each["protocol"], each["first"], each["second"]) for each in tests]
    assert compared == [(way, mask, row) for way, row in expected if row != mask]
    for test in (test for each in tests for test in each["measures"].values()):
        assert (test["verdict"] in {"better", "worse"}) == (test["p_corrected"] < 0.05)
    section = text[text.index(f"| {MASK} (imagenet) against | seeds |") :].partition("\n\n")[0]
    for row, verdict in (("vgg-16 (none)", "better"), ("efficientnet-lite0 (imagenet)", "no difference shown")):
        assert re.search(rf"\n\| {re.escape(row)} \|.*\| {verdict} \|.*\| {verdict} \|\n?", section)


def test_folds_are_pooled_and_those_that_are_missing_named(tmp_path: Path) -> None:
    row, own = f"{MASK}-none", {"protocol": "patients", "folds": 5}
    runs = [(seed, fold) for seed in (0, 1) for fold in range(1, 6)][:8]
    folds = [document(row, 2.0, seed=seed, fold=fold, **own) for seed, fold in runs]
    text, rows = render_rows(write(tmp_path, *folds)), paired(tmp_path)
    assert "100 slices (50 COVID)" in text
    assert f"Not in the table yet: {row}, seed 1, 3 of 5 folds." in text
    assert f"| {MASK} (none) | 0 |" in text
    expected = {file: logit for each in folds[:5] for file, _, _, logit in each["predictions"]["test"]}
    pooled = rows.rows[row].predictions[0]
    assert list(zip(pooled.file, pooled.logit, strict=True)) == sorted(expected.items())
    for number, each in enumerate(folds[:2]):
        each["parts"]["test"]["warnings"] = [f"{number} of 20 slices were met in training"]
    folds[5]["parts"]["test"]["warnings"] = folds[0]["parts"]["test"]["warnings"]
    begun = render_rows(write(tmp_path / "begun", *folds[:2], folds[5]))
    assert "0 of 20 slices" in begun, "what is said of a fold by all of its rows stands under the table"
    assert all(words in begun for words in ("40 slices", "folds 1, 2 of 5"))


def test_what_differs_is_said(results: Path) -> None:
    odd = document(VGG, 1.0)
    odd["recipe"]["training"] = {"epochs": 3, "batch_size": 32, "new_field": True}
    odd["recipe"]["trainer"] = {"precision": "bf16-mixed"}  # a field that the other rows are too old for
    odd["parts"]["test"]["warnings"] = ["97 of 187 slices belong to known patients."]
    write(results, odd, document("squeezenet-none", 1.0))
    paper, official = render_rows(results).split("**official-test**")
    differs = "vgg-16 (none) differs in `training.epochs=3`, `trainer.precision=bf16-mixed`."
    for words in (differs, "| squeezenet (none) |"):
        assert words in official
        assert words not in paper
    assert "known patients" not in official, "only what every run warned of"


def test_pretraining_that_may_have_met_the_slices_is_named(tmp_path: Path) -> None:
    known = {"data": "covid-ct", "split": "official"}
    other, nothing = {**known, "split": "random:0"}, {**known, "data": None}
    for pretraining, said in ((None, True), (known, False), (other, True), (nothing, False)):
        run = document(f"{MASK}-c2l", 1.0, weights="c2l", pretraining=pretraining)
        assert ("without their labels" in render_rows(write(tmp_path, run))) == said


def test_the_ablation_tests_every_variant_against_the_default(tmp_path: Path) -> None:
    rows = {"default": 3.0, "augmentation-none": 3.0, "weights-none": 0.4}
    more: dict[str, Any] = {"experiment": "ablation", "network": MASK, "parts": ("val", "test")}
    for (row, skill), protocol in product(rows.items(), ("official", "left-out", "patients")):
        write(tmp_path, *seeds(row, skill, protocol=protocol, **more))
    text = render_rows(tmp_path)
    assert re.findall(r"\*\*(\S+)\*\*", text) == ["official-val", "official-test", "patients-test", "left-out-test"]
    assert len(list(tmp_path.glob("*.svg"))) == 4
    assert re.findall(r"\n\| (\S+) \| 0–2 \| 3", text) == [*rows] * 4
    for row, verdict in (("augmentation-none", "no difference shown"), ("weights-none", "worse")):
        assert len(re.findall(rf"\| {row} \| 0–2 \|.*{verdict}", text)) == 4, row
    assert {each["second"] for each in json.loads((tmp_path / "comparisons.json").read_text())} == {"default"}
    for path in tmp_path.glob("*/default-seed-*.json"):
        path.unlink()
    assert "p corrected" not in render_rows(tmp_path)


def test_mean_and_standard_deviation_over_seeds(tmp_path: Path) -> None:
    runs = seeds("mask-efficientnet", 1.0, (10, 2), experiment="seeds", network=MASK, predictions={})
    runs[0]["parts"]["test"]["metrics"]["auc"] = {"value": None}
    text = render_seeds(write(tmp_path, *runs))
    summary = json.loads((tmp_path / "summary.json").read_text())
    accuracy = summary["parts"]["test"]["metrics"]["accuracy"]
    assert (summary["seeds"], accuracy["values"]) == ([2, 10], pytest.approx([0.82, 0.9]))
    assert (accuracy["mean"], accuracy["sd"]) == pytest.approx((0.86, 0.0566), abs=1e-4)
    assert (tmp_path / "summary.md").read_text() == text
    for words in ("| Accuracy | 0.860 ± 0.057 |", "| AUC (ROC) | – |", "test (100 slices, 50 patients)"):
        assert words in text
    runs[1]["recipe"] = {**runs[1]["recipe"], "training": {"epochs": 3}}
    with pytest.raises(DataError, match="differs in its recipe, split, parts or data"):
        render_seeds(write(tmp_path, *runs))


def test_weights_are_compared_by_their_curves(tmp_path: Path) -> None:
    """None is tested, so that none is called faster or better."""
    runs = [("none", 0, (0.5, 0.6, 0.8, 0.79)), ("none", 1, (0.5, 0.85, 0.88)), ("c2l", 0, (0.7, 0.91, 0.9))]
    for weights, seed, curve in runs:
        history = [{"epoch": float(i), "val_auc": auc, "val_loss": 1 - auc} for i, auc in enumerate(curve)]
        more: dict[str, Any] = {"history": history, "predictions": {}, "parts": {}, "experiment": "convergence"}
        write(tmp_path, document(f"resnet-18-{weights}", 1.0, seed=seed, weights=weights, **more))
    text = render_convergence(tmp_path)
    assert (tmp_path / "convergence.md").read_text() == text
    # Epochs to 95 % of the last AUC, the best AUC, the mean.
    assert "| resnet-18 | none | 0, 1 | 2.500 ± 0.707 | 0.840 ± 0.057 | 0.708 ± 0.050 |" in text
    assert "| resnet-18 | c2l | 0 | 2.000 | 0.910 | 0.837 |" in text
    assert not re.search(r"faster|better", text)
    other = document("resnet-18-c2l", 1.0, seed=1, weights="c2l", **more)
    other["recipe"]["optimiser"]["options"] = {"betas": [0.5, 0.9]}
    with pytest.raises(DataError, match="differs in its recipe"):
        render_convergence(write(tmp_path, other))
    assert "Validation AUC" in (tmp_path / "convergence.svg").read_text()
