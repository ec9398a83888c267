"""Segmentation against true masks: how well lungs and lesions are found, and lung opacity against the truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from groundglass.evaluation.bootstrap import RESAMPLES, Resampling

Mask = NDArray[np.bool_]
Statistic = Callable[[NDArray[np.float64]], float]

Figure = dict[str, float | None]
"""``value`` with ``low`` and ``high``, its 95 % interval by resampling patients, and ``slices`` it was measured on."""

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


class Segmentation:
    """Takes the masks of one slice after another, of which it keeps a few numbers, and gives the figures."""

    def __init__(self) -> None:
        self._rows: list[dict[str, float]] = []
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
        pointed = np.nan
        if true_lesions is not None and lesion_map is not None:
            strongest = np.argmax(np.where(lungs, lesion_map, -np.inf))
            pointed = float(lungs.any() and true_lesions.flat[strongest])
        overlap, both = 2 * _size(true_lesions, lesions), _size(true_lesions) + _size(lesions)
        self._patients.append(patient)
        self._rows.append(
            {
                "lung_dice": _share(2 * _size(true_lungs, lungs), _size(true_lungs) + _size(lungs)),
                "lesion": _size(true_lesions),
                "lesion_in_lungs": _size(true_lesions, lungs),
                "overlap": overlap,
                "both": both,
                "lesion_dice": _share(overlap, both),
                "pointed": pointed,
                "true_opacity": _share(100 * _size(true_lesions, true_lungs), _size(true_lungs)),
                "opacity": _share(100 * _size(lesions, lungs), _size(lungs)),
            }
        )

    def figures(self, *, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, Figure]:
        """Every figure, by the keys of ``SEGMENTATION_TITLES``; empty where no slice was counted."""
        if not self._rows:
            return {}
        column = {name: np.array([row[name] for row in self._rows], np.float64) for name in self._rows[0]}
        patients = Resampling(np.array(self._patients, np.str_), resamples, seed)
        lesion, true, opacity = column["lesion"], column["true_opacity"], column["opacity"]
        every, ill, clear = np.full(len(lesion), True), lesion > 0, lesion == 0

        def figure(of: Statistic | None, *values: NDArray[np.float64], among: NDArray[np.bool_] = every) -> Figure:
            stacked = np.stack(values, axis=1)
            chosen = np.isfinite(stacked).all(axis=1) & among
            stacked, own = stacked[chosen], patients.among(chosen)
            estimate = own.figure(of, stacked) if of else own.share(stacked[:, 0] > 0)
            return {**estimate.bounds(), "slices": len(stacked)}

        return {
            "lung_dice": figure(np.mean, column["lung_dice"]),
            "lesion_dice": figure(np.mean, column["lesion_dice"], among=ill),
            "lesion_dice_pooled": figure(_pooled, column["overlap"], column["both"]),
            "pointing": figure(None, column["pointed"], among=ill),
            "lesion_in_lungs": figure(_pooled, column["lesion_in_lungs"], lesion, among=ill),
            "opacity_spearman": figure(_spearman, true, opacity),
            "opacity_error": figure(np.mean, np.abs(true - opacity)),
            "clear_opacity_median": figure(np.median, opacity, among=clear),
            "clear_opacity_95": figure(lambda values: float(np.percentile(values, 95)), opacity, among=clear),
        }


def _size(*masks: Mask | None) -> float:
    """Pixels that all of the masks hold; NaN where one is not known."""
    known = [mask for mask in masks if mask is not None]
    return int(np.count_nonzero(np.logical_and.reduce(known))) if len(known) == len(masks) else np.nan


def _share(part: float, whole: float) -> float:
    return part / whole if whole else np.nan


def _pooled(pairs: NDArray[np.float64]) -> float:
    return _share(*pairs.sum(axis=0))


def _spearman(pairs: NDArray[np.float64]) -> float:
    ranks = rankdata(pairs, axis=0)
    return float(np.ravel(np.corrcoef(ranks.T))[1]) if ranks.std(axis=0).all() else np.nan
