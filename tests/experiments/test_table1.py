"""The table of networks: what it says follows from the results and from nothing else."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from tests.experiments.results_factory import document, seeds, write

from groundglass.errors import DataError
from groundglass.experiments.tables import PAPER_ACCURACY, render_table1

MASK = "mask-efficientnet-lite0"


def lines_with(text: str, word: str) -> list[str]:
    return [line for line in text.splitlines() if word in line]


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A strong Mask-EfficientNet, an equal EfficientNet and a weak VGG under two protocols."""
    folder = tmp_path / "results" / "table1"
    for protocol in ("paper", "official"):
        write(
            folder,
            *seeds(f"{MASK}-imagenet", 3.0, weights="imagenet", protocol=protocol),
            *seeds("efficientnet-lite0-imagenet", 3.0, weights="imagenet", protocol=protocol),
            document("vgg-16-none", 0.4, protocol=protocol),
        )
    return folder


def test_rows_columns_and_files(results: Path) -> None:
    text = render_table1(results)
    assert (results / "table1.md").read_text() == text
    rows = read_csv(results / "table1.csv")
    # The paper's order of protocols and of networks.
    names = ["vgg-16-none", "efficientnet-lite0-imagenet", f"{MASK}-imagenet"]
    assert [(row["protocol"], row["row"]) for row in rows] == [
        (protocol, name) for protocol in ("paper", "official") for name in names
    ]
    for name in ("paper.svg", "official.svg", "comparisons.csv", "comparisons.json"):
        assert (results / name).stat().st_size > 0
    mask = rows[2]
    assert (mask["seeds"], mask["parameters"], mask["macs"]) == ("0 1 2", "3400000", "200000000")
    assert float(mask["training_seconds"]) == 121.0
    assert float(mask["images_per_second"]) == 51.0
    (line,) = [line for line in lines_with(text, f"| {MASK} | imagenet |") if "0.921" in line]
    accuracy = f"{float(mask['accuracy_mean']):.3f} ± {float(mask['accuracy_sd']):.3f}"
    interval = f"({float(mask['accuracy_low']):.3f}–{float(mask['accuracy_high']):.3f})"
    assert f"| 0–2 | 3.40 | 0.20 | {accuracy} {interval} |" in line
    assert line.endswith("| 2.0 | 51.0 | 0.921 |")
    assert "200 slices (100 COVID) of 100 patients" in text
    assert "160 × 160 pixels, 14 epochs in batches of 32, 320 slices of lesion synthesis" in text
    assert "Linux x86_64, 2 cores, no accelerator, 2 threads, torch 2.9" in text
    speed = "each run after its training: batches of 16 cropped slices, CPU, 2 threads, median of 9 rounds."
    assert text.count(speed) == 2


def title(row: str) -> str:
    network, _, weights = row.rpartition("-")
    return f"{network} ({weights})"


def test_better_is_said_where_the_tests_say_it(results: Path) -> None:
    text = render_table1(results)
    (said, again) = lines_with(text, f"- {MASK} (imagenet) is better than vgg-16 (none) in ")
    assert said == again
    assert "AUC (corrected p " in said
    assert "accuracy (corrected p " in said
    equal = f"- Between {MASK} (imagenet) and efficientnet-lite0 (imagenet) no difference is shown."
    assert text.count(equal) == 2
    for row in read_csv(results / "comparisons.csv"):
        small = float(row["p_corrected"]) < 0.05
        assert (row["verdict"] in {"better", "worse"}) == small
        assert float(row["p_corrected"]) >= max(float(row["p_slices"]), float(row["p_patients"]))
    all_pairs = text.split("corrected among themselves (`comparisons.csv`):")[1].split("\n\n")[1].splitlines()
    told = {
        (row["first"], row["second"]) if row["verdict"] == "better" else (row["second"], row["first"])
        for row in read_csv(results / "comparisons.csv")
        if row["family"] == "all pairs" and row["verdict"] in {"better", "worse"}
    }
    assert len(all_pairs) == len({winner for winner, _ in told}) > 0
    for winner, loser in told:
        (line,) = (line for line in all_pairs if line.startswith(f"- {title(winner)} is better in "))
        assert title(loser) in line.split(" than ", 1)[1]
    kept = json.loads((results / "comparisons.json").read_text())
    assert {each["family"] for each in kept} == {"reference", "all pairs"}
    one = next(each for each in kept if each["second"] == "efficientnet-lite0-imagenet")
    assert list(one["by_seed"]) == ["0", "1", "2"]


