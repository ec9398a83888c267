"""Weights come from the package, timm's hub or a file; what cannot be had or does not fit says what to do."""

from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image

from groundglass.errors import WeightsError
from groundglass.models import weights
from groundglass.models.catalogue import find
from groundglass.models.registry import build

LITE0 = "efficientnet-lite0"


def save(network: torch.nn.Module, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path)
    return path


def test_packaged_weights_need_no_network_and_tell_photographs_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole 1000-class model, so that a wrong order of tensors would show: a daisy and a palace."""
    monkeypatch.setattr(weights, "_read_hub", lambda entry: pytest.fail("asked the hub"))
    model = timm.create_model(find(LITE0).timm_name).eval()
    model.load_state_dict(dict(weights.read_weights(find(LITE0), "imagenet").tensors))
    for photograph, label in (("flower.jpg", 985), ("china.jpg", 698)):
        pixels = torch.from_numpy(load_sample_image(photograph).copy()).permute(2, 0, 1)[None].float()
        square = pixels[..., 106:533]
        square = torch.nn.functional.interpolate(square, size=(224, 224), mode="bilinear", antialias=True)
        with torch.no_grad():
            assert int(model(square / 127.5 - 1).argmax()) == label
    imagenet, c2l = (build(f"mask-{LITE0}", kind).backbone.state_dict() for kind in ("imagenet", "c2l"))
    assert torch.equal(imagenet["conv_head.weight"], model.conv_head.weight)
    assert all(torch.isfinite(tensor).all() for tensor in c2l.values())
    assert not torch.allclose(imagenet["conv_head.weight"], c2l["conv_head.weight"], atol=1e-3)


def test_a_file_holds_a_whole_network_or_a_backbone_of_three_channels(tmp_path: Path) -> None:
    saved, colour = build(f"mask-{LITE0}"), timm.create_model("tf_efficientnet_lite0")
    torch.nn.init.constant_(saved.head.classifier.bias, 0.5)
    loaded = build(f"mask-{LITE0}", save(saved, tmp_path / "network.safetensors"))
    assert all(map(torch.equal, loaded.state_dict().values(), saved.state_dict().values()))
    loaded = build(f"mask-{LITE0}", str(save(colour, tmp_path / "backbone.safetensors")))
    first = loaded.backbone.conv_stem.weight
    torch.testing.assert_close(first, colour.conv_stem.weight.sum(dim=1, keepdim=True))
    assert torch.equal(loaded.backbone.conv_head.weight, colour.conv_head.weight)
    assert torch.equal(loaded.mask_branch.stem[0].weight, first)


@pytest.mark.parametrize(
    ("saved", "wanted", "reason"),
    [("b0", "b1", "it lacks"), ("b1", "b0", "it holds the unknown"), ("b2", "b1", "size mismatch for")],
)
def test_file_that_does_not_fit_is_named(tmp_path: Path, saved: str, wanted: str, reason: str) -> None:
    path = save(build(f"efficientnet-{saved}").backbone, tmp_path / "saved.safetensors")
    with pytest.raises(WeightsError, match=rf"saved\.safetensors: does not fit this network: .*{reason}"):
        build(f"efficientnet-{wanted}", path)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        (LITE0, "imagnet", "'imagnet': not one of imagenet, c2l, none"),
        (LITE0, "{folder}/broken.safetensors", "{folder}/broken.safetensors: not a safetensors file"),
        (LITE0, "{folder}/gone.safetensors", "{folder}/gone.safetensors: cannot be read"),
        (LITE0, "{folder}", "{folder}: cannot be read"),
        ("mine:Small", "imagenet", "weights mine:Small cannot be had"),
        ("resnet-18", "c2l", "groundglass pretrain --network resnet-18"),
        ("resnet-18", "imagenet", r"resnet18\.a1_in1k cannot be had .*lite0.*weights 'none'"),
    ],
)
def test_weights_that_cannot_be_had_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, kind: str, reason: str
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(WeightsError, match=reason.format(folder=tmp_path)) as caught:
        build(name, kind.format(folder=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_damaged_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lite0.pth"
    monkeypatch.setattr(weights, "_packaged_file", lambda package: path)
    path.write_bytes(b"cut off")
    with pytest.raises(WeightsError, match=r"lite0\.pth: damaged .*, reinstall efficientnet-lite0-pytorch"):
        build(LITE0, "imagenet")
    torch.save({"one": torch.zeros(3), "two": torch.zeros(4)}, path)
    with pytest.raises(WeightsError, match=r"lite0\.pth: its tensors are not tf_efficientnet_lite0"):
        build(LITE0, "imagenet")
