"""What a run says of slices, and on which device."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from groundglass.errors import BundleError
from groundglass.imaging.lungs import shipped
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.slice import CTSlice, Origin
from groundglass.models.layers import NetworkOutput
from groundglass.models.registry import build
from groundglass.training.recipe import load_recipe
from groundglass.training.run import LUNGS, Run
from groundglass.training.samples import to_images


def run_of(network: nn.Module) -> Run:
    """A run at 64 pixels with that network, whose files do not exist."""
    run = Run(Path("run"), load_recipe("phantom-demo", ["preprocessing.size=64"]), {})
    run.__dict__.update(network=network, lungs=shipped())
    return run


@pytest.mark.parametrize("lesions", [True, False])
def test_batches_say_what_single_slices_say(lesions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("groundglass.training.run._BATCH", 2)
    network = build("mask-efficientnet-lite0", lesions=lesions).eval()
    nn.init.normal_(network.head.classifier.weight, std=0.05)
    phantoms = [make_phantom(np.random.default_rng(seed), level=0.5, size=128).slice for seed in range(3)]
    run = run_of(network)
    said = run.predict(phantoms)
    with torch.no_grad():
        single = [network(to_images(cut.pixels[None], run.preprocessing)) for cut in said.cuts]
    np.testing.assert_allclose(said.logit, torch.cat([each.logit for each in single]), rtol=1e-4, atol=1e-5)
    assert said.logit.std() > 0
    assert said.probability == pytest.approx(1 / (1 + np.exp(-said.logit)))
    assert (said.lesion_map is not None) == lesions
    if said.lesion_map is not None:
        maps = torch.cat([each.lesion_map for each in single])
        np.testing.assert_allclose(said.lesion_map, maps, rtol=1e-4, atol=1e-4)
    for phantom, cut in zip(phantoms, said.cuts, strict=True):
        np.testing.assert_array_equal(cut.lungs, shipped()(phantom.pixels))
    none = run.predict([])
    assert (none.logit.shape, none.lesion_map, none.cuts) == ((0,), None, [])


def test_a_run_finds_lungs_with_its_own_model(tmp_path: Path) -> None:
    run = Run(tmp_path, load_recipe("phantom-demo"), {})
    with pytest.raises(BundleError, match=r"lungs\.onnx: cannot be read"):
        _ = run.lungs
    (tmp_path / LUNGS).write_bytes(shipped().model)
    assert run.lungs.sha256 == shipped().sha256


class Elsewhere(nn.Module):
    """Moved to a GPU, it is on a device that tests have everywhere; it notes where its images are, and is very sure."""

    seen: str

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1))

    def to(self, device: str) -> Elsewhere:  # type: ignore[override]
        assert device == "cuda"
        self.weight = nn.Parameter(torch.empty(1, device="meta"))
        return self

    def forward(self, images: Tensor) -> NetworkOutput:
        Elsewhere.seen = images.device.type
        return NetworkOutput(torch.full((len(images),), -2000.0), None, torch.zeros(len(images), 1))


def test_a_run_predicts_on_the_gpu_where_there_is_one_and_confident_logits_do_not_overflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = run_of(Elsewhere())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with np.errstate(all="raise", under="ignore"):
        said = run.predict([CTSlice(np.zeros((64, 64), np.uint8), Origin("x", "PNG"))] * 2)
    assert said.probability.tolist() == [0.0] * 2
    assert Elsewhere.seen == "meta"
    assert next(run.network.parameters()).device.type == "cpu", "what is exported stays where it is"
