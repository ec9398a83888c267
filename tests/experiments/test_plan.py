"""Lists of trainings: which rows, from which weights, on which splits, in which order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label
from groundglass.data.splits import make_split
from groundglass.errors import GroundglassError
from groundglass.experiments.plan import (
    NETWORKS,
    ablation_tasks,
    chosen,
    convergence_tasks,
    seeds_tasks,
    table1_tasks,
    variants,
)
from groundglass.experiments.results import flat
from groundglass.training.recipe import Recipe, load_recipe

DEFAULT, PAPER = load_recipe("mask-efficientnet"), load_recipe("paper")


def differing(recipe: Recipe, other: Recipe) -> set[str]:
    """Fields in which two recipes differ, as ``--set`` spells them."""
    own, theirs = (dict(flat(each.model_dump(mode="json"))) for each in (recipe, other))
    return {key for key in own | theirs if own.get(key) != theirs.get(key)}


def test_the_whole_table() -> None:
    tasks = table1_tasks()
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names) == 5 * 2 * 3 * (5 + 1) + 2 * 2 * 3 * 5
    assert {"official/vgg-16-c2l-seed-2", "patients/mask-efficientnet-b0-imagenet-seed-0-fold-5"} < {*names}
    assert not [name for name in names if name.startswith("patients/vgg")]
    folded = {way.format(fold) for fold in range(1, 6) for way in ("random:{}/5:0", "patients:{}/5")}
    assert {task.split for task in tasks} == {"official"} | folded
    assert all(task.allow_overlap == (task.identity.protocol == "random") for task in tasks)
    assert {task.parts for task in tasks} == {("val", "test")}


def test_all_networks_have_the_papers_recipe_but_for_vggs_learning_rate() -> None:
    tasks = table1_tasks(["official"], weights=["imagenet"], seeds=[0], overrides=["training.epochs=3"])
    recipe = load_recipe("paper", ["training.epochs=3"])
    changed = {task.recipe.network.name: differing(task.recipe, recipe) - {"network.name"} for task in tasks}
    assert list(changed) == list(NETWORKS)
    assert {name: each for name, each in changed.items() if each} == {"vgg-16": {"optimiser.lr"}}


def test_c2l_weights_may_lie_in_a_file_and_seeds_share_a_split(tmp_path: Path) -> None:
    (file := tmp_path / "backbone.safetensors").touch()
    tasks = convergence_tasks(["resnet-18"], ["none", str(file)], [0])
    started = [(task.weights, task.recipe.network.weights, task.parts) for task in tasks]
    assert started == [("none", "none", ()), ("c2l", str(file), ())]
    assert tasks[1].name == "official/resnet-18-c2l-seed-0"
    first, second = seeds_tasks(DEFAULT, "leave-source-out:a+b", [0, 3], ["test"])
    assert second.name == "leave-source-out-a+b/mask-efficientnet-seed-3"
    for task in (first, second):
        assert (task.split, task.parts, task.weights) == ("leave-source-out:a+b", ("test",), "imagenet")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table1_tasks(["cv"]), "there are random, official, patients"),
        (lambda: ablation_tasks(DEFAULT, protocols=["paper"]), "random, official, patients, left-out"),
        (lambda: table1_tasks(networks=["vgg-17"]), "did you mean"),
        (lambda: table1_tasks(weights=["imagnet"]), "no such file; kinds are none, imagenet, c2l"),
        (lambda: table1_tasks(overrides=["network.weights=none"]), "use --weights"),
        (lambda: convergence_tasks(overrides=["network.name=vgg-16"]), "use --networks"),
        (lambda: ablation_tasks(load_recipe("resnet-18")), "has no mask branch to leave out"),
        (lambda: chosen(table1_tasks(), ["vgg*", "resnet"]), "--only resnet: matches no run; rows are vgg"),
    ],
)
def test_what_cannot_be_is_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(GroundglassError, match=message):
        make()


def test_rows_of_one_seed_come_first_and_a_list_can_be_narrowed() -> None:
    networks = ["resnet-18", "efficientnet-lite0"]
    tasks = table1_tasks(["patients", "official"], networks, ["none"], seeds=[1, 0], folds=2)
    ways = ("patients/{}-none-seed-{}-fold-1", "patients/{}-none-seed-{}-fold-2", "official/{}-none-seed-{}")
    expected = [way.format(network, seed) for seed in (0, 1) for way in ways for network in networks]
    assert [task.name for task in chosen(tasks, ())] == expected
    assert len(chosen(tasks, ["official/*", "official/resnet-18-none"])) == 4
    one = "official/resnet-18-none-seed-1"
    assert [task.name for task in chosen(tasks, [one])] == [one]


def test_every_variant_changes_one_thing() -> None:
    recipes = {each.row: each.recipe for each in variants(DEFAULT)}
    for recipe in recipes.values():
        assert type(recipe).model_validate(recipe.model_dump()) == recipe, "one that a file could hold"
    changed = {row: differing(recipe, DEFAULT) for row, recipe in recipes.items()}
    four = {f"augmentation.{name}" for name in ("translation", "rotation", "mirror", "noise")}
    rest = {
        f"augmentation.{name}" for name in ("smallest_crop", "stretch", "grey", "blur", "jpeg", "erasing")
    }
    assert (changed.pop("augmentation-paper"), changed.pop("augmentation-none")) == (rest, rest | four)
    expected = (
        "default: no-mask:network.mask no-attention:network.attention no-histogram:network.histogram "
        "gates-blocks:network.gates no-crop:preprocessing.crop no-synthesis:synthesis.slices_per_epoch "
        "normalisation-min-max:preprocessing.normalisation weights-none:network.weights weights-c2l:network.weights"
    )
    assert {f"{row}:{' '.join(fields)}" for row, fields in changed.items()} == {*expected.split()}
    off = load_recipe("mask-efficientnet", ["network.mask=false", "synthesis.slices_per_epoch=0"])
    recipes = {each.row: each.recipe for each in variants(off)}
    assert recipes["with-mask"].network.mask
    assert recipes["with-synthesis"].synthesis.slices_per_epoch == 320


def test_the_papers_recipe_is_the_paper_and_nothing_else() -> None:
    rows = {each.row for each in variants(PAPER)}
    assert not {"augmentation-paper", "gates-blocks"} & rows, "no row is the default under another name"
    assert {"no-mask", "no-attention", "no-histogram", "with-crop", "with-synthesis"} < rows
    assert (PAPER.network.name, PAPER.preprocessing.size) == ("mask-efficientnet-b0", 224)
    assert (PAPER.preprocessing.crop, PAPER.synthesis.slices_per_epoch, PAPER.network.lesions) == (0, 0, 0)
    silent = PAPER.augmentation.model_dump(exclude={"translation", "rotation", "mirror", "noise"})
    assert silent.pop("smallest_crop") == 1
    assert set(silent.values()) == {0}


def test_on_covid_ct_a_collection_and_a_publication_are_left_out(covid_ct: Path) -> None:
    data = load_dataset(covid_ct)
    (task, *_) = ablation_tasks(DEFAULT, [0], protocols=["left-out"])
    assert (task.split, task.parts) == ("leave-source-out:2020.02.25.20021568+medpix", ("test",))
    test = make_split(data, task.split).part("test")
    assert {data.records[index].label for index in test} == set(Label)
