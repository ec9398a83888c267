"""Mask-EfficientNet begins as its backbone; its gates may be inside the blocks."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import timm
import torch

from groundglass.models.layers import grey_levels
from groundglass.models.mask_efficientnet import MaskEfficientNet
from groundglass.models.registry import build


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("timm_name", ["tf_efficientnet_lite0", "efficientnet_b0"])
def test_computes_its_backbone_at_initialisation(timm_name: str, training: bool) -> None:
    torch.manual_seed(0)
    backbone = timm.create_model(timm_name, in_chans=1, num_classes=0)
    network = MaskEfficientNet(timm.create_model(timm_name, in_chans=1, num_classes=0))
    network.backbone.load_state_dict(backbone.state_dict())
    backbone.train(training)
    network.train(training)
    images = torch.randn(4, 1, 64, 64)
    with torch.no_grad():
        last, pyramid = network.features(images)
        expected, levels = backbone.forward_intermediates(images, indices=[1, 2, 3, 4])
        torch.testing.assert_close(last, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pyramid, levels, rtol=1e-5, atol=1e-5)
    assert [each.shape[-1] for each in pyramid] == [16, 8, 4, 2]


@pytest.mark.parametrize(
    ("name", "added"), [("mask-efficientnet-lite0", True), ("mask-efficientnet-b0", False)]
)
def test_attention_may_be_inside_the_blocks(name: str, added: bool) -> None:
    bare, inside = build(name, attention=False, lesions=False), build(name, gates="blocks", lesions=False)
    more = {*inside.state_dict()} - {*bare.state_dict()}
    assert bool(more) == added, "blocks that have a gate keep it"
    assert all(".se." in key for key in more)
    assert {key for key in more if key.startswith("mask_branch")} or not added
    inside.load_state_dict(bare.state_dict(), strict=False)
    images = torch.randn(2, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(inside.eval()(images).logit, bare.eval()(images).logit)


def test_grey_levels_are_computed_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    network = build("mask-efficientnet-lite0").eval()
    counted = Mock(side_effect=grey_levels)
    monkeypatch.setattr("groundglass.models.mask_efficientnet.grey_levels", counted)
    with torch.no_grad():
        network(torch.randn(3, 1, 64, 64))
        build("mask-efficientnet-lite0", mask=False, histogram=False).eval()(torch.randn(3, 1, 64, 64))
    assert counted.call_count == 1
