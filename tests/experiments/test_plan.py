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


def fields(recipe: Recipe) -> dict[str, object]:
    return dict(flat(recipe.model_dump(mode="json")))


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
    recipes = {task.recipe.network.name: fields(task.recipe) for task in tasks}
    assert list(recipes) == list(NETWORKS)
    default = recipes["mask-efficientnet-b0"]
    assert default == fields(load_recipe("paper", ["training.epochs=3"]))
    for name, recipe in recipes.items():
        differs = {key for key in default if recipe[key] != default[key]} - {"network.name"}
        assert differs == ({"optimiser.lr"} if name == "vgg-16" else set())


def test_c2l_weights_may_lie_in_a_file_and_seeds_share_a_split(tmp_path: Path) -> None:
    file = tmp_path / "backbone.safetensors"
    file.touch()
    tasks = convergence_tasks(["resnet-18"], ["none", str(file)], [0])
    started = [(task.weights, task.recipe.network.weights) for task in tasks]
    assert started == [("none", "none"), ("c2l", str(file))]
    assert {task.parts for task in tasks} == {()}
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
    assert [task.name for task in chosen(tasks, ())] == [
        f"{protocol}/{network}-none-seed-{seed}{fold}"
        for seed in (0, 1)
        for protocol, fold in (("patients", "-fold-1"), ("patients", "-fold-2"), ("official", ""))
        for network in networks
    ]
    assert len(chosen(tasks, ["official/*", "official/resnet-18-none"])) == 4
    one = "official/resnet-18-none-seed-1"
    assert [task.name for task in chosen(tasks, [one])] == [one]


def test_every_variant_changes_one_thing() -> None:
    recipes = {each.row: each.recipe for each in variants(DEFAULT)}
    was, changed = fields(recipes.pop("default")), {}
    for name, recipe in recipes.items():
        changed[name] = {key for key, value in fields(recipe).items() if value != was[key]}
        # Every variant is a recipe that a file could hold.
        assert type(recipe).model_validate(recipe.model_dump()) == recipe
    four = {"translation", "rotation", "mirror", "noise"}
    rest = {"smallest_crop", "stretch", "grey", "blur", "jpeg", "erasing"}
    assert changed == {
        "no-mask": {"network.mask"},
        "no-attention": {"network.attention"},
        "no-histogram": {"network.histogram"},
        "gates-blocks": {"network.gates"},
        "no-crop": {"preprocessing.crop"},
        "normalisation-min-max": {"preprocessing.normalisation"},
        "augmentation-paper": {f"augmentation.{name}" for name in rest},
        "augmentation-none": {f"augmentation.{name}" for name in four | rest},
        "no-synthesis": {"synthesis.slices_per_epoch"},
        "weights-none": {"network.weights"},
        "weights-c2l": {"network.weights"},
    }
    off = load_recipe("mask-efficientnet", ["network.mask=false", "synthesis.slices_per_epoch=0"])
    recipes = {each.row: each.recipe for each in variants(off)}
    assert (recipes["with-mask"].network.mask, recipes["with-synthesis"].synthesis.slices_per_epoch) == (
        1,
        320,
    )


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
