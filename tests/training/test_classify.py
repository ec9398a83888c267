"""The schedule and the averaged weights."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from groundglass.models.registry import build
from groundglass.training.classify import Classifier, known_loss, lr_share
from groundglass.training.recipe import OptimiserSection, load_recipe
from groundglass.training.samples import Batch


def test_learning_rate_warms_up_and_ends_low() -> None:
    section = OptimiserSection(final_lr_share=0.01)
    shares = [lr_share(step, 100, 10, section) for step in range(101)]
    assert shares[0] == pytest.approx(1 / 11)
    assert max(shares) == shares[10] == 1
    assert shares[100] == pytest.approx(0.01)
    assert all(a >= b for a, b in pairwise(shares[10:]))


def test_averaged_weights_start_at_the_network_and_lag_behind() -> None:
    recipe = load_recipe("phantom-demo", ["network.weights=none", "training.ema_decay=0.5"])
    module = Classifier(build(recipe.network.name), recipe, steps_per_epoch=1, seed=0)
    module.on_train_batch_end()
    trained = next(module.network.parameters())
    averaged = next(module.averaged.module.parameters())
    torch.testing.assert_close(trained, averaged)
    with torch.no_grad():
        trained += 1
    module.on_train_batch_end()
    assert 0 < (averaged - (trained - 1)).mean() < 1


def test_only_matrices_decay() -> None:
    recipe = load_recipe("phantom-demo", ["network.weights=none"])
    module = Classifier(build(recipe.network.name), recipe, steps_per_epoch=1, seed=0)
    decayed, plain = module.configure_optimizers()["optimizer"].param_groups
    assert decayed["weight_decay"] > 0 == plain["weight_decay"]
    norms = [m for m in module.network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(any(norm.weight is p for p in plain["params"]) for norm in norms)
    counted = sum(p.numel() for group in (decayed, plain) for p in group["params"])
    assert counted == sum(p.numel() for p in module.network.parameters())


def test_mixup_blends_images_and_targets_alike() -> None:
    recipe = load_recipe("phantom-demo", ["network.weights=none", "augmentation.mixup=1.0"])
    module = Classifier(build(recipe.network.name), recipe, steps_per_epoch=1, seed=0)
    labels = torch.arange(16) % 2.0
    images = labels.view(-1, 1, 1, 1).expand(16, 1, 4, 4)
    mixed = module._mixed(Batch(images, labels, torch.full((16,), torch.nan)), 0)
    torch.testing.assert_close(mixed.images[:, 0, 0, 0], mixed.covid)
    assert ((mixed.covid > 0.01) & (mixed.covid < 0.99)).any()
    assert mixed.opacity.isnan().all()


def test_mixed_with_an_unknown_label_a_label_is_unknown() -> None:
    recipe = load_recipe("phantom-demo", ["network.weights=none", "augmentation.mixup=1.0"])
    module = Classifier(build(recipe.network.name), recipe, steps_per_epoch=1, seed=0)
    numbers = torch.arange(16.0)
    covid = torch.where(numbers < 8, 1.0, torch.nan)
    images = numbers.view(-1, 1, 1, 1).expand(16, 1, 4, 4)
    mixed = module._mixed(Batch(images, covid, torch.ones(16)), 0)
    assert 0 < mixed.covid.isnan().sum() < 16
    assert mixed.opacity.tolist() == [1] * 16
    # A blend that a slice of the second half has a share in is brighter than the first half alone can be.
    assert mixed.covid[mixed.images[:, 0, 0, 0] > 7].isnan().all()


def test_unknown_targets_weigh_nothing() -> None:
    logits = torch.tensor([0.5, -1.0, 2.0, 0.1], requires_grad=True)
    loss = known_loss(logits, torch.tensor([1.0, torch.nan, 0.0, torch.nan]))
    expected = (math.log1p(math.exp(-0.5)) + math.log1p(math.exp(2.0))) / 4
    assert loss.item() == pytest.approx(expected)
    loss.backward()
    assert (logits.grad != 0).tolist() == [True, False, True, False]


def test_without_a_known_target_there_is_no_loss_and_no_nan() -> None:
    logits = torch.tensor([3.0, -2.0], requires_grad=True)
    loss = known_loss(logits, torch.full((2,), torch.nan))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == [0, 0]


TWOFOLD = ("network.opacity=true", "synthesis.teaches=both", "synthesis.slices_per_epoch=8")


def trained_steps(batch: Batch, *overrides: str) -> tuple[Classifier, list[float]]:
    """Three steps on the same batch, and the losses of COVID and, where there is one, of opacity."""
    recipe = load_recipe("phantom-demo", ["network.weights=none", *overrides])
    torch.manual_seed(0)
    network = build(recipe.network.name, opacity=recipe.network.opacity)
    module = Classifier(network, recipe, steps_per_epoch=3, seed=0).train()
    optimiser = module.configure_optimizers()["optimizer"]
    logged: list[float] = []
    module._log_loss = lambda name, loss, batch: logged.append(loss.item())
    for number in range(3):
        module.on_train_batch_start(batch, number)
        optimiser.zero_grad()
        module.training_step(batch, number).backward()
        optimiser.step()
        module.on_train_batch_end()
    return module, logged


def drawn_batch(covid: float = 1.0, opacity: float = 1.0) -> Batch:
    """Eight noisy images, every other one brighter; their labels times those given."""
    generator = torch.Generator().manual_seed(7)
    bright = torch.arange(8) % 2.0
    images = torch.randn(8, 1, 64, 64, generator=generator) + bright.view(8, 1, 1, 1)
    return Batch(images, bright * covid, bright * opacity)


def test_without_the_second_output_training_is_what_it_was() -> None:
    _, losses = trained_steps(drawn_batch(opacity=torch.nan))
    # Recorded before there was a second output, with the same seed and images.
    assert losses == pytest.approx([0.6931472, 0.6822374, 0.6623514], rel=1e-4)


def test_a_second_output_of_no_weight_changes_nothing_of_the_first() -> None:
    alone, _ = trained_steps(drawn_batch(opacity=torch.nan))
    beside, _ = trained_steps(drawn_batch(), *TWOFOLD, "training.opacity_weight=0")
    states = [module.network.state_dict() for module in (alone, beside)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-5, atol=1e-6)
    assert not states[1]["head.opacity.weight"].any()


def test_each_output_learns_from_its_own_labels() -> None:
    only_opacity, losses = trained_steps(drawn_batch(covid=torch.nan), *TWOFOLD)
    state = only_opacity.network.state_dict()
    assert state["head.opacity.weight"].any()
    assert not state["head.classifier.weight"].any()
    assert losses[0::2] == [0, 0, 0]
    assert losses[1] == pytest.approx(math.log(2))
    assert losses[5] < losses[1]
