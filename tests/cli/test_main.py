"""What belongs to every command: versions, messages, what is installed, lists; and ``groundglass data``."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.conftest import Command, Patch, without
from tests.experiments.test_experiments import seeds, write
from typer import Context
from typer.main import get_command

from groundglass import __version__
from groundglass.cli.main import app
from groundglass.data.manifest import Label
from groundglass.data.phantoms import write_phantoms
from groundglass.models.catalogue import entries
from groundglass.training.recipe import recipe_names

MAIN = "from groundglass.cli.main import main\nmain()"
NEEDED = "error: this command needs torch: `pip install '.[train]'` in a clone of groundglass brings it"


def groundglass(*arguments: object, code: str = MAIN) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


def test_libraries_are_heard_only_when_asked_for(tmp_path: Path, tiny_bundle: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="a C library that prints")
    path = tmp_path / "damaged.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 8, 8), np.int16)), path)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = 9"))
    words = ("predict", path, "--json", "--bundle", tiny_bundle)
    quiet, loud = groundglass(*words), groundglass("--log-level", "debug", *words)
    assert "1 slice" in quiet.stderr
    assert len(quiet.stderr.splitlines()) == 1 < len(loud.stderr.splitlines())
    assert loud.stdout == quiet.stdout
    assert groundglass("--log-level", "loud", *words).returncode == 2
    absent = groundglass(*words, "--device", "tpu")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    assert "error: tpu: this ONNX Runtime has no such provider; choose of " in absent.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("models", ""),
        ("train --data here --output there", NEEDED),
        ("export run --output there --data here", NEEDED),
        ("paper table1 --render-only --output results", ""),
    ],
)
def test_without_torch(words: str, said: str, tmp_path: Path, monkeypatch: Patch) -> None:
    write(tmp_path / "results", *seeds("vgg-16-none", 1.0, experiment="table1"))
    monkeypatch.chdir(tmp_path)
    done = groundglass(*words.split(), code=f"{without('torch')}\n{MAIN}")
    assert done.returncode == (2 if said else 0), done.stderr
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)
    if "paper" in words:
        assert "vgg-16" in done.stdout
        assert Path("results/table1.md").read_text().strip() == done.stdout.strip()


def test_version_lists_and_completion(run_command: Command, monkeypatch: Patch) -> None:
    monkeypatch.setenv("COLUMNS", "120")

    def said(words: str) -> str:
        status, out, err = run_command(*words.split())
        assert status == 0, err
        return out

    assert run_command("--version") == (0, f"groundglass {__version__}\n", "")
    networks, recipes = said("models"), said("models --recipes")
    assert "160 x 160" in networks
    (lite0,) = [line for line in networks.splitlines() if "mask-efficientnet-lite0" in line]
    assert "imagenet*, c2l*, none" in lite0
    (resnet,) = [line for line in networks.splitlines() if "resnet-18" in line]
    assert "11.23" in resnet
    assert all(f" {entry.name} " in networks for entry in entries())
    assert all(f"train --recipe {name} " in recipes for name in recipe_names())
    assert "pretrain --recipe c2l " in recipes
    offered = [words for words in ("--help", "data audit --help", "train --help") if "--install-c" in said(words)]
    assert offered == ["--help"], "completion is of the program, not of its commands"


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
    assert all(words in err for words in ("found: leakage: 1", "found: conflicts: 1"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"audit.json", "report.html"}
    status, out, err = run_command("data", "audit", manifest, "--json", "--no-shortcuts")
    assert (status, "warning:" in err) == (0, True)
    audited = json.loads(out)
    assert (audited["summary"]["copies"], audited["shortcuts"]) == (1, None)


def test_one_line(manifest: str, tmp_path: Path, run_command: Command) -> None:
    unsplit = tmp_path / "manifest.csv"
    unsplit.write_text(f"path,label\n{Path(manifest).parent / 'NonCOVID' / 'again.png'},COVID\n")
    for words, said in (
        ("describe /nowhere/at/all", "/nowhere/at/all: no such folder or file"),
        ("download covid-ct --output {tmp} --base-url http://127.0.0.1:9", "no connection"),
        ("audit {unsplit} --fail-on leakage", "leakage cannot be checked: no slice is in a part"),
        ("audit {manifest} --split mine", "split 'mine' is unknown"),
        ("audit {unsplit} --no-shortcuts --output {unsplit}/x", "manifest.csv/x: Not a directory"),
        ("audit {manifest} --split leave-source-out:phantom", "every slice is of these sources"),
    ):
        named = (each.format(manifest=manifest, unsplit=unsplit, tmp=tmp_path) for each in words.split())
        status, _, err = run_command("data", *named)
        *_, error = err.splitlines()  # after the progress of a download
        assert (status, error[:7], err.count("error: "), "Traceback" in err) == (2, "error: ", 1, False)
        assert said in error


def takers(command: Any, name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Commands below one that have the parameter ``data``, and all their parameters."""
    if "data" in (parameters := {each.name: each for each in command.params}):
        yield name, parameters
    context = Context(command)
    for sub in command.list_commands(context) if hasattr(command, "list_commands") else ():
        yield from takers(command.get_command(context, sub), sub)


def test_every_command_that_takes_data_joins_several_and_maps_labels() -> None:
    found = dict(takers(get_command(app)))
    assert found.keys() >= {"train", "pretrain", "evaluate", "export", "describe", "audit", "table1", "seeds"}
    for name, parameters in found.items():
        assert parameters["data"].multiple or parameters["data"].nargs == -1, name
        assert "map_label" in parameters, name
