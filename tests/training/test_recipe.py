"""Recipes: read, overridden, checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundglass.errors import RecipeError
from groundglass.models.catalogue import entries
from groundglass.training.recipe import load_recipe, parse_recipe, recipe_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_names_itself(name: str) -> None:
    assert load_recipe(name).name == name


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.name)
def test_every_network_has_a_recipe(entry) -> None:  # type: ignore[no-untyped-def]
    assert load_recipe(entry.name).network.name == entry.name


def test_overrides_reach_every_section() -> None:
    recipe = load_recipe(
        "mask-efficientnet", ["optimiser.lr=3e-4", "network.mask=false", "synthesis.severity=[0.2, 0.4]"]
    )
    assert recipe.optimiser.lr == 3e-4
    assert recipe.network.mask is False
    assert recipe.synthesis.severity == (0.2, 0.4)


def test_yaml_round_trip(tmp_path: Path) -> None:
    recipe = load_recipe("resnet-18", ["training.epochs=3"])
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "mine.yaml")) == recipe


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimiser.lrr=1", "did you mean optimiser.lr?"),
        ("optimizer.lr=1", "did you mean optimiser?"),
        ("training.epochs=0", "training.epochs=0"),
        ("optimiser.lr=fast", "optimiser.lr='fast'"),
        ("preprocessing.normalisation=none", "two-anchor"),
        ("name.x=1", "is a value, not a section"),
        ("epochs", "KEY=VALUE"),
        ("training.epochs=[", "not a valid value"),
    ],
)
def test_a_wrong_override_is_one_clear_line(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("mask-efficientnet", [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


BOTH = ["network.opacity=true", "synthesis.teaches=both"]


def test_opacity_is_taught_by_painted_slices() -> None:
    recipe = load_recipe("mask-efficientnet", BOTH)
    assert recipe.network.opacity
    assert recipe.training.opacity_weight == 1
    assert not load_recipe("mask-efficientnet").network.opacity


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["synthesis.teaches=opacity"], "add network.opacity=true"),
        (["network.opacity=true"], "add synthesis.teaches=both"),
        ([*BOTH, "synthesis.slices_per_epoch=0"], "synthesis.slices_per_epoch above 0"),
        (["synthesis.teaches=all"], "synthesis.teaches='all'"),
    ],
)
def test_an_output_that_nothing_teaches_is_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe("mask-efficientnet", overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    with pytest.raises(RecipeError, match="did you mean mask-efficientnet"):
        load_recipe("mask-eficientnet")


@pytest.mark.parametrize("content", ["[1, 2", "- a\n- b\n", "name: x\n", "\x00"])
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=r"broken\.yaml"):
        load_recipe(str(path))


def test_missing_fields_are_named() -> None:
    with pytest.raises(RecipeError, match=r"network\.name is missing"):
        parse_recipe({"name": "x", "network": {}}, "x")
