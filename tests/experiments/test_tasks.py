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
    table1_tasks,
    variants,
)
from groundglass.experiments.tables import flat
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


def test_named_networks_serve_every_protocol() -> None:
    tasks = table1_tasks(["patients"], ["vgg-16"], ["none"], [4], folds=3, split_seed=8)
    assert [task.split for task in tasks] == ["patients:1/3", "patients:2/3", "patients:3/3"]
    assert [task.identity.folds for task in tasks] == [3, 3, 3]
    (paper,) = table1_tasks(["paper"], ["vgg-16"], ["none"], [4], split_seed=8)
    assert paper.split == "random:8"


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
    (folded,) = convergence_tasks(["resnet-18"], ["none"], [0], split="official-cv:1/3")
    assert folded.name == "official-cv-1-3/resnet-18-none-seed-0"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: table1_tasks(["offical"]), "protocol 'offical' is unknown"),
        (lambda: table1_tasks(networks=["resnet-49"]), "did you mean 'resnet-"),
        (
            lambda: table1_tasks(weights=["imagnet"]),
            "'imagnet' are of no known kind; there are none, imagenet, c2l",
        ),
        (
            lambda: table1_tasks(overrides=["network.weights=none"]),
            "the rows decide network.weights; use --weights",
        ),
        (lambda: table1_tasks(overrides=["network.name=vgg-16"]), "use --networks"),
        (lambda: table1_tasks(overrides=["training.epoch=3"]), r"did you mean training\.epochs"),
        (lambda: convergence_tasks(overrides=["network.weights=none"]), "use --weights"),
        (lambda: variants(load_recipe("resnet-18")), "has no mask branch to leave out"),
    ],
)
def test_what_cannot_be_is_named(make: object, message: str) -> None:
    with pytest.raises(GroundglassError, match=message):
        make()  # type: ignore[operator]


def test_rows_of_one_seed_come_first_and_folds_together() -> None:
    tasks = table1_tasks(
        ["patients", "official"], ["resnet-18", "efficientnet-lite0"], ["none"], seeds=[1, 0], folds=2
    )
    assert [task.name for task in chosen(tasks, ())] == [
        f"{protocol}/{network}-none-seed-{seed}{fold}"
        for seed in (0, 1)
        for protocol, fold in (("patients", "-fold-1"), ("patients", "-fold-2"), ("official", ""))
        for network in ("resnet-18", "efficientnet-lite0")
    ]


def test_a_list_can_be_narrowed() -> None:
    tasks = table1_tasks(["paper", "official"], seeds=[0, 1])
    assert len(chosen(tasks, ["*-none"])) == 20
    assert len(chosen(tasks, ["official/*-none", "official/vgg-16-none"])) == 10
    assert [task.name for task in chosen(tasks, ["paper/vgg-16-c2l-seed-1"])] == ["paper/vgg-16-c2l-seed-1"]
    with pytest.raises(RecipeError, match=r"--only resnet: matches no run; rows are vgg-16-none"):
        chosen(tasks, ["vgg*", "resnet"])


def test_every_variant_changes_one_thing() -> None:
    default, *others = variants(load_recipe("mask-efficientnet"))
    was = dict(flat(default.recipe.model_dump(mode="json")))
    changed = {}
    for variant in others:
        now = dict(flat(variant.recipe.model_dump(mode="json")))
        assert list(now) == list(was)
        changed[variant.name] = {key for key in now if now[key] != was[key]}
    four = {"translation", "rotation", "mirror", "noise"}
    rest = {"smallest_crop", "stretch", "grey", "blur", "jpeg", "erasing"}
    assert changed == {
        "no-mask": {"network.mask"},
        "no-attention": {"network.attention"},
        "no-histogram": {"network.histogram"},
        "no-crop": {"preprocessing.crop"},
        "normalisation-min-max": {"preprocessing.normalisation"},
        "augmentation-paper": {f"augmentation.{name}" for name in rest},
        "augmentation-none": {f"augmentation.{name}" for name in four | rest},
        "no-synthesis": {"synthesis.slices_per_epoch"},
        "weights-none": {"network.weights"},
        "weights-c2l": {"network.weights"},
    }
    assert {variant.name: variant.weights for variant in others}["weights-c2l"] == "c2l"
    # Every variant is a recipe that a file could hold.
    for variant in others:
        assert type(variant.recipe).model_validate(variant.recipe.model_dump()) == variant.recipe


def test_what_the_default_leaves_out_is_put_in() -> None:
    recipe = load_recipe(
        "mask-efficientnet",
        [
            "network.mask=false",
            "preprocessing.crop=false",
            "synthesis.slices_per_epoch=0",
            "network.weights=none",
        ],
    )
    names = {variant.name: variant for variant in variants(recipe)}
    assert names["with-mask"].recipe.network.mask
    assert names["with-crop"].recipe.preprocessing.crop
    assert names["with-synthesis"].recipe.synthesis.slices_per_epoch == 320
    assert {"weights-imagenet", "weights-c2l"} < set(names)


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
    assert (
        largest_sources(manifest(**{"a[1]": (0, 20), "b": (0, 30), "c*": (20, 0), "d+e": (25, 0)}))
        == "c[*]+a[[]1]"
    )
    with pytest.raises(DataError, match=r"no source is large enough.*--left-out"):
        largest_sources(manifest(a=(9, 9), b=(9, 9)))
    with pytest.raises(DataError, match="no source is large enough"):
        largest_sources(manifest(a=(100, 0), b=(0, 20), c=(0, 30)))


def test_on_covid_ct_a_collection_and_a_publication_are_left_out(covid_ct: Path) -> None:
    data = load_dataset(covid_ct)
    tasks = ablation_tasks(load_recipe("mask-efficientnet"), data, [0], protocols=["left-out"])
    assert {task.split for task in tasks} == {"leave-source-out:2020.02.25.20021568+medpix"}
    assert {task.parts for task in tasks} == {("test",)}
    test = make_split(data, tasks[0].split).part("test")
    assert {data.records[index].label for index in test} == set(Label)


def test_ablation_lists_both_protocols_and_takes_named_sources(covid_ct: Path) -> None:
    data = load_dataset(covid_ct)
    tasks = ablation_tasks(load_recipe("mask-efficientnet"), data, [0, 1], left_out="crawled")
    assert len(tasks) == 2 * 2 * 12
    assert {task.split for task in tasks} == {"official", "leave-source-out:crawled"}
    with pytest.raises(RecipeError, match="there are official, left-out"):
        ablation_tasks(load_recipe("mask-efficientnet"), data, protocols=["paper"])
