"""What all networks share: the second output, opacity, without a trace where not asked for; mirror images."""

from __future__ import annotations

import pytest
import torch

from groundglass.models.catalogue import entries
from groundglass.models.layers import Mirrored, Network, NetworkOutput
from groundglass.models.registry import build

QUICK = {"mask-efficientnet-lite0", "resnet-18", "densenet-121", "vgg-11"}
SECOND = {"head.opacity.weight", "head.opacity.bias"}


def pair(name: str) -> tuple[Network, Network]:
    """The same network without and with the second output, from the same seed."""
    torch.manual_seed(0)
    plain = build(name)
    torch.manual_seed(0)
    return plain, build(name, opacity=True)


def asked(network: Network, images: torch.Tensor) -> NetworkOutput:
    with torch.no_grad():
        return network.eval()(images)


@pytest.mark.parametrize("name", ["mask-efficientnet-lite0", "resnet-18"])
def test_the_second_output_leaves_the_first_as_it_is(name: str, leave_initialisation) -> None:
    plain, twofold = pair(name)
    own = plain.state_dict()
    assert set(twofold.state_dict()) - set(own) == SECOND
    assert all(torch.equal(twofold.state_dict()[key], value) for key, value in own.items())
    leave_initialisation(plain)
    twofold.load_state_dict(plain.state_dict(), strict=False)
    images = torch.randn(2, 1, 64, 64)
    first, both = asked(plain, images), asked(twofold, images)
    assert first.opacity_logit is None
    assert first.opacity_map is None
    assert all(torch.equal(one, other) for one, other in zip(first[:3], both[:3], strict=True))
    assert torch.equal(both.opacity_logit, torch.zeros(2))


@pytest.mark.parametrize(
    "name",
    [pytest.param(entry.name, marks=() if entry.name in QUICK else pytest.mark.slow) for entry in entries()],
)
def test_every_network_has_it_where_asked_for(name: str) -> None:
    with torch.device("meta"):
        network = build(name, opacity=True)
        output = asked(network, torch.empty(2, 1, 64, 64))
    assert output.opacity_logit.shape == output.logit.shape == (2,)
    assert output.opacity_map.shape == output.activation_map.shape


def test_its_map_adds_up_to_its_logit_mirrored_or_not(leave_initialisation) -> None:
    torch.manual_seed(1)
    network = build("mask-efficientnet-lite0", opacity=True)
    leave_initialisation(network)
    images = torch.randn(2, 1, 96, 96)
    bias = network.head.opacity.bias
    once, twice = asked(network, images), asked(Mirrored(network), images)
    for output in (once, twice):
        rebuilt = output.opacity_map.mean(dim=(1, 2)) + bias
        torch.testing.assert_close(rebuilt, output.opacity_logit, rtol=1e-4, atol=1e-4)
    mirrored = asked(network, images.flip(-1))
    torch.testing.assert_close(twice.opacity_logit, (once.opacity_logit + mirrored.opacity_logit) / 2)
    torch.testing.assert_close(twice.opacity_map, (once.opacity_map + mirrored.opacity_map.flip(-1)) / 2)
    assert not torch.equal(once.opacity_map, once.activation_map)


def test_without_it_a_mirrored_network_has_none_either() -> None:
    output = asked(Mirrored(build("mask-efficientnet-lite0")), torch.randn(1, 1, 64, 64))
    assert output.opacity_logit is None
    assert output.opacity_map is None


def test_both_outputs_pass_gradients_to_the_backbone(leave_initialisation) -> None:
    network = build("mask-efficientnet-lite0", opacity=True).train()
    leave_initialisation(network)
    output = network(torch.randn(4, 1, 64, 64))
    for logit in (output.logit, output.opacity_logit):
        network.zero_grad()
        logit.sum().backward(retain_graph=True)
        assert next(network.backbone.parameters()).grad.any()


def test_counting_grey_levels_once_for_both_images_changes_nothing(leave_initialisation) -> None:
    torch.manual_seed(2)
    network = build("mask-efficientnet-lite0")
    leave_initialisation(network)
    images = torch.randn(3, 1, 64, 64)
    both = torch.cat((images, images.flip(-1)))
    untold = asked(network, both)
    with torch.no_grad():
        told = network(both, mirrored=True)
    for one, other in zip(told[:3], untold[:3], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
