"""Every network of the catalogue is built, has the published size, trains and exports."""

import io
import warnings
from unittest.mock import Mock

import numpy as np
import onnxruntime
import pytest
import torch

from groundglass.errors import GroundglassError
from groundglass.models.catalogue import MEASURED_AT, entries, find
from groundglass.models.layers import Network
from groundglass.models.registry import build, measure
from groundglass.training.onnx import outputs_of, quantise, to_onnx

SIZE = 64

# Parameters of the 1000-class models of three input channels, as torchvision's documentation (VGG, ResNet,
# DenseNet, EfficientNet-B) and timm's results (Lite) publish them.
PUBLISHED = {
    "vgg-11": 132_863_336, "vgg-13": 133_047_848, "vgg-16": 138_357_544, "vgg-19": 143_667_240,
    "resnet-18": 11_689_512, "resnet-34": 21_797_672, "resnet-50": 25_557_032, "resnet-101": 44_549_160,
    "resnet-152": 60_192_808, "densenet-121": 7_978_856, "densenet-169": 14_149_480,
    "densenet-201": 20_013_928, "efficientnet-b0": 5_288_548, "efficientnet-b1": 7_794_184,
    "efficientnet-b2": 9_109_994, "efficientnet-b3": 12_233_232, "efficientnet-b4": 19_341_616,
    "efficientnet-b5": 30_389_784, "efficientnet-b6": 43_040_704, "efficientnet-b7": 66_347_960,
    "efficientnet-lite0": 4_652_008, "efficientnet-lite1": 5_416_680, "efficientnet-lite2": 6_092_072,
    "efficientnet-lite3": 8_197_096, "efficientnet-lite4": 13_006_568,
}  # fmt: skip


def test_any_network_of_timm_with_a_pyramid_is_built_and_others_are_refused() -> None:
    network = build("resnet10t", options={"stem_width": 16}).eval()
    output = network(torch.zeros(2, 1, 72, 100))  # sides that no stride divides
    assert [each.shape for each in output] == [(2,), (2, 18, 25), (2, 512)]
    with pytest.raises(GroundglassError, match="vit_tiny_patch16_224: gives no features at strides"):
        build("vit_tiny_patch16_224")
    for wrong, near in (("resnet19", "'resnet-18'"), ("RESNET_50", "'resnet-50'"), ("zebra", "models` lists")):
        with pytest.raises(GroundglassError, match=f"{wrong}.*{near}"):
            build(wrong)


