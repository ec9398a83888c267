"""A bundle in miniature, made without torch: its logit grows with the bright area of the cropped slice."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from groundglass.imaging.crop import Preprocessing
from groundglass.imaging.lungs import shipped
from groundglass.imaging.phantom import make_phantom
from groundglass.inference import bundle as bundles
from groundglass.inference.bundle import INPUT, OUTPUTS, Engine
from groundglass.inference.calibration import Calibration
from groundglass.training.input_check_fit import accept_all

SIZE = 64


def tiny_model(gain: float = 4.0) -> bytes:
    """Cropped slices (N, 1, 64, 64) to logit (N,), lesion map (N, 8, 8) and embedding (N, 64)."""
    nodes = [
        helper.make_node("AveragePool", [INPUT], ["pooled"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Mul", ["pooled", "gain"], ["scaled"]),
        helper.make_node("Squeeze", ["scaled", "channel"], ["lesion_map"]),
        helper.make_node("Flatten", ["pooled"], ["embedding"]),
        helper.make_node("ReduceMean", ["lesion_map", "sides"], ["logit"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape])
            for name, shape in zip(OUTPUTS, ([], [8, 8], [64]), strict=True)
        ],
        [
            numpy_helper.from_array(np.float32(gain), "gain"),
            numpy_helper.from_array(np.array([1], np.int64), "channel"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "sides"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def tiny_parts() -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fields of ``bundle.json`` and the other files."""
    preprocessing, model = Preprocessing(size=SIZE, normalisation="min-max"), tiny_model()
    engine = Engine(model, threads=1)
    pixels = make_phantom(np.random.default_rng(0), 0.5, 0.5, size=128).slice.pixels
    fields = {
        "name": "tiny",
        "created": "2026-01-01T00:00:00+00:00",
        "network": {"name": "tiny", "input_size": SIZE},
        "preprocessing": asdict(preprocessing),
        "positive": "COVID",
        "precision": "fp32",
        "calibration": {
            "temperature": 2.0,
            "coverage": 0.9,
            "quantiles": {"COVID": 0.6, "NonCOVID": 0.6},
            "slices": 10,
        },
        "onnx": {"opset": 18, "input": INPUT, "outputs": list(OUTPUTS)},
        "training": {},
        "metrics": {},
        "validation_auc": {"fp32": 0.9},
        "licence": "Apache-2.0",
        "versions": {},
    }
    contents = {
        "classifier.onnx": model,
        "reference.npz": bundles.save_arrays(accept_all(channels=64).as_arrays()),
        "lungs.onnx": shipped().model,
        "selftest.npz": bundles.self_test(engine, shipped(), preprocessing, pixels),
    }
    return fields, contents


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's folder; not to be written to."""
    path = tmp_path_factory.mktemp("bundle") / "tiny"
    bundles.write_bundle(path, *tiny_parts())
    return path


@pytest.fixture
def calibration() -> Calibration:
    """That of the tiny bundle."""
    return Calibration(temperature=2.0, coverage=0.9, quantiles={"COVID": 0.6, "NonCOVID": 0.6})
