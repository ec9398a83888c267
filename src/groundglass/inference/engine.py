"""ONNX Runtime, wrapped: cropped slices in, logit, activation map and embedding out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.errors import BundleError
from groundglass.files import usable_cores

INPUT = "image"
OUTPUTS = ("logit", "activation_map", "embedding")


@dataclass(frozen=True)
class Outputs:
    """What the network says of N cropped slices.

    Attributes:
        logit: float32, shape (N,).
        activation_map: float32, shape (N, h, w).
        embedding: float32, shape (N, channels).
    """

    logit: NDArray[np.float32]
    activation_map: NDArray[np.float32]
    embedding: NDArray[np.float32]


class Engine:
    """One ONNX model on the CPU.

    Args:
        model: content of the ONNX file.
        threads: of the matrix arithmetic; 0 for one per core but one, which reads and crops.
        name: what messages call the model.

    Raises:
        BundleError: the model cannot be loaded, or has other inputs and outputs.
    """

    def __init__(self, model: bytes, threads: int = 0, name: str = "classifier.onnx") -> None:
        import onnxruntime  # noqa: PLC0415 - 0.1 s, and `--help` does not need it

        self._name = name
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or max(1, usable_cores() - 1)
        options.log_severity_level = 4
        # Threads that spin while they wait steal the cores from reading and cropping, which run beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - the runtime raises its own, undocumented kinds
            raise BundleError(f"{name}: ONNX Runtime cannot load the model ({_first_line(error)})") from None
        names = [output.name for output in self._session.get_outputs()]
        if [each.name for each in self._session.get_inputs()] != [INPUT] or names != list(OUTPUTS):
            raise BundleError(f"{name}: expected the input {INPUT} and the outputs {', '.join(OUTPUTS)}")

    def run(self, images: NDArray[np.float32]) -> Outputs:
        """Run the network on normalised cropped slices.

        Args:
            images: float32, shape (N, size, size), as ``Preprocessing.normalise`` makes them.

        Raises:
            BundleError: the model fails, or gives what is not a number.
        """
        try:
            values = self._session.run(list(OUTPUTS), {INPUT: images[:, None]})
        except Exception as error:  # noqa: BLE001 - see above
            raise BundleError(f"{self._name}: the model cannot be run ({_first_line(error)})") from None
        outputs = Outputs(*values)
        if not np.isfinite(outputs.logit).all():
            raise BundleError(f"{self._name}: the model gives a logit that is no number")
        return outputs


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]
