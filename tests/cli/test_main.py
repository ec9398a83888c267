"""What belongs to every command: versions, levels of messages, and who may print to standard error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.test_architecture import WITHOUT_TORCH

from groundglass import __version__


def groundglass(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "groundglass.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("options", [["--version"], ["--version", "--verbose"], ["--verbose", "--version"]])
def test_versions(options: list[str]) -> None:
    done = groundglass(*options)
    first, *more = done.stdout.splitlines()
    assert (done.returncode, done.stderr, first) == (0, "", f"groundglass {__version__}")
    names = {line.split()[0] for line in more}
    assert (
        names == set()
        if len(options) == 1
        else names >= {"Python", "numpy", "onnxruntime", "pydicom", "devices:"}
    )


def test_libraries_are_heard_only_when_asked_for(tmp_path: Path, tiny_bundle: Path) -> None:
    sitk = pytest.importorskip("SimpleITK", reason="a C library that prints")
    path = tmp_path / "damaged.mha"
    sitk.WriteImage(sitk.GetImageFromArray(np.zeros((3, 8, 8), np.int16)), path)
    path.write_bytes(path.read_bytes().replace(b"NDims = 3", b"NDims = 9"))
    quiet = groundglass("predict", path, "--json", "--bundle", tiny_bundle)
    assert "1 slice" in quiet.stderr
    assert len(quiet.stderr.splitlines()) == 1
    loud = groundglass("--log-level", "debug", "predict", path, "--json", "--bundle", tiny_bundle)
    assert len(loud.stderr.splitlines()) > 1
    assert loud.stdout == quiet.stdout
    assert groundglass("--log-level", "loud", "predict", path).returncode == 2


def test_a_device_that_is_not_there_is_named(tmp_path: Path, tiny_bundle: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "a.png")
    done = groundglass("predict", tmp_path / "a.png", "--device", "tpu", "--bundle", tiny_bundle)
    assert done.returncode == 2
    assert "error: tpu: this ONNX Runtime has no such provider" in done.stderr


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("models --json", 0, '"mask-efficientnet-lite0"'),
        ("models --recipes --json", 0, '"train --recipe phantom-demo"'),
        ("models vgg-15", 2, "error: unknown network 'vgg-15': did you mean 'vgg-1"),
        ("train --data here --output there", 2, "error: this command needs torch: `pip install '.[train]'`"),
    ],
)
def test_networks_and_recipes_are_listed_without_torch_and_training_says_what_to_install(
    words: str, status: int, said: str
) -> None:
    script = f"{WITHOUT_TORCH}\nsys.argv[1:] = {words.split()}\nfrom groundglass.cli.main import main\nmain()"
    command = [sys.executable, "-c", script, "torch"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (status, bool(status))
    assert said in (done.stderr or done.stdout)
