"""Phantoms as data sets and series: their labels, masks and order, and that nothing else is touched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, read_mask
from groundglass.data.phantoms import write_phantoms
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.read import read_slices


def test_phantoms_are_a_balanced_data_set_with_a_split_and_masks_of_one_bit(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("p", "again")]
    for folder in folders:
        write_phantoms(folder, 20, (0.6, 0.6), seed=3, size=96)
    records = load_dataset(folders[0]).records
    sizes = {"train": 6, "val": 2, "test": 2}
    expected = {(part, label): count for part, count in sizes.items() for label in Label}
    assert Counter((record.split, record.label) for record in records) == expected
    assert len({record.patient_id for record in records}) == 20
    ill, healthy = np.random.default_rng([3, 0]), np.random.default_rng([3, 1])
    truth = make_phantom(ill, ill.uniform(0.6, 0.6), size=96), make_phantom(healthy, size=96)
    for record, phantom in zip(sorted(records[:2], key=lambda each: each.path.name), truth, strict=True):
        masks = folders[0] / "masks"
        assert record.lung_mask == masks / f"{record.path.stem}-lungs.png"
        assert record.lesion_mask == masks / f"{record.path.stem}-lesions.png"
        np.testing.assert_array_equal(read_mask(record.lung_mask, (96, 96)), phantom.lungs)
        np.testing.assert_array_equal(read_mask(record.lesion_mask, (96, 96)), phantom.lesions)
        assert phantom.lesions.any() == (record.label is Label.COVID)
        assert record.lung_mask.read_bytes()[24] == 1, "bits per pixel in the PNG's header"
    written, again = ({path.name: path.read_bytes() for path in each.rglob("*.*")} for each in folders)
    assert len(written) == 61
    assert written == again


Command = Callable[..., tuple[int, str, str]]


def test_series_are_written_from_apex_to_base_each_of_a_patient_of_its_own(
    tmp_path: Path, run_command: Command
) -> None:
    output = tmp_path / "series"
    words = ["--series", "0,0.9", "--count", "3", "--size", "96", "--output", output]
    assert run_command("data", "phantoms", *words)[0] == 0
    for severity in ("0.00", "0.90"):
        origins = [each.origin for each in read_slices(output / f"severity-{severity}")]
        assert len({origin.series for origin in origins}) == 1
        assert len({origin.position[2] for origin in origins if origin.position}) == 3
    records = load_dataset(output).records
    assert [record.patient_id for record in records].count(records[0].patient_id) == 3
    for record in records:
        lungs, lesions = (
            read_mask(path or Path(), (96, 96)) for path in (record.lung_mask, record.lesion_mask)
        )
        assert not (lesions & ~lungs).any()
        assert (record.label is Label.COVID) == lesions.any()
        assert "severity-0.90" in str(record.path) or not lesions.any()


@pytest.mark.parametrize(
    ("option", "values", "complaint"),
    [
        ("--severity", ["", "a:b", "0.5:0.2", "0:0.5", "0.5:1.5", "nan", "0:1:1"], "severity"),
        ("--series", ["0,2", "nan"], "0 to 1"),
        ("--series", ["mild"], "mild"),
        ("--series", ["0.5,0.5"], "once"),
        ("--count", ["2"], "not an empty folder"),
    ],
)
def test_wrong_words_and_a_folder_in_use_are_refused_and_nothing_is_written(
    tmp_path: Path, run_command: Command, option: str, values: list[str], complaint: str
) -> None:
    used = option == "--count"
    (tmp_path / "mine.txt").touch()
    for value in values:
        output = tmp_path if used else tmp_path / "s"
        status, _, err = run_command("data", "phantoms", option, value, "--output", output)
        assert (status, complaint in err) == (2, True), value
        assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
