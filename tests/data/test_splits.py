"""Splits: their parts, that no patient is in two of them, and that they depend on nothing but the seed."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from groundglass.data.covid_ct import load_covid_ct
from groundglass.data.manifest import Label, Manifest, Record, say
from groundglass.data.splits import Split, held_out, make_split, patients_in_several_parts
from groundglass.errors import DataError


@pytest.fixture(scope="module")
def published(covid_ct: Path) -> Manifest:
    return load_covid_ct(covid_ct)


def make_manifest(
    patients: int = 40, slices: int = 3, split: str | None = None, known: bool = True
) -> Manifest:
    records = []
    for patient in range(patients):
        label = Label.COVID if patient % 2 else Label.NON_COVID
        for number in range(slices):
            name = f"p{patient}-{number}.png"
            owner = f"p{patient}" if known else f"unknown:{name}"
            records.append(Record(Path("set", name), label, owner, f"ward-{patient % 4}", split))
    return Manifest("set", Path("set"), tuple(records))


def named_parts(manifest: Manifest, split: Split) -> dict[str, set[str]]:
    return {
        name: {manifest.records[index].path.name for index in indices}
        for name, indices in split.parts.items()
    }


def counts(manifest: Manifest, split: Split) -> dict[str, tuple[int, int]]:
    labels = {
        name: Counter(manifest.records[index].label for index in indices)
        for name, indices in split.parts.items()
    }
    return {name: (found[Label.COVID], found[Label.NON_COVID]) for name, found in labels.items()}


def assert_disjoint(manifest: Manifest, split: Split) -> None:
    indices = [index for part in split.parts.values() for index in part]
    assert len(indices) == len(set(indices))
    assert patients_in_several_parts(manifest, split.parts) == []


def test_official(published: Manifest) -> None:
    split = make_split(published, "official")
    assert counts(published, split) == {"train": (191, 234), "val": (60, 58), "test": (98, 105)}
    assert_disjoint(published, split)


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


def test_official_cross_validation_never_sees_the_test_part(published: Manifest) -> None:
    judged: list[int] = []
    for fold in range(1, 6):
        split = make_split(published, f"official-cv:{fold}/5")
        assert list(split.parts) == ["train", "val"]
        assert_disjoint(published, split)
        judged += split.parts["val"]
        used = {published.records[index].split for part in split.parts.values() for index in part}
        assert used == {"train", "val"}
        with pytest.raises(DataError, match="no part 'test', only train, val"):
            split.part("test")
    assert len(judged) == len(set(judged)) == 425 + 118


def test_leave_source_out(published: Manifest) -> None:
    split = make_split(published, "leave-source-out:medpix+2020.03.2*")
    sources = {name: {published.records[i].source for i in indices} for name, indices in split.parts.items()}
    assert "medpix" in sources["test"]
    assert len(sources["test"]) > 5
    assert all(source == "medpix" or source.startswith("2020.03.2") for source in sources["test"])
    assert sources["test"].isdisjoint(sources["train"] | sources["val"])
    # What the data set itself tests on trains nobody, not even where another source is left out.
    own = {name: {published.records[i].split for i in indices} for name, indices in split.parts.items()}
    assert (own["train"], own["val"]) == ({"train"}, {"val"})
    used = {i for indices in split.parts.values() for i in indices}
    assert {record.split for i, record in enumerate(published) if i not in used} == {"test"}
    assert_disjoint(published, split)


def pooled(published: Manifest) -> Manifest:
    """COVID-CT and four wards without a split of their own."""
    return Manifest("pool", Path(), (*published.records, *make_manifest().records))


def test_sources_without_a_split_validate_with_one_patient_in_ten(published: Manifest) -> None:
    manifest = pooled(published)
    split = make_split(manifest, "official")
    assert_disjoint(manifest, split)
    for name, indices in make_split(published, "official").parts.items():
        assert {i for i in split.parts[name] if i < 746} == set(indices), name
    val = [manifest.records[i] for i in split.parts["val"] if i >= 746]
    assert Counter(record.source for record in val) == {f"ward-{ward}": 3 for ward in range(4)}
    assert len({record.patient_id for record in val}) == 4
    assert sum(map(len, split.parts.values())) == 746 + 120


def test_all_publications_of_covid_ct_can_be_left_out_together(published: Manifest) -> None:
    manifest = pooled(published)
    assert {record.hospital for record in published} == {"covid-ct"}
    split = make_split(manifest, "leave-source-out:covid-ct")
    assert split.parts["test"] == tuple(range(746))
    one = make_split(manifest, "leave-source-out:ward-1")
    assert {manifest.records[i].source for i in one.parts["test"]} == {"ward-1"}
    taught = [manifest.records[i] for i in (*one.parts["train"], *one.parts["val"])]
    assert "test" not in {record.split for record in taught}
    assert {record.hospital for record in taught} == {"covid-ct", "ward-0", "ward-2", "ward-3"}


def test_who_is_held_out_depends_on_the_patients_of_a_source_alone() -> None:
    records = list(make_manifest().records)
    chosen = {records[number].patient_id for number in held_out(records, 5)}
    assert Counter(int(patient[1:]) % 4 for patient in chosen) == dict.fromkeys(range(4), 2)
    assert held_out(records, 5) == {n for n, each in enumerate(records) if each.patient_id in chosen}
    random.Random(0).shuffle(records)
    alone = [record for record in records if record.source != "ward-3"]
    assert {alone[number].patient_id for number in held_out(alone, 5)} == {
        patient for patient in chosen if int(patient[1:]) % 4 != 3
    }
    assert held_out(records[:1], 5) == held_out([], 5) == set()


def test_leave_source_out_reports_a_patient_seen_elsewhere() -> None:
    manifest = make_manifest()
    stray = Record(Path("set", "x.png"), Label.COVID, "p0", "ward-1", None)
    manifest = Manifest("set", Path("set"), (*manifest.records, stray))
    with pytest.raises(DataError, match="1 patient in several parts: p0"):
        make_split(manifest, "leave-source-out:ward-1")
    assert make_split(manifest, "leave-source-out:ward-1", allow_overlap=True).parts["test"]


def test_one_class_left_to_train_on_is_an_error() -> None:
    with pytest.raises(DataError, match=r"train part would hold no COVID|0 COVID patients are too few"):
        make_split(make_manifest(), "leave-source-out:ward-1+ward-3")


@pytest.mark.parametrize("spec", ["patients:2/4", "leave-source-out:ward-1", "random"])
def test_same_seed_same_split_whatever_the_order_and_place(spec: str) -> None:
    manifest = make_manifest()
    shuffled = list(manifest.records)
    random.Random(1).shuffle(shuffled)
    moved = [
        Record(Path("/elsewhere/b.zip!deep", record.path.name), *list(vars(record).values())[1:])
        for record in shuffled
    ]
    other = Manifest("set", Path("/elsewhere"), tuple(moved))
    first = named_parts(manifest, make_split(manifest, spec, seed=5, allow_overlap=True))
    assert named_parts(other, make_split(other, spec, seed=5, allow_overlap=True)) == first
    assert named_parts(manifest, make_split(manifest, spec, seed=6, allow_overlap=True)) != first


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
        (
            "official-cv:1/5",
            "no split of its own, which official-cv needs; take official, patients:FOLD/FOLDS, leave",
        ),
    ],
)
def test_impossible_specifications(spec: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        make_split(make_manifest(), spec)


def test_data_that_says_too_little() -> None:
    with pytest.raises(DataError, match="names no patients"):
        make_split(make_manifest(known=False), "patients:1/5")
    unlabelled = Manifest("set", Path("set"), (Record(Path("a.png"), None, "p", "s", "train"),))
    with pytest.raises(DataError, match="1 of 1 slices have no label"):
        make_split(unlabelled, "official")


def test_without_a_split_patients_are_parted_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    manifest = make_manifest()
    say.cache_clear()
    parts = named_parts(manifest, make_split(manifest, "official"))
    sizes = {part: len(names) for part, names in parts.items()}
    assert list(sizes) == ["train", "val", "test"]
    assert sizes["train"] > sizes["val"] + sizes["test"]
    said = f"train {sizes['train']}, val {sizes['val']}, test {sizes['test']} slices"
    assert f"set: has no split of its own, so its patients were parted, each whole: {said}" in caplog.text
    assert parts == named_parts(manifest, make_split(manifest, "official", seed=9))
    few = replace(manifest, records=tuple(each for each in manifest if each.patient_id in {"p0", "p1"}))
    for data, why in (
        (few, "patients of a label are too few"),
        (make_manifest(known=False), "names no patients"),
    ):
        with pytest.raises(DataError, match=f"no split of its own and .*{why}.*--split random"):
            make_split(data, "official")


def test_an_official_split_may_have_a_test_part_only() -> None:
    manifest = make_manifest(split="test")
    assert list(make_split(manifest, "official").parts) == ["test"]
    with pytest.raises(DataError, match="takes nothing after a colon"):
        make_split(manifest, "official:1/5")


def test_an_official_split_that_shares_patients_is_an_error() -> None:
    manifest = make_manifest(split="train")
    leak = Record(Path("set", "leak.png"), Label.COVID, "p1", "ward-1", "test")
    with pytest.raises(DataError, match="official: 1 patient in several parts: p1; split by patients"):
        make_split(Manifest("set", Path("set"), (*manifest.records, leak)), "official")


def test_source_folds_keep_publications_whole(covid_ct: Path) -> None:
    manifest = load_covid_ct(covid_ct)
    held: list[int] = []
    for fold in (1, 2, 3):
        split = make_split(manifest, f"official-source-cv:{fold}/3")
        sources = [
            {
                manifest.records[index].source
                for index in split.part(part)
                if manifest.records[index].label is Label.COVID
            }
            for part in ("train", "val")
        ]
        assert not sources[0] & sources[1]
        held += split.part("val")
    assert sorted(held) == [i for i, record in enumerate(manifest) if record.split in {"train", "val"}]
