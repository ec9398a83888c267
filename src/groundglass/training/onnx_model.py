"""A trained network as an ONNX file, and the proof that it says the same."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

from groundglass.errors import RunError
from groundglass.inference.engine import INPUT, OUTPUTS, Engine

OPSET = 18
"""Version of the ONNX operators; ONNX Runtime reads it since 1.14 (2023)."""

CLOSE = 1e-4
"""Largest difference between PyTorch's outputs and ONNX Runtime's that is put down to rounding; relative to
values above 1."""

_BATCH = 16


def to_onnx(network: nn.Module, size: int) -> bytes:
    """Export a network in evaluation mode, with a batch of any length; of its outputs, those of ``OUTPUTS``.

    Args:
        network: float32 (B, 1, size, size) to a ``NetworkOutput``.
        size: side of the framed slice in pixels.
    """
    # Two images: a batch of one would be taken for a constant. NCHW: the file's layout.
    example = torch.zeros(2, 1, size, size)
    with torch.inference_mode():
        answers_more = network(example).opacity_logit is not None
    with warnings.catch_warnings(), _quiet("torch.onnx", "onnxscript"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            (_Exported(network) if answers_more else network).to(memory_format=torch.contiguous_format),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    if program is None:
        raise RunError("PyTorch's exporter returned no program")
    return bytes(_without_traces(program.model_proto).SerializeToString())


def _without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without what the exporter notes of the code it traced, paths on this machine among it."""
    graph = model.graph
    for noted in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    return model


class _Exported(nn.Module):
    """A network without the outputs that no file of ours carries."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        output = self.network(images)
        return tuple(getattr(output, name) for name in OUTPUTS)


def largest_difference(network: nn.Module, engine: Engine, images: NDArray[np.float32]) -> float:
    """Largest difference between the outputs of PyTorch and of ONNX Runtime, relative to values above 1.

    Args:
        network: as it was exported.
        engine: with the exported model.
        images: normalised framed slices, shape (N, size, size).
    """
    worst = 0.0
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        with torch.inference_mode():
            expected = network(torch.from_numpy(batch).unsqueeze(1))
        outputs = engine.run(batch)
        for name in OUTPUTS:
            values = getattr(expected, name).numpy()
            difference = np.abs(values - getattr(outputs, name)) / np.maximum(1, np.abs(values))
            worst = max(worst, float(difference.max()))
    return worst


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silence loggers that report progress as warnings."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
