"""What belongs to every command: versions, levels of messages, what is installed, and the list of networks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnxruntime import get_available_providers
from typer.testing import CliRunner

from groundglass import __version__
from groundglass.cli.main import app
from groundglass.models.catalogue import entries
from groundglass.training.recipe import recipe_names

WITHOUT_TORCH = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
from groundglass.cli.main import main
main()
"""
NEEDED = "error: this command needs torch: `pip install '.[train]'` in a clone of groundglass brings it"


def groundglass(
    *arguments: object, start: tuple[str, ...] = ("-m", "groundglass.cli.main")
) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, *start, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("options", ["--version", "--version --verbose", "--verbose --version"])
def test_versions(options: str) -> None:
    done = groundglass(*options.split())
    first, *more = done.stdout.splitlines()
    assert (done.returncode, done.stderr, first) == (0, "", f"groundglass {__version__}")
    named = {line.split()[0] for line in more}
    expected = {"Python", "numpy", "onnxruntime", "pydicom", "devices:"}
    assert expected <= named if "verbose" in options else not named


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
    there = "azure" if "AzureExecutionProvider" in get_available_providers() else "cpu"
    assert groundglass(*words, "--device", there).stdout == quiet.stdout
    absent = groundglass(*words, "--device", "tpu")
    assert (absent.returncode, absent.stderr.count("\n")) == (2, 1)
    assert "error: tpu: this ONNX Runtime has no such provider" in absent.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("models", 0, ""),
        ("train --data here --output there", 2, NEEDED),
        ("export run --output there --data here", 2, NEEDED),
    ],
)
def test_without_torch_commands_say_what_to_install(words: str, status: int, said: str) -> None:
    done = groundglass(*words.split(), start=("-c", WITHOUT_TORCH))
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, words, env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.parametrize("command", ["", "data audit", "train"])
def test_completion_is_offered_by_the_program_not_by_its_commands(command: str) -> None:
    assert ("--install-completion" in invoke(*command.split(), "--help")) is (command == "")


def test_networks_are_listed_with_size_and_weights() -> None:
    output = invoke("models")
    assert "160 x 160" in output
    (lite0,) = [line for line in output.splitlines() if "mask-efficientnet-lite0" in line]
    assert "imagenet*, c2l*, none" in lite0
    (resnet,) = [line for line in output.splitlines() if "resnet-18" in line]
    assert "11.23" in resnet
    assert all(f" {entry.name} " in output for entry in entries())


def test_recipes_say_what_they_are() -> None:
    listed = invoke("models", "--recipes")
    assert all(f"train --recipe {name} " in listed for name in recipe_names())
    assert "pretrain --recipe c2l " in listed
