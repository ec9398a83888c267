"""Recipes: read, overridden, checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from groundglass.errors import RecipeError
from groundglass.imaging.crop import Preprocessing
from groundglass.models.catalogue import entries
from groundglass.training.recipe import (
    described_recipes,
    load_lungs_recipe,
    load_pretrain_recipe,
    load_recipe,
    parse_recipe,
    recipe_names,
)


@pytest.mark.parametrize("name", [*recipe_names(), *(entry.name for entry in entries())])
def test_every_recipe_and_network_gives_a_recipe_that_names_itself(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    # As the code and pretraining do.
    assert recipe.preprocessing.normalisation == Preprocessing().normalisation == "zero-mean"
    if name in recipe_names():
        assert described_recipes()[name], "a recipe says what it is"
    else:
        assert recipe.network.name == name
        assert recipe.optimiser.lr == (2e-4 if name.startswith("vgg") else 1e-3), "VGG bears less"


def test_overrides_reach_every_section_and_yaml_keeps_them(tmp_path: Path) -> None:
    settings = ["optimiser.lr=3e-4", "network.mask=false", "synthesis.severity=[0.2, 0.4]"]
    recipe = load_recipe("mask-efficientnet", settings)
    assert (recipe.optimiser.lr, recipe.network.mask, recipe.synthesis.severity) == (3e-4, False, (0.2, 0.4))
    (tmp_path / "mine.yaml").write_text(recipe.to_yaml())
    assert load_recipe(str(tmp_path / "mine.yaml")) == recipe


def test_recipes_of_lung_net_are_told_from_others() -> None:
    recipe = load_lungs_recipe("lungs", ["training.epochs=3"])
    assert recipe is not None
    assert recipe.training.epochs == 3
    assert load_lungs_recipe("phantom-demo") is load_lungs_recipe("resnet-18") is None


@pytest.mark.parametrize(
    ("load", "override", "message"),
    [
        (load_recipe, "optimiser.lrr=1", "did you mean optimiser.lr?"),
        (load_recipe, "optimizer.lr=1", "did you mean optimiser?"),
        (load_recipe, "network.opacity=true", "network.opacity; known are: name, weights, options, mask"),
        (load_recipe, "training.epochs=0", "training.epochs=0"),
        (load_recipe, "optimiser.lr=fast", "optimiser.lr='fast'"),
        (load_recipe, "preprocessing.normalisation=two-anchor", "'zero-mean' or 'min-max'"),
        (load_recipe, "synthesis.severity=[0.8, 0.1]", "the smaller number comes first, as in [0.1, 0.8]"),
        (load_recipe, "trainer.precision=8", "'32-true', 'bf16-mixed' or '16-mixed'"),
        (load_recipe, "name.x=1", "is a value, not a section"),
        (load_recipe, "epochs", "KEY=VALUE"),
        (load_recipe, "training.epochs=[", "not a valid value"),
        (load_pretrain_recipe, "contrast.temprature=0.1", "unknown key contrast.temprature; did you mean"),
        (load_lungs_recipe, "phantom=0.1", "did you mean phantoms"),
    ],
)
def test_a_wrong_override_is_one_clear_line(load: Callable[..., object], override: str, message: str) -> None:
    names = {load_recipe: "mask-efficientnet", load_pretrain_recipe: "c2l", load_lungs_recipe: "lungs"}
    with pytest.raises(RecipeError) as error:
        load(names[load], [override])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean mask-efficientnet"):
        load_recipe("mask-eficientnet")
    with pytest.raises(RecipeError, match="no pretraining recipe named 'c2k'; did you mean c2l"):
        load_pretrain_recipe("c2k")
    with pytest.raises(RecipeError, match=r"network\.name is missing"):
        parse_recipe({"name": "x", "network": {}}, "x")
    path = tmp_path / "broken.yaml"
    for content in ("[1, 2", "- a\n- b\n", "name: x\n", "\x00"):
        path.write_text(content)
        with pytest.raises(RecipeError, match=r"broken\.yaml"):
            load_recipe(str(path))
