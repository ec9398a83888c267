"""Phantoms as data sets and series, as functions and as a command."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from groundglass.cli.main import app
from groundglass.data.load import load_dataset
from groundglass.data.manifest import Label, read_mask
from groundglass.data.phantoms import write_phantoms
from groundglass.data.splits import make_split
from groundglass.errors import DataError
from groundglass.imaging.phantom import make_phantom
from groundglass.imaging.read import read_slices


def test_phantoms_are_a_balanced_data_set_with_a_split(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "p", 20, (0.3, 0.6), size=96)
    manifest = load_dataset(tmp_path / "p" / "manifest.csv")
    assert Counter(record.label for record in manifest) == {Label.COVID: 10, Label.NON_COVID: 10}
    assert len({record.patient_id for record in manifest}) == 20
    parts = make_split(manifest, "official").parts
    assert {name: len(indices) for name, indices in parts.items()} == {"train": 12, "val": 4, "test": 4}
    for indices in parts.values():
        labels = [manifest.records[index].label for index in indices]
        assert labels.count(Label.COVID) == labels.count(Label.NON_COVID)
    assert len(load_dataset(tmp_path / "p")) == 20


def test_masks_of_lungs_and_lesions_lie_beside_the_slices_in_one_bit(tmp_path: Path) -> None:
    write_phantoms(tmp_path / "p", 2, (0.6, 0.6), seed=3, size=128)
    ill, healthy = np.random.default_rng([3, 0]), np.random.default_rng([3, 1])
    truth = make_phantom(ill, ill.uniform(0.6, 0.6), size=128), make_phantom(healthy, size=128)
    for record, phantom in zip(load_dataset(tmp_path / "p" / "manifest.csv"), truth, strict=True):
        assert record.lung_mask == tmp_path / "p" / "masks" / f"{record.path.stem}-lungs.png"
        assert record.lesion_mask == tmp_path / "p" / "masks" / f"{record.path.stem}-lesions.png"
        np.testing.assert_array_equal(read_mask(record.lung_mask, (128, 128)), phantom.lungs)
        np.testing.assert_array_equal(read_mask(record.lesion_mask, (128, 128)), phantom.lesions)
        assert phantom.lesions.any() == (record.label is Label.COVID)
        assert record.lung_mask.read_bytes()[24] == 1, "bits per pixel in the PNG's header"
    write_phantoms(tmp_path / "again", 2, (0.6, 0.6), seed=3, size=128)
    written, again = (
        {path.name: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} for name in ("p", "again")
    )
    assert len(written) == 7
    assert written == again


def test_series_are_written_from_apex_to_base_each_of_a_patient_of_its_own(tmp_path: Path) -> None:
    output = tmp_path / "series"
    words = ["data", "phantoms", "--series", "0,0.9", "--count", "3", "--size", "96"]
    result = CliRunner().invoke(app, [*words, "--output", str(output)])
    assert result.exit_code == 0, result.output
    healthy, ill = (list(read_slices(output / f"severity-{severity}")) for severity in ("0.00", "0.90"))
    assert len(healthy) == len(ill) == 3
    assert len({piece.origin.series for piece in [*healthy, *ill]}) == 2
    manifest = load_dataset(output)
    assert len(manifest) == 6
    assert len({record.patient_id for record in manifest}) == 2
    for record in manifest:
        assert record.lung_mask is not None
        assert record.lesion_mask is not None
        lungs, lesions = (read_mask(path, (96, 96)) for path in (record.lung_mask, record.lesion_mask))
        assert not (lesions & ~lungs).any()
        assert (record.label is Label.COVID) == lesions.any()
        assert "severity-0.90" in str(record.path) or not lesions.any()
    heights = [piece.origin.position[2] for piece in ill if piece.origin.position is not None]
    assert len(set(heights)) == 3


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [
        *(
            ("--severity", text, "severity")
            for text in ("", "a:b", "0.5:0.2", "0:0.5", "0.5:1.5", "nan", "0:1:1")
        ),
        *(
            ("--count", "100001", "count 100001"),
            ("--series", "0,2", "0 to 1"),
            ("--series", "nan", "0 to 1"),
        ),
        *(("--series", "mild", "mild"), ("--series", "0.5,0.5", "once")),
    ],
)
def test_a_command_that_will_not_do_leaves_nothing_behind(
    tmp_path: Path, option: str, value: str, complaint: str
) -> None:
    result = CliRunner().invoke(app, ["data", "phantoms", option, value, "--output", str(tmp_path / "s")])
    assert isinstance(result.exception, DataError)
    assert complaint in str(result.exception)
    assert not (tmp_path / "s").exists()


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        write_phantoms(tmp_path, 2, (0.5, 0.5), size=96)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
