"""Resampling patients by their sums gives what resampling all of their slices would."""

from __future__ import annotations

import numpy as np
import pytest

from groundglass.evaluation.by_patient import PatientResamples
from groundglass.evaluation.intervals import resample_patients, weighted_metrics

RNG = np.random.default_rng(5)
PATIENT = np.array([f"patient {number}" for number in RNG.integers(0, 9, 60)], np.str_)
LABEL = (RNG.random(60) < 0.4).astype(np.int8)
SCORE = np.round(RNG.random(60) + 0.3 * LABEL, 1) / 2


def _brute_force() -> dict[str, np.ndarray]:
    member = np.unique(PATIENT, return_inverse=True)[1]
    blocks = [weighted_metrics(LABEL, SCORE, weights) for weights in resample_patients(member, 300, 7)]
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def test_auc_is_that_of_the_resampled_slices() -> None:
    resamples = PatientResamples(list(PATIENT), 300, 7)
    covid = LABEL == 1
    sampled = resamples.auc(SCORE[covid], PATIENT[covid], SCORE[~covid], PATIENT[~covid])
    np.testing.assert_allclose(sampled.draws, _brute_force()["auc"], atol=1e-12)
    whole = weighted_metrics(LABEL, SCORE, np.ones((1, 60)))["auc"][0]
    assert sampled.value == pytest.approx(whole)
    assert len(np.unique(SCORE)) < 20, "there are ties to be counted half"


def test_mean_is_that_of_the_resampled_slices() -> None:
    right = ((SCORE >= 0.5) == (LABEL == 1)).astype(float)
    sampled = PatientResamples(list(PATIENT), 300, 7).mean(right, PATIENT)
    np.testing.assert_allclose(sampled.draws, _brute_force()["accuracy"], atol=1e-12)
    assert sampled.value == right.mean()


def test_a_subset_may_lack_patients() -> None:
    resamples = PatientResamples(list(PATIENT), 300, 7)
    few = PATIENT[0] == PATIENT
    sampled = resamples.mean(SCORE[few], PATIENT[few])
    drawn = ~np.isnan(sampled.draws)
    assert 0 < drawn.sum() < 300, "some resamples hold nothing of that patient"
    np.testing.assert_allclose(sampled.draws[drawn], SCORE[few].mean())


def test_differences_are_paired() -> None:
    resamples = PatientResamples(list(PATIENT), 300, 7)
    same = resamples.mean(SCORE + 0.25, PATIENT) - resamples.mean(SCORE, PATIENT)
    np.testing.assert_allclose(same.draws, 0.25)
    assert same.value == pytest.approx(0.25)
