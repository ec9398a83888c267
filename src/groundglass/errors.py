"""Errors meant for the user: one line that names the file or value at fault and says what to do."""

from __future__ import annotations

from os import PathLike


class GroundglassError(Exception):
    """Base of every error a user can cause; the command line prints it in one line, without a traceback."""


class ImageError(GroundglassError):
    """A file cannot be read as CT slices.

    Args:
        path: the file at fault (for a zip's member, ``archive.zip!member``).
        reason: what is wrong and, where it helps, what to do.
    """

    def __init__(self, path: str | PathLike[str], reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path, self.reason = str(path), reason

    def __reduce__(self) -> tuple[type[ImageError], tuple[str, str]]:
        return type(self), (self.path, self.reason)


class NotASliceError(ImageError):
    """A file can be read but holds no axial CT slice: a colour photograph, another modality, a localizer."""


class DataError(GroundglassError):
    """A data set, manifest or split is not what it should be."""


class RecipeError(GroundglassError):
    """A recipe holds an unknown key or a value out of range."""


class WeightsError(GroundglassError):
    """Pretrained weights cannot be had or do not fit."""


class RunError(GroundglassError):
    """A run folder is missing, unfinished or damaged."""


class BundleError(GroundglassError):
    """A bundle is missing, damaged, tampered with, or of a format this version does not know."""


class PredictionError(GroundglassError):
    """What a prediction was asked for cannot be done: an input is missing, or an output is in the way."""


class PacsError(GroundglassError):
    """An archive cannot be asked: it is no DICOMweb server, refuses, or answers with what makes no sense."""


class PacsRefusedError(PacsError):
    """An archive refuses one request for good, such as one for an image that it does not have."""


class PacsUnavailableError(PacsError):
    """An archive cannot be reached or is overloaded, for longer than was to be waited; it may come back."""


class ServiceError(GroundglassError):
    """A service cannot be started as it was asked for."""
