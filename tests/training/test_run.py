"""What a run says of slices: opacity where its network has that output."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from groundglass.imaging.crop import Preprocessing
from groundglass.models.layers import Mirrored
from groundglass.models.registry import build
from groundglass.training.run import NetworkOutputs, predict_cropped

FRAMED = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)


def network(*, opacity: bool) -> nn.Module:
    """Random, its heads moved away from zero."""
    torch.manual_seed(0)
    built = build("mask-efficientnet-lite0", opacity=opacity)
    for parameter in built.head.parameters():
        nn.init.normal_(parameter, std=0.05)
    return Mirrored(built).eval()


def predictions(cropped: np.ndarray, *, opacity: bool) -> NetworkOutputs:
    return predict_cropped(network(opacity=opacity), Preprocessing(size=64), cropped)


def test_opacity_stands_beside_the_probability_where_the_network_has_it() -> None:
    said = predictions(FRAMED, opacity=True)
    assert said.opacity == pytest.approx(1 / (1 + np.exp(-said.opacity_logit)))
    assert said.probability == pytest.approx(1 / (1 + np.exp(-said.logit)))
    assert not np.allclose(said.opacity_logit, said.logit)
    assert said.opacity_map.shape == said.activation_map.shape
    assert said.opacity_map.shape[0] == 3


def test_a_network_of_one_output_says_nothing_of_opacity() -> None:
    said = predictions(FRAMED, opacity=False)
    assert said.probability.shape == (3,)
    assert (said.opacity_logit, said.opacity, said.opacity_map) == (None, None, None)


def test_no_slice_gives_no_prediction() -> None:
    said = predictions(FRAMED[:0], opacity=False)
    assert said.logit.shape == said.probability.shape == (0,)
    assert len(said.activation_map) == 0


def test_a_logit_of_any_size_has_a_probability() -> None:
    """An overflowing exponential used to warn, which is an error here."""

    class Extreme(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(-1e4))

        def forward(self, images: torch.Tensor) -> Any:
            logit = self.bias.expand(len(images))
            return SimpleNamespace(
                logit=logit, activation_map=logit[:, None, None], opacity_logit=None, opacity_map=None
            )

    predictions = predict_cropped(Extreme(), Preprocessing(size=64), np.zeros((2, 64, 64), np.uint8))
    assert predictions.probability.tolist() == [0.0, 0.0]
