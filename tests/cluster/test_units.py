"""Pieces of work: complete, in order, and listed without being opened."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from groundglass.cluster.ray import LARGEST, FolderEnd, Step, Unit, steps
from groundglass.errors import DataError, ImageError
from groundglass.imaging.source import files_below


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of no content, some hidden, in two levels."""
    folder = tmp_path / "tree"
    for number in range(150):
        path = folder / ("a" if number % 3 else "b") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    for name in ("a.png", "notes.txt", ".hidden", "ä\udcff.png"):
        (folder / name).touch()
    return folder


def files(found: Iterator[Step]) -> list[tuple[str, bool]]:
    return [(file, step.of_folder) for step in found if isinstance(step, Unit) for file in step.files]


def test_a_folder_is_cut_into_units_that_hold_all_its_files_in_order(tree: Path) -> None:
    listed = list(steps([tree]))
    expected = [(source.name, True) for source in files_below(tree)]
    assert len(expected) == 153
    assert files(iter(listed)) == expected
    units = [step for step in listed if isinstance(step, Unit)]
    assert [len(unit.files) for unit in units] == [LARGEST, LARGEST, 153 - 2 * LARGEST]
    assert listed[-1] == FolderEnd(str(tree), skipped=False)


def test_nothing_is_listed_before_it_is_asked_for(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(Path(path)) or scandir(path))
    first = next(steps([tree / "b", tree / "a"]))
    assert isinstance(first, Unit)
    assert opened == [tree / "b"]


def test_files_that_were_named_are_told_from_those_of_a_folder(tree: Path) -> None:
    named = tree / "notes.txt"
    listed = list(steps([named, named, tree / "b", named]))
    assert [(len(step.files), step.of_folder) for step in listed if isinstance(step, Unit)] == [
        (2, False),
        (50, True),
        (1, False),
    ]
    assert [type(step) for step in listed] == [Unit, Unit, FolderEnd, Unit]


def test_what_may_hold_a_series_is_a_unit_by_itself(tmp_path: Path) -> None:
    names = ("1.png", "2.png", "study.ZIP", "3.png", "volume.nii.gz")
    units = list(steps([tmp_path / name for name in names]))
    assert [len(unit.files) for unit in units if isinstance(unit, Unit)] == [3, 2]


def test_what_is_skipped_is_left_out_but_keeps_its_folder_from_being_empty(tree: Path) -> None:
    listed = list(steps([tree / "b", tree / "a.png"], lambda name: not name.endswith("/3.png")))
    assert files(iter(listed)) == [(str(tree / "b" / "3.png"), True)]
    assert listed[-1] == FolderEnd(str(tree / "b"), skipped=True)


def test_an_empty_folder_ends_as_it_began(tmp_path: Path) -> None:
    assert list(steps([tmp_path])) == [FolderEnd(str(tmp_path), skipped=False)]


def test_a_folder_that_cannot_be_listed_is_told_where_it_stands(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "a":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listed = list(steps([tree]))
    errors = [step for step in listed if isinstance(step, ImageError)]
    assert [(error.path, error.reason) for error in errors] == [
        (str(tree / "a"), "cannot be looked into: Permission denied")
    ]
    assert len(files(iter(listed))) == 53, "the rest is there"


def test_a_manifest_stands_for_the_files_it_names(tree: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"path,label\ntree/a.png,COVID\n{tree}/gone.png,\nstudy.zip!1.png,NonCOVID\n")
    assert files(steps([manifest])) == [
        (str(tmp_path / "tree/a.png"), False),
        (f"{tree}/gone.png", False),
        (str(tmp_path / "study.zip!1.png"), False),
    ]
    assert files(steps([manifest], lambda name: name.endswith("gone.png")))[1][0].endswith("1.png")


@pytest.mark.parametrize(
    ("content", "match"),
    [("", "first line"), ("file\nx.png\n", "first line"), ("path\n", "no rows"), ("path\n\xff", "UTF-8")],
)
def test_a_damaged_manifest_is_an_error(tmp_path: Path, content: str, match: str) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=match):
        list(steps([manifest]))


def test_a_manifest_of_any_length_is_read_line_by_line(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    with manifest.open("w") as stream:
        stream.write("path\n")
        stream.writelines(f"{number}.png\n" for number in range(100_000))
        stream.write(",broken\n")
    assert len(list(islice(steps([manifest]), 100))) == 100, "the last line has not been looked at"
    with pytest.raises(DataError, match="line 100002"):
        list(steps([manifest]))
