from __future__ import annotations

import pytest

from groundglass.errors import GroundglassError
from groundglass.models.registry import build, measure


@pytest.mark.parametrize(
    ("name", "published", "first_layer"),
    [
        # Billions of operations at 224 x 224 as torchvision publishes them, with three input channels: two of
        # them fall away in the first layer, whose filters and output are given.
        ("resnet-18", 1.814e9, 2 * 49 * 64 * 112 * 112),
        ("resnet-50", 4.089e9, 2 * 49 * 64 * 112 * 112),
        ("vgg-16", 15.470e9, 2 * 9 * 64 * 224 * 224),
        ("densenet-121", 2.834e9, 2 * 49 * 64 * 112 * 112),
        ("efficientnet-b0", 0.386e9, 2 * 9 * 32 * 112 * 112),
    ],
)
def test_operations_agree_with_published(name: str, published: float, first_layer: int) -> None:
    assert measure(name, 224).macs == pytest.approx(published - first_layer, rel=0.01)


def test_parameters_are_those_of_the_built_network() -> None:
    built = build("mask-efficientnet-lite0")
    assert measure("mask-efficientnet-lite0", 64).parameters == sum(p.numel() for p in built.parameters())


def test_operations_grow_with_the_area() -> None:
    small, large = (measure("efficientnet-lite0", size).macs for size in (96, 192))
    assert large == pytest.approx(4 * small, rel=0.01)


def test_mask_costs_less_than_a_tenth() -> None:
    plain, masked = (measure(name, 160).macs for name in ("efficientnet-lite0", "mask-efficientnet-lite0"))
    assert plain < masked < 1.1 * plain


def test_what_is_switched_off_costs_nothing() -> None:
    switched_off = measure("mask-efficientnet-lite0", 64, mask=False, attention=False, histogram=False)
    assert switched_off == measure("efficientnet-lite0", 64)


def test_unknown_network() -> None:
    with pytest.raises(GroundglassError, match="did you mean 'resnet-"):
        measure("resnet-49", 64)
