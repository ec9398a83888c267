from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch

from groundglass.models.layers import (
    BinaryMask,
    GreyHistogram,
    SqueezeExcitation,
    ZeroMean,
    count_levels,
    grey_levels,
)


def smooth_picture(rng: np.random.Generator, size: int = 96) -> np.ndarray:
    """Grey pixels with structure, so that their histogram has hills and valleys as a slice's has."""
    field = cv2.GaussianBlur(rng.normal(size=(size, size)), (0, 0), sigmaX=float(rng.uniform(1, 6)))
    field = np.sign(field) * np.abs(field) ** rng.uniform(0.3, 2.0)
    return np.rint(cv2.normalize(field, None, 0, 255, cv2.NORM_MINMAX)).astype(np.uint8)


def opencv_mask(pixels: np.ndarray) -> np.ndarray:
    _, mask = cv2.threshold(pixels, 0, 1, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return mask


def tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32))[None, None]


@pytest.mark.parametrize("seed", range(20))
def test_mask_is_opencv_otsu(seed: int) -> None:
    pixels = smooth_picture(np.random.default_rng(seed))
    mask = BinaryMask()(tensor(pixels))[0, 0].numpy()
    np.testing.assert_array_equal(mask, opencv_mask(pixels))


def test_mask_of_narrow_range_is_otsu_of_stretched_image() -> None:
    # 51 steps stretch to whole grey levels, so that no rounding stands between the two.
    pixels = 100 + smooth_picture(np.random.default_rng(3)) // 5
    stretched = cv2.normalize(pixels, None, 0, 255, cv2.NORM_MINMAX)
    mask = BinaryMask()(tensor(pixels))[0, 0].numpy()
    np.testing.assert_array_equal(mask, opencv_mask(stretched))


def test_mask_of_real_slices_is_opencv_otsu(luna_slices) -> None:
    paths = sorted(luna_slices.rglob("*.png"))[:20]
    assert paths
    for path in paths:
        pixels = cv2.normalize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), None, 0, 255, cv2.NORM_MINMAX)
        mask = BinaryMask()(tensor(pixels))[0, 0].numpy()
        np.testing.assert_array_equal(mask, opencv_mask(pixels))


def test_mask_sees_each_image_of_a_batch_for_itself() -> None:
    rng = np.random.default_rng(0)
    batch = torch.cat([tensor(smooth_picture(rng)) * scale for scale in (0.01, 1.0, 30.0)])
    together = BinaryMask()(batch)
    apart = torch.cat([BinaryMask()(image[None]) for image in batch])
    torch.testing.assert_close(together, apart, rtol=0, atol=0)
    assert set(together.unique().tolist()) == {0.0, 1.0}


def test_mask_ignores_brightness_and_contrast() -> None:
    image = tensor(smooth_picture(np.random.default_rng(1)))
    changed = image / 64 - 2  # exact in binary floating point
    torch.testing.assert_close(BinaryMask()(changed), BinaryMask()(image), rtol=0, atol=0)


def test_image_of_one_value_has_empty_mask_and_one_bin() -> None:
    image = torch.full((2, 1, 8, 8), -0.7)
    assert BinaryMask()(image).sum() == 0
    histogram = GreyHistogram(32)(image)
    torch.testing.assert_close(histogram[:, 0], torch.ones(2))
    assert histogram[:, 1:].sum() == 0
    assert ZeroMean()(image).abs().max() < 1e-3


def test_memory_format_does_not_change_mask_and_histogram() -> None:
    images = torch.cat([tensor(smooth_picture(np.random.default_rng(seed))) for seed in range(3)])
    channels_last = images.to(memory_format=torch.channels_last)
    assert torch.equal(BinaryMask()(channels_last), BinaryMask()(images))
    assert torch.equal(GreyHistogram()(channels_last), GreyHistogram()(images))


@pytest.mark.parametrize("bins", [32, 256])
def test_histogram_counts_pixels(bins: int) -> None:
    pixels = smooth_picture(np.random.default_rng(5))
    expected, _ = np.histogram(pixels, bins=bins, range=(0, 256))
    histogram = GreyHistogram(bins)(tensor(pixels))
    np.testing.assert_allclose(histogram[0].numpy(), expected / pixels.size, rtol=1e-6)


def test_histogram_refuses_bins_that_do_not_divide_256() -> None:
    with pytest.raises(ValueError, match="30"):
        GreyHistogram(30)


def test_levels_span_their_range() -> None:
    levels = grey_levels(torch.tensor([-3.0, 0.0, 1.0]).view(1, 1, 1, 3))
    assert levels.tolist() == [[0, 191, 255]]
    assert count_levels(levels)[0, [0, 191, 255]].tolist() == [1, 1, 1]


def test_zero_mean_and_unit_variance_per_image() -> None:
    images = torch.rand(4, 1, 32, 32) * torch.tensor([1.0, 10.0, 100.0, 1000.0]).view(4, 1, 1, 1) + 5
    normalised = ZeroMean()(images)
    torch.testing.assert_close(normalised.mean(dim=(1, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(normalised.var(dim=(1, 2, 3), correction=0), torch.ones(4), rtol=1e-3, atol=0)


def test_gate_starts_at_exactly_one_and_learns() -> None:
    gate = SqueezeExcitation(24)
    features = torch.randn(3, 24, 7, 7)
    assert torch.equal(gate(features), features)
    optimiser = torch.optim.SGD(gate.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        gate(features).square().mean().backward()
        optimiser.step()
    assert not torch.equal(gate(features), features)
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in gate.parameters())
