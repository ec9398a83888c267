"""Lists of trainings: which rows, from which weights, on which splits, in which order."""

from __future__ import annotations

from pathlib import Path

import pytest

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Manifest, Record
from groundglass.data.splits import make_split
from groundglass.errors import DataError, GroundglassError, RecipeError
from groundglass.experiments.plan import (
    NETWORKS,
    Task,
    ablation_tasks,
    chosen,
    convergence_tasks,
    largest_sources,
    seeds_tasks,
    table1_tasks,
    variants,
)
from groundglass.experiments.results import flat
from groundglass.training.recipe import load_recipe


def fields(task: Task) -> dict[str, object]:
    return dict(flat(task.recipe.model_dump(mode="json")))


def test_the_whole_table() -> None:
    tasks = table1_tasks()
    names = [task.name for task in tasks]
    assert len(set(names)) == len(names) == 2 * 5 * 3 * 3 + 2 * 3 * 3 * 5
    assert "official/vgg-16-c2l-seed-2" in names
    assert "patients/mask-efficientnet-lite0-imagenet-seed-0-fold-5" in names
    assert not [name for name in names if name.startswith("patients/vgg")]
    splits = {task.split for task in tasks}
    assert splits == {"random:0", "official", *(f"patients:{fold}/5" for fold in range(1, 6))}
    assert all(task.allow_overlap == (task.identity.protocol == "paper") for task in tasks)
    assert {task.parts for task in tasks} == {("val", "test")}
    named = table1_tasks(["patients"], ["vgg-16"], ["none"], [4], folds=3)
    assert [(task.split, task.identity.folds) for task in named] == [
        (f"patients:{fold}/3", 3) for fold in (1, 2, 3)
    ]


def test_all_networks_have_one_recipe_but_for_vggs_learning_rate() -> None:
    tasks = table1_tasks(["official"], weights=["imagenet"], seeds=[0], overrides=["training.epochs=3"])
    own = {"name", "network.name"}
    recipes = {
        task.recipe.network.name: {key: value for key, value in fields(task).items() if key not in own}
        for task in tasks
    }
    assert list(recipes) == list(NETWORKS)
    default = recipes["mask-efficientnet-lite0"]
    differ = {
        name: {key for key in default if recipe[key] != default[key]} for name, recipe in recipes.items()
    }
    assert differ.pop("vgg-16") == {"optimiser.lr"}
    assert not any(differ.values())
    assert {task.recipe.training.epochs for task in tasks} == {3}


def test_c2l_weights_may_lie_in_a_file() -> None:
    files = {"resnet-18": Path("here/backbone.safetensors")}
    tasks = convergence_tasks(["resnet-18", "efficientnet-lite0"], seeds=[0], files=files)
    assert [(task.weights, task.recipe.network.weights) for task in tasks] == [
        ("none", "none"),
        ("imagenet", "imagenet"),
        ("c2l", "here/backbone.safetensors"),
        ("none", "none"),
        ("imagenet", "imagenet"),
        ("c2l", "c2l"),
    ]
    assert {task.parts for task in tasks} == {()}
    assert tasks[2].name == "official/resnet-18-c2l-seed-0"


