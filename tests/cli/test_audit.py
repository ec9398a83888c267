"""``groundglass data audit`` as a user runs it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.manifest import Label
from groundglass.data.phantoms import write_phantoms


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Phantoms, one of them again in another part under the other label."""
    folder = tmp_path_factory.mktemp("data set [bold] ü") / "phantoms"
    written = write_phantoms(folder, 20, (0.3, 0.6), seed=2, size=192)
    first = next(record for record in written if record.split == "train" and record.label is Label.COVID)
    shutil.copyfile(first.path, folder / "NonCOVID" / "again.png")
    with (folder / "manifest.csv").open("a") as stream:
        stream.write("NonCOVID/again.png,NonCOVID,other,phantom,test\n")
    return str(folder / "manifest.csv")


def test_table_report_and_status(manifest: str, tmp_path: Path) -> None:
    words = ["--fail-on", "leakage,conflicts", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["data", "audit", manifest, *words])
    assert done.exit_code == 5, done.output
    for shown in ("same file", "again.png", "How well the label is predicted"):
        assert shown in done.stdout
    assert len(re.findall(r"\(\d\.\d{3}–\d\.\d{3}\)", done.stdout)) == 8, "intervals are cut apart"
    assert "found: leakage: 1" in done.stderr
    assert "found: conflicts: 1" in done.stderr
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", "audit.md", "report.html"}


def test_json_on_standard_output_and_nothing_else(manifest: str) -> None:
    done = CliRunner().invoke(app, ["data", "audit", manifest, "--json", "--no-shortcuts"])
    assert done.exit_code == 0, done.output
    audited = json.loads(done.stdout)
    assert (audited["summary"]["copies"], audited["shortcuts"]) == (1, None)
    assert "warning:" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere/at/all"], "/nowhere/at/all: no such folder or file"),
        (["{manifest}", "--fail-on", "everything"], "condition 'everything' is not one of"),
        (["{manifest}", "--fail-on", ""], "condition '' is not one of"),
        (["{manifest}", "--fail-on", "leakage,"], "condition '' is not one of"),
        (["{manifest}", "--split", "mine"], "split 'mine' is unknown"),
        (["{manifest}", "--split", "leave-source-out:phantom"], "every slice is of these sources"),
    ],
)
def test_errors_are_one_line(
    manifest: str, arguments: list[str], said: str, run_command: Callable[..., tuple[int, str, str]]
) -> None:
    status, _, err = run_command("data", "audit", *(each.format(manifest=manifest) for each in arguments))
    (error,) = err.splitlines()
    assert status == 2
    assert error.startswith("error: ")
    assert said in error
