"""The schedule and the averaged weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

from groundglass.models.registry import build
from groundglass.training.classify import Classifier, lr_share
from groundglass.training.recipe import OptimiserSection, load_recipe


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
    mixed, targets = module._mixed(images, labels, 0)
    torch.testing.assert_close(mixed[:, 0, 0, 0], targets)
    assert ((targets > 0.01) & (targets < 0.99)).any()
