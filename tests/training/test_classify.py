"""The schedule, the averaged weights and the losses."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from groundglass.training.classify import Classifier, lesion_loss
from groundglass.training.recipe import load_recipe
from groundglass.training.run import build_network


def module(*settings: str) -> Classifier:
    recipe = load_recipe("phantom-demo", ["network.weights=none", *settings])
    torch.manual_seed(0)
    made = Classifier(build_network(recipe), recipe, steps_per_epoch=3, seed=0).train()
    made.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return made


def rates(epochs: int, *settings: str) -> list[float]:
    """The learning rate before each step of epochs of ten steps, and after the last."""
    recipe = load_recipe("phantom-demo", [f"training.epochs={epochs}", *settings])
    configured = Classifier(nn.Linear(2, 1), recipe, 10, 0).configure_optimizers()
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


def test_timm_gives_optimisers_and_schedules_by_name_and_only_matrices_decay() -> None:
    made = module("optimiser.name=lion", "optimiser.options={betas: [0.8, 0.9]}", "optimiser.schedule=none")
    (optimiser,) = made.configure_optimizers().values()
    assert (type(optimiser).__name__, optimiser.defaults["betas"]) == ("Lion", [0.8, 0.9])
    plain, decayed = sorted(optimiser.param_groups, key=lambda group: float(group["weight_decay"]))
    assert decayed["weight_decay"] > 0 == plain["weight_decay"]
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim <= 1 for p in plain["params"])
    counted = sum(p.numel() for group in (plain, decayed) for p in group["params"])
    assert counted == sum(p.numel() for p in made.network.parameters()), "the averaged weights do not learn"
    options = "optimiser.schedule_options={decay_epochs: 1}"
    steps = rates(2, "optimiser.schedule=step", "optimiser.warmup_epochs=0", options)
    assert (steps[0], steps[10], steps[20]) == pytest.approx((1e-3, 1e-4, 1e-5))
    halved = rates(2, "trainer.accumulate_grad_batches=2")
    assert halved[10] == pytest.approx(1e-5), "half as many steps"


def test_losses_are_focal_or_weighted_by_class() -> None:
    logit, labels = torch.tensor([2.0, -1.0]), torch.tensor([1.0, 0.0])
    plain = [math.log(1 + math.exp(-2)), math.log(1 + math.exp(-1))]
    missed = [1 - 1 / (1 + math.exp(-2)), 1 / (1 + math.exp(1))]
    focal = module("training.label_smoothing=0", "training.loss=focal")
    expected = sum(each * p**2 for each, p in zip(plain, missed, strict=True)) / 2
    assert focal._label_loss(logit, labels).item() == pytest.approx(expected)
    weighted = module("training.label_smoothing=0", "training.class_weights=[3, 1]")
    assert weighted._label_loss(logit, labels).item() == pytest.approx((plain[0] + 3 * plain[1]) / 2)
    recipe = load_recipe("phantom-demo", ["training.class_weights=balanced"])
    balanced = Classifier(nn.Linear(2, 1), recipe, 1, 0, covid=0.25)
    assert balanced.class_weights.tolist() == pytest.approx([2 / 3, 2])


def test_averaged_weights_start_at_the_network_and_lag_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module("training.ema_decay=0.5")
    trained, averaged = next(made.network.parameters()), next(made.averaged.module.parameters())
    gaps = []
    for step in range(1, 22):
        monkeypatch.setattr(Classifier, "global_step", step)
        with torch.no_grad():
            trained += 1
        made.on_train_batch_end()
        gaps.append((trained - averaged).mean().item())
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
    with_lesion, without = 2 * entropy + dice, -2 * math.log(1 - unseen)
    counted = {
        (1.0, 1.0): (with_lesion + without) / 2,
        (1.0, 0.0): with_lesion,
        (0.0, 1.0): without,
        (0.0, 0.0): 0.0,
    }
    for known, expected in counted.items():
        assert lesion_loss(logit, lesions, torch.tensor(known)).item() == pytest.approx(expected, rel=1e-5)
    # A coarse map is compared on the fine grid.
    fine = lesions.repeat_interleave(4, 1).repeat_interleave(4, 2)
    right, wrong = 12 * lesions - 6, 6 - 12 * lesions
    assert 0 < lesion_loss(right, fine, torch.ones(2)) < 1 < lesion_loss(wrong, fine, torch.ones(2))
