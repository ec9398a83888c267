"""Splits: their parts, that no patient is in two of them, and that they depend on nothing but the seed."""

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from groundglass.data.covid_ct import load_covid_ct
from groundglass.data.manifest import Label, Manifest, Record, say
from groundglass.data.splits import Split, in_several_parts, make_split
from groundglass.errors import DataError


@pytest.fixture(scope="module")
def published(covid_ct: Path) -> Manifest:
    return load_covid_ct(covid_ct)


@pytest.fixture(scope="module")
def pooled(published: Manifest) -> Manifest:
    """COVID-CT and four wards without a split of their own."""
    return Manifest("pool", Path(), (*published, *make_manifest()))


def make_manifest(split: str | None = None, known: bool = True) -> Manifest:
    """Forty patients of three slices, in four wards of one label each."""
    records = []
    for patient, name in ((each // 3, f"p{each // 3}-{each % 3}.png") for each in range(120)):
        label = Label.COVID if patient % 2 else Label.NON_COVID
        whose = f"p{patient}" if known else f"unknown:{name}"
        records.append(Record(Path("set", name), label, whose, f"ward-{patient % 4}", split))
    return Manifest("set", Path("set"), tuple(records))


WARDS, TRAINED = make_manifest(), make_manifest(split="train")


def with_slice(manifest: Manifest, **changes: object) -> Manifest:
    """The manifest and another slice of its first patient, who is of ward 0 and has no COVID."""
    more = replace(manifest.records[0], path=Path("set", "x.png"), **changes)  # type: ignore[arg-type]
    return replace(manifest, records=(*manifest, more))


def members(manifest: Manifest, split: Split) -> dict[str, list[Record]]:
    assert sum(map(len, split.parts.values())) == len({i for part in split.parts.values() for i in part})
    return {name: [manifest.records[i] for i in indices] for name, indices in split.parts.items()}


def shared(manifest: Manifest, split: Split) -> dict[str, dict[str, int]]:
    """Patients in several parts."""
    return in_several_parts((each.patient_id, name) for name, part in members(manifest, split).items() for each in part)


def counts(manifest: Manifest, split: Split) -> dict[str, tuple[int, int]]:
    labels = {name: Counter(each.label for each in part) for name, part in members(manifest, split).items()}
    return {name: (found[Label.COVID], found[Label.NON_COVID]) for name, found in labels.items()}


def test_official_is_what_the_data_set_says(published: Manifest, pooled: Manifest) -> None:
    split = make_split(published, "official")
    assert counts(published, split) == {"train": (191, 234), "val": (60, 58), "test": (98, 105)}
    assert shared(published, split) == {}
    tested = make_split(make_manifest(split="test"), "official")
    assert list(tested.parts) == ["test"]
    with pytest.raises(DataError, match="no part 'val', only test"):
        tested.part("val")
    # Of sources without a split a tenth validates.
    both = make_split(pooled, "official")
    for name, indices in split.parts.items():
        assert {i for i in both.parts[name] if i < 746} == set(indices), name
    val = [pooled.records[i] for i in both.parts["val"] if i >= 746]
    assert Counter(record.source for record in val) == {f"ward-{ward}": 3 for ward in range(4)}
    assert len({record.patient_id for record in val}) == 4
    assert sum(map(len, members(pooled, both).values())) == 746 + 120
    twice = (*pooled, replace(val[0], source="ward-9", path=Path("x.png")))
    assert len(pooled) in make_split(replace(pooled, records=twice), "official").part("val"), "with all of a patient's"


@pytest.mark.parametrize(("kind", "val", "close"), [("random", 0.1, 1), ("patients", 0.16, 12)])
def test_folds_test_all_slices_once(published: Manifest, kind: str, val: float, close: int) -> None:
    overlap = kind == "random"
    splits = [make_split(published, f"{kind}:{fold}/5", allow_overlap=overlap) for fold in range(1, 6)]
    assert sorted(index for split in splits for index in split.part("test")) == list(range(746))
    for split in splits:
        found = counts(published, split)
        assert sum(map(sum, found.values())) == 746
        assert bool(shared(published, split)) is overlap
        for label, total in enumerate((349, 397)):
            assert found["test"][label] == pytest.approx(0.2 * total, abs=close)
            assert found["val"][label] == pytest.approx(val * total, abs=close)


def test_sources_left_out_are_only_tested(published: Manifest, pooled: Manifest) -> None:
    parts = members(published, make_split(published, "leave-source-out:medpix+2020.03.2*"))
    tested = {each.source for each in parts["test"]}
    assert parts["test"] == [each for each in published if each.source.startswith(("medpix", "2020.03.2"))]
    for name in ("train", "val"):
        assert tested.isdisjoint(each.source for each in parts[name])
        assert {each.split for each in parts[name]} == {name}, "not even where another source is left out"
    assert make_split(pooled, "leave-source-out:covid-ct").parts["test"] == tuple(range(746))
    one = members(pooled, make_split(pooled, "leave-source-out:ward-1"))
    assert {each.source for each in one["test"]} == {"ward-1"}
    taught = {(each.hospital, each.split == "test") for each in (*one["train"], *one["val"])}
    assert taught == {(hospital, False) for hospital in ("covid-ct", "ward-0", "ward-2", "ward-3")}
    odd = make_split(with_slice(WARDS, source="clinic [A]"), "leave-source-out:clinic [A]", allow_overlap=True)
    assert odd.parts["test"] == (120,)
    assert list(make_split(TRAINED, "leave-source-out:ward-1").parts) == ["train", "test"], "none validates"


@pytest.mark.parametrize("spec", ["patients:2/4", "leave-source-out:ward-1", "random"])
def test_a_split_follows_from_the_seed_alone_which_it_may_name(spec: str) -> None:
    moved = [replace(each, path=Path("/elsewhere/b.zip!deep", each.path.name)) for each in WARDS]
    random.Random(1).shuffle(moved)

    def names(spec: str, seed: int, data: Manifest = WARDS) -> dict[str, set[str]]:
        parts = members(data, make_split(data, spec, seed, allow_overlap=True))
        return {name: {each.path.name for each in part} for name, part in parts.items()}

    first = names(spec, 5)
    assert names(spec, 5, Manifest("set", Path("/elsewhere"), tuple(moved))) == first
    assert names(spec, 10**9) != first
    assert spec != "random" or names("random:1/5", 5) == first
    if not spec.startswith("leave"):
        assert names(f"{spec}:5", 0) == names(f"{spec}:5", 1) == first


def test_impossible_splits() -> None:
    for manifest, spec, said in (
        (WARDS, "best", "unknown; choose one of: official, random"),
        (WARDS, "patients", r"not patients:FOLD/FOLDS, such as patients:1/5"),
        (WARDS, "patients:0/5", "such as patients:1/5 to patients:5/5"),
        (WARDS, "patients:1/30", "20 COVID patients are too few for 30 folds"),
        (WARDS, "leave-source-out:", "needs a source"),
        (WARDS, "leave-source-out:ward-9", "no source 'ward-9'; this data has ward-0, ward-1"),
        (WARDS, "leave-source-out:ward-1+ward-3", "0 COVID patients are too few"),
        (make_manifest(known=False), "patients:1/5", "names no patients"),
        (with_slice(WARDS, label=None), "official", "1 of 121 slices have no label"),
        (replace(TRAINED, records=TRAINED.records[:3]), "official", "train part would hold no COVID slice"),
        (with_slice(TRAINED, split="test"), "official", "1 patient in several parts: p0; split by patients"),
        (WARDS, "random", r"\d+ patients in several parts: .*a random split ignores patients"),
        (with_slice(WARDS, source="ward-1"), "leave-source-out:ward-1", "1 patient in several parts: p0"),
    ):
        with pytest.raises(DataError, match=said):
            make_split(manifest, spec)


def test_without_a_split_patients_are_parted_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    say.cache_clear()
    parts = make_split(WARDS, "official").parts
    train, val, test = (len(parts[part]) for part in ("train", "val", "test"))
    assert train > val + test
    said = f"train {train}, val {val}, test {test} slices"
    assert f"set: no split is given, so whole patients were parted: {said}" in caplog.text
    assert make_split(WARDS, "official", seed=9).parts == parts
    ten = replace(WARDS, records=WARDS.records[:30])  # five patients of a label leave three or four
    for spec in ("patients:1/5", "patients:1/2"):
        assert all(min(each) > 0 for each in counts(ten, make_split(ten, spec)).values())
    few = replace(WARDS, records=WARDS.records[:6])
    for data, why in ((few, "patients of a label are too few"), (make_manifest(known=False), "names no patients")):
        with pytest.raises(DataError, match=f"no split of its own and .*{why}.*--split random"):
            make_split(data, "official")
