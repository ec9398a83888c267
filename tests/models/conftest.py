"""What the network tests share: leaving the initialisation behind, and export to ONNX Runtime."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from groundglass.models.layers import Network, NetworkOutput
from groundglass.training.onnx import outputs_of, to_onnx

OUTPUTS = list(NetworkOutput._fields)


@pytest.fixture(scope="session")
def leave_initialisation() -> Callable[[nn.Module], None]:
    """Move every zero-initialised parameter, so that all branches speak."""

    def move(network: nn.Module) -> None:
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in network.parameters():
                if not parameter.any():
                    parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))

    return move


def _quick_export(network: nn.Module, size: int) -> bytes:
    buffer = io.BytesIO()
    axes = {name: {0: "batch"} for name in ["image", *OUTPUTS]}
    options = {"dynamo": False, "opset_version": 18, "input_names": ["image"], "output_names": OUTPUTS}
    with warnings.catch_warnings():
        # The older exporter announces its retirement, but takes a tenth of the newer one's time.
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (torch.randn(2, 1, size, size),), buffer, dynamic_axes=axes, **options)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def assert_exports() -> Callable[..., None]:
    """Assert that a network, exported with a free batch size, answers as PyTorch does."""

    def assert_it(network: Network, size: int, *, quick: bool = True) -> None:
        network.eval()
        model = _quick_export(network, size) if quick else to_onnx(network, size)
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        images = torch.randn(3, 1, size, size)
        with torch.no_grad():
            expected = network(images)
        names = [output.name for output in session.get_outputs()]
        assert names == outputs_of(network)
        for name, given in zip(names, session.run(names, {"image": images.numpy()}), strict=True):
            np.testing.assert_allclose(given, getattr(expected, name).numpy(), rtol=1e-4, atol=1e-4)

    return assert_it
