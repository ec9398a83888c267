from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from groundglass.models.layers import LesionDecoder, binary_mask, grey_histogram, grey_levels
from groundglass.models.lung_net import LungNet


def smooth_picture(rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """Grey pixels with structure, so that their histogram has hills and valleys as a slice's has."""
    field = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), sigmaX=float(rng.uniform(1, 6)))
    field = np.sign(field) * np.abs(field) ** rng.uniform(0.3, 2.0)
    return np.rint(cv2.normalize(field, None, 0, 255, cv2.NORM_MINMAX)).astype(np.uint8)


def opencv_mask(pixels: np.ndarray) -> np.ndarray:
    _, mask = cv2.threshold(pixels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return mask


def mask_of(images: torch.Tensor) -> torch.Tensor:
    return binary_mask(grey_levels(images))


def histogram_of(images: torch.Tensor) -> torch.Tensor:
    return grey_histogram(grey_levels(images), 32)


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32))[None, None]


def test_mask_is_opencv_otsu() -> None:
    for seed in range(20):
        pixels = smooth_picture(np.random.default_rng(seed))
        np.testing.assert_array_equal(mask_of(tensor(pixels))[0, 0].numpy(), opencv_mask(pixels))
        # 51 steps stretch to whole grey levels, so that no rounding stands between the two.
        narrow = 100 + pixels // 5
        stretched = cv2.normalize(narrow, None, 0, 255, cv2.NORM_MINMAX)
        np.testing.assert_array_equal(mask_of(tensor(narrow))[0, 0].numpy(), opencv_mask(stretched))


def test_mask_sees_each_image_for_itself_whatever_its_contrast_and_layout() -> None:
    rng = np.random.default_rng(0)
    batch = torch.cat([tensor(smooth_picture(rng)) * scale for scale in (0.01, 1.0, 30.0)])
    together = mask_of(batch)
    assert torch.equal(together, torch.cat([mask_of(image[None]) for image in batch]))
    assert together.any()
    assert not together.all()
    assert torch.equal(mask_of(batch[1:2] / 64 - 2), together[1:2]), "exact in binary floating point"
    channels_last = batch.to(memory_format=torch.channels_last)
    assert torch.equal(mask_of(channels_last), together)
    assert torch.equal(histogram_of(channels_last), histogram_of(batch))


def test_histogram_counts_pixels() -> None:
    pixels = smooth_picture(np.random.default_rng(5))
    expected, _ = np.histogram(pixels, bins=32, range=(0, 256))
    np.testing.assert_allclose(histogram_of(tensor(pixels))[0], expected / pixels.size, rtol=1e-6)


PYRAMID = [torch.randn(2, channels, side, side) for channels, side in ((8, 18), (12, 9), (16, 5), (24, 3))]


def test_decoder_answers_at_the_finest_stride_is_silent_at_first_and_listens_to_every_stride() -> None:
    torch.manual_seed(0)
    decoder = LesionDecoder([8, 12, 16, 24], width=6).eval()
    with torch.no_grad():
        lesion_map, term = decoder(PYRAMID)
        assert lesion_map.shape == (2, 18, 18)
        assert torch.equal(term, torch.zeros(2))
        assert lesion_map.sigmoid().mean() < 0.2, "most places show no lesion"
        for level in range(4):
            changed = [each + (number == level) for number, each in enumerate(PYRAMID)]
            assert not torch.allclose(decoder(changed)[0], lesion_map, atol=1e-3)


@pytest.mark.parametrize("side", [64, 192])
def test_lung_net_is_small_and_answers_every_pixel(side: int) -> None:
    torch.manual_seed(0)
    network = LungNet().eval()
    assert sum(each.numel() for each in network.parameters()) == pytest.approx(142_000, rel=0.01)
    slices = torch.rand(2, 1, side, side)
    with torch.no_grad():
        logit = network(slices)
        torch.testing.assert_close(network(slices + 0.3), logit, atol=1e-4, rtol=1e-4, msg="brightness")
    assert logit.shape == (2, 1, side, side)
    network.train()(slices).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.any(), name
