"""A trained network as an ONNX model, in floating point or quantised to INT8, and how far it differs."""

from __future__ import annotations

import io
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from torch import nn

from groundglass.imaging import lungs
from groundglass.imaging.crop import Preprocessing
from groundglass.inference.bundle import INPUT, OUTPUTS, Engine
from groundglass.inference.calibration import COVID, NON_COVID, Calibration
from groundglass.models.layers import Network
from groundglass.models.lung_net import LungNet

OPSET = 18
"""Version of the ONNX operators; ONNX Runtime reads it since 1.14 (2023)."""

CLOSE = 1e-4
"""Largest difference between PyTorch's outputs and ONNX Runtime's that is put down to rounding; relative to
values above 1."""

CALIBRATING = 192
"""Slices with which INT8 is calibrated; by extremes: more only bring more outliers."""

_BATCH = 8
# Operators that run in 8 bits, on maps alone: counts of grey levels, pooled features and logits need finer steps.
_OPERATORS = ("Conv", "Clip", "Relu", "Add", "Mul", "GlobalAveragePool")
# Numbers of first convolutions that may stay in floating point: a slice's fine grey steps are lost there.
_FLOATING = (4, 10, 20)
# Candidates that differ from the fp32 model by no more than this share above the least difference are as good
# as the closest; of these the one with the fewest convolutions in floating point is smallest and fastest.
_AS_GOOD = 0.15


def to_onnx(network: Network, size: int) -> bytes:
    """Export a network, float32 (B, 1, size, size) to a ``NetworkOutput``, with a batch of any length."""
    return _exported(network, size, INPUT, outputs_of(network))


def lungs_to_onnx(network: LungNet, notes: Mapping[str, Any]) -> bytes:
    """Export a trained LungNet with notes on how it was trained."""
    return _with_metadata(_exported(network.eval(), lungs.SIDE, lungs.INPUT, [lungs.OUTPUT]), {lungs.NOTES: notes})


def described(model: bytes, preprocessing: Preprocessing, calibration: Calibration) -> bytes:
    """The model with what turns a slice into a label in its metadata, so that the file stands alone."""
    values = {
        "preprocessing": preprocessing.model_dump(),
        "labels": [NON_COVID, COVID],
        "temperature": calibration.temperature,
        "quantiles": dict(calibration.quantiles),
    }
    return _with_metadata(model, values)


def _with_metadata(model: bytes, values: Mapping[str, Any]) -> bytes:
    proto = onnx.load_from_string(model)
    helper.set_model_props(proto, {name: json.dumps(value) for name, value in values.items()})
    return bytes(proto.SerializeToString())


def outputs_of(network: Network) -> list[str]:
    """Names of the outputs of an exported network; one without lesion decoder has no lesion map."""
    return [name for name in OUTPUTS if name != "lesion_map" or getattr(network, "decoder", None) is not None]


