"""Pieces of work: complete, and in the order in which one process reads."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.imaging.conftest import write_ct

from groundglass.cluster.ray import LARGEST, Unit, steps
from groundglass.errors import DataError, ImageError
from groundglass.imaging.read import read_slices


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Pictures in two levels, and files that are none."""
    folder = tmp_path / "tree"
    (folder / "a").mkdir(parents=True)
    (folder / "b").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "a.png")
    for number in range(150):
        os.link(folder / "a.png", folder / ("a" if number % 3 else "b") / f"{number}.png")
    for name in ("notes.txt", ".hidden.png"):
        (folder / name).write_text("no image")
    return folder


def files(found: Iterable[Unit | ImageError]) -> list[str]:
    return [file for step in found if isinstance(step, tuple) for file in step]


def test_units_are_what_one_process_reads_in_its_order(tmp_path: Path, tree: Path) -> None:
    for index, height in enumerate((3, 1, 2)):
        place = {"ImageOrientationPatient": [1, 0, 0, 0, 1, 0], "ImagePositionPatient": [0, 0, height]}
        write_ct(tree / "a" / f"{index}.dcm", np.zeros((8, 8), np.int16), **place)
    (tree / "a" / "broken.png").write_text("no image")
    for name, member in (("study.zip", "1.png"), ("texts.zip", "notes.txt")):
        with zipfile.ZipFile(tree / "b" / name, "w") as archive:
            archive.write(tree / "a.png", member)
    (tree / "empty").mkdir()
    paths = [tree / "b" / "0.png", tree, tree / "empty", tree / "notes.txt"]

    def read(*paths: Path | str) -> list[str]:
        found: list[str] = []
        errors: list[ImageError] = []
        for path in paths:
            for image in chain(read_slices(path, on_error=errors.append), [None]):
                found += map(str, errors)
                errors.clear()
                found += [] if image is None else [image.origin.file]
        return found

    cut: list[str] = []
    for step in steps(paths):
        cut += [str(step)] if isinstance(step, ImageError) else read(*step)
    assert cut == read(*paths)
    assert len(cut) == 160


def test_units_are_small_and_what_may_hold_a_series_is_one_by_itself(tree: Path) -> None:
    assert [len(unit) for unit in steps([tree]) if isinstance(unit, tuple)] == [LARGEST, LARGEST, 23]
    names = ("1.png", "2.png", "study.ZIP", "3.png", "volume.nii.gz")
    assert [len(unit) for unit in steps([tree / name for name in names]) if isinstance(unit, tuple)] == [
        3,
        2,
    ]


def test_nothing_is_listed_before_it_is_asked_for(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: opened.append(Path(path)) or scandir(path))
    assert isinstance(next(steps([tree / "a", tree / "b"])), tuple)
    assert opened == [tree / "a"]


def test_what_is_skipped_is_left_out_but_keeps_its_folder_from_being_empty(tree: Path) -> None:
    listed = list(steps([tree / "b", tree / "a.png"], lambda name: not name.endswith("/3.png")))
    assert listed == [(str(tree / "b" / "3.png"),)]
    assert list(steps([tree / "b"], lambda _: True)) == []


def test_a_manifest_stands_for_the_files_it_names(tree: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    manifest.write_text(f"path,label\ntree/a.png,COVID\n{tree}/gone.png,\nstudy.zip!1.png,NonCOVID\n")
    named = [str(tmp_path / "tree/a.png"), f"{tree}/gone.png", str(tmp_path / "study.zip!1.png")]
    assert files(steps([manifest])) == named
    assert files(steps([manifest], lambda name: name.endswith("gone.png"))) == [named[0], named[2]]


def test_a_manifest_of_any_length_is_read_line_by_line(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.csv"
    with manifest.open("w") as stream:
        stream.write("path\n")
        stream.writelines(f"{number}.png\n" for number in range(100_000))
        stream.write(",broken\n")
    assert len(list(islice(steps([manifest]), 100))) == 100, "the last line has not been read"
    with pytest.raises(DataError, match="line 100002"):
        list(steps([manifest]))
