"""Splits: their parts, that no patient is in two of them, and that they depend on nothing but the seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from groundglass.data.covid_ct import load_covid_ct
from groundglass.data.manifest import Label, Manifest, Record, say
from groundglass.data.splits import Split, make_split, patients_in_several_parts
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
    names = [(patient, f"p{patient}-{number}.png") for patient in range(40) for number in range(3)]
    records = (
        Record(
            Path("set", name),
            Label.COVID if patient % 2 else Label.NON_COVID,
            f"p{patient}" if known else f"unknown:{name}",
            f"ward-{patient % 4}",
            split,
        )
        for patient, name in names
    )
    return Manifest("set", Path("set"), tuple(records))


def with_slice(manifest: Manifest, **fields: object) -> Manifest:
    """The manifest and a COVID slice of its first patient with some fields changed."""
    changed: dict[str, Any] = {"path": Path("set", "x.png"), "label": Label.COVID, **fields}
    return replace(manifest, records=(*manifest, replace(manifest.records[0], **changed)))


def members(manifest: Manifest, split: Split) -> dict[str, list[Record]]:
    return {name: [manifest.records[i] for i in indices] for name, indices in split.parts.items()}


def file_names(manifest: Manifest, split: Split) -> dict[str, set[str]]:
    return {name: {each.path.name for each in part} for name, part in members(manifest, split).items()}


def counts(manifest: Manifest, split: Split) -> dict[str, tuple[int, int]]:
    labels = {name: Counter(each.label for each in part) for name, part in members(manifest, split).items()}
    return {name: (found[Label.COVID], found[Label.NON_COVID]) for name, found in labels.items()}


def assert_disjoint(manifest: Manifest, split: Split) -> None:
    indices = [index for part in split.parts.values() for index in part]
    assert len(indices) == len(set(indices))
    assert patients_in_several_parts(manifest, split.parts) == []


def test_official(published: Manifest) -> None:
    split = make_split(published, "official")
    assert counts(published, split) == {"train": (191, 234), "val": (60, 58), "test": (98, 105)}
    assert_disjoint(published, split)
    only = make_manifest(split="test")
    assert list(make_split(only, "official").parts) == ["test"]
    with pytest.raises(DataError, match="takes nothing after a colon"):
        make_split(only, "official:1/5")
    with pytest.raises(DataError, match="official: 1 patient in several parts: p0; split by patients"):
        make_split(with_slice(make_manifest(split="train"), split="test"), "official")


def test_random_on_covid_ct_needs_the_flag(published: Manifest) -> None:
    with pytest.raises(DataError, match=r"\d+ patients in several parts: .*ignores patients"):
        make_split(published, "random")
    split = make_split(published, "random", allow_overlap=True)
    assert sum(map(len, split.parts.values())) == 746
    sizes = counts(published, split)
    for label, total in ((0, 349), (1, 397)):
        assert sizes["test"][label] == pytest.approx(0.2 * total, abs=1)
        assert sizes["val"][label] == pytest.approx(0.1 * total, abs=1)
    draws = [make_split(published, f"random:{draw}/5", allow_overlap=True) for draw in range(1, 6)]
    assert draws[0].parts == split.parts
    tested = [index for draw in draws for index in draw.part("test")]
    assert sorted(tested) == list(range(746)), "no slice is tested twice"


@pytest.mark.parametrize("kind", ["random", "patients:1/4", "official-cv:1/4", "official-source-cv:1/4"])
def test_a_split_may_have_a_seed_of_its_own(kind: str) -> None:
    manifest = make_manifest(split="train")

    def parts(spec: str, seed: int) -> dict[str, tuple[int, ...]]:
        return make_split(manifest, spec, seed, allow_overlap=True).parts

    assert parts(f"{kind}:3", 0) == parts(f"{kind}:3", 1) == parts(kind, 3)
    assert parts(f"{kind}:3", 0) != parts(f"{kind}:4", 0)
    with pytest.raises(DataError, match="SEED"):
        make_split(manifest, f"{kind}:first")


def test_patient_folds_cover_everything_once(published: Manifest) -> None:
    tested: list[int] = []
    for fold in range(1, 6):
        split = make_split(published, f"patients:{fold}/5", seed=3)
        assert list(split.parts) == ["train", "val", "test"]
        assert_disjoint(published, split)
        assert sum(map(len, split.parts.values())) == 746
        positive, negative = counts(published, split)["test"]
        assert positive / (positive + negative) == pytest.approx(349 / 746, abs=0.06)
        tested += split.parts["test"]
    assert sorted(tested) == list(range(746))


@pytest.mark.parametrize("kind", ["official-cv", "official-source-cv"])
def test_cross_validation_never_sees_the_test_part_and_may_keep_publications_whole(
    published: Manifest, kind: str
) -> None:
    held: list[int] = []
    for fold in (1, 2, 3):
        split = make_split(published, f"{kind}:{fold}/3")
        assert list(split.parts) == ["train", "val"]
        assert_disjoint(published, split)
        sources = [
            {each.source for each in part if each.label is Label.COVID}
            for part in members(published, split).values()
        ]
        assert sources[0].isdisjoint(sources[1]) is (kind == "official-source-cv")
        held += split.parts["val"]
        with pytest.raises(DataError, match="no part 'test', only train, val"):
            split.part("test")
    assert sorted(held) == [i for i, record in enumerate(published) if record.split in {"train", "val"}]


def test_leave_source_out(published: Manifest) -> None:
    split = make_split(published, "leave-source-out:medpix+2020.03.2*")
    parts = members(published, split)
    sources = {name: {each.source for each in part} for name, part in parts.items()}
    assert "medpix" in sources["test"]
    assert len(sources["test"]) > 5
    assert all(source == "medpix" or source.startswith("2020.03.2") for source in sources["test"])
    assert sources["test"].isdisjoint(sources["train"] | sources["val"])
    # What the data set itself tests on trains nobody, not even where another source is left out.
    for name in ("train", "val"):
        assert {each.split for each in parts[name]} == {name}
    used = {i for indices in split.parts.values() for i in indices}
    assert {record.split for i, record in enumerate(published) if i not in used} == {"test"}
    assert_disjoint(published, split)


def test_sources_without_a_split_validate_with_one_patient_in_ten(
    published: Manifest, pooled: Manifest
) -> None:
    split = make_split(pooled, "official")
    assert_disjoint(pooled, split)
    for name, indices in make_split(published, "official").parts.items():
        assert {i for i in split.parts[name] if i < 746} == set(indices), name
    val = [pooled.records[i] for i in split.parts["val"] if i >= 746]
    assert Counter(record.source for record in val) == {f"ward-{ward}": 3 for ward in range(4)}
    assert len({record.patient_id for record in val}) == 4
    assert sum(map(len, split.parts.values())) == 746 + 120


def test_all_publications_of_covid_ct_can_be_left_out_together(pooled: Manifest) -> None:
    assert make_split(pooled, "leave-source-out:covid-ct").parts["test"] == tuple(range(746))
    one = members(pooled, make_split(pooled, "leave-source-out:ward-1"))
    assert {each.source for each in one["test"]} == {"ward-1"}
    taught = [*one["train"], *one["val"]]
    assert "test" not in {record.split for record in taught}
    assert {record.hospital for record in taught} == {"covid-ct", "ward-0", "ward-2", "ward-3"}


def test_leave_source_out_reports_a_patient_seen_elsewhere() -> None:
    manifest = with_slice(make_manifest(), source="ward-1")
    with pytest.raises(DataError, match="1 patient in several parts: p0"):
        make_split(manifest, "leave-source-out:ward-1")
    assert make_split(manifest, "leave-source-out:ward-1", allow_overlap=True).parts["test"]


@pytest.mark.parametrize("spec", ["patients:2/4", "leave-source-out:ward-1", "random"])
def test_same_seed_same_split_whatever_the_order_and_place(spec: str) -> None:
    manifest = make_manifest()
    moved = [replace(each, path=Path("/elsewhere/b.zip!deep", each.path.name)) for each in manifest]
    random.Random(1).shuffle(moved)
    other = Manifest("set", Path("/elsewhere"), tuple(moved))
    first = file_names(manifest, make_split(manifest, spec, seed=5, allow_overlap=True))
    assert file_names(other, make_split(other, spec, seed=5, allow_overlap=True)) == first
    assert file_names(manifest, make_split(manifest, spec, seed=6, allow_overlap=True)) != first


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("best", "unknown; choose one of: official, random"),
        ("patients", r"not patients:FOLD/FOLDS, such as patients:1/5"),
        ("patients:0/5", "such as patients:1/5 to patients:5/5"),
        ("patients:6/5", "not patients:FOLD/FOLDS"),
        ("patients:1/30", "20 COVID patients are too few for 30 folds"),
        ("leave-source-out:", "needs a source"),
        ("leave-source-out:ward-9", "no source 'ward-9'; this data has ward-0, ward-1"),
        ("leave-source-out:*", "none is left to train on"),
        ("leave-source-out:ward-1+ward-3", "0 COVID patients are too few"),
        ("official-cv:1/5", "which official-cv needs; take official, patients:FOLD/FOLDS, leave"),
    ],
)
def test_impossible_specifications(spec: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_split(make_manifest(), spec)


def test_data_that_says_too_little() -> None:
    with pytest.raises(DataError, match="names no patients"):
        make_split(make_manifest(known=False), "patients:1/5")
    unlabelled = with_slice(make_manifest(), label=None)
    with pytest.raises(DataError, match="1 of 121 slices have no label"):
        make_split(unlabelled, "official")
    healthy = replace(make_manifest(split="train"), records=make_manifest(split="train").records[:3])
    with pytest.raises(DataError, match="its train part would hold no COVID slice"):
        make_split(healthy, "official")


def test_without_a_split_patients_are_parted_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    manifest = make_manifest()
    say.cache_clear()
    parts = file_names(manifest, make_split(manifest, "official"))
    sizes = {part: len(names) for part, names in parts.items()}
    assert list(sizes) == ["train", "val", "test"]
    assert sizes["train"] > sizes["val"] + sizes["test"]
    said = f"train {sizes['train']}, val {sizes['val']}, test {sizes['test']} slices"
    assert f"set: no split is given, so whole patients were parted: {said}" in caplog.text
    assert parts == file_names(manifest, make_split(manifest, "official", seed=9))
    few = replace(manifest, records=tuple(each for each in manifest if each.patient_id in {"p0", "p1"}))
    unknown = make_manifest(known=False)
    for data, why in ((few, "patients of a label are too few"), (unknown, "names no patients")):
        with pytest.raises(DataError, match=f"no split of its own and .*{why}.*--split random"):
            make_split(data, "official")