def _exported(module: nn.Module, size: int, name: str, outputs: list[str]) -> bytes:
    # Two images: a batch of one would be taken for a constant. NCHW: the file's layout.
    example = torch.zeros(2, 1, size, size)
    with _quiet():
        program = torch.onnx.export(
            # Without gradients the same file is traced in less time.
            module.requires_grad_(False).to(memory_format=torch.contiguous_format),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[name],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            verbose=False,
        )
    # The exporter notes the code that it traced, paths on this machine among it.
    model = cast(torch.onnx.ONNXProgram, program).model_proto
    graph = model.graph
    for noted in (graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        noted.ClearField("metadata_props")
        noted.ClearField("doc_string")
    return bytes(model.SerializeToString())


def largest_difference(network: Network, engine: Engine, images: NDArray[np.float32]) -> float:
    """Largest difference between the outputs of PyTorch and of ONNX Runtime, relative to values above 1.

    ``images`` are a batch of normalised cropped slices, shape (N, size, size).
    """
    with torch.inference_mode():
        expected = network(torch.from_numpy(images).unsqueeze(1))
    outputs = engine.run(images)
    pairs = ((getattr(expected, name).numpy(), getattr(outputs, name)) for name in outputs_of(network))
    # NaN where there is one.
    return float(np.max([np.max(np.abs(own - other) / np.maximum(1, np.abs(own))) for own, other in pairs]))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter and the quantiser print, warn of themselves, and log progress and advice as warnings."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def quantise(model: bytes, calibration: NDArray[np.float32], compared: NDArray[np.float32]) -> bytes:
    """An fp32 ONNX model in INT8: of few candidates the fastest of those that are closest to it.

    Weights per channel and activations are brought to 8 bits; gates of attention (but not their pooling), the
    classifier, the lesion map and, where it helps, the first convolutions stay in floating point. ``calibration`` are
    normalised cropped slices of the training part, shape (N, size, size), about `CALIBRATING`; ``compared`` others,
    shape (M, size, size), on which the candidates' logits are compared; no label is used.
    """

    def logits(model: bytes) -> NDArray[np.float32]:
        engine, starts = Engine(model), range(0, len(compared), _BATCH)
        return np.concatenate([engine.run(compared[start : start + _BATCH]).logit for start in starts])

    expected = logits(model)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        folded = _folded(model, Path(folder))
        kept = _kept_floating(onnx.load(folded))
        candidates = [_quantised(folded, calibration, kept, count) for count in _FLOATING]
    differences = [np.abs(logits(each) - expected).mean() for each in candidates]
    as_good = (1 + _AS_GOOD) * min(differences)
    return next(each for each, far in zip(candidates, differences, strict=True) if far <= as_good)


def _folded(model: bytes, folder: Path) -> Path:
    """The model with batch normalisation folded into convolutions, as the quantiser wants it.

    Its gates get a pooling that runs in 8 bits, so that no feature map is brought back to floating point.
    """
    path = folder / "folded.onnx"
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    proto = onnx.load(path)
    axes = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    for node in proto.graph.node:
        keeps = all(each.i for each in node.attribute if each.name == "keepdims")
        if node.op_type == "ReduceMean" and keeps and list(axes.get(node.input[1], ())) == [2, 3]:
            node.CopyFrom(helper.make_node("GlobalAveragePool", node.input[:1], node.output, node.name))
    onnx.save(proto, path)
    return path


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: NDArray[np.float32]) -> None:
        starts = range(0, len(images), _BATCH)
        self._batches = ({INPUT: images[start : start + _BATCH, None]} for start in starts)

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next batch, None after the last."""
        return next(self._batches, None)


def _quantised(folded: Path, calibration: NDArray[np.float32], kept: list[str], floating: int) -> bytes:
    output = folded.with_name(f"int8-{floating}.onnx")
    convolutions = [node.name for node in onnx.load(folded).graph.node if node.op_type == "Conv"]
    quantize_static(
        folded,
        output,
        _Batches(calibration),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_OPERATORS),
        nodes_to_exclude=[*kept, *[name for name in convolutions if name not in kept][:floating]],
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        # The candidates' ranges are the same, and are measured once.
        calibration_cache_path=folded.with_name("ranges.json"),
    )
    return output.read_bytes()


def _kept_floating(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes that stay in floating point whatever happens: gates, lesion map, all that is no map.

    What is computed for a gate is one number per channel: in 8 bits it costs more to convert than to compute.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    single = {each.name for each in model.graph.initializer if np.prod(each.dims) == 1}
    kept = set[str]()
    # A gate is multiplied with features; the lesion map's sigmoid is not, and that of a SiLU with what it is made of.
    products = [node for node in model.graph.node if node.op_type == "Mul"]
    made_of = {output: set(node.input[:1]) for output, node in producers.items()}
    consumers = {name for each in products for name in each.input if made_of.get(name, set()).isdisjoint(each.input)}
    known = onnx.shape_inference.infer_shapes(model).graph.value_info
    maps = {each.name for each in known if len(each.type.tensor_type.shape.dim) == 4}
    for node in model.graph.node:
        if maps.isdisjoint(node.output):
            kept.add(node.name)
        elif node.op_type == "Sigmoid" and not consumers.isdisjoint(node.output):
            kept.update(_before_pooling(node, producers))
        elif node.op_type == "Mul" and single.intersection(node.input):
            kept.add(node.name)
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    return [*kept, *convolutions[-1:]]


def _before_pooling(gate: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> Iterator[str]:
    """Convolutions and products of a squeeze-and-excitation gate, from its sigmoid back to the pooling."""
    node = producers.get(gate.input[0])
    while node is not None and node.op_type not in {"ReduceMean", "GlobalAveragePool"}:
        if node.op_type in {"Conv", "Mul"}:
            yield node.name
        node = producers.get(node.input[0]) if node.input else None