@pytest.mark.parametrize("name", [entry.name for entry in entries()])
def test_every_network_has_the_published_size_and_one_logit(name: str) -> None:
    with torch.device("meta"), torch.no_grad():
        network = build(name).eval()
        counted = sum(each.numel() for part in (network.backbone, network.head) for each in part.parameters())
        first = next(layer for layer in network.backbone.modules() if isinstance(layer, torch.nn.Conv2d))
        # Of the published count 999 of 1000 outputs and two of three input channels of the first filters are missing.
        features = network.head.classifier.in_features
        assert counted == PUBLISHED[name.removeprefix("mask-")] - 999 * (features + 1) - 2 * first.weight.numel()
        output = network(torch.empty(2, 1, SIZE, SIZE))
    assert [each.shape for each in output] == [(2,), (2, SIZE // 4, SIZE // 4), (2, features)]
    assert measure(name, MEASURED_AT) == (find(name).parameters, find(name).macs)


def exported_fast(network: Network) -> bytes:
    """By PyTorch's older exporter, which announces its retirement, but takes a tenth of the newer one's time."""
    buffer, names = io.BytesIO(), outputs_of(network)
    axes = {name: {0: "batch"} for name in ["image", *names]}
    options = {"dynamo": False, "opset_version": 18, "input_names": ["image"], "output_names": names}
    with warnings.catch_warnings(action="ignore"):
        torch.onnx.export(network, (torch.randn(2, 1, SIZE, SIZE),), buffer, dynamic_axes=axes, **options)
    return buffer.getvalue()


MASK = "mask-efficientnet-lite0"
FAMILIES = [(name, "") for name in ("efficientnet-b0", "resnet-18", "densenet-121", "vgg-11")]
SWITCHES = [(MASK, out) for out in ("", "mask", "attention", "histogram", "lesions", "mask attention histogram")]


@pytest.mark.parametrize(("name", "left_out"), [*SWITCHES, *FAMILIES])
def test_every_family_and_switch_trains_and_exports(name: str, left_out: str) -> None:
    torch.manual_seed(0)
    narrow = {"mlp_ratio": 0.02} if name == "vgg-11" else {}  # its fully connected layers: 100 million weights fewer
    network = build(name, options=narrow, **dict.fromkeys(left_out.split(), False)).train()
    images, labels = torch.randn(4, 1, SIZE, SIZE), torch.tensor([0.0, 1.0, 0.0, 1.0])
    assert torch.equal(network(images).logit, torch.zeros(4))
    with torch.no_grad():
        own, backbones = network.eval()(images).embedding, network.backbone(images)
    torch.testing.assert_close(own, backbones, rtol=1e-4, atol=1e-5)
    silent = [parameter for parameter in network.train().parameters() if not parameter.any()]
    optimiser = torch.optim.SGD(network.parameters(), lr=0.05)
    # Zero-initialised layers pass no gradient to what stands before them until they have moved themselves:
    # head, then joining layer, gates and the last layers of residual blocks, then the rest.
    for _ in range(5 if name == MASK else 3):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(images).logit, labels).backward()
        optimiser.step()
    for parameter_name, parameter in network.named_parameters():
        assert parameter.grad.isfinite().all(), parameter_name
        assert parameter.grad.any(), f"{parameter_name} does not learn"
    if left_out in {"", "lesions", "mask attention histogram"}:
        for parameter in silent:  # so that all branches are heard
            parameter.data += 0.05 * torch.randn(parameter.shape)
        # VGG by the newer exporter, as it is exported.
        model = to_onnx(network.eval(), SIZE) if name == "vgg-11" else exported_fast(network.eval())
        if name == "efficientnet-b0":  # whose SiLU has a sigmoid as gates have
            few = images[:, 0].numpy()
            assert len(quantise(model, few, few)) < 0.5 * len(model)
        session, names = onnxruntime.InferenceSession(model), outputs_of(network)
        assert [output.name for output in session.get_outputs()] == names
        with torch.no_grad():
            expected = network(images[:3])  # the batch size is free
        for key, given in zip(names, session.run(names, {"image": images[:3].numpy()}), strict=True):
            np.testing.assert_allclose(given, getattr(expected, key).numpy(), rtol=1e-4, atol=1e-4)


def test_vgg_pools_as_timm_does_but_not_adaptively(monkeypatch: pytest.MonkeyPatch) -> None:
    network, images = build("vgg-11", options={"mlp_ratio": 0.02}).eval(), torch.randn(1, 1, 224, 224)
    pooling = Mock(wraps=torch.nn.functional.adaptive_avg_pool2d)
    monkeypatch.setattr(torch.nn.functional, "adaptive_avg_pool2d", pooling)
    with torch.no_grad():
        own = [network(images[..., : 32 * side, 32 * side - 32 :]).embedding for side in range(1, 8)]
        assert not pooling.called, "which no GPU does the same way again"
        timms = [network.backbone(images[..., : 32 * side, 32 * side - 32 :]) for side in range(1, 8)]
    torch.testing.assert_close(own, timms, rtol=1e-4, atol=1e-5)


def test_what_is_switched_off_costs_nothing_and_the_mask_less_than_a_tenth() -> None:
    plain, masked = measure("efficientnet-lite0", 64), measure(MASK, 64)
    assert measure(MASK, 64, mask=False, attention=False, histogram=False) == plain
    assert plain.macs < masked.macs < 1.1 * plain.macs
    bare = measure("efficientnet-lite0", 64, lesions=False)
    assert bare.macs < plain.macs < 1.1 * bare.macs
    assert 0 < plain.parameters - bare.parameters < 40_000
