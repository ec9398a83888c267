from __future__ import annotations

from unittest.mock import Mock

import pytest
import timm
import torch

from groundglass.models.layers import grey_levels
from groundglass.models.mask_efficientnet import MaskEfficientNet
from groundglass.models.registry import build

NAME = "mask-efficientnet-lite0"
SWITCHES = [
    {},
    *({switch: False} for switch in ("mask", "attention", "histogram", "lesions")),
    {"mask": False, "attention": False, "histogram": False},
]


def switches_id(switches: dict[str, bool]) -> str:
    return "-".join(["no", *switches]) if switches else "all"


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
        features = backbone.forward_features(images)
        last, pyramid = network.features(images)
        torch.testing.assert_close(last, features, rtol=1e-5, atol=1e-5)
        output = network(images)
        _, levels = backbone.forward_intermediates(images, indices=[1, 2, 3, 4])
    assert [each.shape[-1] for each in pyramid] == [16, 8, 4, 2]
    if not training:
        torch.testing.assert_close(pyramid, levels, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.embedding, features.mean(dim=(2, 3)), rtol=1e-5, atol=1e-5)
    assert torch.equal(output.logit, torch.zeros(4))
    assert output.lesion_map is not None
    assert output.lesion_map.shape == (4, 16, 16)


@pytest.mark.parametrize("switches", SWITCHES, ids=switches_id)
def test_every_switch_trains_and_exports(
    switches: dict[str, bool], leave_initialisation, assert_exports
) -> None:
    torch.manual_seed(0)
    network = build(NAME, **switches).train()
    images, labels = torch.randn(4, 1, 64, 64), torch.tensor([0.0, 1.0, 0.0, 1.0])
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    # Zero-initialised layers pass no gradient to what stands before them until they have moved themselves:
    # head, then joining layer and gates, then the mask branch, then its gates' first layers.
    for _ in range(5):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(images).logit, labels).backward()
        optimiser.step()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert not torch.equal(parameter, before[name]), f"{name} has not moved"
    if len(switches) != 1 or network.decoder is None:
        leave_initialisation(network)
        assert_exports(network, size=64, quick=network.decoder is not None)


@pytest.mark.parametrize(("name", "added"), [(NAME, True), ("mask-efficientnet-b0", False)])
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
    network = build(NAME).eval()
    counted = Mock(side_effect=grey_levels)
    monkeypatch.setattr("groundglass.models.mask_efficientnet.grey_levels", counted)
    with torch.no_grad():
        network(torch.randn(3, 1, 64, 64))
        build(NAME, mask=False, histogram=False).eval()(torch.randn(3, 1, 64, 64))
    assert counted.call_count == 1
