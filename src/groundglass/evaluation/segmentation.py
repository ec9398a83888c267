"""Segmentation against true masks: how well lungs and lesions are found, and lung opacity against the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from groundglass.evaluation.bootstrap import RESAMPLES, Resampling
from groundglass.evaluation.metrics import Estimate

Mask = NDArray[np.bool_]
Statistic = Callable[[NDArray[np.float64]], float]

SEGMENTATION_TITLES: Mapping[str, str] = {
    "lung_dice": "Lung Dice, mean over slices",
    "lesion_dice": "Lesion Dice, mean over slices with a lesion",
    "lesion_dice_pooled": "Lesion Dice, pixels of all slices together",
    "pointing": "Strongest place of the map lies in a lesion",
    "lesion_in_lungs": "Lesion pixels inside the predicted lungs",
    "opacity_spearman": "Lung opacity, rank correlation with the truth",
    "opacity_error": "Lung opacity, mean absolute error (points)",
    "clear_opacity_median": "Lung opacity without lesions, median (%)",
    "clear_opacity_95": "Lung opacity without lesions, 95th percentile (%)",
}
"""Every figure's key and its title, in the order in which they are reported everywhere.

The Dice coefficient of two masks is twice their intersection over the sum of their sizes (L. R. Dice, Ecology 26,
1945); slices on which both are empty have none. Slices without a lesion count in the pooled one alone, where what is
predicted on them lowers it. Pointing is the share of slices with a lesion on which the map, inside the predicted
lungs, is highest in the lesion (J. Zhang et al., IJCV 126, 2018); without predicted lungs it is not. Lung opacity is
the share of the lungs that is lesion, in percent; Spearman's correlation ranks it. Slices without predicted lungs have
none and are left out of its figures. "Without lesions" are slices whose lesion mask is black.
"""


@dataclass(frozen=True)
class CountedEstimate:
    """A figure with its interval, and how many slices it was measured on."""

    estimate: Estimate
    slices: int


class _Row(NamedTuple):
    """What is kept of one slice; NaN where it does not apply. Sizes are in pixels."""

    lung_dice: float
    lesion: float = np.nan
    predicted: float = np.nan
    overlap: float = np.nan
    lesion_in_lungs: float = np.nan
    pointed: float = np.nan
    true_opacity: float = np.nan
    opacity: float = np.nan


class Segmentation:
    """Takes the masks of one slice after another, of which it keeps a few numbers, and gives the figures."""

    def __init__(self) -> None:
        self._rows: list[_Row] = []
        self._patients: list[str] = []

    def add(
        self,
        patient: str,
        true: Sequence[Mask | None],
        lungs: Mask,
        lesions: Mask | None = None,
        lesion_map: NDArray[np.floating] | None = None,
    ) -> None:
        """Count one slice, of shape (H, W): its ``true`` lungs and lesions, as far as known, and what was predicted.

        ``lesions`` and ``lesion_map``, higher where a lesion is likelier, are None of a network that predicts none.
        """
        true_lungs, true_lesions = true
        row = _Row(np.nan if true_lungs is None else _dice(true_lungs, lungs))
        if true_lesions is not None:
            row = row._replace(lesion=_size(true_lesions), lesion_in_lungs=_size(true_lesions & lungs))
            if true_lungs is not None:
                row = row._replace(true_opacity=_opacity(true_lesions, true_lungs))
            if lesions is not None and lesion_map is not None:
                row = row._replace(
                    predicted=_size(lesions),
                    overlap=_size(lesions & true_lesions),
                    pointed=_points_at(true_lesions, lungs, lesion_map),
                    opacity=_opacity(lesions, lungs),
                )
        self._rows.append(row)
        self._patients.append(patient)

    def figures(self, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, CountedEstimate]:
        """Every figure, by the keys of ``SEGMENTATION_TITLES``, with its interval by resampling patients.

        Empty where no slice was counted.
        """
        if not self._rows:
            return {}
        column = dict(zip(_Row._fields, np.array(self._rows, np.float64).T, strict=True))
        patients = Resampling(np.array(self._patients, np.str_), resamples, seed)
        lesion, true, opacity = column["lesion"], column["true_opacity"], column["opacity"]
        overlap, both = 2 * column["overlap"], column["predicted"] + lesion
        every, ill, clear = np.full(len(lesion), True), lesion > 0, lesion == 0

        def figure(
            of: Statistic | None, *values: NDArray[np.float64], among: NDArray[np.bool_] = every
        ) -> CountedEstimate:
            stacked = np.stack(values, axis=1)
            chosen = np.isfinite(stacked).all(axis=1) & among
            stacked, own = stacked[chosen], patients.among(chosen)
            return CountedEstimate(own.figure(of, stacked) if of else own.share(stacked[:, 0] > 0), len(stacked))

        return {
            "lung_dice": figure(np.mean, column["lung_dice"]),
            "lesion_dice": figure(np.mean, overlap / np.maximum(both, 1), among=ill),
            "lesion_dice_pooled": figure(_ratio, overlap, both),
            "pointing": figure(None, column["pointed"], among=ill),
            "lesion_in_lungs": figure(_ratio, column["lesion_in_lungs"], lesion, among=ill),
            "opacity_spearman": figure(_spearman, true, opacity),
            "opacity_error": figure(np.mean, np.abs(true - opacity)),
            "clear_opacity_median": figure(np.median, opacity, among=clear),
            "clear_opacity_95": figure(lambda values: float(np.percentile(values, 95)), opacity, among=clear),
        }


def _size(mask: Mask) -> int:
    return int(np.count_nonzero(mask))


def _dice(one: Mask, other: Mask) -> float:
    sizes = _size(one) + _size(other)
    return 2 * _size(one & other) / sizes if sizes else np.nan


def _opacity(lesions: Mask, lungs: Mask) -> float:
    size = _size(lungs)
    return 100 * _size(lesions & lungs) / size if size else np.nan


def _points_at(lesions: Mask, lungs: Mask, lesion_map: NDArray[np.floating]) -> bool:
    strongest = np.argmax(np.where(lungs, lesion_map, -np.inf))
    return bool(lungs.any() and lesions.flat[strongest])


def _ratio(pairs: NDArray[np.float64]) -> float:
    above, below = pairs.sum(axis=0)
    return above / below if below else np.nan


def _spearman(pairs: NDArray[np.float64]) -> float:
    ranks = rankdata(pairs, axis=0)
    return float(np.ravel(np.corrcoef(ranks.T))[1]) if ranks.std(axis=0).all() else np.nan
