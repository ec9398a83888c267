"""``groundglass data``: what its commands print, and errors in one line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer import Context
from typer.main import get_command
from typer.testing import CliRunner

from groundglass.cli.data import app
from groundglass.cli.main import app as main_app


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("own/COVID/[bold]/a.png", "own/NonCOVID/b.png", "other/a.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 6), 90, np.uint8)).save(tmp_path / name)
    return tmp_path / "own"


def test_describe_as_table(folder: Path) -> None:
    (folder / "NonCOVID" / "broken.png").write_bytes(b"")
    done = CliRunner().invoke(app, ["describe", str(folder)])
    assert done.exit_code == 0, done.stderr
    for said in ("3 slices", "PNG L", "COVID", "1 file cannot be read", "2 slices of unknown patients"):
        assert said in done.stdout


def test_describe_as_json_of_several_with_labels_of_other_names(folder: Path) -> None:
    (folder / "own.csv").write_text("path;label\nCOVID/[bold]/a.png;positive\nNonCOVID/b.png;CAP\n")
    named = ["--map-label", "positive=COVID,CAP=NonCOVID"]
    done = CliRunner().invoke(
        app, ["describe", str(folder / "own.csv"), str(folder.parent / "other"), "--json", *named]
    )
    described = json.loads(done.stdout)
    assert described["total"]["labels"] == {"COVID": 1, "NonCOVID": 1, "unlabelled": 1}
    assert [source["name"] for source in described["sources"]] == ["other", "own"]
    assert described["width"]["median"] == 6


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["describe", "/nowhere/at/all"], "/nowhere/at/all: no such folder or file"),
        (["download", "covid-ct", "--output", "{tmp}", "--base-url", "http://127.0.0.1:9"], "no connection"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    words = [argument.format(tmp=tmp_path) for argument in arguments]
    command = [sys.executable, "-m", "groundglass.cli.main", "data", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2
    assert said in error
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", [["--help"], ["data", "audit", "--help"], ["train", "--help"]])
def test_completion_is_offered_by_the_program_not_by_its_commands(command: list[str]) -> None:
    done = CliRunner().invoke(main_app, command)
    assert ("--install-completion" in done.stdout) is (command == ["--help"])


def takers(command: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Commands below one that have the parameter ``data``, and all their parameters."""
    parameters = {each.name: each for each in command.params}
    if "data" in parameters:
        yield name, parameters
    context = Context(command)
    for sub in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from takers(command.get_command(context, sub), sub)


def test_every_command_that_takes_data_joins_several_and_maps_labels() -> None:
    found = dict(takers(get_command(main_app)))
    assert {"train", "pretrain", "evaluate", "export", "describe", "audit", "table1", "seeds"} <= set(found)
    for name, parameters in found.items():
        assert parameters["data"].multiple or parameters["data"].nargs == -1, name
        assert "map_label" in parameters, name
