"""What a run says of slices, and on which device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.models.layers import NetworkOutput
from groundglass.models.registry import build
from groundglass.training.recipe import load_recipe
from groundglass.training.run import Run, predict_cropped

CROPPED = np.random.default_rng(0).integers(0, 256, (3, 64, 64), np.uint8)


def test_the_probability_is_the_logits_sigmoid() -> None:
    network = build("mask-efficientnet-lite0").eval()
    nn.init.normal_(network.head.classifier.weight, std=0.05)
    said = predict_cropped(network, Preprocessing(size=64), CROPPED)
    assert said.probability == pytest.approx(1 / (1 + np.exp(-said.logit)))
    assert said.logit.std() > 0
    assert said.activation_map.shape == (3, 2, 2)
    assert said.logit.dtype == said.probability.dtype == np.float32


def test_no_slice_gives_no_prediction() -> None:
    said = predict_cropped(build("efficientnet-lite0").eval(), Preprocessing(size=64), CROPPED[:0])
    assert said.logit.shape == said.probability.shape == (0,)
    assert len(said.activation_map) == 0


class Elsewhere(nn.Module):
    """A network on a device that tests have everywhere; it notes where its images are."""

    def __init__(self, logit: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))
        self.logit = logit
        self.seen: list[str] = []

    def forward(self, images: Tensor) -> NetworkOutput:
        self.seen.append(images.device.type)
        count = len(images)
        return NetworkOutput(
            torch.full((count,), self.logit), torch.zeros(count, 1, 1), torch.zeros(count, 1)
        )


def test_a_run_predicts_on_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Elsewhere()
    moves: list[object] = []

    def move(self: nn.Module, device: object) -> nn.Module:
        moves.append(device)
        network.weight = nn.Parameter(torch.empty(1, device="meta"))
        return network

    recipe = load_recipe("phantom-demo", ["preprocessing.size=64"])
    run = Run(Path("run"), recipe, {})
    run.__dict__["network"] = Elsewhere()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(Elsewhere, "to", move)
    run.predict([CTSlice(np.zeros((80, 80), np.uint8), Origin("x", "PNG"))] * 2)
    assert moves == ["cuda"]
    assert network.seen == ["meta"]
    assert next(run.network.parameters()).device.type == "cpu", "what is exported stays where it is"


def test_confident_logits_do_not_overflow() -> None:
    with np.errstate(all="raise", under="ignore"):
        said = predict_cropped(Elsewhere(-2000.0), Preprocessing(size=64), CROPPED)
    assert said.probability.tolist() == [0.0] * 3
