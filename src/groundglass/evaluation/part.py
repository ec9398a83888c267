"""The slices of a data set that are evaluated, and their fingerprint.

What evaluation asks of a trained network; a training's run folder offers it, and so can anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from groundglass.data.manifest import Label, Manifest, Record, read_bytes
from groundglass.data.splits import make_split
from groundglass.errors import DataError
from groundglass.files import printable
from groundglass.imaging.crop import CroppedSlice


class NetworkOutputs(Protocol):
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
    def cropped(self) -> NDArray[np.uint8]:
        """The cropped slices, shape (N, size, size)."""


class SlicePreprocessing(Protocol):
    """How slices are cropped before the network sees them."""

    def apply(self, pixels: NDArray[np.uint8]) -> CroppedSlice:
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
    def preprocessing(self) -> SlicePreprocessing:
        """How slices are cropped."""

    @property
    def info(self) -> Mapping[str, Any]:
        """Facts about the training."""

    def history(self) -> Sequence[Mapping[str, Any]]:
        """One mapping per epoch."""

    def predict(self, slices: Iterable[NDArray[np.uint8]]) -> NetworkOutputs:
        """Predict grey slices, each of shape (H, W)."""


ALL = "all"
"""Name of the part that holds every slice of a data set, whatever its split."""


@dataclass(frozen=True)
class Part:
    """Labelled slices to evaluate.

    Attributes:
        data: name of the data set.
        root: folder or file it was read from.
        split: specification of the split, or None for part ``all``.
        name: ``train``, ``val``, ``test`` or ``all``.
        records: the slices, all labelled.
        unlabelled: slices of the part that were left out because nobody says what they show.
    """

    data: str
    root: Path
    split: str | None
    name: str
    records: tuple[Record, ...]
    unlabelled: int = 0

    @property
    def label(self) -> NDArray[np.int8]:
        """1 for COVID and 0 for NonCOVID, shape (N,)."""
        return np.array([record.label is Label.COVID for record in self.records], np.int8)

    @property
    def patient(self) -> NDArray[np.str_]:
        """Patient ids, shape (N,)."""
        return np.array([record.patient_id for record in self.records], np.str_)

    @property
    def title(self) -> str:
        """The part in words, such as ``COVID-CT, test part (split official)``."""
        return f"{self.data}, " + (
            "all slices" if self.split is None else f"{self.name} part (split {self.split})"
        )

    def file(self, record: Record) -> str:
        """A record's path below the data set's folder, as text that can always be written as UTF-8."""
        path = record.path
        return printable(path.relative_to(self.root) if path.is_relative_to(self.root) else path)


def select_part(manifest: Manifest, split: str | None, part: str, seed: int) -> Part:
    """Pick the labelled slices of one part.

    Args:
        manifest: the data set.
        split: specification of the split, or None where ``part`` is ``all``.
        part: ``train``, ``val``, ``test``, or ``all`` for every slice.
        seed: of the split.

    Raises:
        DataError: the split has no such part, or the part holds no labelled slice.
    """
    if part == ALL:
        split = None
    elif split is None:
        raise DataError(f"part {part!r} of which split? Name one, for example --split official")
    records = manifest.records
    if split is not None:
        indices = make_split(manifest, split, seed=seed, allow_overlap=True).part(part)
        records = tuple(manifest.records[index] for index in indices)
    labelled = tuple(record for record in records if record.label is not None)
    if not labelled:
        what = f"the {part} part of {manifest.name}" if split else f"{manifest.name} ({manifest.root})"
        why = f"none of its {len(records)} slices has a label" if records else "it is empty"
        raise DataError(f"{what} cannot be evaluated: {why}")
    return Part(manifest.name, manifest.root, split, part, labelled, len(records) - len(labelled))


def content_hash(record: Record) -> str:
    """SHA-256 of the content of a slice's file.

    Raises:
        ImageError: the file cannot be read.
    """
    return hashlib.sha256(read_bytes(record)).hexdigest()


def fingerprint(part: Part, hashes: Sequence[str]) -> str:
    """SHA-256 over contents and labels: equal for the same slices, wherever they lie and however ordered."""
    labels = [record.label.value if record.label else "" for record in part.records]
    lines = sorted(f"{sha256} {label}" for sha256, label in zip(hashes, labels, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
