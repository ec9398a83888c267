"""How models are named on a command line: runs, bundles, folders of them, with names and without."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from groundglass.cli.opening import chosen_part, open_rows
from groundglass.errors import DataError, RunError
from groundglass.evaluation.model_rows import ModelRow


@pytest.fixture
def bundles(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with two bundles, and something else."""
    for name in ("seed-0", "seed-1"):
        shutil.copytree(tiny_bundle, tmp_path / "several" / name)
    (tmp_path / "several" / "notes").mkdir()
    return tmp_path / "several"


def _paths(row: ModelRow) -> list[str]:
    return [run.path.name for run in row.runs]


def test_a_bundle_by_its_folder_s_name(tiny_bundle: Path) -> None:
    (row,) = open_rows([str(tiny_bundle)])
    assert (row.name, _paths(row)) == ("tiny", ["tiny"])


def test_a_folder_of_models_is_one_row(bundles: Path) -> None:
    (row,) = open_rows([str(bundles)])
    assert (row.name, _paths(row)) == ("several", ["seed-0", "seed-1"])
    assert row.description.seeds == "0, 0"


def test_names_join_and_keep_their_order(bundles: Path, tiny_bundle: Path) -> None:
    words = [f"b={tiny_bundle}", f"a={bundles / 'seed-0'}", f"b={bundles / 'seed-1'}"]
    assert [(row.name, _paths(row)) for row in open_rows(words)] == [
        ("b", ["tiny", "seed-1"]),
        ("a", ["seed-0"]),
    ]


def test_a_path_with_an_equals_sign_is_a_path(tiny_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bundle, tmp_path / "lr=0.1")
    (row,) = open_rows([str(tmp_path / "lr=0.1")])
    assert row.name == "lr=0.1"


def test_nothing_named_is_the_bundle_that_comes_along() -> None:
    (row,) = open_rows([])
    assert row.name == "default"
    assert row.runs[0].recipe.network.name == "mask-efficientnet-lite0"


@pytest.mark.parametrize("word", ["=x", "name="])
def test_half_a_name(word: str) -> None:
    with pytest.raises(DataError, match="expected NAME=PATH"):
        open_rows([word])


def test_what_is_no_model(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="runs need the extra [train]")
    with pytest.raises(RunError, match="no run here"):
        open_rows([f"name={tmp_path}"])


def test_the_same_model_twice(tiny_bundle: Path) -> None:
    with pytest.raises(DataError, match="stands in the row a twice"):
        open_rows([f"a={tiny_bundle}", f"a={tiny_bundle}"])


def test_different_recipes_are_no_seeds_of_one_row(tiny_bundle: Path) -> None:
    from groundglass.inference.bundle import DEFAULT

    with pytest.raises(DataError, match=r"differs in its recipe .*NAME="):
        open_rows([f"a={tiny_bundle}", f"a={DEFAULT}"])


@pytest.mark.parametrize(
    ("split", "part", "expected"),
    [
        (None, None, (None, "all")),
        ("random", None, ("random", "test")),
        (None, "val", ("official", "val")),
        (None, "all", (None, "all")),
        ("random", "val", ("random", "val")),
    ],
)
def test_which_part_is_meant(split: str | None, part: str | None, expected: tuple[str | None, str]) -> None:
    assert chosen_part(split, part, "official") == expected
