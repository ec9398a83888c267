"""The schedule, the averaged weights and mixup."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from groundglass.models.registry import build
from groundglass.training.classify import Classifier, adamw
from groundglass.training.recipe import OptimiserSection, load_recipe


def module(*settings: str) -> Classifier:
    recipe = load_recipe("phantom-demo", ["network.weights=none", *settings])
    torch.manual_seed(0)
    made = Classifier(build(recipe.network.name), recipe, steps_per_epoch=3, seed=0).train()
    made.log = lambda *_, **__: None  # type: ignore[method-assign,assignment]
    return made


def rates(section: OptimiserSection, steps: int, steps_per_epoch: int) -> list[float]:
    configured = adamw(nn.Linear(2, 1), section, steps, steps_per_epoch)
    optimiser, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    seen = []
    for _ in range(steps):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return [*seen, optimiser.param_groups[0]["lr"]]


def test_learning_rate_warms_up_linearly_and_ends_low_after_half_a_cosine() -> None:
    seen = rates(OptimiserSection(lr=2e-3, final_lr_share=0.01), 100, 10)
    assert seen[:10] == pytest.approx([2e-3 * (step + 1) / 11 for step in range(10)])
    cosine = [0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 90)) for step in range(91)]
    assert seen[10:] == pytest.approx([2e-3 * share for share in cosine])
    assert all(a >= b for a, b in pairwise(seen[10:]))


@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 20), (1.0, 10), (3.0, 10)])
def test_trainings_without_or_with_nothing_but_warm_up(warmup: float, steps: int) -> None:
    seen = rates(OptimiserSection(lr=1e-3, warmup_epochs=warmup), steps, 10)
    assert all(0 < rate <= 1e-3 * (1 + 1e-9) for rate in seen[:-1])
    assert seen[0] == pytest.approx(1e-3 / (10 * warmup + 1))


def test_only_matrices_decay() -> None:
    made = module()
    groups = made.configure_optimizers()["optimizer"].param_groups
    plain, decayed = sorted(groups, key=lambda group: float(group["weight_decay"]))
    assert decayed["weight_decay"] > 0 == plain["weight_decay"]
    norms = [m for m in made.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(any(norm.weight is p for p in plain["params"]) for norm in norms)
    assert all(p.ndim > 1 for p in decayed["params"])
    counted = sum(p.numel() for group in groups for p in group["params"])
    assert counted == sum(p.numel() for p in made.network.parameters())


def test_averaged_weights_start_at_the_network_and_lag_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    made = module("training.ema_decay=0.5")
    trained, averaged = next(made.network.parameters()), next(made.averaged.module.parameters())
    step = iter(range(1, 100))
    monkeypatch.setattr(Classifier, "global_step", property(lambda _: next(step)))
    with torch.no_grad():
        trained += 1
    made.on_train_batch_end()
    torch.testing.assert_close(trained, averaged)
    start = trained.clone()
    gaps = []
    for _ in range(20):
        with torch.no_grad():
            trained += 1
        made.on_train_batch_end()
        gaps.append((trained - averaged).mean().item())
    assert not torch.equal(averaged, start)
    # Of weights that grow by 1 a step, an average of decay d lags d / (1 - d) behind.
    assert gaps[-1] == pytest.approx(1, abs=0.05)
    assert 0 < gaps[0] < 0.2, "at first it remembers little"


def test_mixup_blends_images_and_labels_alike() -> None:
    made = module("augmentation.mixup=1.0")
    labels = torch.arange(16) % 2.0
    images = labels.view(-1, 1, 1, 1).expand(16, 1, 64, 64)
    mixed, blended = made._mixed(images, labels, 0)
    torch.testing.assert_close(mixed[:, 0, 0, 0], blended)
    assert ((blended > 0.05) & (blended < 0.95)).any()


def test_three_steps_give_the_losses_recorded_with_these_images() -> None:
    generator = torch.Generator().manual_seed(7)
    labels = torch.arange(8) % 2.0
    images = torch.randn(8, 1, 64, 64, generator=generator) + labels.view(8, 1, 1, 1)
    made = module()
    optimiser = made.configure_optimizers()["optimizer"]
    losses = []
    for number in range(3):
        made.on_train_batch_start((images, labels), number)
        optimiser.zero_grad()
        loss = made.training_step((images, labels), number)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses == pytest.approx([0.6931472, 0.6822374, 0.6623514], rel=1e-4)
