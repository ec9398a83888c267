"""``groundglass distance`` on a network in miniature and drawn slices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import Result
from tests.inference.conftest import tiny_parts, with_reference
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.data.manifest import read_pixels
from groundglass.errors import BundleError
from groundglass.evaluation.alterations import HARMLESS, SPOILING
from groundglass.evaluation.renderings import RENDERINGS
from groundglass.inference.bundle import Bundle, write_bundle
from groundglass.inference.reference import Embedded, describe_slices, embed

from .conftest import draw

pytestmark = pytest.mark.slow

PARTS = {"train": 30, "val": 60, "test": 12}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn slices of one kind in all three parts, one per patient."""
    folder = tmp_path_factory.mktemp("data")
    lines = ["path,label,patient_id,source,split"]
    for part, count in PARTS.items():
        for number in range(count):
            name = f"{part}{number}"
            draw(folder / f"{name}.png", (40, 95)[number % 2], 1000 * len(lines) + number)
            lines.append(f"{name}.png,{('NonCOVID', 'COVID')[number % 2]},{name},drawn,{part}")
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder / "manifest.csv"


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    fields, contents = tiny_parts()
    write_bundle(folder / "plain", fields, contents)
    opened = Bundle.open(folder / "plain")

    def embedded(part: str) -> Embedded:
        records = [record for record in load_dataset(data).records if record.split == part]
        patients = [record.patient_id for record in records]
        return embed(
            opened.engine(),
            opened.framing,
            describe_slices(opened.framing, map(read_pixels, records), patients),
        )

    write_bundle(folder / "placing", fields, with_reference(contents, embedded("train"), embedded("val")))
    return folder / "placing"


def _run(bundle: Path, data: Path, output: Path, *more: str) -> Result:
    words = ["distance", str(bundle), "--data", str(data), "--output", str(output), "--bootstrap", "20"]
    return CliRunner().invoke(app, [*words, "--phantoms", "2", "--halves", "5", *more])


@pytest.fixture(scope="module")
def measured(bundle: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    page = folder / "page.md"
    page.write_text("before\n<!-- distance:begin -->\nold\n<!-- distance:end -->\nafter\n")
    lungs = folder / "elsewhere"
    for number in range(24):
        draw(lungs / f"s{number // 2}_{number:04d}.png", 60, 5000 + number)
    more = ("--lesion-free", str(lungs), "--lungs", str(lungs), "--docs", str(page))
    done = _run(bundle, data, folder / "out", *more)
    assert done.exit_code == 0, done.output
    return folder


def test_every_group_is_placed(measured: Path) -> None:
    study = json.loads((measured / "out" / "distance.json").read_text())
    names = [group["name"] for group in study["groups"]]
    assert names == [
        *(*RENDERINGS, *HARMLESS, *SPOILING),
        *("test part", "lesion-free slices", "elsewhere", "healthy phantoms", "phantoms of severity 0.5"),
    ]
    slices = {group["name"]: group["distance"]["slices"] for group in study["groups"]}
    assert slices["mirrored"] == PARTS["val"]
    assert slices["test part"] == PARTS["test"]
    assert slices["elsewhere"] == slices["lesion-free slices"] == 24
    assert slices["healthy phantoms"] == 2
    patients = {group["name"]: group["distance"]["patients"] for group in study["groups"]}
    assert patients["lesion-free slices"] == 12
    assert all(group["distance"]["placed"] is not None for group in study["groups"])


def test_halves_of_one_kind_are_alike_and_spoilt_slices_are_not(measured: Path) -> None:
    study = json.loads((measured / "out" / "distance.json").read_text())
    assert study["halves_of_val"]["times"] == 5
    assert study["halves_of_val"]["verdicts"].get("far", 0) == 0
    assert study["halves_of_val"]["outside"]["mean"] < 0.15
    verdicts = {group["name"]: group["distance"]["verdict"] for group in study["groups"]}
    assert verdicts["black and white exchanged"] == "far"
    assert verdicts["test part"] == "unknown", "twelve slices are too few"


def test_labels_give_figures_where_they_are_known(measured: Path) -> None:
    groups = {
        group["name"]: group
        for group in json.loads((measured / "out" / "distance.json").read_text())["groups"]
    }
    assert groups["mirrored"]["auc"] is not None
    assert groups["lesion-free slices"]["accuracy"] is not None
    assert groups["lesion-free slices"]["auc"] is None
    assert groups["elsewhere"]["accuracy"] is None


def test_tables_stand_in_the_page(measured: Path) -> None:
    page = (measured / "page.md").read_text()
    assert page.startswith("before\n<!-- distance:begin -->\nBundle `")
    assert page.endswith("<!-- distance:end -->\nafter\n")
    assert (measured / "out" / "distance.md").read_text() in page
    assert "| black and white exchanged | 60 of 60 |" in page


def test_a_bundle_that_does_not_know_its_training_data_is_one_line(
    bundle: Path, data: Path, tmp_path: Path
) -> None:
    done = _run(bundle.parent / "plain", data, tmp_path / "out")
    assert isinstance(done.exception, BundleError)
    assert "groundglass reference" in str(done.exception)
    assert not (tmp_path / "out").exists()
