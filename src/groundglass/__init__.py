"""Tell COVID-19 pneumonia from everything else on lung CT slices with Mask-EfficientNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groundglass.errors import GroundglassError
    from groundglass.inference.classifier import Classifier
    from groundglass.inference.prediction import Prediction, Predictions
    from groundglass.inference.series import SeriesSummary

__all__ = [  # noqa: RUF022 - the first to be asked for comes first
    "load",
    "Classifier",
    "Prediction",
    "Predictions",
    "SeriesSummary",
    "GroundglassError",
    "__version__",
]
__version__ = "0.1.0"

# ONNX Runtime 1.29 and later report models and machines to their maker unless this is set before they are
# imported. What is asked about patients goes nowhere; who wants to report sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


_PLACES = {"GroundglassError": "errors", "Classifier": "inference.classifier", "SeriesSummary": "inference.series"}


def __getattr__(name: str) -> Any:
    """The other public names, imported when they are asked for: that takes 0.3 s."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES.get(name, 'inference.prediction')}"), name)


def load(
    bundle: str | PathLike[str] | None = None, *, threads: int = 0, providers: str | Sequence[str] = "cpu"
) -> Classifier:
    """Open a bundle and make it ready to classify slices.

    Args:
        bundle: folder or zip; ``default`` or None for the one that comes with the installation.
        threads: of the matrix arithmetic; 0 for one per core but one.
        providers: of ONNX Runtime, the preferred one first, such as ``cuda`` or ``CUDAExecutionProvider``.

    Raises:
        BundleError: it is missing, damaged, tampered with, or of another format, or a provider is not there.

    Examples:
        >>> groundglass.load().predict("slice.png").probability  # doctest: +SKIP
    """
    from groundglass.inference.bundle import Bundle  # noqa: PLC0415 - 0.3 s
    from groundglass.inference.classifier import Classifier  # noqa: PLC0415

    return Classifier(Bundle.open(bundle, threads, providers))
