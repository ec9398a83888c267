"""Tell COVID-19 pneumonia from everything else on lung CT slices with Mask-EfficientNet."""

from __future__ import annotations

import os
from os import PathLike
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from groundglass.inference.classifier import Classifier

__all__ = ["__version__", "load"]
__version__ = "0.1.0"

# ONNX Runtime 1.29 and later report models and machines to their maker unless this is set before they are
# imported. What is asked about patients goes nowhere; who wants to report sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def load(bundle: str | PathLike[str] | None = None, *, threads: int = 0) -> Classifier:
    """Open a bundle and make it ready to classify slices.

    >>> groundglass.load().predict("slice.png").probability  # doctest: +SKIP

    Args:
        bundle: folder or zip; ``default`` or None for the one that comes with the installation.
        threads: of the matrix arithmetic; 0 for one per core but one.

    Raises:
        BundleError: it is missing, damaged, tampered with, or of another format.
    """
    from groundglass.inference.classifier import load as load_classifier  # noqa: PLC0415 - 0.3 s

    return load_classifier(bundle, threads=threads)
