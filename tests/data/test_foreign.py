"""The set of foreign pictures is what its manifest says, and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from groundglass.data.out_of_distribution import (
    MANIFEST,
    OutOfDistributionPicture,
    read_out_of_distribution,
    write_out_of_distribution,
)
from groundglass.errors import DataError


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[OutOfDistributionPicture]]:
    folder = tmp_path_factory.mktemp("foreign") / "set"
    return folder, write_out_of_distribution(folder, seed=3, per_kind=2)


def test_every_generated_kind_has_as_many_pictures(
    written: tuple[Path, list[OutOfDistributionPicture]],
) -> None:
    counts = Counter(picture.kind for picture in written[1] if picture.source == "generated")
    assert len(counts) == 15
    assert set(counts.values()) == {2}


def test_some_kinds_are_never_taught(written: tuple[Path, list[OutOfDistributionPicture]]) -> None:
    taught = {picture.kind: picture.taught for picture in written[1]}
    assert sum(taught.values()) < len(taught) - 5
    assert not taught["frontal X-ray"]
    assert not taught["page of text"]
    assert taught["head"]


def test_the_manifest_lists_what_is_there(written: tuple[Path, list[OutOfDistributionPicture]]) -> None:
    folder, pictures = written
    assert read_out_of_distribution(folder) == pictures
    files = {path for path in folder.rglob("*") if path.is_file()}
    assert files == {picture.path for picture in pictures} | {folder / MANIFEST}


def test_pictures_can_be_read_and_none_is_there_twice(
    written: tuple[Path, list[OutOfDistributionPicture]],
) -> None:
    contents = [picture.path.read_bytes() for picture in written[1] if picture.source == "generated"]
    assert len(set(contents)) == len(contents)
    for content in contents:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert min(picture.shape) >= 100


def test_sample_pictures_come_in_grey_and_colour(
    written: tuple[Path, list[OutOfDistributionPicture]],
) -> None:
    pytest.importorskip("skimage")
    names = {picture.path.name for picture in written[1]}
    assert {"astronaut.png", "astronaut-grey.png", "camera-grey.png", "china.jpg", "china-grey.png"} <= names
    assert "camera.png" not in names, "a grey picture is no colour photograph"


@pytest.mark.slow
def test_the_same_seed_writes_the_same_files(
    written: tuple[Path, list[OutOfDistributionPicture]], tmp_path: Path
) -> None:
    folder, pictures = written
    write_out_of_distribution(tmp_path / "again", seed=3, per_kind=2)
    write_out_of_distribution(tmp_path / "other", seed=4, per_kind=1)
    differ = 0
    for picture in pictures:
        relative = picture.path.relative_to(folder)
        assert (tmp_path / "again" / relative).read_bytes() == picture.path.read_bytes()
        other = tmp_path / "other" / relative
        if picture.source == "generated" and other.exists():
            differ += other.read_bytes() != picture.path.read_bytes()
    # Blank pictures have few values to choose from.
    assert differ >= 14


def test_dicom_files_of_other_planes_and_parts(dicom_samples: Path, tmp_path: Path) -> None:
    pictures = write_out_of_distribution(tmp_path / "set", per_kind=1, dicom=dicom_samples)
    copied = {picture.path.name for picture in pictures if picture.source == "DICOM"}
    assert copied == {"abdomen-toshiba.dcm", "coronal-ge.dcm", "coronal-toshiba-616.dcm", "sagittal-ge.dcm"}


def test_a_folder_without_manifest_is_a_set_by_folders(tmp_path: Path) -> None:
    for name in ("cats/1.png", "cats/2.png", "größe/3.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"x")
    assert Counter(picture.kind for picture in read_out_of_distribution(tmp_path)) == {"cats": 2, "größe": 1}


@pytest.mark.parametrize(
    "content", ["path,kind\na.png,cat\n", "", "\xff\xfe\x00", "path,kind,taught,source\na\n"]
)
def test_a_damaged_manifest_is_one_line(tmp_path: Path, content: str) -> None:
    (tmp_path / MANIFEST).write_text(content, encoding="latin-1")
    if content == "":
        assert read_out_of_distribution(tmp_path) == []
        return
    with pytest.raises(DataError, match="damaged manifest"):
        read_out_of_distribution(tmp_path)


def test_a_folder_in_use_is_not_written_to(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(DataError, match="not an empty folder"):
        write_out_of_distribution(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["note.txt"]


@pytest.mark.parametrize(("per_kind", "dicom"), [(0, None), (1, "missing")])
def test_arguments_out_of_range(tmp_path: Path, per_kind: int, dicom: str | None) -> None:
    folder = None if dicom is None else tmp_path / dicom
    with pytest.raises(DataError):
        write_out_of_distribution(tmp_path / "set", per_kind=per_kind, dicom=folder)


def test_a_missing_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        read_out_of_distribution(tmp_path / "nowhere")
