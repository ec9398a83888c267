"""``groundglass data`` as a user runs it: what an audit prints and writes, and errors in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from typer import Context
from typer.main import get_command

from groundglass.cli.main import app
from groundglass.data.manifest import Label
from groundglass.data.phantoms import write_phantoms

Command = Callable[..., tuple[int, str, str]]


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


def test_audit(manifest: str, tmp_path: Path, run_command: Command) -> None:
    words = ["--fail-on", "leakage", "--fail-on", "conflicts", "--output", tmp_path / "out"]
    status, out, err = run_command("data", "audit", manifest, *words)
    assert status == 5, err
    for shown in ("same file", "again.png", "How well the label is predicted"):
        assert shown in out
    assert "found: leakage: 1" in err
    assert "found: conflicts: 1" in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", "report.html"}
    status, out, err = run_command("data", "audit", manifest, "--json", "--no-shortcuts")
    assert (status, "warning:" in err) == (0, True)
    audited = json.loads(out)
    assert (audited["summary"]["copies"], audited["shortcuts"]) == (1, None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["describe", "/nowhere/at/all"], "/nowhere/at/all: no such folder or file"),
        (["download", "covid-ct", "--output", "{tmp}", "--base-url", "http://127.0.0.1:9"], "no connection"),
        (["audit", "/nowhere/at/all"], "/nowhere/at/all: no such folder or file"),
        (["audit", "{unsplit}", "--fail-on", "leakage"], "leakage cannot be checked: no slice is in a part"),
        (["audit", "{manifest}", "--split", "mine"], "split 'mine' is unknown"),
        (["audit", "{manifest}", "--split", "leave-source-out:phantom"], "every slice is of these sources"),
    ],
)
def test_errors_are_one_line(
    manifest: str, tmp_path: Path, arguments: list[str], said: str, run_command: Command
) -> None:
    unsplit = tmp_path / "manifest.csv"
    unsplit.write_text(f"path,label\n{Path(manifest).parent / 'NonCOVID' / 'again.png'},COVID\n")
    words = (each.format(manifest=manifest, unsplit=unsplit, tmp=tmp_path) for each in arguments)
    status, _, err = run_command("data", *words)
    *_, error = err.splitlines()  # after the progress of a download
    assert (status, error[:7], err.count("error: "), "Traceback" in err) == (2, "error: ", 1, False)
    assert said in error


@pytest.mark.parametrize("condition", ["everything", ""])
def test_an_unknown_condition_is_refused(manifest: str, condition: str, run_command: Command) -> None:
    """An empty one too: a job whose variable is not set must not pass for that."""
    status, _, err = run_command("data", "audit", manifest, "--fail-on", condition)
    assert (status, "Invalid value for '--fail-on'" in err) == (2, True)


def takers(command: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Commands below one that have the parameter ``data``, and all their parameters."""
    parameters = {each.name: each for each in command.params}
    if "data" in parameters:
        yield name, parameters
    context = Context(command)
    for sub in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from takers(command.get_command(context, sub), sub)


def test_every_command_that_takes_data_joins_several_and_maps_labels() -> None:
    found = dict(takers(get_command(app)))
    assert {"train", "pretrain", "evaluate", "export", "describe", "audit", "table1", "seeds"} <= set(found)
    for name, parameters in found.items():
        assert parameters["data"].multiple or parameters["data"].nargs == -1, name
        assert "map_label" in parameters, name
