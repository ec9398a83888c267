"""``groundglass evaluate`` from the command line: which part is chosen, and what is printed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from groundglass.cli.main import app
from groundglass.data.manifest import Manifest, write_manifest

Command = Callable[..., Result]


@pytest.fixture
def command(
    run: Any, make_manifest: Callable[..., Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Command:
    """Runs ``groundglass evaluate`` on the drawn data set with the given options."""
    pytest.importorskip("torch", reason="runs need the extra [train]")
    monkeypatch.setattr("groundglass.training.run.Run.open", lambda path: run)
    (run.path / "run.json").write_text("{}")
    data = tmp_path / "data" / "manifest.csv"
    write_manifest(make_manifest(), data)

    def call(*options: str) -> Result:
        words = ["evaluate", str(run.path), "--data", str(data), "--output", str(tmp_path / "out")]
        return CliRunner().invoke(app, [*words, "--bootstrap", "50", *options], catch_exceptions=False)

    return call


def test_prints_the_table_and_where_the_report_lies(command: Command, tmp_path: Path) -> None:
    result = command("--split", "official")
    assert result.exit_code == 0
    assert "12 slices of 6 patients" in " ".join(result.stdout.split())
    assert "Specificity" in result.stdout
    assert str(tmp_path / "out" / "report.html") in result.stdout
    assert "does not say which slices" in result.stderr


def test_json_is_what_is_written(command: Command, tmp_path: Path) -> None:
    result = command("--part", "val", "--json")
    document = json.loads(result.stdout)
    assert document == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert (document["data"]["split"], document["data"]["part"]) == ("official", "val")


def test_all_slices_unless_told_otherwise(command: Command) -> None:
    document = json.loads(command("--json").stdout)
    assert (document["data"]["split"], document["data"]["part"]) == (None, "all")
    assert document["data"]["slices"] == 24


def test_help_loads_nothing_heavy() -> None:
    check = (
        "import sys, groundglass.cli.evaluate; "
        "sys.exit(any(name in sys.modules for name in ('torch', 'sklearn', 'matplotlib', 'cv2')))"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