def test_nothing_is_called_better_among_equals(tmp_path: Path) -> None:
    names = ("vgg-16-none", "resnet-50-none", "densenet-121-none", "efficientnet-lite0-none", f"{MASK}-none")
    write(tmp_path, *(each for name in names for each in seeds(name, 2.0)))
    text = render_table1(tmp_path)
    assert "the 4 comparisons of this table" in text
    assert "better than" not in text
    assert "worse than" not in text
    assert (
        "All 10 pairs of rows, corrected among themselves (`comparisons.csv`): no difference is shown."
        in text
    )


def test_rendering_again_changes_nothing(results: Path) -> None:
    render_table1(results)
    first = {path.name: path.read_bytes() for path in results.iterdir() if path.is_file()}
    render_table1(results)
    assert {path.name: path.read_bytes() for path in results.iterdir() if path.is_file()} == first


@pytest.mark.parametrize(("skill", "words"), [(5.0, "reached"), (1.5, "missed by 0.")])
def test_the_goal_is_reported_as_it_is(tmp_path: Path, skill: float, words: str) -> None:
    write(
        tmp_path,
        document(f"{MASK}-none", skill, protocol="paper"),
        document("vgg-16-none", 9.0, protocol="paper"),
    )
    (line,) = lines_with(render_table1(tmp_path), "Goal: ")
    assert words in line
    assert "not above the best other row, vgg-16 (none)" in line
    assert "Goal" not in render_table1(write(tmp_path / "official", document(f"{MASK}-none", skill)))


def test_the_papers_figures_stand_beside_its_protocol_only(results: Path) -> None:
    paper, official = render_table1(results).split("**Protocol `official`**")
    assert "accuracy in the paper" in paper
    assert "accuracy in the paper" not in official
    assert list(PAPER_ACCURACY.values()) == [0.763, 0.846, 0.894, 0.912, 0.921]


def test_patients_are_judged_in_folds(tmp_path: Path) -> None:
    folds = [
        document(f"{MASK}-none", 2.0, protocol="patients", fold=fold, folds=5, seed=seed)
        for seed in (0, 1)
        for fold in range(1, 6)
    ]
    text = render_table1(write(tmp_path, *folds[:8]))
    assert "Judged on 200 slices" in text
    assert f"Not in the table yet: {MASK}-none, seed 1, 3 of 5 folds." in text
    (row,) = read_csv(tmp_path / "table1.csv")
    assert row["seeds"] == "0"
    only_parts = render_table1(write(tmp_path / "begun", *folds[:2]))
    assert "2 of 5 folds" in only_parts


def test_speed_side_by_side_stands_before_that_of_single_runs(results: Path) -> None:
    one = document("vgg-16-none", 1.0)["inference"]
    speed = {
        name: {**one, "images_per_second": 33.0 + number, "input_size": 160}
        for number, name in enumerate((MASK, "efficientnet-lite0", "vgg-16"))
    }
    (results / "speed.json").write_text(json.dumps(speed))
    text = render_table1(results)
    assert "Images per second at inference, all networks in alternating rounds: " in text
    assert {row["network"]: row["images_per_second"] for row in read_csv(results / "table1.csv")} == {
        MASK: "33.0",
        "efficientnet-lite0": "34.0",
        "vgg-16": "35.0",
    }
    # Speed at another size says nothing of this table.
    speed["vgg-16"]["input_size"] = 64
    (results / "speed.json").write_text(json.dumps(speed))
    assert "each run after its training" in render_table1(results)
    assert read_csv(results / "table1.csv")[0]["images_per_second"] == "50.0"
    (results / "speed.json").write_text("[1]")
    with pytest.raises(DataError, match=r"speed\.json: cannot be read"):
        render_table1(results)