def test_one_recipe_over_seeds() -> None:
    split = "leave-source-out:a+b"
    tasks = seeds_tasks(load_recipe("mask-efficientnet"), split, [0, 3], ["test"])
    assert [task.name for task in tasks] == [
        f"leave-source-out-a+b/mask-efficientnet-seed-{seed}" for seed in (0, 3)
    ]
    assert {(task.split, task.parts, task.weights) for task in tasks} == {(split, ("test",), "imagenet")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table1_tasks(["cv"]), "there are paper, official, patients"),
        (lambda: table1_tasks(networks=["vgg-17"]), "did you mean"),
        (lambda: table1_tasks(weights=["imagnet"]), "there are none, imagenet, c2l"),
        (lambda: table1_tasks(overrides=["network.weights=none"]), "use --weights"),
        (lambda: convergence_tasks(overrides=["network.name=vgg-16"]), "use --networks"),
        (lambda: table1_tasks(overrides=["training.epoch=3"]), r"did you mean training\.epochs"),
        (lambda: list(variants(load_recipe("resnet-18"))), "has no mask branch to leave out"),
        (
            lambda: chosen(table1_tasks(), ["vgg*", "resnet"]),
            "--only resnet: matches no run; rows are vgg-16",
        ),
    ],
)
def test_what_cannot_be_is_named(make: object, message: str) -> None:
    with pytest.raises(GroundglassError, match=message):
        make()  # type: ignore[operator]


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
    recipes = {name: recipe for name, _, recipe, _ in variants(load_recipe("mask-efficientnet"))}
    was = dict(flat(recipes.pop("default").model_dump(mode="json")))
    changed = {}
    for name, recipe in recipes.items():
        now = dict(flat(recipe.model_dump(mode="json")))
        changed[name] = {key for key in now if now[key] != was[key]}
        # Every variant is a recipe that a file could hold.
        assert type(recipe).model_validate(recipe.model_dump()) == recipe
    four = {"translation", "rotation", "mirror", "noise"}
    rest = {"smallest_crop", "stretch", "grey", "blur", "jpeg", "erasing"}
    assert changed.pop("normalisation-min-max") == {"preprocessing.normalisation"}
    assert {name: keys for name, keys in changed.items() if not name.startswith("normalisation")} == {
        "no-mask": {"network.mask"},
        "no-attention": {"network.attention"},
        "no-histogram": {"network.histogram"},
        "no-crop": {"preprocessing.crop"},
        "augmentation-paper": {f"augmentation.{name}" for name in rest},
        "augmentation-none": {f"augmentation.{name}" for name in four | rest},
        "no-synthesis": {"synthesis.slices_per_epoch"},
        "weights-none": {"network.weights"},
        "weights-c2l": {"network.weights"},
    }
    off = ["network.mask=false", "preprocessing.crop=false", "synthesis.slices_per_epoch=0"]
    recipes = {name: recipe for name, _, recipe, _ in variants(load_recipe("mask-efficientnet", off))}
    assert recipes["with-mask"].network.mask
    assert recipes["with-crop"].preprocessing.crop
    assert recipes["with-synthesis"].synthesis.slices_per_epoch == 320


def manifest(**sources: tuple[int, int]) -> Manifest:
    """A data set with so many COVID and NonCOVID slices of each source."""
    records = [
        Record(
            Path("set", f"{source}-{label.value}-{number}.png"), label, f"{source}-{number}", source, "train"
        )
        for source, counts in sources.items()
        for label, count in zip(Label, counts, strict=True)
        for number in range(count)
    ]
    return Manifest("set", Path("set"), tuple(records))


def test_the_source_left_out_is_chosen_by_size() -> None:
    assert largest_sources(manifest(a=(40, 40), b=(20, 25), c=(15, 12))) == "b"
    # One label each: the largest of each that leaves half of the label to train on.
    data = manifest(big=(0, 110), medium=(0, 80), small=(0, 20), x=(12, 0), y=(30, 0), z=(60, 0), tiny=(5, 0))
    assert largest_sources(data) == "y+medium"
    assert make_split(data, "leave-source-out:y+medium").parts["test"]
    odd = manifest(**{"a[1]": (0, 20), "b": (0, 30), "c*": (20, 0), "d+e": (25, 0)})
    assert largest_sources(odd) == "c[*]+a[[]1]"
    with pytest.raises(DataError, match=r"no source is large enough.*--left-out"):
        largest_sources(manifest(a=(9, 9), b=(9, 9)))


def test_on_covid_ct_a_collection_and_a_publication_are_left_out(covid_ct: Path) -> None:
    data, recipe = load_dataset(covid_ct), load_recipe("mask-efficientnet")
    (task, *_) = ablation_tasks(recipe, data, [0], protocols=["left-out"])
    assert (task.split, task.parts) == ("leave-source-out:2020.02.25.20021568+medpix", ("test",))
    test = make_split(data, task.split).part("test")
    assert {data.records[index].label for index in test} == set(Label)
    tasks = ablation_tasks(recipe, data, [0, 1], left_out="crawled")
    assert {task.split for task in tasks} == {"official", "leave-source-out:crawled"}
    with pytest.raises(RecipeError, match="there are official, left-out"):
        ablation_tasks(recipe, data, protocols=["paper"])
