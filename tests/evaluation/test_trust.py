"""``groundglass trust`` from the command line, with the bundle that comes with the installation."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import Result
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.foreign import write_foreign
from groundglass.data.phantoms import Severities, write_phantoms
from groundglass.errors import DataError

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty phantoms in all three parts."""
    folder = tmp_path_factory.mktemp("data") / "phantoms"
    write_phantoms(folder, 20, Severities(0.3, 0.6), size=192)
    return folder


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign") / "set"
    write_foreign(folder, seed=7, per_kind=1)
    return folder


def _run(data: Path, output: Path, *more: str) -> Result:
    arguments = ["trust", "--data", str(data), "--output", str(output), "--phantoms", "4", *more]
    return CliRunner().invoke(app, [*arguments, "--split", "official"])


@pytest.fixture(scope="module")
def measured(data: Path, foreign: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trust")
    page = folder / "page.md"
    page.write_text("before\n<!-- trust:begin -->\nold\n<!-- trust:end -->\nafter\n")
    lungs = folder / "lungs"
    lungs.mkdir()
    for path in sorted((data / "NonCOVID").iterdir())[:3]:
        (lungs / path.name).write_bytes(path.read_bytes())
    done = _run(
        data,
        folder / "out",
        *("--foreign", str(foreign), "--lesion-free", str(lungs), "--lungs", str(lungs), "--docs", str(page)),
    )
    assert done.exit_code == 0, done.output
    return folder


def test_everything_is_measured_and_is_plain_json(measured: Path) -> None:
    report = json.loads((measured / "out" / "trust.json").read_text())
    assert [each["part"] for each in report["calibration"]] == ["val", "test"]
    assert report["sets"]["coverage"]["total"] == 4
    groups = {each["group"]: each["refused"]["total"] for each in report["lungs"]}
    assert [total for group, total in groups.items() if group.endswith(", val")] == [4]
    assert groups["lungs"] == 3
    assert groups["healthy phantoms"] == groups["phantoms of severity 1"] == 6
    assert report["dose"]["phantoms"] == 4
    assert len(report["deletions"]) == 2
    assert all(each["refused"]["total"] == 4 for each in report["harmless"] + report["spoilt"])


def test_foreign_kinds_add_up(measured: Path) -> None:
    report = json.loads((measured / "out" / "trust.json").read_text())
    everything, taught, other = report["foreign_together"]
    for field in ("count", "total"):
        total = sum(each["refused"][field] for each in report["foreign"])
        assert everything["refused"][field] == total == taught["refused"][field] + other["refused"][field]
    assert everything["refused"]["value"] > 0.9
    passed = everything["refused"]["total"] - everything["refused"]["count"] - everything["failed"]
    assert len(everything["accepted"]) == passed


def test_tables_say_what_the_json_says(measured: Path) -> None:
    report = json.loads((measured / "out" / "trust.json").read_text())
    tables = (measured / "out" / "trust.md").read_text()
    share = report["foreign_together"][0]["refused"]
    assert f"{share['count']} of {share['total']}" in tables
    assert f"{report['dose']['correlation']['value']:.3f}".replace("-", "−") in tables
    assert report["bundle"] in tables
    assert all(line.count("|") == 0 or line.startswith("|") for line in tables.splitlines())


def test_the_page_holds_the_tables_between_its_markers(measured: Path) -> None:
    page = (measured / "page.md").read_text()
    tables = (measured / "out" / "trust.md").read_text()
    assert page == f"before\n<!-- trust:begin -->\n{tables}<!-- trust:end -->\nafter\n"


def test_a_set_that_is_not_there(data: Path, tmp_path: Path) -> None:
    done = _run(data, tmp_path / "out", "--foreign", str(tmp_path / "nowhere"))
    assert isinstance(done.exception, DataError)
    assert "no such folder" in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_an_empty_set(data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    done = _run(data, tmp_path / "out", "--foreign", str(tmp_path / "empty"))
    assert isinstance(done.exception, DataError)
    assert "holds no picture" in str(done.exception)


def test_data_without_a_split(tmp_path: Path) -> None:
    for label in ("COVID", "NonCOVID"):
        (tmp_path / "data" / label).mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "data" / label / "a.png"), np.full((64, 64), 90, np.uint8))
    done = _run(tmp_path / "data", tmp_path / "out")
    assert isinstance(done.exception, DataError)
