"""The quick audit: what parts share, with whose parts, and how it is told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from groundglass.audit.leakage import patients_across, quick_audit, sources_across, with_parts
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, Manifest, Record
from groundglass.data.phantoms import Severities, write_phantoms
from groundglass.data.splits import Split


def record(name: str, split: str | None, patient: str = "", source: str = "s") -> Record:
    return Record(Path(name), Label.COVID, patient or f"unknown:{name}", source, split)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("audit") / "phantoms"
    return write_phantoms(folder, 12, Severities(0.3, 0.6), seed=2, size=256)


def test_known_patients_in_several_parts_are_named() -> None:
    records = [
        record("1", "train", "b"),
        record("2", "test", "b"),
        record("3", "test", "b"),
        record("4", "train", "a"),
        record("5", "val", "a"),
        record("6", "train", "c"),
        record("7", None, "c"),
        record("8", "train"),
        record("9", "test"),
    ]
    found = [(crossing.name, crossing.parts) for crossing in patients_across(records)]
    assert found == [("a", {"train": 1, "val": 1}), ("b", {"train": 1, "test": 2})]


def test_large_sources_are_collections_and_not_publications() -> None:
    records = [record(str(n), "train" if n % 2 else "test", source="everything") for n in range(40)]
    records += [record("p1", "train", source="paper"), record("p2", "val", source="paper")]
    found = {crossing.name: crossing.collection for crossing in sources_across(records)}
    assert found == {"everything": True, "paper": False}


def test_parts_are_those_of_the_split_where_one_is_given(phantoms: Manifest) -> None:
    split = Split("mine", {"train": (0, 1, 2), "test": (5, 3)})
    placed = with_parts(phantoms, split)
    assert [one.split for one in placed] == ["train", "train", "train", "test", "test"]
    assert [one.path for one in placed] == [phantoms.records[index].path for index in (0, 1, 2, 3, 5)]
    assert with_parts(phantoms, None) is phantoms


def test_nothing_is_found_where_nothing_is_shared(phantoms: Manifest) -> None:
    found = quick_audit(phantoms)
    assert found.pairs == ()
    assert found.patients == ()
    assert [crossing.collection for crossing in found.sources] == [True]
    assert found.warnings() == ()


def test_a_copy_in_another_part_is_found_and_told(phantoms: Manifest, tmp_path: Path) -> None:
    first = next(one for one in phantoms if one.split == "train")
    pixels = cv2.imread(str(first.path), cv2.IMREAD_GRAYSCALE)
    path = tmp_path / "small copy.jpg"
    cv2.imwrite(str(path), cv2.resize(pixels, (190, 190), interpolation=cv2.INTER_AREA))
    copy = replace(first, path=path, label=Label.NON_COVID, split="test")
    spoilt = replace(phantoms, records=(*phantoms.records, copy))
    found = quick_audit(spoilt)
    assert [(pair.first, pair.second) for pair in found.pairs] == [(first, copy)]
    leakage, patients = found.warnings()
    assert leakage.startswith(
        "1 pair of slices in different parts show the same slice, 1 of them with opposite"
    )
    assert "small copy.jpg" in leakage
    assert patients == f"1 patient in several parts: {first.patient_id}."


def test_the_same_copy_within_a_part_is_no_leakage(phantoms: Manifest) -> None:
    doubled = replace(phantoms, records=(*phantoms.records, phantoms.records[0]))
    assert quick_audit(doubled).warnings() == ()


def test_unreadable_slices_are_counted(phantoms: Manifest, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    broken = replace(phantoms.records[0], path=tmp_path / "broken.png")
    assert quick_audit(replace(phantoms, records=(*phantoms.records, broken))).unreadable == 1


def test_progress_counts_every_slice(phantoms: Manifest) -> None:
    steps: list[int] = []
    quick_audit(phantoms, progress=steps.append)
    assert sum(steps) >= len(phantoms)


def test_covid_ct_in_a_few_seconds(covid_ct: Path) -> None:
    found = quick_audit(load_dataset(covid_ct))
    names = {frozenset({pair.first.path.name, pair.second.path.name}) for pair in found.pairs}
    assert {
        frozenset({"71%0.jpg", "kjr-21-e24-p5-29.png"}),
        frozenset({"71%1.jpg", "kjr-21-e24-p5-31.png"}),
    } <= names
    publications = [crossing.name for crossing in found.sources if not crossing.collection]
    assert publications == ["2020.03.12.20034686", "2020.03.13.20035212", "2020.03.22.20040782"]
    assert found.patients == ()
    assert len(found.warnings()) == 2
    assert all(np.isfinite(pair.correlation) for pair in found.pairs)
