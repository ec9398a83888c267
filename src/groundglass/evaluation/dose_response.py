"""Dose and response: does the probability rise with the severity of the ground glass?

Two sets of phantoms answer. In the first every phantom is a patient of its own, with a severity drawn from
0..1: the correlation over them mixes severity with everything else that differs between people and scanners.
In the second each patient is scanned at the same level with lesions of rising severity, nothing else changed.
Slices that the gate refuses are counted, and judged all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from groundglass.evaluation.proportion import Proportion
from groundglass.imaging.phantom import Phantom, Scanner, make_phantom, scan
from groundglass.imaging.thorax import Patient
from groundglass.inference.bundle import Bundle
from groundglass.inference.gate import Gate

RESAMPLES = 2000
BINS = 5
STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Severities at which each patient of the second set is scanned."""

_STREAM = 0xD05E


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation with a 95 % percentile bootstrap interval over phantoms."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class SeverityBin:
    """Phantoms of similar severity.

    Attributes:
        low: smallest severity, part of the bin.
        high: largest severity, part only of the last bin.
        phantoms: how many.
        mean_probability: of COVID, None where there is no phantom.
        mean_logit: likewise.
    """

    low: float
    high: float
    phantoms: int
    mean_probability: float | None
    mean_logit: float | None


@dataclass(frozen=True)
class DoseResponse:
    """What the two sets say.

    Attributes:
        phantoms: of the first set.
        seed: of both sets.
        refused: of the first set.
        correlation: of severity and probability over the first set.
        painted_share: of the lung that is lesion, what was painted and not asked for, correlated likewise.
        bins: of the first set by severity.
        patients: of the second set.
        refused_of_patients: slices of the second set.
        rising_patients: whose logit at full severity lies above that of their healthy slice.
        rising_steps: from one severity to the next, in which the logit rises.
        mean_by_step: mean probability at each of `STEPS`.
        within_patients: mean over patients of the correlation of severity and logit.
    """

    phantoms: int
    seed: int
    refused: Proportion
    correlation: Correlation
    painted_share: Correlation
    bins: tuple[SeverityBin, ...]
    patients: int
    refused_of_patients: Proportion
    rising_patients: Proportion
    rising_steps: Proportion
    mean_by_step: tuple[float, ...]
    within_patients: float


@dataclass(frozen=True)
class _Answers:
    logit: NDArray[np.float64]
    probability: NDArray[np.float64]
    refused: NDArray[np.bool_]


def dose_response(bundle: Bundle, phantoms: int = 200, patients: int = 50, seed: int = 0) -> DoseResponse:
    """Invent both sets and judge them.

    Args:
        bundle: to be measured.
        phantoms: of the first set, at least 2.
        patients: of the second set, at least 1.
        seed: of both.
    """
    first = list(_independent(phantoms, seed))
    severity = np.array([phantom.severity for phantom in first])
    share = np.array([phantom.lesions.sum() / max(1, phantom.lungs.sum()) for phantom in first])
    answers = _ask(bundle, first)
    table = [_ask(bundle, list(_one_patient(index, seed))) for index in range(patients)]
    logits = np.array([row.logit for row in table])
    rises = np.diff(logits, axis=1) > 0
    within = [_spearman(np.array(STEPS), row) for row in logits]
    return DoseResponse(
        phantoms,
        seed,
        Proportion.of(answers.refused),
        _correlation(severity, answers.logit, seed),
        _correlation(share, answers.logit, seed),
        _bins(severity, answers),
        patients,
        Proportion.of(np.concatenate([row.refused for row in table])),
        Proportion.of(logits[:, -1] > logits[:, 0]),
        Proportion.of(rises.ravel()),
        tuple(float(mean) for mean in np.mean([row.probability for row in table], axis=0)),
        float(np.mean(within)),
    )


def _independent(count: int, seed: int) -> Iterator[Phantom]:
    for index in range(count):
        rng = np.random.default_rng([_STREAM, seed, 1, index])
        yield make_phantom(rng, severity=float(rng.uniform(0, 1)))


def _one_patient(index: int, seed: int) -> Iterator[Phantom]:
    rng = np.random.default_rng([_STREAM, seed, 2, index])
    patient = Patient.draw(rng)
    scanner = Scanner.draw(patient, rng)
    level = rng.uniform(0.25, 0.8)
    for severity in STEPS:
        yield scan(patient, scanner, level, severity)


def _ask(bundle: Bundle, phantoms: list[Phantom]) -> _Answers:
    """Logit and probability of every phantom, refused or not."""
    engine, framing, calibration = bundle.engine(), bundle.framing, bundle.calibration
    gate = Gate.from_arrays(bundle.trust)
    logits, refused = [], []
    for phantom in phantoms:
        framed = framing.frame(phantom.slice.pixels)
        outputs = engine.run(framing.normalise(framed.pixels[None]))
        verdict = gate.judge(framed, outputs.embedding[0], gate.look(phantom.slice, framed))
        logits.append(float(outputs.logit[0]))
        refused.append(verdict.reason is not None)
    probability = [calibration.probability(logit) for logit in logits]
    return _Answers(np.array(logits), np.array(probability), np.array(refused, np.bool_))


def _bins(severity: NDArray[np.float64], answers: _Answers) -> tuple[SeverityBin, ...]:
    number = np.minimum((severity * BINS).astype(int), BINS - 1)
    result = []
    for index in range(BINS):
        inside = number == index
        some = bool(inside.any())
        result.append(
            SeverityBin(
                index / BINS,
                (index + 1) / BINS,
                int(inside.sum()),
                float(answers.probability[inside].mean()) if some else None,
                float(answers.logit[inside].mean()) if some else None,
            )
        )
    return tuple(result)


def _correlation(dose: NDArray[np.float64], response: NDArray[np.float64], seed: int) -> Correlation:
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(RESAMPLES):
        chosen = rng.integers(0, len(dose), len(dose))
        draws.append(_spearman(dose[chosen], response[chosen]))
    low, high = np.nanpercentile(draws, [2.5, 97.5])
    return Correlation(_spearman(dose, response), float(low), float(high))


def _spearman(dose: NDArray[np.float64], response: NDArray[np.float64]) -> float:
    """The correlation; 0 where one of the two does not vary, since then nothing follows the dose."""
    if np.ptp(dose) == 0 or np.ptp(response) == 0:
        return 0.0
    return float(spearmanr(dose, response).statistic)
