"""Means and AUCs under resampling of patients, such that figures of the same slices can be paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from groundglass.evaluation.intervals import RESAMPLES, resample_patients

_Numbers = NDArray[np.float64]
_Patients = NDArray[np.str_]


@dataclass(frozen=True)
class Sampled:
    """A figure, and the same figure in every resample of the patients.

    Attributes:
        value: of the slices as they are.
        draws: in every resample, shape (R,); NaN where it is undefined.
    """

    value: float
    draws: _Numbers

    def __sub__(self, other: Sampled) -> Sampled:
        """The difference, resample by resample."""
        return Sampled(self.value - other.value, self.draws - other.draws)


class PatientResamples:
    """Resamples of a set of patients; the same patients and seed give the same resamples.

    Args:
        patients: whose slices are measured, in any order and as often as they come.
        resamples: how many.
        seed: of the random generator.
    """

    def __init__(self, patients: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._names = np.unique(np.array(patients, np.str_))
        blocks = resample_patients(np.arange(len(self._names)), resamples, seed)
        self._weights = np.concatenate(list(blocks))

    @property
    def patients(self) -> int:
        """How many there are."""
        return len(self._names)

    def mean(self, values: _Numbers, patient: _Patients) -> Sampled:
        """Mean over N cases, N at least 1.

        Args:
            values: of each case, shape (N,).
            patient: whose they are, shape (N,).
        """
        member = self._member(patient)
        total = np.bincount(member, values, self.patients)
        count = np.bincount(member, minlength=self.patients)
        return Sampled(float(values.mean()), _ratio(self._weights @ total, self._weights @ count))

    def auc(
        self, positive: _Numbers, positive_patient: _Patients, negative: _Numbers, negative_patient: _Patients
    ) -> Sampled:
        """Chance that a positive case has the higher score than a negative one; ties count half.

        Args:
            positive: scores of the positive cases, shape (N,), N at least 1.
            positive_patient: whose they are, shape (N,).
            negative: scores of the negative cases, shape (M,), M at least 1.
            negative_patient: whose they are, shape (M,).
        """
        beaten = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
        rows, columns = self._belongs(positive_patient), self._belongs(negative_patient)
        # Cases of one patient are drawn together, so that sums over pairs of patients are all that is needed.
        sums = rows.T @ beaten @ columns
        pairs = (self._weights @ rows.sum(axis=0)) * (self._weights @ columns.sum(axis=0))
        won = np.einsum("rp,rp->r", self._weights @ sums, self._weights)
        return Sampled(float(beaten.mean()), _ratio(won, pairs))

    def _member(self, patient: _Patients) -> NDArray[np.intp]:
        return np.searchsorted(self._names, patient)

    def _belongs(self, patient: _Patients) -> _Numbers:
        """1 where a case is a patient's, shape (N, patients)."""
        return np.asarray(self._names == patient[:, None], np.float64)


def _ratio(above: _Numbers, below: _Numbers) -> _Numbers:
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
