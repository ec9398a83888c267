"""What evaluation asks of a trained network; a training's run folder offers it, and so can anything else."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from groundglass.imaging.framing import FramedSlice


class Predictions(Protocol):
    """What a network says of N slices."""

    @property
    def logit(self) -> NDArray[np.floating]:
        """Logit of COVID, shape (N,)."""

    @property
    def probability(self) -> NDArray[np.floating]:
        """Probability of COVID, 0 to 1, shape (N,)."""

    @property
    def activation_map(self) -> NDArray[np.floating]:
        """Contributions to the logit, shape (N, h, w)."""

    @property
    def framed(self) -> NDArray[np.uint8]:
        """The framed slices, shape (N, size, size)."""


class SliceFraming(Protocol):
    """How slices are framed before the network sees them."""

    def frame(self, pixels: NDArray[np.uint8]) -> FramedSlice:
        """Frame one slice, shape (H, W)."""


class TrainedRun(Protocol):
    """A trained network with its history.

    ``info`` may hold ``finished`` (bool; false or missing means unfinished), ``training_sha256`` (SHA-256 of
    the content of every training slice's file), ``lesion_free`` (name of the folder whose slices lesions were
    painted into, None where there was none), ``training_seconds``, ``selected_epoch`` and ``versions``.
    """

    @property
    def path(self) -> Path:
        """Folder of the run."""

    @property
    def record_folder(self) -> Path | None:
        """Where evaluations are counted; None where they are not."""

    @property
    def recipe(self) -> Any:
        """How it was trained: ``recipe.name`` and ``recipe.network.name``."""

    @property
    def seed(self) -> int:
        """Seed of the training and of its split."""

    @property
    def split_spec(self) -> str:
        """Specification of the split that it was trained on."""

    @property
    def framing(self) -> SliceFraming:
        """How slices are framed."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the training."""

    def history(self) -> Sequence[Mapping[str, Any]]:
        """One mapping per epoch."""

    def predict(self, slices: Iterable[NDArray[np.uint8]]) -> Predictions:
        """Predict grey slices, each of shape (H, W)."""