def test_what_could_not_be_run_is_said(results: Path) -> None:
    reasons = {f"official/resnet-50-imagenet-seed-{seed}": "the hub cannot be reached" for seed in range(3)}
    (results / "not-run.json").write_text(json.dumps(reasons))
    paper, official = render_table1(results).split("**Protocol `official`**")
    assert "Not run: `resnet-50-imagenet`: the hub cannot be reached." in official
    assert "Not run" not in paper


def test_a_row_with_other_settings_is_told_apart(tmp_path: Path) -> None:
    odd = document("vgg-16-none", 1.0)
    odd["recipe"]["optimiser"] = {"lr": 2e-4}
    odd["recipe"]["training"] = {"epochs": 3, "batch_size": 32}
    others = [document(f"{name}-none", 1.0) for name in ("resnet-50", "densenet-121", MASK)]
    for each in others:
        each["recipe"]["optimiser"] = {"lr": 1e-3}
    text = render_table1(write(tmp_path, odd, *others))
    assert "14 epochs" in text
    (line,) = lines_with(text, "differs from the others")
    assert line.endswith(
        "vgg-16 (none) differs from the others in `training.epochs=3`, `optimiser.lr=0.0002`."
    )


def test_a_field_that_older_rows_do_not_know_is_no_difference(tmp_path: Path) -> None:
    new, *old = (document(f"{name}-none", 1.0) for name in ("vgg-16", "resnet-50", "densenet-121", MASK))
    new["recipe"]["network"] = {**new["recipe"]["network"], "opacity": False}
    assert not lines_with(render_table1(write(tmp_path, new, *old)), "differs from the others")


def c2l(**changes: Any) -> dict[str, Any]:
    return document(f"{MASK}-c2l", 1.0, weights="c2l", **changes)


@pytest.mark.parametrize(
    ("pretraining", "told"),
    [
        (None, True),
        ({"data": "covid-ct", "split": "official"}, False),
        ({"data": "covid-ct", "split": "random:0"}, True),
        ({"data": None, "split": None}, False),
    ],
)
def test_pretraining_that_may_have_met_the_slices_is_told(
    tmp_path: Path, pretraining: dict[str, Any] | None, told: bool
) -> None:
    text = render_table1(write(tmp_path, c2l(pretraining=pretraining)))
    assert ("without their labels" in text) == told


def test_warnings_of_every_run_are_repeated(tmp_path: Path) -> None:
    parts = {"test": {"warnings": ["97 of 187 slices belong to known patients."]}}
    text = render_table1(write(tmp_path, *seeds(f"{MASK}-none", 1.0, parts=parts)))
    assert text.count("97 of 187 slices") == 1


def test_another_reference_may_be_named(results: Path) -> None:
    text = render_table1(results, reference="vgg-16-none")
    assert "| vgg-16 (none) against |" in text
    assert f"vgg-16 (none) is worse than {MASK} (imagenet)" in text
    with pytest.raises(DataError, match="no row is called 'vgg-16'; there are efficientnet-lite0-imagenet, "):
        render_table1(results, reference="vgg-16")


def test_a_network_the_catalogue_does_not_know_is_rendered(tmp_path: Path) -> None:
    write(tmp_path, document("squeezenet-none", 1.0, protocol="paper"))
    assert "| squeezenet | none |" in render_table1(tmp_path)


def test_between_the_markers_of_a_readme(results: Path, tmp_path: Path) -> None:
    readme = tmp_path / "results" / "README.md"
    readme.write_text("before\n<!-- table1:begin -->\nold\n<!-- table1:end -->\nafter\n")
    text = render_table1(results, readme=readme)
    written = readme.read_text()
    assert written.startswith("before\n<!-- table1:begin -->\n**Protocol `paper`**")
    assert written.endswith("<!-- table1:end -->\nafter\n")
    assert "](table1/paper.svg)" in written
    assert "](./paper.svg)" in text
    (tmp_path / "bare.md").write_text("nothing")
    with pytest.raises(DataError, match="table1:begin"):
        render_table1(results, readme=tmp_path / "bare.md")
