"""Which slices of several hospitals teach, how often each is drawn, and whose lesions count."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundglass.data.manifest import Label, Record
from groundglass.training.recipe import SamplingSection
from groundglass.training.samples import CroppedSet
from groundglass.training.train import _chances, _known, _worth_teaching

COVID, OTHER = Label.COVID, Label.NON_COVID


def record(label: Label, source: str, patient: str = "p", mask: bool = False, collection: str = "") -> Record:
    lesion_mask = Path("mask.png") if mask else None
    return Record(Path("a.png"), label, patient, source, None, lesion_mask=lesion_mask, collection=collection)


# Of one hospital a patient with four slices and one with a single one.
POOL = [
    *(record(COVID, "small", patient) for patient in ("p", "p", "p", "p", "q")),
    *(record(COVID, "large", str(patient)) for patient in range(45)),
    *(record(OTHER, "small", str(patient)) for patient in range(9)),
    *(record(OTHER, "third", str(patient)) for patient in range(16)),
    # Publications of one collection count as one hospital.
    *(record(COVID, f"paper {number % 2}", str(number), collection="papers") for number in range(20)),
]


def shares(of: Callable[[Record], object], named: dict[str, float]) -> dict[object, float]:
    """The chances' sum for each value of ``of``."""
    found: dict[object, float] = defaultdict(float)
    chances = _chances(POOL, SamplingSection(draws=100, shares=named))
    for each, chance in zip(POOL, chances, strict=True):
        found[of(each)] += float(chance)
    return found


@pytest.mark.parametrize("named", [{}, {"papers": 0.3}, {"small": 0.2, "third": 0.2}, {"large": 1.0}])
def test_both_labels_and_within_a_hospital_every_patient_are_drawn_alike(named: dict[str, float]) -> None:
    assert shares(lambda each: each.label, named) == pytest.approx({COVID: 0.5, OTHER: 0.5})
    found = shares(lambda each: (each.label, each.hospital, each.patient_id), named)
    assert found[COVID, "small", "p"] == pytest.approx(found[COVID, "small", "q"])
    chances = _chances(POOL, SamplingSection(shares=named))
    assert chances[:4] == pytest.approx([chances[4] / 4] * 4)


def test_hospitals_get_their_named_share_and_the_others_by_the_root_of_their_slices() -> None:
    found = shares(lambda each: (each.label, each.hospital), {"papers": 0.3})
    root5, root45 = 5**0.5, 45**0.5
    covid = {"papers": 0.3, "small": 0.7 * root5 / (root5 + root45), "large": 0.7 * root45 / (root5 + root45)}
    expected = {(COVID, name): share / 2 for name, share in covid.items()}
    assert found == pytest.approx(expected | {(OTHER, "small"): 3 / 14, (OTHER, "third"): 4 / 14})


def test_covid_slices_whose_mask_is_all_but_empty_are_left_out() -> None:
    """Of 50 places of lung: without mask, no lesion, one place, one outside the lungs, and a healthy slice's none."""
    lungs, lesions = np.zeros((5, 10, 10), np.bool_), np.zeros((5, 10, 10), np.bool_)
    lungs[:, :5] = True
    lesions[2, 0, 0] = lesions[3, 9, 9] = True
    masked = record(COVID, "a", mask=True)
    records = [record(COVID, "a"), masked, masked, masked, record(OTHER, "a", mask=True)]
    slices = CroppedSet(np.zeros((5, 10, 10), np.uint8), lungs, lesions, tuple("abcde"))
    for least, third in ((0.01, True), (0.03, False)):
        found = _worth_teaching(records, slices, SamplingSection(least_lesion=least))
        assert found.tolist() == [True, False, third, False, True]


def test_lesions_are_known_from_a_mask_or_where_there_are_none() -> None:
    section = SamplingSection(lesion_free=("clean", "papers"))
    sure = [record(COVID, "a", mask=True), record(OTHER, "clean"), record(OTHER, "x", collection="papers")]
    open_ = [record(COVID, "a"), record(OTHER, "a"), record(COVID, "clean")]
    assert [_known(each, section) for each in (*sure, *open_)] == [True] * 3 + [False] * 3
