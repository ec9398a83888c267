from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

COMMAND = [sys.executable, "-m", "groundglass.cli.main", "data"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("COVID/[bold]/a.png", "NonCOVID/b.png"):
        (tmp_path / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((8, 6), 90, np.uint8)).save(tmp_path / name)
    return tmp_path


def test_describe_as_table(folder: Path) -> None:
    (folder / "NonCOVID" / "broken.png").write_bytes(b"")
    done = run("describe", str(folder))
    assert done.returncode == 0, done.stderr
    for said in ("3 slices", "PNG L", "COVID", "1 file cannot be read", "2 slices of unknown patients"):
        assert said in done.stdout


def test_describe_as_json(folder: Path) -> None:
    done = run("describe", str(folder), "--json")
    described = json.loads(done.stdout)
    assert described["total"]["labels"] == {"COVID": 1, "NonCOVID": 1}
    assert described["width"]["median"] == 6


def test_labels_of_other_names_are_mapped(folder: Path) -> None:
    (folder / "own.csv").write_text("path;label\nCOVID/[bold]/a.png;positive\nNonCOVID/b.png;CAP\n")
    done = run("describe", str(folder / "own.csv"), "--json", "--map-label", "positive=COVID,CAP=NonCOVID")
    assert json.loads(done.stdout)["total"]["labels"] == {"COVID": 1, "NonCOVID": 1}, done.stderr


def test_describe_of_several(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    Image.fromarray(np.full((8, 6), 90, np.uint8)).save(other / "a.png")
    described = json.loads(run("describe", str(folder), str(other), "--json").stdout)
    assert [source["name"] for source in described["sources"]] == sorted([folder.name, other.name])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["describe", "/nowhere/at/all"], "/nowhere/at/all: no such folder or file"),
        (["download", "covid-ct", "--output", "{tmp}", "--base-url", "http://127.0.0.1:9"], "no connection"),
    ],
)
def test_errors_are_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    done = run(*(argument.format(tmp=tmp_path) for argument in arguments))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.returncode == 2
    assert len(errors) == 1
    assert said in errors[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "command", [["--help"], ["data", "--help"], ["data", "audit", "--help"], ["train", "--help"]]
)
def test_completion_is_offered_by_the_program_not_by_its_commands(command: list[str]) -> None:
    done = subprocess.run([*COMMAND[:-1], *command], capture_output=True, text=True, check=True)
    assert ("--install-completion" in done.stdout) is (command == ["--help"])
