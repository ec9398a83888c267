"""Layers that read the image, the lesion decoder, Mask-EfficientNet's switches, and the lung net."""

from unittest.mock import Mock

import cv2
import numpy as np
import pytest
import timm
import torch

from groundglass.models.layers import LesionDecoder, binary_mask, grey_histogram, grey_levels
from groundglass.models.lung_net import LungNet
from groundglass.models.mask_efficientnet import MaskEfficientNet
from groundglass.models.registry import build


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def smooth_picture(seed: int) -> np.ndarray:
    """Grey pixels with structure, so that their histogram has hills and valleys as a slice's has."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.normal(size=(96, 96)), (0, 0), sigmaX=float(rng.uniform(1, 6)))
    field = np.sign(field) * np.abs(field) ** rng.uniform(0.3, 2.0)
    return np.rint(cv2.normalize(field, None, 0, 255, cv2.NORM_MINMAX)).astype(np.uint8)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32))[None, None]


def mask_of(images: torch.Tensor) -> torch.Tensor:
    return binary_mask(grey_levels(images))


def test_mask_is_opencv_otsu() -> None:
    for seed in range(20):
        pixels = smooth_picture(seed)
        # 51 steps stretch to whole grey levels, so that no rounding stands between the two.
        for given in (pixels, 100 + pixels // 5):
            stretched = cv2.normalize(given, None, 0, 255, cv2.NORM_MINMAX)
            _, expected = cv2.threshold(stretched, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
            np.testing.assert_array_equal(mask_of(tensor(given))[0, 0].numpy(), expected)


def test_mask_and_histogram_see_each_image_for_itself_whatever_its_contrast_and_layout() -> None:
    batch = torch.cat([tensor(smooth_picture(seed)) * scale for seed, scale in enumerate((0.01, 1.0, 30.0))])
    together, last = mask_of(batch), batch.to(memory_format=torch.channels_last)
    assert torch.equal(together, torch.cat([mask_of(image[None]) for image in batch]))
    assert torch.equal(mask_of(batch[1:2] / 64 - 2), together[1:2]), "exact in binary floating point"
    assert torch.equal(mask_of(last), together)
    expected, _ = np.histogram(smooth_picture(1), bins=32, range=(0, 256))
    for images in (batch, last):
        np.testing.assert_allclose(grey_histogram(grey_levels(images), 32)[1] * 96 * 96, expected, rtol=1e-6)


def test_decoder_answers_at_the_finest_stride_is_silent_at_first_and_listens_to_every_stride() -> None:
    shapes = ((8, 18), (12, 9), (16, 5), (24, 3))  # of sides that no stride divides
    pyramid = [torch.randn(2, channels, side, side) for channels, side in shapes]
    decoder = LesionDecoder([channels for channels, _ in shapes], width=6).eval()
    with torch.no_grad():
        lesion_map, term = decoder(pyramid)
        assert lesion_map.shape == (2, 18, 18)
        assert torch.equal(term, torch.zeros(2))
        assert lesion_map.sigmoid().mean() < 0.2, "most places show no lesion"
        for level in range(4):
            changed = [each + (number == level) for number, each in enumerate(pyramid)]
            assert not torch.allclose(decoder(changed)[0], lesion_map, atol=1e-3)


@pytest.mark.parametrize("side", [64, 192])
def test_lung_net_is_small_and_answers_four_pixels_at_once(side: int) -> None:
    network, slices = LungNet().eval(), torch.rand(2, 1, side, side)
    assert sum(each.numel() for each in network.parameters()) == pytest.approx(142_000, rel=0.01)
    with torch.no_grad():
        logit = network(slices)
        torch.testing.assert_close(network(slices + 0.3), logit, atol=1e-4, rtol=1e-4, msg="brightness")
    assert logit.shape == (2, 1, side // 2, side // 2)
    network.train()(slices).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("timm_name", ["tf_efficientnet_lite0", "efficientnet_b0"])
def test_mask_efficientnet_computes_its_backbone_at_initialisation(timm_name: str, training: bool) -> None:
    backbone = timm.create_model(timm_name, in_chans=1, num_classes=0)
    network = MaskEfficientNet(timm.create_model(timm_name, in_chans=1, num_classes=0))
    network.backbone.load_state_dict(backbone.state_dict())
    images = torch.randn(4, 1, 64, 64)
    with torch.no_grad():
        last, pyramid = network.train(training).features(images)
        expected, levels = backbone.train(training).forward_intermediates(images, indices=[1, 2, 3, 4])
        torch.testing.assert_close([last, *pyramid], [expected, *levels], rtol=1e-5, atol=1e-5)
    assert [each.shape[-1] for each in pyramid] == [16, 8, 4, 2]


@pytest.mark.parametrize("name", ["mask-efficientnet-lite0", "mask-efficientnet-b0"])
def test_attention_may_be_inside_the_blocks(name: str) -> None:
    added = name == "mask-efficientnet-lite0"
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
    counted = Mock(side_effect=grey_levels)
    monkeypatch.setattr("groundglass.models.mask_efficientnet.grey_levels", counted)
    with torch.no_grad():
        for switches in ({}, {"mask": False, "histogram": False}):
            build("mask-efficientnet-lite0", **switches).eval()(torch.randn(3, 1, 64, 64))
    assert counted.call_count == 1
