"""Recipes: read, overridden, checked, and followed by schedule, averaged weights and losses."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

from groundglass.errors import RecipeError
from groundglass.imaging.crop import Preprocessing
from groundglass.models.catalogue import entries
from groundglass.training import recipe as recipes
from groundglass.training.classify import Classifier, lesion_loss
from groundglass.training.recipe import load_lungs_recipe, load_pretrain_recipe, load_recipe, recipe_names


@pytest.mark.parametrize("name", [*recipe_names(), *(entry.name for entry in entries())])
def test_every_recipe_and_network_gives_a_recipe_that_names_itself(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    # As the code and pretraining do.
    assert recipe.preprocessing.normalisation == Preprocessing().normalisation == "zero-mean"
    if name in recipe_names():
        assert recipes.described_recipes()[name], "a recipe says what it is"
    else:
        assert recipe.network.name == name
        assert recipe.optimiser.lr == (2e-4 if name.startswith("vgg") else 1e-3), "VGG bears less"


def test_a_wrong_override_is_one_clear_line() -> None:
    names = {load_recipe: "mask-efficientnet", load_pretrain_recipe: "c2l", load_lungs_recipe: "lungs"}
    for load, override, message in (
        (load_recipe, "optimiser.lrr=1", "did you mean optimiser.lr?"),
        (load_recipe, "network.opacity=true", "network.opacity; known are: name, weights, options, mask"),
        (load_recipe, "optimiser.lr=.inf", "optimiser.lr=inf: input should be a finite number"),
        (load_recipe, "preprocessing.normalisation=two-anchor", "'zero-mean' or 'min-max'"),
        (load_recipe, "sampling.shares={a: 0}", "sampling.shares.a=0: input should be greater than 0"),
        (load_recipe, "trainer.devices=-1", "trainer.devices=-1: input should be greater"),
        (load_recipe, "synthesis.severity=[0.8, 0.1]", "the smaller number comes first, as in [0.1, 0.8]"),
        (load_recipe, "name.x=1", "is a value, not a section"),
        (load_recipe, "epochs", "KEY=VALUE"),
        (load_recipe, "training.epochs=[", "not a valid value"),
        (load_pretrain_recipe, "contrast.temprature=0.1", "unknown key contrast.temprature; did you mean"),
        (load_lungs_recipe, "phantom=0.1", "did you mean phantoms"),
    ):
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
        recipes.checked(recipes.Recipe, {"name": "x", "network": {}}, "x")
    for content in ("[1, 2", "- a\n- b\n", "name: x\n", "\x00"):
        (path := tmp_path / "broken.yaml").write_text(content)
        with pytest.raises(RecipeError, match=r"broken\.yaml"):
            load_recipe(str(path))


def learner(*settings: str, steps: int = 10, covid: float = 0.5) -> Classifier:
    return Classifier(nn.Linear(2, 1), load_recipe("phantom-demo", settings), steps, 0, covid)


def rates(epochs: int, *settings: str) -> list[float]:
    """The learning rate before each step of epochs of ten steps, and after the last."""
    configured = learner(f"training.epochs={epochs}", *settings).configure_optimizers()
    optimiser, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    seen = [optimiser.param_groups[0]["lr"]]
    for step in range(10 * epochs):
        schedule.step_update(step + 1)
        seen.append(optimiser.param_groups[0]["lr"])
    return seen


def test_learning_rate_warms_up_linearly_and_ends_low_after_half_a_cosine() -> None:
    seen = rates(10, "optimiser.lr=2e-3")
    assert seen[:10] == pytest.approx([2e-3 * (step + 1) / 11 for step in range(10)])
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 90)) for step in range(91)]
    assert seen[10:] == pytest.approx([2e-3 * share for share in cosine])
    assert all(a >= b for a, b in pairwise(seen[10:]))
    assert rates(2, "trainer.accumulate_grad_batches=2")[10] == pytest.approx(1e-5), "half as many steps"


def test_timm_gives_optimisers_and_schedules_by_name_and_only_matrices_decay(tmp_path: Path) -> None:
    made = learner("optimiser.name=lion", "optimiser.options={betas: [0.8, 0.9]}", "optimiser.schedule=none")
    (optimiser,) = made.configure_optimizers().values()
    assert (type(optimiser).__name__, optimiser.defaults["betas"]) == ("Lion", [0.8, 0.9])
    plain, decayed = sorted(optimiser.param_groups, key=lambda group: float(group["weight_decay"]))
    assert decayed["weight_decay"] > 0 == plain["weight_decay"]
    learned = [decayed["params"], plain["params"]]
    assert learned == [[made.network.weight], [made.network.bias]], "the averaged weights do not learn"
    options = "optimiser.schedule_options={decay_epochs: 1}"
    steps = rates(2, "optimiser.schedule=step", "optimiser.warmup_epochs=0", "optimiser.options={eps: 1e-8}", options)
    assert (steps[0], steps[10], steps[20]) == pytest.approx((1e-3, 1e-4, 1e-5))
    (file := tmp_path / "own.yaml").write_text("name: x\nnetwork: {name: vgg-11}\noptimiser: {options: {eps: -1E+2}}")
    assert load_recipe(str(file)).optimiser.options == {"eps": -100.0}, "a number without a point"


def test_losses_are_focal_or_weighted_by_class() -> None:
    logit, labels = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    plain = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))]
    missed = [1 - 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    focal = learner("training.label_smoothing=0", "training.loss=focal")._label_loss(logit, labels)
    assert focal.item() == pytest.approx(sum(each * p**2 for each, p in zip(plain, missed, strict=True)) / 2)
    weighted = learner("training.label_smoothing=0", "training.class_weights=[3, 1]")
    assert weighted._label_loss(logit, labels).item() == pytest.approx((plain[0] + 3 * plain[1]) / 2)
    balanced = learner("training.class_weights=balanced", covid=0.25)
    assert balanced.class_weights.tolist() == pytest.approx([2 / 3, 2])


def test_averaged_weights_start_at_the_network_and_lag_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made, gaps = learner("training.ema_decay=0.5"), []
    for step in range(21):
        monkeypatch.setattr(Classifier, "global_step", step)
        with torch.no_grad():
            made.network.weight += 1
        made.optimizer_step(0, 0, torch.optim.SGD(made.network.parameters()))
        gaps.append((made.network.weight - made.averaged.module.weight).mean().item())
    # Of weights that grow by 1 a step, an average of decay d lags d / (1 - d) behind.
    assert gaps[-1] == pytest.approx(1, abs=0.05)
    assert gaps[0] == 0 < gaps[1] < 0.2, "at first it remembers little"


def test_lesion_loss_is_cross_entropy_and_of_slices_with_a_lesion_dice() -> None:
    """By hand: a lesion of 4 of 16 places, of which all 4 and 4 more are called lesion, and a slice without."""
    logit, lesions = torch.full((2, 4, 4), -2.0), torch.zeros(2, 4, 4)
    logit[0, :2], lesions[0, 0] = 1.0, 1
    seen, unseen = 1 / (1 + math.exp(-1)), 1 / (1 + math.exp(2))
    entropy = -(4 * math.log(seen) + 4 * math.log(1 - seen) + 8 * math.log(1 - unseen)) / 16
    dice = 1 - (2 * 4 * seen + 20) / (8 * seen + 8 * unseen + 4 + 20)
    of = (2 * entropy + dice, -2 * math.log(1 - unseen))
    for known, expected in (((1, 1), sum(of) / 2), ((1, 0), of[0]), ((0, 1), of[1]), ((0, 0), 0)):
        loss = lesion_loss(logit, lesions, torch.tensor(known, dtype=torch.float32)).item()
        assert loss == pytest.approx(expected, rel=1e-5)
    # A coarse map is compared on the fine grid.
    fine = lesions.repeat_interleave(4, 1).repeat_interleave(4, 2)
    right, wrong = 12 * lesions - 6, 6 - 12 * lesions
    assert 0 < lesion_loss(right, fine, torch.ones(2)) < 1 < lesion_loss(wrong, fine, torch.ones(2))
